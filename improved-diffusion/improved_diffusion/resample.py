"""Which timesteps a training step draws, and the weights that keep the loss unbiased."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from .gaussian_diffusion import GaussianDiffusion

SCHEDULE_SAMPLERS = ("uniform",)


def create_named_schedule_sampler(name: str, diffusion: GaussianDiffusion) -> "ScheduleSampler":
    """Make a timestep sampler; the only name is 'uniform'.

    Raises:
        ValueError: unknown name.
    """
    if name == "uniform":
        return UniformSampler(diffusion)
    raise ValueError(f"schedule_sampler must be 'uniform', not {name!r}")


class ScheduleSampler(ABC):
    """A distribution over timesteps for training, by importance sampling (Nichol & Dhariwal 2021, Eq. 18)."""

    @abstractmethod
    def weights(self) -> np.ndarray:
        """Return (T,) float64 positive weights; they need not sum to one."""

    def sample(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw timesteps, with the factors that make the mean of the weighted losses unbiased.

        Args:
            batch_size: N.
            device: of the result.
            generator: a CPU generator; the global one by default.

        Returns:
            t, (N,) int64 in [0, T); factors, (N,) float32 with mean one under this distribution.
        """
        weights = self.weights()
        p = torch.from_numpy(weights / weights.sum())
        t = torch.multinomial(p, batch_size, replacement=True, generator=generator)
        factors = (1.0 / (len(p) * p[t])).float()
        return t.to(device), factors.to(device)


class UniformSampler(ScheduleSampler):
    """Draw every timestep equally often."""

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self._weights = np.ones(diffusion.num_timesteps)

    def weights(self) -> np.ndarray:
        return self._weights
