"""Pictures in LMDB databases, as LSUN and NVAE's CelebA-HQ come, decoded one by one like files."""

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

ENCODED = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")  # how PNG, JPEG and WebP begin

_opened: dict[Path, tuple[int, Any]] = {}
_lock = threading.Lock()


class DatabaseSet(FileSet):
    """A data set in an LMDB database, in the order of its keys.

    Its values are pictures in any format that Pillow reads, or the bytes of square RGB pictures (as NVAE prepares
    them). Each process opens the database for itself. No list of its keys is kept on disk.

    Args:
        path: folder of the database, which holds data.mdb.
        image_size: S, pixels.
        limit: keep only so many pictures, evenly spread over those of `first`.
        name: for titles and folders.
        first: leave out all but so many pictures at the beginning.

    Attributes:
        see `FileSet`; there are no labels, and the names are the keys.

    Raises:
        UserError: the package lmdb is missing, or the database is damaged, truncated or empty.
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
        """Decode a picture to (3, S, S) uint8.

        Raises:
            UserError: not readable as an image; names database and key.
        """
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
        """Yield what the decoded pictures depend on."""
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
                sizes.append(len(value))  # of a view: no picture is read
    except lmdb.Error as error:
        raise UserError(f"{path}: damaged ({error})") from None
    return keys, sizes


def shared_database(path: Path) -> Any:
    """Return this process's handle of a database; one that came from the process before a fork is closed first."""
    path = path.resolve()  # LMDB refuses to open a database twice
    with _lock:
        process, database = _opened.get(path, (0, None))
        if process != os.getpid():
            if database is not None:
                database.close()
            _opened[path] = os.getpid(), (database := open_database(path))
    return database


def open_database(path: Path) -> Any:
    """Open an LMDB database to read, in the folder `path`.

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
    if needed > (size := (path / "data.mdb").stat().st_size):  # the system would kill the reader
        database.close()
        raise UserError(f"{path}: data.mdb is truncated, {size} bytes of {needed}; download or unpack it again")
    return database
