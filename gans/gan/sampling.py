"""Generate images from noise, for the grids during training and for the final samples."""

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

from .build import Network, build_generator
from .run_paths import MODEL

SAMPLER = "one generator pass"


def generate(generator: Network, noise: SampleNoise, dtype: torch.dtype | None) -> Tensor:
    """Return the images of some noise, (N, 3, H, W) float32 in [-1, 1].

    In eval mode batch norm uses its running averages, so image i of a seed is the same in any batch.
    """
    z = noise.normal((generator.nz,), "z")
    with torch.autocast(z.device.type, dtype=dtype, enabled=dtype is not None):
        return generator(z).float()


@torch.inference_mode()
def sample_in_eval_mode(
    generator: Network, indices: range, seed: int, device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    """Return samples by their indices, (N, 3, H, W) float32 in [-1, 1]; the generator's mode does not change."""
    was_training = generator.training
    generator.eval()
    images = generate(generator, SampleNoise(seed, indices, device), dtype)
    generator.train(was_training)
    return images


def load_generator(path: Path, use_ema: bool | None = None) -> tuple[Network, bool, dict[str, Any]]:
    """Load the generator of a checkpoint, in eval mode on the CPU.

    Args:
        path: checkpoint file.
        use_ema: whether to load the EMA weights; None loads them if the checkpoint has them.

    Returns:
        The generator, whether it has the EMA weights, and the checkpoint's `config`, `step`, `images_seen` and
        `wall_seconds`.

    Raises:
        UserError: the checkpoint is missing, truncated, of another model, or has no EMA weights.
    """
    payload = load_checkpoint(path, model=MODEL)
    try:
        ema, raw = payload["ema"], payload["generator"]
        metadata = {name: payload[name] for name in ("config", "step", "images_seen", "wall_seconds")}
        if use_ema and ema is None:
            raise UserError(f"--use_ema true: {path} has no EMA weights; it was trained with --ema_decay 0")
        use_ema = ema is not None if use_ema is None else use_ema
        if not use_ema and raw is None:
            raise UserError(f"--use_ema false: {path} holds only the EMA weights")
        generator = build_generator(metadata["config"])
        generator.load_state_dict(ema if use_ema else raw)
    except UserError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: holds no complete generator ({str(error).splitlines()[0]})") from None
    return generator.eval().requires_grad_(False), use_ema, metadata


class Sampler:
    """Generator of a checkpoint on its device.

    Args:
        path: checkpoint file.
        seed: seed of the noise.
        use_ema: see `load_generator`.
        device, precision, threads: values of the flags.

    Raises:
        UserError: see `load_generator`; or the device does not exist.
    """

    def __init__(
        self,
        path: Path,
        seed: int,
        use_ema: bool | None = None,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
    ):
        set_threads(threads)
        self.seed, self.device = seed, pick_device(device)
        self.dtype = autocast_dtype(precision, self.device)
        self.generator, is_ema, checkpoint = load_generator(path, use_ema)
        self.generator.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = (checkpoint[name] for name in ("step", "images_seen", "wall_seconds"))
        self._trained = trained_facts(path.parent, *trained)
        facts = {
            "model": MODEL,
            "sampler": SAMPLER,
            "checkpoint": path.name,
            "checkpoint_sha256": digest(path),
            "network": "ema" if is_ema else "raw",
            "seed": seed,
            "precision": precision_name(self.dtype),
        }
        self._common: dict[str, Any] = {
            "image_size": checkpoint["config"]["image_size"],
            "device": self.device,
            "facts": facts,
        }

    def draw(self, indices: range) -> Tensor:
        """Return samples by their consecutive indices, (N, 3, H, W) float32 in [-1, 1]."""
        return generate(self.generator, SampleNoise(self.seed, indices, self.device), self.dtype)

    def draw_walk(self, walk: int) -> Tensor:
        """Return the images between samples 2 x walk and 2 x walk + 1, for interpolation.png."""
        return generate(self.generator, WalkNoise(self.seed, walk, self.device, "z"), self.dtype)

    def write_samples(self, out: Path, num_samples: int, batch_size: int, interpolation: bool = False) -> None:
        """Write the .npz `out`, with samples.png, sampling.json and perhaps interpolation.png next to it.

        The images do not depend on the batch size.
        """
        draw_samples(
            self.draw,
            [self.generator],
            num_samples=num_samples,
            batch_size=batch_size,
            out=out,
            trained=self._trained,
            **self._common,
        )
        print(f"{num_samples} images in {out}")
        if interpolation:
            draw_interpolation(out.parent, self.draw_walk, latent="z", sampler=SAMPLER)

    def write_benchmark(self, path: Path, min_seconds: float) -> None:
        """Measure the sampling speed for min_seconds or more per batch size, and write timing.json to `path`."""
        networks, evaluate = [self.generator], lambda batch_size: self.draw(range(batch_size))
        write_benchmark(path, self.draw, networks, evaluate, min_seconds=min_seconds, **self._common)
