"""Distillation of a trained network into one that needs one to four evaluations, by its teacher's own trajectories.

Zhou et al. 2024, "Simple and fast distillation of diffusion models". The path from noise to an image is cut into as
many parts as there are evaluations. The student's evaluation at the beginning of a part learns the image towards which
one straight step has to go, to end where several steps of the teacher end. It starts from what the student's own
earlier evaluations made. Noise levels are those of `few_steps`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .few_steps import NoiseLevels, predict, step_towards
from .gaussian_diffusion import GaussianDiffusion
from .process import Model

LAST_LEVEL = 0.03  # at which the teacher's last evaluation predicts the image


class TrajectoryLoss:
    """The loss of a student that follows its teacher, in place of a process's `training_losses`.

    Args:
        diffusion: process of both networks.
        teacher: frozen network.
        grids: number of evaluations -> decreasing noise levels; no two may be equal, so that a level has one
            destination.
        teacher_steps: evaluations of the teacher from noise to image; each part of a path gets an equal share.

    Attributes:
        num_timesteps: T of the process.
        starts: (G,) float64, timesteps of the grids' first levels, by which `t` names a grid.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        teacher: Model,
        grids: Mapping[int, Sequence[float]],
        teacher_steps: int = 16,
    ) -> None:
        self.diffusion, self.teacher, self.num_timesteps = diffusion, teacher, diffusion.num_timesteps
        self.levels, self.counts = NoiseLevels(diffusion.alphas_cumprod), list(grids)
        self._table = torch.zeros(len(grids), max(grids) + 1, dtype=torch.float64)  # each row ends in zeros
        for row, grid in zip(self._table, grids.values(), strict=True):
            row[: len(grid)] = torch.tensor(grid)
        self._substeps = torch.tensor([max(1, teacher_steps // count) for count in grids])
        self.starts = self.levels.timestep(self._table[:, 0])

    def training_losses(
        self, model: Model, x_start: Tensor, t: Tensor, model_kwargs: dict[str, Any] | None, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses (N,) of paths from noise.

        Args:
            model: the student.
            x_start: not used: training needs no images.
            t: (N,) an element of `starts` for each path.
            model_kwargs: further keyword arguments of both networks, with a row for each path.
            noise: (N, C, H, W), the beginnings of the paths.

        Returns:
            loss, the sum of the mean squared errors over the evaluations of a path, and mse, their mean.
        """
        table, starts = self._table.to(t.device), self.starts.to(t.device)
        grid = (t.double().unsqueeze(1) - starts).abs().argmin(1)
        y = noise * _view(table[grid, 0], noise)
        loss = torch.zeros(len(noise), device=noise.device)
        evaluations = torch.zeros_like(loss)
        for i in range(table.shape[1] - 1):
            rows = (table[grid, i] > 0).nonzero().squeeze(1)
            high, low = table[grid[rows], i], table[grid[rows], i + 1]
            kwargs = {name: value[rows] for name, value in (model_kwargs or {}).items()}
            substeps = self._substeps.to(t.device)[grid[rows]]
            target = self.target(y[rows], high, low, substeps, kwargs)
            image = predict(model, self.diffusion, self.levels, y[rows], high, kwargs)
            loss = loss.index_add(0, rows, (image - target).square().flatten(1).mean(1))
            evaluations = evaluations.index_add(0, rows, torch.ones(len(rows), device=loss.device))
            y = y.index_copy(0, rows, step_towards(image.detach().clamp(-1, 1), y[rows], high, low))
        return {"loss": loss, "mse": loss.detach() / evaluations}

    @torch.no_grad()
    def target(self, y: Tensor, high: Tensor, low: Tensor, substeps: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """Return the image towards which one step from `high` ends where the teacher's steps end at `low`.

        The teacher takes steps of DPM-Solver++(2M), equal in log(sigma); where `low` is 0 it evaluates once more, at
        `LAST_LEVEL`.

        Args:
            y: (N, C, H, W) at the noise levels `high`.
            high, low: (N,) noise levels.
            substeps: (N,) int64, steps of the teacher.
            model_kwargs: further keyword arguments of the network.
        """
        end = low.clamp(min=LAST_LEVEL)
        state, former = y, torch.zeros_like(y)
        for j in range(int(substeps.max()) + 1):
            last = (j == substeps) & (low == 0)
            rows = ((j < substeps) | last).nonzero().squeeze(1)
            if not len(rows):
                break
            kwargs = {name: value[rows] for name, value in model_kwargs.items()}
            ratio = (end / high)[rows] ** (1 / substeps[rows])  # of the levels after and before a step
            here = high[rows] * ratio**j
            image = predict(self.teacher, self.diffusion, self.levels, state[rows], here, kwargs).clamp(-1, 1)
            direction = image if j == 0 else 1.5 * image - 0.5 * former[rows]
            moved = step_towards(direction, state[rows], here, here * ratio)
            state = state.index_copy(0, rows, torch.where(_view(last[rows], moved), image, moved))
            former = former.index_copy(0, rows, image)
        share = _view(low / high, y)
        return ((state - share * y) / (1 - share)).clamp(-1.2, 1.2)


class GridSampler:
    """Take the grids of a `TrajectoryLoss` in turn, image by image.

    Args:
        starts: (G,) float64, timesteps of the grids' first levels.
    """

    def __init__(self, starts: Tensor) -> None:
        self._starts = starts

    def sample(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return timesteps (N,) float64 and loss factors, ones (N,) float32; the generator is not used."""
        t = self._starts[torch.arange(batch_size) % len(self._starts)]
        return t.to(device), torch.ones(batch_size, device=device)


def _view(values: Tensor, like: Tensor) -> Tensor:
    values = values if values.dtype == torch.bool else values.float()
    return values.view(-1, *[1] * (like.ndim - 1))
