"""The timesteps that a training step samples, and the weights that keep the loss unbiased."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dist_util import get_world_size
from .gaussian_diffusion import GaussianDiffusion


def create_named_schedule_sampler(name: str, diffusion: GaussianDiffusion) -> "ScheduleSampler":
    """Make a timestep sampler: 'uniform', 'stratified' or 'loss-second-moment'.

    Raises:
        ValueError: unknown name.
    """
    if name == "uniform":
        return UniformSampler(diffusion)
    if name == "stratified":
        return StratifiedSampler(diffusion)
    if name == "loss-second-moment":
        return LossSecondMomentResampler(diffusion)
    raise ValueError(f"schedule_sampler must be 'uniform', 'stratified' or 'loss-second-moment', not {name!r}")


class ScheduleSampler(ABC):
    """A distribution over timesteps for training, by importance sampling (Nichol & Dhariwal 2021, Eq. 18)."""

    @abstractmethod
    def weights(self) -> np.ndarray:
        """Return (T,) float64 positive weights; they need not sum to one."""

    def sample(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sample timesteps, with the factors that make the mean of the weighted losses unbiased.

        Args:
            batch_size: N.
            device: device of the result.
            generator: a CPU generator; the global one by default.

        Returns:
            t, (N,) int64 in [0, T); factors, (N,) float32 with mean one under this distribution.
        """
        weights = self.weights()
        p = torch.from_numpy(weights / weights.sum())
        t = torch.multinomial(p, batch_size, replacement=True, generator=generator)
        factors = (1.0 / (len(p) * p[t])).float()
        return t.to(device, non_blocking=True), factors.to(device, non_blocking=True)


class UniformSampler(ScheduleSampler):
    """Sample all timesteps with equal probability."""

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self._weights = np.ones(diffusion.num_timesteps)

    def weights(self) -> np.ndarray:
        return self._weights


class StratifiedSampler(UniformSampler):
    """Sample all timesteps with equal probability, and each batch evenly: one timestep from each N-th of [0, T).

    The batch's mean loss then varies less, since its share of noisy and of clean images does not. After Kingma et al.
    2021, appendix I.1, with an offset of its own for each image and in random order.
    """

    def sample(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        stratum = torch.randperm(batch_size, generator=generator)
        position = (stratum + torch.rand(batch_size, generator=generator, dtype=torch.float64)) / batch_size
        t = (position * len(self._weights)).long().clamp(max=len(self._weights) - 1)
        return t.to(device, non_blocking=True), torch.ones(batch_size).to(device, non_blocking=True)


class LossAwareSampler(ScheduleSampler):
    """A distribution that follows the losses of the images trained on."""

    def update_with_local_losses(self, local_ts: Tensor, local_losses: Tensor) -> None:
        """Record the losses of this rank's images; every rank calls it, with as many images as it has.

        Args:
            local_ts: (N,) int64 in [0, T).
            local_losses: (N,) float32, without importance weights.
        """
        pairs = torch.stack([local_ts.float(), local_losses.detach().float()])
        if get_world_size() > 1:
            pairs = _gather_columns(pairs)
        self.update_with_all_losses(pairs[0].long(), pairs[1])

    @abstractmethod
    def update_with_all_losses(self, ts: Tensor, losses: Tensor) -> None:
        """Record the losses of all ranks' images, in the order of the global batch."""


class LossSecondMomentResampler(LossAwareSampler):
    """Sample t in proportion to the root of its losses' second moment, once all t have a full history.

    Nichol & Dhariwal 2021, Eq. 18. The history lies where the losses are, and the host does not wait for it.

    Args:
        diffusion: process whose timesteps are sampled.
        history_per_term: K, the losses remembered for each t.
        uniform_prob: fraction of the samples that are uniform.
    """

    def __init__(self, diffusion: GaussianDiffusion, history_per_term: int = 10, uniform_prob: float = 0.001) -> None:
        self.history_per_term, self.uniform_prob = history_per_term, uniform_prob
        # The last element takes what is overwritten within one batch.
        self._history = torch.zeros(diffusion.num_timesteps * history_per_term + 1)
        self._written = torch.zeros(diffusion.num_timesteps, dtype=torch.int64)

    def weights(self) -> np.ndarray:
        return self._probabilities().double().cpu().numpy()

    def sample(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        self._move(torch.device(device))
        p = self._probabilities()
        uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64).to(p.dtype)
        cumulative = p.cumsum(0)
        uniform = uniform.to(device, non_blocking=True)
        t = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp(max=len(p) - 1)
        return t, (p.sum() / (len(p) * p[t])).float()

    def update_with_all_losses(self, ts: Tensor, losses: Tensor) -> None:
        self._move(ts.device)
        k = self.history_per_term
        ts, order = torch.sort(ts, stable=True)
        first, last = torch.searchsorted(ts, ts), torch.searchsorted(ts, ts, right=True)
        position = torch.arange(len(ts), device=ts.device)
        slot = ts * k + (self._written[ts] + position - first) % k
        slot = torch.where(last - position <= k, slot, len(self._history) - 1)
        self._history[slot] = losses.detach().float()[order]
        self._written.index_add_(0, ts, torch.ones_like(ts))

    def state_dict(self) -> dict[str, Any]:
        """Return the history as tensors, on the CPU."""
        return {"history": self._history[:-1].cpu(), "written": self._written.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ValueError: the state has another number of timesteps or another length of history.
        """
        if state["history"].shape != self._history[:-1].shape:
            raise ValueError("the timestep sampler's history has another number of timesteps")
        self._history = torch.cat([state["history"].float(), torch.zeros(1)])
        self._written = state["written"].clone()

    def _probabilities(self) -> Tensor:
        """Return (T,) weights: ones before the history is full."""
        history = self._history[:-1].view(-1, self.history_per_term)
        if history.device.type != "mps":  # has no float64
            history = history.double()
        moment = history.square().mean(1).sqrt()
        p = moment / moment.sum() * (1 - self.uniform_prob) + self.uniform_prob / len(moment)
        warm = (self._written >= self.history_per_term).all()
        return torch.where(warm, p, torch.ones_like(p))

    def _move(self, device: torch.device) -> None:
        self._history, self._written = self._history.to(device), self._written.to(device)


def _gather_columns(part: Tensor) -> Tensor:
    """Join the (2, n) tensors of all processes along n, in the order of the ranks."""
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(get_world_size())]
    torch.distributed.all_gather(counts, torch.tensor([part.shape[1]]))  # known to the hosts: no GPU is waited for
    sizes = [int(count) for count in counts]
    padded = torch.zeros(2, max(sizes), device=part.device)
    padded[:, : part.shape[1]] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([gathered[:, :size] for gathered, size in zip(parts, sizes, strict=True)], dim=1)
