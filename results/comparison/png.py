"""PNG files: grids of images, and folders with one file per image that appear only when they are complete."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comparison.files import atomic, digest, write_text
from comparison.progress import bar

CHUNK = 256  # images that are held at a time
KEY_FILE = ".key.json"  # in the partial folder: which images it is for


def write_png_folder(
    folder: Path,
    images: Iterable[Any],
    names: Sequence[str],
    decode: Callable[[Any], np.ndarray] = np.asarray,
    *,
    key: Mapping[str, Any],
) -> Iterator[str]:
    """Write images as PNG files; the folder appears under its name only when the last one is written.

    Until then they lie in `<folder>.partial`, where a later call with the same key and names continues.

    Args:
        folder: must be absent or empty.
        images: N of them, each (H, W, 3) uint8, or what `decode` turns into that; read a few at a time.
        names: N file names that end in .png.
        decode: called for the files that are not there yet.
        key: what tells these images from others, as JSON has it.

    Yields:
        Each file's name once it is there.

    Raises:
        FileExistsError: the folder holds something, or the partial one what is not of this call's images.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    _claim(partial, names, key)

    def write(image: Any, name: str) -> str:
        path = partial / name
        if not path.exists():
            with atomic(path) as temporary:
                Image.fromarray(decode(image)).save(temporary, format="PNG")
        return name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = zip(images, names, strict=True)
        while chunk := list(islice(pairs, CHUNK)):
            yield from pool.map(write, *zip(*chunk, strict=True))
    os.replace(partial, folder)
    (folder / KEY_FILE).unlink()


def _claim(partial: Path, names: Sequence[str], key: Mapping[str, Any]) -> None:
    """Note in the partial folder whose it is, or find that it is this call's."""
    note = json.dumps({**key, "images": len(names), "names": digest("\0".join(names))}, sort_keys=True)
    path = partial / KEY_FILE
    there = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    written = {KEY_FILE, *(names if there == note else ())}
    for hidden in partial.glob(".*.png") if there == note else ():  # of a call that was killed while it wrote
        hidden.unlink()
    foreign = next((found.name for found in sorted(partial.iterdir()) if found.name not in written), None)
    if foreign:
        whose = "is no part of these images" if there == note else "is of other images"
        raise FileExistsError(f"{partial}: {foreign} {whose}; remove that folder, or name another one to write")
    write_text(path, note)


def write_pngs(npz: Path, folder: Path, digits: int) -> None:
    """Write the images of an .npz as <number>.png, numbers of so many digits, beside what the folder holds.

    All appear under their names when the last one is written.
    """
    part = folder / ".part"
    part.mkdir(parents=True, exist_ok=True)
    for path in part.glob("*.png"):  # of a call that was cut short, perhaps of more images
        path.unlink()
    with np.load(npz) as archive:
        images = archive["arr_0"]
    with bar(len(images), 0, "write PNGs", "images") as progress:
        for number, image in enumerate(images):
            Image.fromarray(image).save(part / f"{number:0{digits}d}.png")
            progress.update()
    for path in part.iterdir():
        os.replace(path, folder / path.name)
    part.rmdir()


def grid(images: Any, columns: int = 8, padding: int = 2) -> np.ndarray:
    """Return a tensor of (N, 3, S, S) uint8 images as one picture, (H, W, 3) uint8, row by row, on white."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + padding) + padding, columns * (width + padding) + padding, 3), 255, np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = padding + (i // columns) * (height + padding), padding + (i % columns) * (width + padding)
        canvas[top : top + height, left : left + width] = image
    return canvas


def save_grid(images: Any, path: Path, columns: int = 8, padding: int = 2) -> None:
    """Write the `grid` of a tensor of (N, 3, S, S) uint8 images as a PNG."""
    with atomic(path) as temporary:
        Image.fromarray(grid(images, columns, padding)).save(temporary)
