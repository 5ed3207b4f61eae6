"""A process that keeps only some timesteps of another one, for sampling in fewer steps."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .gaussian_diffusion import GaussianDiffusion
from .schedules import space_timesteps

__all__ = ["SpacedDiffusion", "space_timesteps"]


class SpacedDiffusion(GaussianDiffusion):
    """The process of the kept timesteps; the network receives the original ones.

    Nichol & Dhariwal 2021, Eq. 19: the kept steps have the original alpha_bar, from which their betas follow.

    Args:
        use_timesteps: the original timesteps to keep.
        kwargs: arguments of the original process, see `GaussianDiffusion`.

    Raises:
        ValueError: a timestep lies outside the original process, or none is kept.
    """

    def __init__(self, use_timesteps: Iterable[int], **kwargs: Any) -> None:
        betas = np.asarray(kwargs.pop("betas"), dtype=np.float64)
        self.use_timesteps = set(use_timesteps)
        self.timestep_map = sorted(self.use_timesteps)
        if not self.timestep_map or not 0 <= self.timestep_map[0] <= self.timestep_map[-1] < len(betas):
            raise ValueError(f"use_timesteps must lie in [0, {len(betas)}), at least one of them")
        alpha_bar = np.cumprod(1.0 - betas)[self.timestep_map]
        super().__init__(betas=1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1]), **kwargs)
        self.original_num_steps = len(betas)
        self._map_on_device: dict[torch.device, Tensor] = {}

    def _model_timesteps(self, t: Tensor) -> Tensor:
        if t.device not in self._map_on_device:
            with torch.inference_mode(False):
                self._map_on_device[t.device] = torch.tensor(self.timestep_map, device=t.device)
        table = self._map_on_device[t.device]
        if t.is_floating_point():  # between two timesteps
            low = t.floor().clamp(0, max(0, len(table) - 2)).long()
            high = (low + 1).clamp(max=len(table) - 1)
            return super()._model_timesteps(torch.lerp(table[low].to(t), table[high].to(t), t - low))
        return super()._model_timesteps(table[t])
