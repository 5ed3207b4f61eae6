"""What an update starts from: micro-batches, and random draws that depend on the seed and their number alone."""

from typing import Any, NamedTuple

import torch
from comparison import rng
from torch import Tensor


class Batch(NamedTuple):
    """A micro-batch of this process: (n, C, H, W) float32 in [-1, 1], (n,) int64 labels or None, its number."""

    x_0: Tensor
    labels: Tensor | None
    micro_step: int


class PairNoise:
    """The random draws of one half-update from one micro-batch: a pure function of (seed, micro_step, half).

    Args:
        shape: (N, C, H, W) of the micro-batch of all processes together.
        nz: length of the latent.
        num_timesteps: T.
        key: seed, micro_step and "d" or "g".
        device: where they are drawn.
        rows: those of the N that are kept; None for all.
        t_decay: frequency of t + 1 relative to that of t; 1 for equal ones.
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
        where: dict[str, Any] = {"device": device, "rows": rows}
        if t_decay != 1:
            weights = t_decay ** torch.arange(num_timesteps, dtype=torch.float32, device=device)
            t = weights.multinomial(shape[0], replacement=True, generator=rng.generator(device, *key, "t"))
            self.t = t if rows is None else t[rows]
        else:
            self.t = rng.randint(num_timesteps, shape[:1], *key, "t", **where)
        self.x_t = rng.normal(shape, *key, "x_t", **where)
        self.x_t_plus_1 = rng.normal(shape, *key, "x_t_plus_1", **where)
        self.z = rng.normal((shape[0], nz), *key, "z", **where)
        self.posterior = rng.normal(shape, *key, "posterior", **where)


def roll(images: Tensor, shift: Tensor) -> Tensor:
    """Roll each of the (N, C, H, W) images by its own (N, 2) int64 numbers of rows and columns."""
    n, channels, height, width = images.shape
    rows = (torch.arange(height, device=images.device) - shift[:, :1]) % height
    columns = (torch.arange(width, device=images.device) - shift[:, 1:]) % width
    images = images.gather(2, rows[:, None, :, None].expand(n, channels, height, width))
    return images.gather(3, columns[:, None, None, :].expand(n, channels, height, width))


def penalty_noise(shape: tuple[int, ...], key: tuple[Any, ...], device: torch.device, rows: slice | None) -> Tensor:
    """Draw the (2, n, C, H, W) float32 standard normal noise of a finite-difference penalty: real, then generated."""
    draws = [rng.normal(shape, *key, "penalty", side, device=device, rows=rows) for side in ("real", "fake")]
    return torch.stack(draws)
