"""Noise levels in continuous time, and images in one to four evaluations of a network that was distilled for it.

A noise level sigma stands for y = x_0 + sigma * noise, which is x_t / sqrt(alpha_bar) of a diffusion process at the
timestep with that ratio of noise to signal. Timesteps may lie between two whole ones: a network takes any number.
`distillation` has the loss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .gaussian_diffusion import GaussianDiffusion
from .process import Model, ModelMeanType


class NoiseLevels:
    """The noise levels of a process, linear in log(sigma) between its timesteps.

    Args:
        alphas_cumprod: (T,) float64, alpha_bar of the process, decreasing.
    """

    def __init__(self, alphas_cumprod: np.ndarray) -> None:
        log_sigma = 0.5 * (np.log1p(-alphas_cumprod) - np.log(alphas_cumprod))
        self._log_sigma = torch.from_numpy(log_sigma)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the levels (N,) float64 of timesteps (N,) in [0, T - 1]."""
        table = self._log_sigma.to(t.device)
        low = t.double().floor().clamp(0, len(table) - 2).long()
        return torch.lerp(table[low], table[low + 1], t.double() - low).exp()

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timesteps (N,) float64 of levels (N,); those outside the process get its first or last one."""
        table = self._log_sigma.to(sigma.device)
        value = sigma.double().log().clamp(table[0], table[-1])
        low = (torch.searchsorted(table, value, right=True) - 1).clamp(0, len(table) - 2)
        return low + (value - table[low]) / (table[low + 1] - table[low])


def predict(
    model: Model,
    diffusion: GaussianDiffusion,
    levels: NoiseLevels,
    y: Tensor,
    sigma: Tensor,
    model_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Return the image that a network predicts from y at a noise level.

    For a network of velocity or epsilon it is y at the level 0, by construction.

    Args:
        model: the network.
        diffusion: its process.
        levels: `NoiseLevels` of the process.
        y: (N, C, H, W) float32, x_0 + sigma * noise.
        sigma: (N,) noise levels.
        model_kwargs: further keyword arguments of the network.

    Returns:
        (N, C, H, W) float32.
    """
    level = sigma.float().view(-1, *[1] * (y.ndim - 1))
    signal = (1 + level**2).rsqrt()  # a of x_t = a x_0 + s noise; s = a sigma
    t = diffusion._model_timesteps(levels.timestep(sigma).float())
    output = model(signal * y, t, **(model_kwargs or {}))[:, : y.shape[1]].float()
    if diffusion.model_mean_type == ModelMeanType.VELOCITY:
        return signal**2 * y - signal * level * output
    if diffusion.model_mean_type == ModelMeanType.EPSILON:
        return y - level * output
    if diffusion.model_mean_type == ModelMeanType.START_X:
        return output
    raise ValueError(f"a network that predicts {diffusion.model_mean_type} cannot be sampled in few steps")


def step_towards(image: Tensor, y: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Move y straight towards an image, from the noise levels `high` to `low`, (N,); a step of DDIM."""
    share = (low / high).float().view(-1, *[1] * (y.ndim - 1))
    return share * y + (1 - share) * image


@torch.no_grad()
def sample_few_steps(
    model: Model,
    diffusion: GaussianDiffusion,
    sigmas: Sequence[float],
    noise: Tensor,
    *,
    clip_denoised: bool = True,
    model_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Generate images in len(sigmas) evaluations.

    Args:
        model: a network tuned by `TrajectoryLoss`.
        diffusion: its process.
        sigmas: noise levels, decreasing.
        noise: (N, C, H, W), from which the path begins.
        clip_denoised: clip each predicted image to [-1, 1].
        model_kwargs: further keyword arguments of the network.

    Returns:
        (N, C, H, W) float32.
    """
    levels = NoiseLevels(diffusion.alphas_cumprod)
    y = image = sigmas[0] * noise
    for i, value in enumerate(sigmas):
        sigma = torch.full((len(noise),), value, dtype=torch.float64, device=noise.device)
        if i:
            y = step_towards(image, y, torch.full_like(sigma, sigmas[i - 1]), sigma)
        image = predict(model, diffusion, levels, y, sigma, model_kwargs)
        image = image.clamp(-1, 1) if clip_denoised else image
    return image
