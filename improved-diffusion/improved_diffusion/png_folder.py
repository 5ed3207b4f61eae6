"""Folders of PNG files that exist only when they are complete."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
            temporary = partial / f".{name}"
            Image.fromarray(decode(image)).save(temporary, format="PNG")
            os.replace(temporary, path)
        return name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = zip(images, names, strict=True)
        while chunk := list(islice(pairs, CHUNK)):
            yield from pool.map(write, *zip(*chunk, strict=True))
    os.replace(partial, folder)
    (folder / KEY_FILE).unlink()


def _claim(partial: Path, names: Sequence[str], key: Mapping[str, Any]) -> None:
    """Note in the partial folder whose it is, or find that it is this call's."""
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
    note = json.dumps({**key, "images": len(names), "names": digest[:16]}, sort_keys=True)
    path, temporary = partial / KEY_FILE, partial / f".{KEY_FILE}"
    there = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    written = {KEY_FILE, temporary.name} | ({*names, *(f".{name}" for name in names)} if there == note else set())
    foreign = next((found.name for found in sorted(partial.iterdir()) if found.name not in written), None)
    if foreign:
        whose = "is no part of these images" if there == note else "is of other images"
        raise FileExistsError(f"{partial}: {foreign} {whose}; remove that folder, or name another one to write")
    temporary.write_text(note, encoding="utf-8")
    os.replace(temporary, path)
