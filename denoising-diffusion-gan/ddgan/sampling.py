"""Sampling in T steps (Xiao et al. 2022, section 4)."""

from collections.abc import Callable

import torch
from comparison.rng import SampleNoise
from torch import Tensor

from ddgan.process import DenoisingProcess

Predict = Callable[..., Tensor]  # a generator: (x_{t+1}, t, z) -> x_0, with classes (x_{t+1}, t, z, y) -> x_0


def sample(
    noise: SampleNoise,
    generator: Predict,
    process: DenoisingProcess,
    nz: int,
    shape: tuple[int, int, int],
    autocast_dtype: torch.dtype | None = None,
    labels: Tensor | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Sample images from their noise, of which the draws `x_T`, `z <t>` and `posterior <t>` are used.

    Args:
        noise: noise of N images, on the device of the sampling; image i of a seed depends on nothing else.
        generator: network, or a function with its signature.
        process: diffusion process on the same device.
        nz, shape: length of the latent, which is new in every step, and (C, H, W).
        autocast_dtype: dtype of the network passes; None for float32.
        labels: (N,) int64 classes of the images; None for a network without classes.
        eta: see `DenoisingProcess.sample_posterior`.

    Returns:
        (N, C, H, W) float32, in [-1, 1] for a tanh generator.
    """
    x = noise.normal(shape, "x_T").contiguous(memory_format=torch.channels_last)
    condition = () if labels is None else (labels.to(x.device),)
    for index in reversed(range(process.num_timesteps)):
        t = torch.full((len(x),), index, dtype=torch.int64, device=x.device)
        with torch.autocast(x.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            x_0 = generator(x, t, noise.normal((nz,), f"z {index}"), *condition)
        # The last step returns x_0, so it needs no noise.
        x = process.sample_posterior(x_0, x, t, noise.normal(shape, f"posterior {index}"), eta) if index else x_0
    return x
