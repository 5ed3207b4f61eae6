"""PNG files: image grids, and folders with one file per image that appear when complete."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comparison.cli import UserError
from comparison.files import atomic, digest, named_when_full, write_text
from comparison.progress import bar

CHUNK = 256  # images in memory at a time
KEY_FILE = ".key.json"  # identifies the images of a partial folder


def write_png_folder(
    folder: Path,
    images: Iterable[Any],
    names: Sequence[str],
    decode: Callable[[Any], np.ndarray] = np.asarray,
    *,
    key: Mapping[str, Any],
) -> None:
    """Write images as PNG files into `<folder>.partial`, which is renamed to `folder` after the last one.

    Shows a progress bar. After an interruption, a call with the same key and names resumes.

    Args:
        folder: missing or empty folder.
        images: N images, (H, W, 3) uint8 or inputs of `decode`, read a few at a time.
        names: N file names that end in .png.
        decode: returns the image of an input; called for missing files only.
        key: JSON values that identify the images.

    Raises:
        UserError: the folder is not empty or cannot be written, or the partial one belongs to other images.
    """
    partial = folder.with_name(f"{folder.name}.partial")

    def write(image: Any, name: str) -> None:
        path = partial / name
        if not path.exists():
            with atomic(path) as temporary:
                Image.fromarray(decode(image)).save(temporary, format="PNG")

    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and is not an empty folder")
        partial.mkdir(parents=True, exist_ok=True)
        _claim(partial, names, key)
        pairs = zip(images, names, strict=True)
        with (
            bar(len(names), 0, folder.name, "images") as progress,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            while chunk := list(islice(pairs, CHUNK)):
                for _ in pool.map(write, *zip(*chunk, strict=True)):
                    progress.update()
        os.replace(partial, folder)
        (folder / KEY_FILE).unlink()
    except OSError as error:
        raise UserError(f"{folder}: not written ({error})") from None


def _claim(partial: Path, names: Sequence[str], key: Mapping[str, Any]) -> None:
    """Write the key into the partial folder; raise FileExistsError if the folder holds files of other images."""
    note = json.dumps({**key, "images": len(names), "names": digest("\0".join(names))}, sort_keys=True)
    path = partial / KEY_FILE
    same = path.is_file() and path.read_text(encoding="utf-8", errors="replace") == note
    written = {KEY_FILE, *(names if same else ())}
    for hidden in partial.glob(".*.png") if same else ():  # temporary files of a killed call
        hidden.unlink()
    foreign = next((file.name for file in sorted(partial.iterdir()) if file.name not in written), None)
    if foreign:
        origin = "is no part of these images" if same else "is of other images"
        raise FileExistsError(f"{partial}: {foreign} {origin}; remove that folder, or name another one to write")
    write_text(path, note)


def write_pngs(npz: Path, folder: Path, digits: int) -> None:
    """Write the images of an .npz as <number>.png, zero-padded to `digits`; all appear when the last is written."""
    part = folder / ".part"
    part.mkdir(parents=True, exist_ok=True)
    for path in part.glob("*.png"):  # of an interrupted call, perhaps of more images
        path.unlink()
    with np.load(npz) as archive:
        images = archive["arr_0"]
    try:
        with named_when_full(folder), bar(len(images), 0, "write PNGs", "images") as progress:
            for number, image in enumerate(images):
                Image.fromarray(image).save(part / f"{number:0{digits}d}.png")
                progress.update()
    except UserError:
        shutil.rmtree(part)
        raise
    for path in part.iterdir():
        os.replace(path, folder / path.name)
    part.rmdir()


def grid(images: Any, columns: int = 8, padding: int = 2) -> np.ndarray:
    """Return (N, 3, S, S) uint8 images as one (H, W, 3) uint8 image, row by row, on white."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + padding) + padding, columns * (width + padding) + padding, 3), 255, np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = padding + (i // columns) * (height + padding), padding + (i % columns) * (width + padding)
        canvas[top : top + height, left : left + width] = image
    return canvas


def cut(picture: np.ndarray, columns: int = 8, padding: int = 2) -> np.ndarray:
    """Return the (N, S, S, 3) uint8 images of a `grid` of square images; none for a picture of another layout."""
    high, wide = picture.shape[0] - padding, picture.shape[1] - padding
    step = wide // columns
    size = step - padding
    if size < 1 or wide % columns or high % step:
        return np.empty((0, 1, 1, 3), np.uint8)
    places = [
        (row * step + padding, column * step + padding) for row in range(high // step) for column in range(columns)
    ]
    images = [picture[y : y + size, x : x + size] for y, x in places]
    while len(images) > 1 and (images[-1] == 255).all():  # the last row need not be full
        images.pop()
    return np.stack(images)


def save_grid(images: Any, path: Path, columns: int = 8, padding: int = 2) -> None:
    """Write the `grid` of (N, 3, S, S) uint8 images as a PNG."""
    with atomic(path) as temporary:
        Image.fromarray(grid(images, columns, padding)).save(temporary)
