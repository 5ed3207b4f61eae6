"""Sliced Wasserstein distance between two sets of features; Rabin et al. 2011, Bonneel et al. 2015."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from comparison.scores.metrics import Estimate, jackknife, split_groups

DIRECTIONS = 128
SEED = 0


@lru_cache
def directions(dimensions: int) -> Tensor:
    """Return (D, DIRECTIONS) float32 unit vectors, the same on every machine."""
    drawn = np.random.Generator(np.random.PCG64(SEED)).standard_normal((dimensions, DIRECTIONS))
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=0)).float()


class SlicedWasserstein:
    """The distance from one fixed reference, whose projections are sorted once.

    Args:
        reference: (M, D) float32.
    """

    def __init__(self, reference: Tensor):
        self._sorted = (reference @ directions(reference.shape[1])).T.sort(1).values
        self._quantiles: dict[int, Tensor] = {}

    def _at(self, n: int) -> Tensor:
        """Return (DIRECTIONS, n) quantiles of the reference at (i + 1/2) / n."""
        if n not in self._quantiles:
            m = self._sorted.shape[1]
            place = ((torch.arange(n, dtype=torch.float64) + 0.5) * m / n - 0.5).clamp(0, m - 1)
            low = place.floor().long()
            part = (place - low).float()
            high = (low + 1).clamp(max=m - 1)
            self._quantiles[n] = torch.lerp(self._sorted[:, low], self._sorted[:, high], part)
        return self._quantiles[n]

    def _distance(self, ordered: Tensor) -> float:
        return float((ordered - self._at(ordered.shape[1])).double().square().mean().sqrt())

    def __call__(self, features: Tensor) -> Estimate:
        """Estimate the distance of (N, D) features in random order.

        It is the root of the mean, over fixed random directions, of the squared 2-Wasserstein distance of the
        projections.
        """
        n = len(features)
        ordered, index = (features @ directions(features.shape[1])).T.sort(1)
        parts = []
        for group in split_groups(n):
            kept = (index < group.start) | (index >= group.stop)
            parts.append(self._distance(ordered[kept].view(DIRECTIONS, -1)))
        return jackknife(self._distance(ordered), parts, n, low=0)
