"""Folders of PNG files that exist only when they are complete."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image


def write_png_folder(folder: Path, images: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """Write images as PNG files; the folder appears under its name only when the last one is written.

    Until then they lie in `<folder>.partial`, where a later call continues.

    Args:
        folder: must be absent or empty.
        images: (N, H, W, 3) uint8.
        names: N file names that end in .png.

    Yields:
        Each file's name once it is there.

    Raises:
        FileExistsError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)

    def write(image: np.ndarray, name: str) -> str:
        path = partial / name
        if not path.exists():
            temporary = partial / f".{name}"
            Image.fromarray(image).save(temporary, format="PNG")
            os.replace(temporary, path)
        return name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(write, images, names)
    wanted = set(names)
    for path in partial.iterdir():
        if path.name not in wanted:  # of an earlier call with other images
            path.unlink()
    os.replace(partial, folder)
