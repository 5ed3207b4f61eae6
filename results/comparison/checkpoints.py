"""Checkpoint files: written whole, of plain types and tensors, found by the number in their name."""

import re
from pathlib import Path
from typing import Any

from comparison.cli import UserError
from comparison.files import atomic
from comparison.runs import read_config, read_progress


def save_checkpoint(path: Path, payload: dict[str, Any], *, model: str) -> None:
    """Write a checkpoint atomically.

    Args:
        path: of the file; it appears under this name only when whole.
        payload: plain types and tensors, so that it loads with weights_only=True.
        model: family name; `load_checkpoint` refuses another one.

    Raises:
        UserError: it could not be written; what was there before stays, and no temporary file.
    """
    import torch

    try:
        with atomic(path) as temporary:
            torch.save({**payload, "model": model}, temporary)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from None
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's writer of files, which does not say why it stopped
            raise
        raise UserError(f"{path}: could not be written whole, perhaps for lack of space on the disk") from None


def load_torch(path: Path) -> Any:
    """Load a file of plain types and tensors to the CPU.

    Raises:
        UserError: missing, truncated, or not such a file.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise each their own on a damaged file
        if "Weights only load failed" in str(error):
            raise UserError(f"{path}: not a checkpoint of plain types and tensors") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not readable as a checkpoint, perhaps truncated ({reason})") from None


def load_checkpoint(path: Path, *, model: str) -> dict[str, Any]:
    """Load a checkpoint that `save_checkpoint` wrote.

    Raises:
        UserError: missing, truncated, or of another model.
    """
    payload = load_torch(path)
    found = payload.get("model") if isinstance(payload, dict) else None
    if found != model:
        what = f"of {found}" if isinstance(found, str) else "without a model name"
        raise UserError(f"{path}: a checkpoint {what}, not of {model}")
    return payload


def newest(folder: Path, pattern: str) -> Path | None:
    """Return the file of `folder` matching `pattern` with the highest number in its name, or None."""
    found = sorted(folder.glob(pattern), key=_number_in_name)
    return found[-1] if found else None


def _number_in_name(path: Path) -> tuple[int, str]:
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.name)


def trained_facts(
    folder: Path, step: int | None, images_seen: int | None = None, wall_seconds: float | None = None
) -> dict[str, Any]:
    """Say how long a checkpoint was trained, for sampling.json.

    Args:
        folder: of the run; its config.json and progress.csv tell what the checkpoint does not.
        step: updates, None where unknown.
        images_seen, wall_seconds: where the checkpoint holds them.

    Returns:
        step, images_seen and wall_seconds, None where unknown.
    """
    config, progress = folder / "config.json", folder / "progress.csv"
    finished = read_config(config).get("finished", {}) if config.is_file() else {}
    known = [{**finished, "step": finished.get("steps")}, *(read_progress(progress) if progress.is_file() else [])]
    at_step = next((row for row in known if step is not None and row["step"] == step), {})
    images_seen = at_step.get("images_seen") if images_seen is None else images_seen
    wall_seconds = at_step.get("wall_seconds") if wall_seconds is None else wall_seconds
    if not all(isinstance(value, int | float | None) for value in (step, images_seen, wall_seconds)):
        raise UserError(f"{folder}: a damaged checkpoint, of step {step!r} and {images_seen!r} images")
    return {
        "step": step,
        "images_seen": None if images_seen is None else int(images_seen),
        "wall_seconds": None if wall_seconds is None else round(wall_seconds, 3),
    }
