"""Files: atomic writes, hashes, JSON objects, pickles without code."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison.cli import UserError

HOST = re.sub(r"\W", "", platform.node())[:32] or "host"
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # errors of a full disk, a file-size limit and a quota


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when the block ends, and deleted after an error.

    The temporary name is hidden and keeps the suffix, from which libraries infer the format. `remove_stale` deletes
    the temporary files of killed processes.

    Raises:
        UserError: the disk is full; an earlier file stays.
    """
    temporary = path.with_name(f".{path.stem}.{HOST}-{os.getpid()}{path.suffix}")
    try:
        with named_when_full(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Delete the temporary files of `atomic` in a folder that processes of this machine left when they were killed."""
    for path in folder.glob(".*"):
        match = re.fullmatch(rf"\..*\.{HOST}-(\d{{1,9}})(\.[a-z]+)?", path.name)
        if match and path.is_file() and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return pid != os.getpid()


@contextlib.contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """Turn an error of a full disk in the block into a UserError that names the file and what is free.

    Other errors of files name `path` too, not the temporary file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            error.filename = str(path)
            raise
        raise UserError(
            f"{path}: could not be written ({error.strerror}; {_size(free_bytes(path))} are free)"
        ) from None


def check_space(path: Path, needed: int) -> None:
    """Raise UserError unless the disk of a file, which need not exist, has room for `needed` bytes more."""
    if needed > (free := free_bytes(path)):
        raise UserError(f"{path}: needs {_size(needed)} on the disk, of which {_size(free)} are free")


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk on which a file is, or would be written."""
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(folder).free


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**29 else f"{count / 2**20:,.1f} MiB"


def digest(*parts: str | bytes | Path | Any, digits: int = 16) -> str:
    """Return the first hexadecimal digits of the SHA-256 of all parts, concatenated.

    Args:
        parts: text (hashed as UTF-8), bytes, contiguous arrays, or paths of files whose content is hashed.
        digits: number of digits.
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as file:
                while piece := file.read(1 << 20):
                    total.update(piece)
        else:
            total.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return total.hexdigest()[:digits]


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, indented, with a newline at the end."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # paths need not be text


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def json_matches(path: Path, wanted: dict[str, Any]) -> bool:
    """Return True if a JSON file exists and holds all wanted entries."""
    if not path.is_file():
        return False
    saved = read_json(path)
    return all(saved.get(name) == value for name, value in json.loads(json.dumps(wanted, default=str)).items())


class ArraysOnly(pickle.Unpickler):
    """Loads NumPy arrays and plain types only, so that no code in the file is run."""

    _PARTS = {  # noqa: RUF012
        "numpy": ("ndarray", "dtype"),
        "multiarray": ("_reconstruct", "scalar"),
        "numeric": ("_frombuffer",),
        "_codecs": ("encode",),
    }

    def find_class(self, module: str, name: str) -> object:
        part = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if name not in self._PARTS.get(part, ()):
            raise pickle.UnpicklingError(f"refused: {module}.{name}")
        return super().find_class(module, name)
