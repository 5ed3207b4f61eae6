"""File names of a run, which checkpoint is sampled, and whether its samples exist; no torch."""

from pathlib import Path

from comparison.checkpoints import newest
from comparison.files import digest, json_matches, read_json

MODEL = "gans"  # model family in run folders and checkpoints
CHECKPOINTS = "checkpoint_*.pt"
BEST = "best_*.pt"


def checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint after `step` updates."""
    return f"checkpoint_{step:06d}.pt"


def checkpoint_to_sample(folder: Path) -> Path | None:
    """Return the best checkpoint of a run if --keep_best kept one, else the newest, None without any."""
    return newest(folder, BEST) or newest(folder, CHECKPOINTS)


def samples_exist(
    out: Path,
    checkpoint: Path,
    *,
    num_samples: int,
    batch_size: int,
    seed: int,
    use_ema: bool | None = None,
    interpolation: bool = False,
) -> bool:
    """Return True if the .npz `out`, with its sampling.json, was made from this checkpoint with these options.

    The batch size counts because sampling.json holds the time of such a batch. A `use_ema` of None accepts either
    network. With `interpolation`, interpolation.png must exist too.
    """
    if not out.is_file():
        return False
    expected = {
        **{"file": out.name, "checkpoint": checkpoint.name, "checkpoint_sha256": digest(checkpoint)},
        **{"images": num_samples, "batch_size": batch_size, "seed": seed},
    }
    if use_ema is not None:
        expected["network"] = "ema" if use_ema else "raw"
    path = out.parent / "sampling.json"
    if not json_matches(path, expected):
        return False
    return not interpolation or ("interpolation" in read_json(path) and (out.parent / "interpolation.png").is_file())
