"""Names and files of this model's runs; no torch, so that a finished job says so at once."""

from pathlib import Path

from comparison.checkpoints import newest
from comparison.files import agrees, digest, read_json

MODEL = "gans"  # the tag of this model's runs and checkpoints
CHECKPOINTS = "checkpoint_*.pt"
BEST = "best_*.pt"


def checkpoint_name(step: int) -> str:
    """Name the checkpoint after `step` updates."""
    return f"checkpoint_{step:06d}.pt"


def sampled_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of a run that is sampled: the best one where --keep_best kept it, else the newest."""
    return newest(folder, BEST) or newest(folder, CHECKPOINTS)


def is_drawn(
    out: Path,
    checkpoint: Path,
    *,
    num_samples: int,
    batch_size: int,
    seed: int,
    use_ema: bool | None = None,
    interpolation: bool = False,
) -> bool:
    """Say whether `out` holds the samples that this checkpoint gives with these options.

    Args:
        out: an .npz with sampling.json beside it.
        checkpoint: that the samples would be drawn from.
        num_samples: images.
        batch_size: images at a time, because sampling.json says how long such a batch took.
        seed: of the noise.
        use_ema: whether of the moving average; None for whichever the checkpoint gives.
        interpolation: whether interpolation.png must be there too.
    """
    if not out.is_file():
        return False
    wanted = {
        **{"file": out.name, "checkpoint": checkpoint.name, "checkpoint_sha256": digest(checkpoint)},
        **{"images": num_samples, "batch_size": batch_size, "seed": seed},
    }
    if use_ema is not None:
        wanted["network"] = "ema" if use_ema else "raw"
    facts = out.parent / "sampling.json"
    if not agrees(facts, wanted):
        return False
    return not interpolation or ("interpolation" in read_json(facts) and (out.parent / "interpolation.png").is_file())
