"""Easy consistency tuning: a trained network becomes one that predicts the end of the path through a noisy image.

Geng et al. 2024, "Consistency models made easy". Noise levels are those of `few_steps`.
"""

from typing import Any

import torch
from torch import Tensor

from .few_steps import NoiseLevels, predict
from .gaussian_diffusion import GaussianDiffusion
from .process import Model


class ConsistencyLoss:
    """The loss of easy consistency tuning, in place of a process's `training_losses`.

    The function at a level t follows its own value at a lower level r of the same image and noise (Geng et al. 2024,
    Algorithm 1): loss = (sqrt(d^2 + c^2) - c) / (t - r), d the distance of both, without a gradient at r, with the same
    dropout mask, and with the image itself where r = 0. r = t (1 - n(t) / q) with n(t) = 1 + 8 sigmoid(-t).

    Args:
        diffusion: process of the network.
        q: sharpness of the schedule, above 1: larger brings r closer to t; may be changed during training.
        huber: c, in units of the norm of an image; 0 for the plain distance, infinity for the squared one.
        weighting: 'inverse' for 1 / (t - r), 'uniform' for 1.

    Attributes:
        num_timesteps: T of the process.
    """

    def __init__(
        self, diffusion: GaussianDiffusion, q: float = 256.0, huber: float = 0.0, weighting: str = "inverse"
    ) -> None:
        self.diffusion, self.q, self.huber, self.weighting = diffusion, q, huber, weighting
        self.levels, self.num_timesteps = NoiseLevels(diffusion.alphas_cumprod), diffusion.num_timesteps

    def lower_level(self, sigma: Tensor) -> Tensor:
        """Return the level r below each level, (N,) float64; 0 where it would lie below the process's first."""
        r = sigma * (1 - (1 + 8 * torch.sigmoid(-sigma)) / self.q)
        return torch.where(r < self.levels.sigma_min, 0.0, r)

    def training_losses(
        self, model: Model, x_start: Tensor, t: Tensor, model_kwargs: dict[str, Any] | None, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses (N,) of images; arguments of `GaussianDiffusion.training_losses`, t may be fractional."""
        sigma = self.levels.sigma(t)
        r = self.lower_level(sigma)
        difference = self.difference(model, x_start, sigma, r, model_kwargs, noise)
        squared = difference.square().flatten(1).sum(1)
        if self.huber == float("inf"):
            distance = squared
        else:
            distance = (squared + self.huber**2).clamp(min=1e-12).sqrt() - self.huber
        loss = distance / (sigma - r).float() if self.weighting == "inverse" else distance
        return {"loss": loss, "mse": difference.detach().square().flatten(1).mean(1)}

    def difference(
        self,
        model: Model,
        x_start: Tensor,
        sigma: Tensor,
        r: Tensor,
        model_kwargs: dict[str, Any] | None,
        noise: Tensor,
    ) -> Tensor:
        """Return f at the levels sigma (N,) minus f at r (N,), without a gradient of the latter, like x_start."""
        view = [-1, *[1] * (x_start.ndim - 1)]
        states = _rng_states(x_start.device)
        with torch.no_grad():
            y = x_start + r.float().view(view) * noise
            target = predict(model, self.diffusion, self.levels, y, r.clamp(min=self.levels.sigma_min), model_kwargs)
            target = torch.where((r == 0).view(view), x_start, target)
        _set_rng_states(x_start.device, states)  # the same dropout mask
        y = x_start + sigma.float().view(view) * noise
        return predict(model, self.diffusion, self.levels, y, sigma, model_kwargs) - target


class LogNormalSampler:
    """Sample noise levels whose logarithm is normal, in place of whole timesteps.

    Args:
        levels: `NoiseLevels` of the process.
        mean, std: of the natural logarithm of the level.
        most: levels above are lowered to it.
    """

    def __init__(self, levels: NoiseLevels, mean: float = -1.1, std: float = 2.0, most: float = 80.0) -> None:
        self._levels, self._mean, self._std, self._most = levels, mean, std, most

    def sample(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return timesteps (N,) float64, which may lie between whole ones, and loss factors, ones (N,) float32."""
        normal = torch.randn(batch_size, generator=generator, dtype=torch.float64)
        sigma = torch.exp(self._mean + self._std * normal).clamp(max=self._most)
        return self._levels.timestep(sigma).to(device), torch.ones(batch_size, device=device)


def _rng_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
