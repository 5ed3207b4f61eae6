"""Noise to images, for the grids during training and for the final samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from comparison.cli import UserError
from comparison.device import autocast_dtype, pick_device, precision_name, set_threads
from comparison.progress import bar
from comparison.rng import SampleNoise
from comparison.runs import load_checkpoint
from comparison.sampling import draw_samples
from PIL import Image
from torch import Tensor

from .files import MODEL, checkpoint_hash
from .networks import Generator
from .training import build_generator


def make_draw(
    generator: Generator, seed: int, device: torch.device, dtype: torch.dtype | None
) -> Callable[[range], Tensor]:
    """Return the function that draws images by number.

    The generator must be in eval mode: batch norm then uses its running averages, and image i of a seed is the
    same whatever the batch it is drawn in.

    Args:
        generator: on `device`.
        seed: of the sample set.
        device: where the noise is drawn.
        dtype: of autocast; None computes in float32.

    Returns:
        A function from consecutive image numbers to (N, 3, H, W) float32 in [-1, 1]; grey images in three channels.
    """

    def draw(indices: range) -> Tensor:
        z = SampleNoise(seed, indices, device).normal((generator.nz,), "z")
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return generator(z).float().expand(-1, 3, -1, -1)

    return draw


@torch.inference_mode()
def draw_in_eval_mode(
    generator: Generator, count: int, seed: int, device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    """Draw images 0 to count - 1 and leave the generator in the mode it was in.

    Returns:
        (count, 3, H, W) float32 in [-1, 1].
    """
    was_training = generator.training
    generator.eval()
    images = make_draw(generator, seed, device, dtype)(range(count))
    generator.train(was_training)
    return images


def load_generator(path: Path, use_ema: bool | None = None) -> tuple[Generator, bool, dict]:
    """Rebuild the generator of a checkpoint, in eval mode on the CPU.

    Args:
        path: of the checkpoint.
        use_ema: whether to take the moving average; None takes it where there is one.

    Returns:
        The generator, whether it is the moving average, and the options it was trained with.

    Raises:
        UserError: the checkpoint is missing, truncated, of another model, or holds no moving average.
    """
    payload = load_checkpoint(path, model=MODEL)
    try:
        options, average, raw = payload["config"], payload["ema"], payload["generator"]
        if use_ema and average is None:
            raise UserError(f"--use_ema true: {path} holds no moving average; it was trained with --ema_decay 0")
        use_ema = average is not None if use_ema is None else use_ema
        generator = build_generator(options)
        generator.load_state_dict(average if use_ema else raw)
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: does not hold a whole generator ({str(error).splitlines()[0]})") from None
    return generator.eval().requires_grad_(False), use_ema, options


def sample_checkpoint(
    path: Path,
    out: Path,
    *,
    num_samples: int,
    batch_size: int,
    seed: int,
    use_ema: bool | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
) -> None:
    """Draw samples of a checkpoint into `out`, with samples.png and sampling.json beside it.

    Args:
        path: of the checkpoint.
        out: the .npz to write.
        num_samples: images to draw.
        batch_size: images at a time; the images do not depend on it.
        seed: of the noise.
        use_ema: as for `load_generator`.
        device: as --device.
        precision: as --precision.
        threads: as --threads.

    Raises:
        UserError: as `load_generator` says, or the device is not there.
    """
    set_threads(threads)
    where = pick_device(device)
    dtype = autocast_dtype(precision, where)
    generator, is_average, options = load_generator(path, use_ema)
    generator.to(device=where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    draw_samples(
        make_draw(generator, seed, where, dtype),
        [generator],
        num_samples=num_samples,
        batch_size=batch_size,
        out=out,
        image_size=options["image_size"],
        device=where,
        facts={
            "model": MODEL,
            "sampler": "one generator pass",
            "checkpoint": path.name,
            "checkpoint_sha256": checkpoint_hash(path),
            "network": "ema" if is_average else "raw",
            "seed": seed,
            "precision": precision_name(dtype),
        },
    )


def write_pngs(npz: Path, folder: Path) -> None:
    """Write the images of an .npz as 000000.png, 000001.png, ... into a folder."""
    images = np.load(npz)["arr_0"]
    with bar(len(images), 0, "write", "images") as progress:
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number:06d}.png")
            progress.update()
