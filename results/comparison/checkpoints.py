"""Checkpoint files of plain types and tensors, written atomically and numbered in their names."""

import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison.cli import UserError
from comparison.files import atomic, check_space
from comparison.runs import read_config, read_progress
from comparison.weights import is_weights, load_weights

UNREADABLE = (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError)  # raised by zipfile


def save_checkpoint(path: Path, payload: dict[str, Any], *, model: str) -> None:
    """Write a checkpoint atomically.

    Args:
        path: file to write.
        payload: plain types and tensors, which load with weights_only=True.
        model: model family, which `load_checkpoint` checks.

    Raises:
        UserError: the file could not be written; an earlier file stays.
    """
    save_torch(path, {**payload, "model": model})


def save_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of plain types and tensors atomically; raises as `save_checkpoint`."""
    import torch

    check_space(path, sum(t.numel() * t.element_size() for t in tensors(content)))
    try:
        with atomic(path) as temporary:
            torch.save(content, temporary)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from None
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's file writer, which gives no reason
            raise
        raise UserError(f"{path}: could not be written whole, perhaps for lack of space on the disk") from None


def tensors(content: Any) -> Iterator[Any]:
    """Yield the tensors in nested dictionaries and lists."""
    if isinstance(content, Mapping | list | tuple):
        for part in content.values() if isinstance(content, Mapping) else content:
            yield from tensors(part)
    elif hasattr(content, "element_size"):
        yield content


def load_torch(path: Path) -> Any:
    """Load a file of plain types and tensors to the CPU.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if is_weights(path):
        return load_weights(path)
    if record := damaged_record(path):
        raise UserError(f"{path}: damaged; the check sum of {record} is wrong")
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch on pickles, before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each raise their own on a damaged file
        if "Weights only load failed" in str(error):
            raise UserError(f"{path}: not a checkpoint of plain types and tensors") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not readable as a checkpoint, perhaps truncated ({reason})") from None


def damaged_record(path: Path) -> str | None:
    """Return the name of the first record of a .pt file whose check sum (CRC-32) is wrong, which torch.load ignores.

    None for a whole file, for one of torch before 1.6, which has no check sums, and for a truncated one, which
    torch.load refuses.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except UNREADABLE:
        return None


def newest_whole(candidates: Iterable[Sequence[Path]], first: bool = True) -> Path | None:
    """Return the first file of the first candidate whose files are all whole; None without candidates.

    Files of skipped candidates get the suffix .damaged, so that they are not found again, and a line on stderr.

    Args:
        candidates: the files of each saved step, the newest step first.
        first: False on the ranks that leave this to another one.

    Raises:
        UserError: every candidate has a damaged file.
    """
    skipped: list[Path] = []
    damaged: list[Path] = []
    for files in candidates:
        broken = [path for path in files if not _is_whole(path)]
        if not broken:
            if damaged and first:
                names = ", ".join(str(path) for path in damaged)
                print(f"damaged: {names}; going on from {files[0].name}", file=sys.stderr, flush=True)
                for path in filter(Path.is_file, skipped):
                    path.replace(path.with_name(f"{path.name}.damaged"))
            return files[0]
        damaged, skipped = damaged + broken, [*skipped, *files]
    if damaged:
        raise UserError(f"{damaged[0]}: damaged, as is every older checkpoint; --fresh starts over")
    return None


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except UNREADABLE:
        return False


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Return the files in `folder` that match `pattern`, by the last number in their names, the highest first."""

    def number(path: Path) -> tuple[int, str]:
        return int((re.findall(r"\d+", path.stem) or ["-1"])[-1]), path.name

    return sorted(folder.glob(pattern), key=number, reverse=True)


def load_checkpoint(path: Path, *, model: str) -> dict[str, Any]:
    """Load a checkpoint that `save_checkpoint` wrote.

    Raises:
        UserError: the file is missing, truncated or of another model.
    """
    payload = load_torch(path)
    saved = payload.get("model") if isinstance(payload, dict) else None
    if saved != model:
        origin = f"of {saved}" if isinstance(saved, str) else "without a model name"
        raise UserError(f"{path}: a checkpoint {origin}, not of {model}")
    return payload


def newest(folder: Path, pattern: str) -> Path | None:
    """Return the first file of `numbered`, or None."""
    return next(iter(numbered(folder, pattern)), None)


def trained_facts(
    folder: Path, step: int | None, images_seen: int | None = None, wall_seconds: float | None = None
) -> dict[str, Any]:
    """Return step, images_seen and wall_seconds of a checkpoint for sampling.json, None if unknown.

    A distilled network also has `teacher`, the same facts of the network that it was distilled from.

    Args:
        folder: run folder, whose config.json and progress.csv give what the checkpoint lacks.
        step: updates, None if unknown.
        images_seen, wall_seconds: values in the checkpoint, None if missing.
    """
    config, progress = folder / "config.json", folder / "progress.csv"
    content = read_config(config) if config.is_file() else {}
    finished = content.get("finished", {})
    rows = [{**finished, "step": finished.get("steps")}, *(read_progress(progress) if progress.is_file() else [])]
    at_step = next((row for row in rows if step is not None and row["step"] == step), {})
    images_seen = at_step.get("images_seen") if images_seen is None else images_seen
    wall_seconds = at_step.get("wall_seconds") if wall_seconds is None else wall_seconds
    if not all(isinstance(value, int | float | None) for value in (step, images_seen, wall_seconds)):
        raise UserError(f"{folder}: a damaged checkpoint, of step {step!r} and {images_seen!r} images")
    facts = {
        "step": step,
        "images_seen": None if images_seen is None else int(images_seen),
        "wall_seconds": None if wall_seconds is None else round(wall_seconds, 3),
    }
    if teacher := content.get("options", {}).get("teacher"):
        facts["teacher"] = {name: teacher.get(name) for name in facts}
    return facts
