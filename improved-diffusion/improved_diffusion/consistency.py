"""Images in one to four evaluations: consistency functions in continuous time, and how a trained network is tuned.

Song et al. 2023, "Consistency models"; Geng et al. 2024, "Consistency models made easy". A noise level sigma stands for
y = x_0 + sigma * noise, which is x_t / sqrt(alpha_bar) of a diffusion process at the timestep with that ratio of noise
to signal. Timesteps may lie between two whole ones: a network takes any number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .gaussian_diffusion import GaussianDiffusion
from .process import Model, ModelMeanType

StepNoise = Callable[[int], Tensor]


class NoiseLevels:
    """The noise levels of a process, linear in log(sigma) between its timesteps.

    Args:
        alphas_cumprod: (T,) float64, alpha_bar of the process, decreasing.

    Attributes:
        sigma_min, sigma_max: levels of the first and the last timestep.
    """

    def __init__(self, alphas_cumprod: np.ndarray) -> None:
        log_sigma = 0.5 * (np.log1p(-alphas_cumprod) - np.log(alphas_cumprod))
        self._log_sigma = torch.from_numpy(log_sigma)
        self.sigma_min, self.sigma_max = float(np.exp(log_sigma[0])), float(np.exp(log_sigma[-1]))

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
    """Evaluate the consistency function f(y, sigma), the image at the end of the path through y.

    For velocity and epsilon f(y, 0) = y by construction; a network that predicts x_0 is f itself.

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
    raise ValueError(f"a network that predicts {diffusion.model_mean_type} has no consistency function")


@torch.no_grad()
def sample_few_steps(
    model: Model,
    diffusion: GaussianDiffusion,
    sigmas: Sequence[float],
    step_noise: StepNoise,
    *,
    clip_denoised: bool = True,
    model_kwargs: dict[str, Any] | None = None,
    on_step: Callable[[int, Tensor, Tensor], object] | None = None,
) -> Tensor:
    """Generate images in len(sigmas) evaluations: predict the image, add noise of the next level, predict again.

    Song et al. 2023, Algorithm 1.

    Args:
        model: a network tuned by `ConsistencyLoss`.
        diffusion: its process.
        sigmas: noise levels, decreasing.
        step_noise: maps the number of evaluations that remain, from len(sigmas) down to 1, to noise (N, C, H, W).
        clip_denoised: clip each predicted image to [-1, 1].
        model_kwargs: further keyword arguments of the network.
        on_step: called after each evaluation with its timestep, the network's input and the predicted image.

    Returns:
        (N, C, H, W) float32.
    """
    levels = NoiseLevels(diffusion.alphas_cumprod)
    image: Tensor | float = 0.0
    for i, value in enumerate(sigmas):
        noise = step_noise(len(sigmas) - i)
        y = image + value * noise
        sigma = torch.full((len(noise),), value, dtype=torch.float64, device=noise.device)
        image = predict(model, diffusion, levels, y, sigma, model_kwargs)
        image = image.clamp(-1, 1) if clip_denoised else image
        if on_step is not None:
            on_step(round(float(levels.timestep(sigma[:1]))), y / (1 + value**2) ** 0.5, image)
    assert isinstance(image, Tensor)
    return image


class ConsistencyLoss:
    """The loss of easy consistency tuning, in place of a process's `training_losses`.

    The function at a level t follows its own value at a lower level r of the same image and noise (Geng et al. 2024,
    Algorithm 1): loss = (sqrt(d^2 + c^2) - c) / (t - r), d the distance of both, without a gradient at r, with the same
    dropout mask, and with the image itself where r = 0. r = t (1 - n(t) / q) with n(t) = 1 + 8 sigmoid(-t).

    Args:
        diffusion: process of the network.
        q: sharpness of the schedule, above 1: larger brings r closer to t; may be changed during training.
        huber: c, in units of the norm of an image; 0 for the plain distance, infinity for the squared one.

    Attributes:
        num_timesteps: T of the process.
    """

    def __init__(self, diffusion: GaussianDiffusion, q: float = 256.0, huber: float = 0.0) -> None:
        self.diffusion, self.q, self.huber = diffusion, q, huber
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
        return {"loss": distance / (sigma - r).float(), "mse": difference.detach().square().flatten(1).mean(1)}

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


def _rng_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
