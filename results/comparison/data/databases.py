"""Images in LMDB databases, the format of LSUN and NVAE's CelebA-HQ, decoded one by one."""

import io
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comparison.cli import UserError
from comparison.data.folders import FileSet, Names, decode, fit

ENCODED = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")  # first bytes of PNG, JPEG and WebP

_opened: dict[Path, tuple[int, Any]] = {}
_lock = threading.Lock()


class DatabaseSet(FileSet):
    """A data set in an LMDB database, in the order of its keys, without labels; attributes as in `FileSet`.

    The values are images in any format that Pillow reads, or the bytes of square RGB images (as NVAE prepares them).

    Args:
        path: folder of the database, which holds data.mdb.
        image_size: S, pixels.
        limit: number of images to keep, evenly spread over the `first` ones.
        name: short name for titles and folders.
        first: number of images at the beginning to use, None for all.

    Raises:
        UserError: the database is damaged, truncated or empty.
    """

    def __init__(self, path: Path, image_size: int, limit: int | None = None, *, name: str, first: int | None = None):
        self.path, self.image_size, self.name = path.absolute(), image_size, name
        self.labels, self.class_names = None, ()
        keys, sizes = _keys_and_sizes(self.path, first)
        if not keys:
            raise UserError(f"{path}: the database is empty")
        if limit is not None and limit < len(keys):
            chosen = np.linspace(0, len(keys) - 1, limit).round().astype(int)
            keys, sizes = [keys[i] for i in chosen], [sizes[i] for i in chosen]
        self.names = Names(keys)
        self._lengths = np.array(sizes)

    def pixels(self, number: int) -> np.ndarray:
        """Decode an image to (3, S, S) uint8; raise UserError with its key if it is not readable."""
        key = self.names[number]
        with shared_database(self.path).begin() as transaction:
            value = transaction.get(key.encode("latin-1"))
        if value is None:
            raise UserError(f"{self.path}: {key} is no longer there")
        side = math.isqrt(len(value) // 3)
        if 3 * side**2 == len(value) and side and not value.startswith(ENCODED):
            picture = fit(Image.frombytes("RGB", (side, side), value), self.image_size)
        else:
            picture = decode(io.BytesIO(value), self.image_size, f"{self.path}: {key}")
        return picture.transpose(2, 0, 1)

    def stamps(self) -> Iterator[str]:
        """Yield a line that identifies the decoded images in the cache."""
        yield f"{self.fingerprint} {(self.path / 'data.mdb').stat().st_mtime_ns}"

    def _sizes(self) -> Iterator[int]:
        return iter(self._lengths.tolist())


def _keys_and_sizes(path: Path, first: int | None) -> tuple[list[str], list[int]]:
    import lmdb

    keys: list[str] = []
    sizes: list[int] = []
    try:
        with shared_database(path).begin(buffers=True) as transaction, transaction.cursor() as cursor:
            for key, value in cursor:
                if len(keys) == first:
                    break
                keys.append(bytes(key).decode("latin-1"))
                sizes.append(len(value))  # of a view: no image is read
    except lmdb.Error as error:
        raise UserError(f"{path}: damaged ({error})") from None
    return keys, sizes


def shared_database(path: Path) -> Any:
    """Return this process's handle of a database, after closing a handle from before a fork."""
    path = path.resolve()  # LMDB cannot open a database twice
    with _lock:
        process, database = _opened.get(path, (0, None))
        if process != os.getpid():
            if database is not None:
                database.close()
            _opened[path] = os.getpid(), (database := open_database(path))
    return database


def open_database(path: Path) -> Any:
    """Open the LMDB database in the folder `path` for reading.

    Raises:
        UserError: the package lmdb is missing, or the database is damaged or truncated.
    """
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{path}: an LMDB database; to read it: pip install lmdb") from None
    try:
        database = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        needed = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
    except lmdb.Error as error:
        raise UserError(f"{path}: not readable as an LMDB database ({error})") from None
    if needed > (size := (path / "data.mdb").stat().st_size):  # reading would kill the process
        database.close()
        raise UserError(f"{path}: data.mdb is truncated, {size} bytes of {needed}; download or unpack it again")
    return database
