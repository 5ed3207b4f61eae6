"""Noise to images, for the grids during training and for the final samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comparison.checkpoints import load_checkpoint, trained_facts
from comparison.cli import UserError
from comparison.device import autocast_dtype, pick_device, precision_name, set_threads
from comparison.files import digest
from comparison.rng import SampleNoise
from comparison.sampling.draw import draw_samples
from comparison.sampling.interpolation import WalkNoise, draw_interpolation
from comparison.sampling.timing import write_benchmark
from torch import Tensor

from .files import MODEL
from .networks import Generator
from .training import build_generator

SAMPLER = "one generator pass"


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
    return lambda indices: generate(generator, SampleNoise(seed, indices, device), dtype)


def generate(generator: Generator, noise: SampleNoise, dtype: torch.dtype | None) -> Tensor:
    """Draw the images of some noise, (N, 3, H, W) float32 in [-1, 1]."""
    z = noise.normal((generator.nz,), "z")
    with torch.autocast(z.device.type, dtype=dtype, enabled=dtype is not None):
        return generator(z).float().expand(-1, 3, -1, -1)


@torch.inference_mode()
def draw_in_eval_mode(
    generator: Generator, indices: range, seed: int, device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    """Draw images by their numbers and leave the generator in the mode it was in.

    Returns:
        (N, 3, H, W) float32 in [-1, 1].
    """
    was_training = generator.training
    generator.eval()
    images = make_draw(generator, seed, device, dtype)(indices)
    generator.train(was_training)
    return images


def load_generator(path: Path, use_ema: bool | None = None) -> tuple[Generator, bool, dict[str, Any]]:
    """Rebuild the generator of a checkpoint, in eval mode on the CPU.

    Args:
        path: of the checkpoint.
        use_ema: whether to take the moving average; None takes it where there is one.

    Returns:
        The generator, whether it is the moving average, and the checkpoint's `config`, `step`, `images_seen` and
        `wall_seconds`.

    Raises:
        UserError: the checkpoint is missing, truncated, of another model, or holds no moving average.
    """
    payload = load_checkpoint(path, model=MODEL)
    try:
        average, raw = payload["ema"], payload["generator"]
        facts = {name: payload[name] for name in ("config", "step", "images_seen", "wall_seconds")}
        if use_ema and average is None:
            raise UserError(f"--use_ema true: {path} holds no moving average; it was trained with --ema_decay 0")
        use_ema = average is not None if use_ema is None else use_ema
        generator = build_generator(facts["config"])
        generator.load_state_dict(average if use_ema else raw)
    except UserError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not hold a whole generator ({str(error).splitlines()[0]})") from None
    return generator.eval().requires_grad_(False), use_ema, facts


class Sampler:
    """A checkpoint's generator on its device, ready to draw.

    Args:
        path: of the checkpoint.
        seed: of the noise.
        use_ema: as for `load_generator`.
        device: as --device.
        precision: as --precision.
        threads: as --threads.

    Attributes:
        facts: what sampling.json and timing.json say of it.

    Raises:
        UserError: as `load_generator` says, or the device is not there.
    """

    def __init__(self, path: Path, seed: int, use_ema: bool | None, device: str, precision: str, threads: int):
        set_threads(threads)
        self.device, self.seed = pick_device(device), seed
        self.dtype = autocast_dtype(precision, self.device)
        self.generator, is_average, facts = load_generator(path, use_ema)
        self.generator.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.draw = make_draw(self.generator, seed, self.device, self.dtype)
        self.image_size = facts["config"]["image_size"]
        self.trained = trained_facts(path.parent, facts["step"], facts["images_seen"], facts["wall_seconds"])
        self.facts = {
            "model": MODEL,
            "sampler": SAMPLER,
            "checkpoint": path.name,
            "checkpoint_sha256": digest(path),
            "network": "ema" if is_average else "raw",
            "seed": seed,
            "precision": precision_name(self.dtype),
        }

    def draw_walk(self, walk: int) -> Tensor:
        """Draw the images between samples 2 x walk and 2 x walk + 1, for interpolation.png."""
        return generate(self.generator, WalkNoise(self.seed, walk, self.device, "z"), self.dtype)

    def evaluate(self, batch_size: int) -> Tensor:
        """Run the generator once."""
        return self.draw(range(batch_size))


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
    interpolation: bool = False,
) -> None:
    """Draw samples of a checkpoint into `out`, with samples.png and sampling.json beside it.

    Args:
        path: of the checkpoint.
        out: the .npz to write.
        num_samples: images to draw.
        batch_size: images at a time; the images do not depend on it.
        seed, use_ema, device, precision, threads: as for `Sampler`.
        interpolation: also write interpolation.png.

    Raises:
        UserError: as `Sampler` says.
    """
    sampler = Sampler(path, seed, use_ema, device, precision, threads)
    draw_samples(
        sampler.draw,
        [sampler.generator],
        num_samples=num_samples,
        batch_size=batch_size,
        out=out,
        image_size=sampler.image_size,
        device=sampler.device,
        facts=sampler.facts,
        trained=sampler.trained,
    )
    if interpolation:
        draw_interpolation(out.parent, sampler.draw_walk, latent="z", sampler=SAMPLER)


def benchmark_checkpoint(
    path: Path,
    timing: Path,
    *,
    min_seconds: float,
    seed: int = 0,
    use_ema: bool | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
) -> None:
    """Measure how fast a checkpoint draws.

    Args:
        path: of the checkpoint.
        timing: the timing.json to write.
        min_seconds: spent on each batch size, at least.
        seed, use_ema, device, precision, threads: as for `Sampler`.

    Raises:
        UserError: as `Sampler` says.
    """
    sampler = Sampler(path, seed, use_ema, device, precision, threads)
    write_benchmark(
        timing,
        sampler.draw,
        [sampler.generator],
        sampler.evaluate,
        image_size=sampler.image_size,
        device=sampler.device,
        facts=sampler.facts,
        min_seconds=min_seconds,
    )
