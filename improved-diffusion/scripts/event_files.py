"""TensorBoard's event files of a run, where OPENAI_LOG_FORMAT asks for them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from comparison.cli import UserError
from improved_diffusion.log_formats import FORMATS

if TYPE_CHECKING:
    from improved_diffusion.log_formats import TensorBoardFormat


def check_log_formats() -> None:
    """Refuse a name in OPENAI_LOG_FORMAT that the package's logger does not know either.

    Raises:
        UserError: so.
    """
    for name in _log_formats():
        if name not in FORMATS:
            raise UserError(f"OPENAI_LOG_FORMAT: a log format must be one of {', '.join(FORMATS)}, not {name!r}")


def open_events(folder: Path, step: int) -> "TensorBoardFormat | None":
    """Return what writes rows of values into <folder>/tb, None where OPENAI_LOG_FORMAT does not name tensorboard.

    Args:
        folder: of the run.
        step: from which the run goes on; what was written after it is hidden.

    Raises:
        UserError: the package tensorboard is not installed.
    """
    if "tensorboard" not in _log_formats():
        return None
    from improved_diffusion.log_formats import TensorBoardFormat

    try:
        events = TensorBoardFormat(str(folder / "tb"))
    except ImportError as error:
        raise UserError(f"OPENAI_LOG_FORMAT: {error}") from None
    events.drop_after(step)
    return events


def _log_formats() -> list[str]:
    names = [name.strip() for name in os.environ.get("OPENAI_LOG_FORMAT", "").split(",")]
    return [name for name in names if name]
