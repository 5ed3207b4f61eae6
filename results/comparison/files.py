"""Files: written whole or not at all, JSON that is read as an object, and hashes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison.cli import UserError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its name when the block ends; after an error neither is left.

    The temporary name is hidden and keeps the suffix, which tells libraries the format. `Run.start` removes those that
    a killed process left.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(*parts: str | bytes | Path | Any, digits: int = 16) -> str:
    """Return the first digits, hexadecimal, of the SHA-256 of all parts, one after the other.

    Args:
        parts: text (as UTF-8), bytes, the path of a file for its content, or what has a buffer: a contiguous array.
        digits: how many.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as file:
                while piece := file.read(1 << 20):
                    found.update(piece)
        else:
            found.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return found.hexdigest()[:digits]


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
        UserError: missing, damaged, or something else.
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


def agrees(path: Path, wanted: dict[str, Any]) -> bool:
    """Tell whether a JSON file is there and says all that is wanted."""
    if not path.is_file():
        return False
    there = read_json(path)
    return all(there.get(name) == value for name, value in json.loads(json.dumps(wanted, default=str)).items())
