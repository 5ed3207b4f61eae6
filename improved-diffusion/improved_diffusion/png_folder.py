"""Folders of PNG files that exist only when they are complete."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHUNK = 256  # images that are held at a time


def write_png_folder(
    folder: Path, images: Iterable[Any], names: Sequence[str], decode: Callable[[Any], np.ndarray] = np.asarray
) -> Iterator[str]:
    """Write images as PNG files; the folder appears under its name only when the last one is written.

    Until then they lie in `<folder>.partial`, where a later call continues.

    Args:
        folder: must be absent or empty.
        images: N of them, each (H, W, 3) uint8, or what `decode` turns into that; read a few at a time.
        names: N file names that end in .png.
        decode: called for the files that are not there yet.

    Yields:
        Each file's name once it is there.

    Raises:
        FileExistsError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)

    def write(image: Any, name: str) -> str:
        path = partial / name
        if not path.exists():
            temporary = partial / f".{name}"
            Image.fromarray(decode(image)).save(temporary, format="PNG")
            os.replace(temporary, path)
        return name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = zip(images, names, strict=True)
        while chunk := list(islice(pairs, CHUNK)):
            yield from pool.map(write, *zip(*chunk, strict=True))
    wanted = set(names)
    for path in partial.iterdir():
        if path.name not in wanted:  # of an earlier call with other images
            path.unlink()
    os.replace(partial, folder)
