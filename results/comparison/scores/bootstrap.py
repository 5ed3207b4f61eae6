"""Paired bootstrap for the ratio of two sample sets' Frechet distances, where image i of both used the same noise.

Each round draws the same images of both sets, with replacement, so that effects of the shared noise cancel.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], float]
ROUNDS = 400
METHOD = (
    f"95%, paired bootstrap over the images, {ROUNDS} rounds; repeated images raise a Frechet distance, so each "
    "round's distance is lowered by their mean excess over the distance of the whole set"
)


def paired_ratio(
    distance: Distance, first: Tensor, second: Tensor, *, rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Any]:
    """Compare two sets' distances to one reference by a paired bootstrap (Efron 1979).

    Args:
        distance: Frechet distance to the reference, from `metrics.frechet_from`.
        first, second: (N, D) features, row i of both from the same noise.
        rounds: number of bootstrap rounds.
        seed: seed of the rounds.

    Returns:
        `value`, the ratio of the first distance to the second, its 95% `interval`, and `n` images.

    Raises:
        ValueError: the sets differ in size.
    """
    if first.shape != second.shape:
        raise ValueError(f"the sets differ: {tuple(first.shape)} and {tuple(second.shape)}")
    n = len(first)
    whole = np.array([distance(*_moments(x.double(), torch.ones(n).double())) for x in (first, second)])
    draws = np.random.Generator(np.random.PCG64(seed))
    resampled = np.empty((rounds, 2))
    for row in resampled:
        counts = torch.from_numpy(draws.multinomial(n, np.full(n, 1 / n))).double()
        row[:] = [distance(*_moments(x.double(), counts)) for x in (first, second)]
    corrected = resampled - (resampled.mean(axis=0) - whole)
    ratios = corrected[:, 0] / corrected[:, 1]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return {"value": float(whole[0] / whole[1]), "interval": [float(low), float(high)], "n": n}


def _moments(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and unbiased covariance (D, D) of (N, D) rows with (N,) counts."""
    n = counts.sum()
    mean = counts @ x / n
    x = x - mean
    return mean, (x * counts[:, None]).T @ x / (n - 1)
