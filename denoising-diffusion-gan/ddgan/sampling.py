"""Sampling in T steps (Xiao et al. 2022, section 4)."""

from collections.abc import Callable

import torch
from comparison.rng import SampleNoise
from torch import Tensor

from ddgan.process import DenoisingProcess

Predict = Callable[..., Tensor]  # a generator: (x_{t+1}, t, z) -> x_0, with classes (x_{t+1}, t, z, y) -> x_0


def sample(
    generator: Predict,
    process: DenoisingProcess,
    indices: range,
    *,
    seed: int,
    nz: int,
    shape: tuple[int, int, int],
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
    labels: Tensor | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Sample images by their indices; each image depends only on the seed and its index.

    Args:
        generator: network, or a function with its signature.
        process: diffusion process on `device`.
        indices: consecutive image indices.
        seed: seed of the sample set.
        nz: length of the latent; every step has a new one.
        shape: (C, H, W).
        device: device of the noise and the network.
        autocast_dtype: dtype of the network passes; None for float32.
        labels: (N,) int64 classes of these images; None for a network without classes.
        eta: see `DenoisingProcess.sample_posterior`.

    Returns:
        (N, C, H, W) float32, in [-1, 1] for a tanh generator.
    """
    noise = SampleNoise(seed, indices, device)
    return sample_from(noise, generator, process, nz, shape, autocast_dtype, labels, eta)


def sample_from(
    noise: SampleNoise,
    generator: Predict,
    process: DenoisingProcess,
    nz: int,
    shape: tuple[int, int, int],
    autocast_dtype: torch.dtype | None = None,
    labels: Tensor | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Sample the images of given noise, by its draws `x_T`, `z <t>` and `posterior <t>`; see `sample`."""
    x = noise.normal(shape, "x_T").contiguous(memory_format=torch.channels_last)
    condition = () if labels is None else (labels.to(x.device),)
    for index in reversed(range(process.num_timesteps)):
        t = torch.full((len(x),), index, dtype=torch.int64, device=x.device)
        with torch.autocast(x.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            x_0 = generator(x, t, noise.normal((nz,), f"z {index}"), *condition)
        # The last step returns x_0, so it needs no noise.
        x = process.sample_posterior(x_0, x, t, noise.normal(shape, f"posterior {index}"), eta) if index else x_0
    return x
