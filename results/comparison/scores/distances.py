"""Kernel distance and sliced Wasserstein distance between two sets of features."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from comparison.scores.metrics import BLOCK, Estimate, jackknife, split_groups

DIRECTIONS = 128  # random projections of the sliced distance
SEED = 0


def _kernel_sums(a: Tensor, b: Tensor, rows: list[slice], columns: list[slice]) -> Tensor:
    """Sum the kernel (a.b / D + 1)^3 of Binkowski et al. 2018 over each pair of groups: (rows, columns) float64."""
    sums = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for i, group in enumerate(rows):
        for part in a[group].split(BLOCK):
            kernel = (part @ b.T).div_(a.shape[1]).add_(1)
            column = kernel.pow_(3).double().sum(0)
            for j, other in enumerate(columns):
                sums[i, j] += column[other].sum()
    return sums


def _diagonal(a: Tensor) -> Tensor:
    return (a.double().square().sum(1) / a.shape[1] + 1) ** 3


def kernel_self(features: Tensor) -> float:
    """Return the mean kernel between different images of one set, the reference's term in `kernel_estimate`."""
    n = len(features)
    total = _kernel_sums(features, features, [slice(0, n)], [slice(0, n)]).sum() - _diagonal(features).sum()
    return float(total / (n * (n - 1)))


def kernel_estimate(reference: Tensor, reference_self: float, features: Tensor) -> Estimate:
    """Estimate the kernel distance: squared MMD with the cubic kernel, unbiased, over all pairs of images.

    Binkowski et al. 2018, Eq. 4, without subsets. It may be below 0 for equal distributions.

    Args:
        reference: (M, D) float32.
        reference_self: `kernel_self(reference)`.
        features: (N, D) float32.
    """
    n, groups = len(features), split_groups(len(features))
    within = _kernel_sums(features, features, groups, groups)
    diagonal = torch.stack([_diagonal(features[g]).sum() for g in groups])
    across = _kernel_sums(features, reference, groups, [slice(0, len(reference))])[:, 0]

    def distance(keep: Tensor, size: int) -> float:
        inner = (keep @ within @ keep - keep @ diagonal) / (size * (size - 1))
        return float(reference_self + inner - 2 * (keep @ across) / (size * len(reference)))

    all_groups = torch.ones(len(groups), dtype=torch.float64)
    parts = []
    for i, group in enumerate(groups):
        keep = all_groups.clone()
        keep[i] = 0
        parts.append(distance(keep, n - (group.stop - group.start)))
    return jackknife(distance(all_groups, n), parts, n)


@lru_cache
def directions(dimensions: int) -> Tensor:
    """Return (D, DIRECTIONS) float32 unit vectors, the same on every machine."""
    vectors = np.random.Generator(np.random.PCG64(SEED)).standard_normal((dimensions, DIRECTIONS))
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=0)).float()


class SlicedWasserstein:
    """Sliced Wasserstein distance from a fixed reference (M, D) float32; Rabin et al. 2011, Bonneel et al. 2015."""

    def __init__(self, reference: Tensor):
        self._sorted = (reference @ directions(reference.shape[1])).T.sort(1).values
        self._quantiles: dict[int, Tensor] = {}

    def _quantiles_at(self, n: int) -> Tensor:
        """Return (DIRECTIONS, n) quantiles of the projected reference at (i + 1/2) / n."""
        if n not in self._quantiles:
            m = self._sorted.shape[1]
            position = ((torch.arange(n, dtype=torch.float64) + 0.5) * m / n - 0.5).clamp(0, m - 1)
            low = position.floor().long()
            high = (low + 1).clamp(max=m - 1)
            self._quantiles[n] = torch.lerp(self._sorted[:, low], self._sorted[:, high], (position - low).float())
        return self._quantiles[n]

    def _distance(self, ordered: Tensor) -> float:
        return float((ordered - self._quantiles_at(ordered.shape[1])).double().square().mean().sqrt())

    def __call__(self, features: Tensor) -> Estimate:
        """Estimate the distance of (N, D) features in random order.

        It is the root mean square, over fixed random directions, of the projections' 2-Wasserstein distances.
        """
        n = len(features)
        ordered, index = (features @ directions(features.shape[1])).T.sort(1)
        parts = []
        for group in split_groups(n):
            kept = (index < group.start) | (index >= group.stop)
            parts.append(self._distance(ordered[kept].view(DIRECTIONS, -1)))
        return jackknife(self._distance(ordered), parts, n, low=0)
