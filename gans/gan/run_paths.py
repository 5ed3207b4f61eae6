"""File names of a run, and which checkpoint is sampled; no torch."""

from pathlib import Path

from comparison.checkpoints import newest

MODEL = "gans"  # model family in run folders and checkpoints
CHECKPOINTS = "checkpoint_*.pt"
BEST = "best_*.pt"


def checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint after `step` updates."""
    return f"checkpoint_{step:06d}.pt"


def checkpoint_to_sample(folder: Path) -> Path | None:
    """Return the best checkpoint of a run if --keep_best kept one, else the newest, None without any."""
    return newest(folder, BEST) or newest(folder, CHECKPOINTS)
