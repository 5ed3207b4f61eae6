"""Metrics of a set of features against the reference's, each with a 95% interval.

All intervals come from the delete-a-group jackknife (Shao and Wu 1989): the generated set is split into groups, and
each group is left out once. The reference set is fixed, so an interval covers resampling of as many images from the
same model. A bootstrap is not used, since repeated images bias a Frechet distance upwards and nearest-neighbour
distances downwards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

NEIGHBOURS = 5
GROUPS = 20
MIN_IMAGES = NEIGHBOURS + 3  # without a group of two, each image still has its neighbours
MEMORISED_RATIO = 0.5
INTERVAL = f"95%, one of {GROUPS} groups of the images left out at a time (jackknife), reference set fixed"
BLOCK = 512  # rows of a distance matrix in memory


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95% interval, from n images."""

    value: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, object]:
        """Return the entry of metrics.json."""
        return {"value": _rounded(self.value), "interval": [_rounded(self.low), _rounded(self.high)], "n": self.n}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def split_groups(n: int) -> list[slice]:
    """Return the slices of the jackknife's groups of n images in random order."""
    count = min(GROUPS, n // 2)
    edges = np.linspace(0, n, count + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]


def jackknife(
    value: float, left_out: list[float], n: int, *, low: float = -math.inf, high: float = math.inf
) -> Estimate:
    """Return the Estimate from the value of all n images and the values without each group.

    Args:
        value: value of all n images.
        left_out: one value per group that was left out.
        n: number of images.
        low, high: range of the metric; a share of exactly 0 or 1 gets the half width 3 / n (rule of three).
    """
    parts = np.asarray(left_out, float)
    count = len(parts)
    half = _student(count - 1) * math.sqrt((count - 1) / count * float(((parts - parts.mean()) ** 2).sum()))
    if (low, high) == (0, 1) and value in (0, 1):
        half = max(half, 3 / n)
    return Estimate(value, max(low, value - half), min(high, value + half), n)


def _student(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t by a Cornish-Fisher series, within 0.5% from 5 degrees of freedom on."""
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def share(hits: Tensor) -> Estimate:
    """Estimate the mean of (N,) indicators, or of values in [0, 1], over independent images."""
    values = hits.double()
    n, total = len(values), values.sum()
    parts = [float((total - values[g].sum()) / (n - (g.stop - g.start))) for g in split_groups(n)]
    return jackknife(float(total / n), parts, n, low=0, high=1)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and unbiased covariance (D, D) of (N, D) features, float64."""
    x = features.double()
    mean = x.mean(0)
    x = x - mean
    return mean, x.T @ x / (len(x) - 1)


def frechet(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Return the squared Frechet distance of two normal distributions.

    Dowson and Landau 1982; Heusel et al. 2017, Eq. 6. The trace of sqrt(cov_1 cov_2) comes from the eigenvalues of the
    symmetric sqrt(cov_1) cov_2 sqrt(cov_1), which avoids the matrix square root of a singular product.

    Args:
        mean_1, mean_2: (D,) float64.
        cov_1, cov_2: (D, D) float64, positive semidefinite.
    """
    return frechet_from(mean_1, cov_1)(mean_2, cov_2)


def frechet_from(mean_1: Tensor, cov_1: Tensor) -> Callable[[Tensor, Tensor], float]:
    """Return `frechet` from one fixed distribution as a function of the other's mean and covariance."""
    values, vectors = torch.linalg.eigh(cov_1)
    root_1 = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def distance(mean_2: Tensor, cov_2: Tensor) -> float:
        product = root_1 @ cov_2 @ root_1
        roots = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
        squared = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * roots
        return max(0.0, float(squared))

    return distance


def frechet_estimate(distance: Callable[[Tensor, Tensor], float], features: Tensor) -> Estimate:
    """Estimate the Frechet distance of (N, D) features in random order; `distance` is from `frechet_from`."""
    groups = [features[group].double() for group in split_groups(len(features))]
    totals = torch.stack([x.sum(0) for x in groups])
    seconds = torch.stack([x.T @ x for x in groups])

    def measure(total: Tensor, second: Tensor, n: int) -> float:
        mean = total / n
        return distance(mean, (second - n * torch.outer(mean, mean)) / (n - 1))

    n, total, second = len(features), totals.sum(0), seconds.sum(0)
    value = measure(total, second, n)
    parts = [measure(total - totals[i], second - seconds[i], n - len(x)) for i, x in enumerate(groups)]
    return jackknife(value, parts, n, low=0)


def class_entropy(counts: Tensor) -> Estimate:
    """Estimate the entropy, in bits, of the predicted classes.

    Args:
        counts: (groups, classes) number of images per class in each group of the jackknife.
    """
    counts = counts.double()
    total = counts.sum(0)
    parts = [_entropy(total - group) for group in counts]
    return jackknife(_entropy(total), parts, int(total.sum()), low=0, high=math.log2(counts.shape[1]))


def _entropy(counts: Tensor) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log2()).sum()) + 0.0
