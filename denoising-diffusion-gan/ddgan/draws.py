"""Inputs of an update: micro-batches, and random numbers that depend only on the seed and the micro-batch index."""

from typing import Any, NamedTuple

import torch
from comparison import rng
from torch import Tensor


class Batch(NamedTuple):
    """Micro-batch of this rank: (n, C, H, W) float32 in [-1, 1], (n,) int64 labels or None, and its index."""

    x_0: Tensor
    labels: Tensor | None
    micro_step: int


class PairNoise:
    """Random numbers of one half-update on one micro-batch: a pure function of (seed, micro_step, half).

    Args:
        shape: (N, C, H, W) of the micro-batch of all ranks together.
        nz: length of the latent.
        num_timesteps: T.
        key: seed, micro_step and "d" or "g".
        device: device of the generator and the result.
        rows: rows of the N to keep; None for all.
        t_decay: frequency of t + 1 relative to t; 1 for a uniform t.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        nz: int,
        num_timesteps: int,
        key: tuple[Any, ...],
        device: torch.device,
        rows: slice | None = None,
        t_decay: float = 1.0,
    ):
        options: dict[str, Any] = {"device": device, "rows": rows}
        if t_decay != 1:
            weights = t_decay ** torch.arange(num_timesteps, dtype=torch.float32, device=device)
            t = weights.multinomial(shape[0], replacement=True, generator=rng.generator(device, *key, "t"))
            self.t = t if rows is None else t[rows]
        else:
            self.t = rng.randint(num_timesteps, shape[:1], *key, "t", **options)
        self.x_t = rng.normal(shape, *key, "x_t", **options)
        self.x_t_plus_1 = rng.normal(shape, *key, "x_t_plus_1", **options)
        self.z = rng.normal((shape[0], nz), *key, "z", **options)
        self.posterior = rng.normal(shape, *key, "posterior", **options)


def roll(images: Tensor, shift: Tensor) -> Tensor:
    """Roll each of the (N, C, H, W) images by its own (N, 2) int64 rows and columns."""
    n, channels, height, width = images.shape
    rows = (torch.arange(height, device=images.device) - shift[:, :1]) % height
    columns = (torch.arange(width, device=images.device) - shift[:, 1:]) % width
    images = images.gather(2, rows[:, None, :, None].expand(n, channels, height, width))
    return images.gather(3, columns[:, None, None, :].expand(n, channels, height, width))
