"""Files by path: local ones by the standard library; gs://, az:// and Azure's https:// by the package blobfile."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from types import SimpleNamespace
from typing import IO, Any

SCHEMES = ("gs://", "az://", "https://")
LOCAL = SimpleNamespace(
    exists=os.path.exists,
    isdir=os.path.isdir,
    listdir=os.listdir,
    makedirs=partial(os.makedirs, exist_ok=True),
    walk=partial(os.walk, followlinks=True),
)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return True if a path begins with one of `SCHEMES`."""
    return os.fspath(path).startswith(SCHEMES)


def backend(path: str | os.PathLike[str]) -> Any:
    """Return exists, isdir, listdir, makedirs and walk for a path: those of blobfile, or of `LOCAL`."""
    return _blobfile() if is_remote(path) else LOCAL


@cache
def _blobfile() -> Any:
    try:
        import blobfile
    except ImportError:
        raise ImportError("a remote path needs the package blobfile (pip install blobfile)") from None
    return blobfile.create_context(retry_limit=8)  # without a network it would retry for ever


@contextmanager
def open_file(path: str | os.PathLike[str], mode: str = "r") -> Iterator[IO[Any]]:
    """Open a local or remote file; what is written replaces it whole at the end of the block, or not at all."""
    path, encoding = os.fspath(path), None if "b" in mode else "utf-8"
    if not mode.startswith("w"):
        with backend(path).BlobFile(path, mode) if is_remote(path) else open(path, mode, encoding=encoding) as file:
            yield file
        return
    folder = tempfile.gettempdir() if is_remote(path) else os.path.dirname(path)
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{os.getpid()}")
    try:
        with open(temporary, mode, encoding=encoding) as file:
            yield file
        if is_remote(path):
            backend(path).copy(temporary, path, overwrite=True)
        else:
            os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
