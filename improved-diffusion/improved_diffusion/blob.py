"""Files by path, here or in cloud storage: gs://, az:// and Azure's https:// by way of the package blobfile.

Local files need the standard library only; blobfile is imported where a remote path is used. Paths are strings;
a file that is written appears under its name when it is whole, remotely too.
"""

import os
import posixpath
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO, Any

SCHEMES = ("gs://", "az://", "https://")
MODES = ("r", "rb", "w", "wb", "a", "ab")
AZURE_HOST = ".blob.core.windows.net"
RETRIES = 8  # of a request, over about ten seconds

Stat = tuple[int, int]  # bytes, nanoseconds


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path begins with gs://, az:// or https://."""
    return os.fspath(path).startswith(SCHEMES)


@contextmanager
def open_file(path: str | os.PathLike[str], mode: str = "r") -> Iterator[IO[Any]]:
    """Open a file within a `with` statement; text is UTF-8.

    A file opened with `w` or `wb` appears under its name at the end of the `with` block, and not at all after an
    exception in it: the former file stays. A remote file is downloaded to read or to append, and uploaded whole.

    Args:
        path: local, or remote by its scheme.
        mode: one of `MODES`.

    Raises:
        ValueError: another mode, or an https:// path that is not Azure's.
        ImportError: a remote path without the package blobfile.
        OSError: the file cannot be read or written; FileNotFoundError where there is none.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    path = os.fspath(path)
    if is_remote(path):
        with _open_remote(path, mode) as file:
            yield file
    elif mode.startswith("w"):
        temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
        try:
            with _open_local(temporary, mode) as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            remove(temporary)
            raise
    else:
        with _open_local(path, mode) as file:
            yield file


@contextmanager
def _open_remote(path: str, mode: str) -> Iterator[IO[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "file")
        if mode.startswith("r") or (mode.startswith("a") and exists(path)):
            copy(path, local)
        with _open_local(local, mode) as file:
            yield file
        if not mode.startswith("r"):
            copy(local, path)


def _open_local(path: str, mode: str) -> IO[Any]:
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


def copy(source: str, target: str) -> None:
    """Copy a file, whole or not at all, over what is there; folders of a local target are made.

    Raises:
        OSError, ImportError: as in `open_file`.
    """
    remote = next((path for path in (source, target) if is_remote(path)), None)
    if not is_remote(target):
        make_dirs(dirname(target) or ".")
    if remote is None:
        with open_file(source, "rb") as file, open_file(target, "wb") as out:
            shutil.copyfileobj(file, out)
    elif is_remote(target):
        with _remote(remote) as bf:
            bf.copy(source, target, overwrite=True)
    else:
        temporary = join(dirname(target), f".{basename(target)}.{os.getpid()}")
        try:
            with _remote(remote) as bf:
                bf.copy(source, temporary, overwrite=True)
            os.replace(temporary, target)
        finally:
            remove(temporary)


def exists(path: str) -> bool:
    """Tell whether a file or folder is there."""
    if not is_remote(path):
        return os.path.exists(path)
    with _remote(path) as bf:
        return bf.exists(path)


def isdir(path: str) -> bool:
    """Tell whether a path is a folder; a remote one is when something lies below it."""
    if not is_remote(path):
        return os.path.isdir(path)
    with _remote(path) as bf:
        return bf.isdir(path)


def stat(path: str) -> Stat:
    """Return a file's size in bytes and its time of change in nanoseconds.

    Raises:
        OSError: no such file.
    """
    if not is_remote(path):
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    with _remote(path) as bf:
        return _plain(bf.stat(path))


def list_folder(path: str) -> list[str]:
    """Return the names of the files and folders in a folder, sorted.

    Raises:
        OSError: no such folder.
    """
    if not is_remote(path):
        return sorted(os.listdir(path))
    with _remote(path) as bf:
        return sorted(name.rstrip("/") for name in bf.listdir(path))


def find_files(path: str) -> dict[str, Stat]:
    """Find all files below a folder as `list_files` does.

    Returns:
        The paths, sorted, each with its size in bytes and its time of change in nanoseconds.

    Raises:
        OSError: no such folder.
    """
    found: dict[str, Stat] = {}
    for name, listed in sorted(_walk(path)):
        with suppress(FileNotFoundError):  # deleted since it was listed
            found[name] = listed or stat(name)
    return found


def list_files(path: str) -> list[str]:
    """Return the paths of all files below a folder, at any depth, sorted.

    Hidden files and folders, and links to what is not there, are left out.

    Raises:
        OSError: no such folder.
    """
    return sorted(name for name, _ in _walk(path))


def _walk(path: str) -> Iterator[tuple[str, Stat | None]]:
    """Yield the path of each file below a folder; a remote one's with its `stat`, which listing has brought."""
    folders = [path]
    while folders:
        folder = folders.pop()
        for name, is_dir, listed in _scan(folder):
            if name.startswith("."):
                continue
            if is_dir:
                folders.append(join(folder, name))
            else:
                yield join(folder, name), listed


def _scan(folder: str) -> list[tuple[str, bool, Stat | None]]:
    """Return of each file or folder in a folder its name, whether it is a folder, and a remote file's `stat`."""
    if is_remote(folder):
        with _remote(folder) as bf:
            entries = [entry for entry in bf.scandir(folder) if entry.name]
            return [(e.name.rstrip("/"), e.is_dir, None if e.is_dir else _plain(e.stat)) for e in entries]
    with os.scandir(folder) as local:
        return [(entry.name, entry.is_dir(), None) for entry in local if entry.is_dir() or entry.is_file()]


def _plain(found: Any) -> Stat:
    return found.size, round(found.mtime * 1e9)


def remove(path: str) -> None:
    """Delete a file; nothing happens where there is none."""
    with suppress(FileNotFoundError):
        if is_remote(path):
            with _remote(path) as bf:
                bf.remove(path)
        else:
            os.unlink(path)


def make_dirs(path: str) -> None:
    """Make a folder and those above it where they are not there; cloud storage needs none."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def join(path: str, *parts: str) -> str:
    """Join parts to a path."""
    return posixpath.join(path, *parts) if is_remote(path) else os.path.join(path, *parts)


def dirname(path: str) -> str:
    """Return a path without its last part."""
    return posixpath.dirname(path) if is_remote(path) else os.path.dirname(path)


def basename(path: str) -> str:
    """Return a path's last part."""
    return posixpath.basename(path) if is_remote(path) else os.path.basename(path)


@contextmanager
def _remote(path: str) -> Iterator[Any]:
    """Hand out blobfile's functions; its errors become OSErrors that name the path."""
    host = path.removeprefix("https://").split("/")[0]
    if path.startswith("https://") and not host.endswith(AZURE_HOST):
        raise ValueError(f"{path}: of https:// paths only those of Azure, https://<account>{AZURE_HOST}/, are read")
    try:
        import blobfile
    except ImportError:
        raise ImportError(f"{path}: a remote path needs the package blobfile (pip install blobfile)") from None
    try:
        yield _context()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file or folder") from None
    except blobfile.Error as error:
        raise OSError(f"{path}: {' '.join(error.message.split())}") from None


@cache
def _context() -> Any:
    """Return blobfile's functions with an end to their retries: without a network they would wait for ever."""
    import blobfile

    def tell(message: str) -> None:
        print(f"blobfile: {message[:200]}", file=sys.stderr, flush=True)

    return blobfile.create_context(retry_limit=RETRIES, log_callback=tell)
