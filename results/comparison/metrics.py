"""Distances and shares between a set of features and the reference's, each with a 95% interval.

One rule gives every interval: the generated set is cut into groups, each group is left out once, and the spread of
the results is that of the whole (the delete-a-group jackknife; Shao and Wu 1989). The reference set stays fixed, so
an interval tells what another draw of as many images from the same model would give. A bootstrap would not do:
repeated images bias a Frechet distance upwards and nearest neighbours downwards.
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
MIN_IMAGES = NEIGHBOURS + 3  # a group of two is left out, and each of the rest still has its neighbours
MEMORISED_RATIO = 0.5
INTERVAL = f"95%, one of {GROUPS} groups of the images left out at a time (jackknife), reference set fixed"
BLOCK = 512  # rows of a distance matrix held at a time


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, from n images."""

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
    """Cut n images, in random order, into the groups of the jackknife."""
    count = min(GROUPS, n // 2)
    edges = np.linspace(0, n, count + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]


def jackknife(
    value: float, left_out: list[float], n: int, *, low: float = -math.inf, high: float = math.inf
) -> Estimate:
    """Make an Estimate of the whole's value and of the values with each group left out.

    Args:
        value: of all n images.
        left_out: one value for each group that was left out.
        n: images.
        low, high: range of the quantity; a share that stands at its bound gets the rule of three, 3 / n.
    """
    parts = np.asarray(left_out, float)
    count = len(parts)
    half = _student(count - 1) * math.sqrt((count - 1) / count * float(((parts - parts.mean()) ** 2).sum()))
    if (low, high) == (0, 1) and value in (0, 1):
        half = max(half, 3 / n)
    return Estimate(value, max(low, value - half), min(high, value + half), n)


def _student(freedom: int) -> float:
    """97.5% quantile of Student's t; Cornish-Fisher series, within 0.5% from 5 degrees of freedom on."""
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def share(hits: Tensor) -> Estimate:
    """Estimate the mean of an (N,) indicator or number in [0, 1] over independent images."""
    values = hits.double()
    return _mean(values, 0, 1)


def _mean(values: Tensor, low: float, high: float) -> Estimate:
    n, total = len(values), values.sum()
    parts = [float((total - values[g].sum()) / (n - (g.stop - g.start))) for g in split_groups(n)]
    return jackknife(float(total / n), parts, n, low=low, high=high)


# Frechet distance


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and unbiased covariance (D, D) of (N, D) features, float64."""
    x = features.double()
    mean = x.mean(0)
    x = x - mean
    return mean, x.T @ x / (len(x) - 1)


def frechet(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Squared Frechet distance of two normal distributions; Dowson and Landau 1982, Heusel et al. 2017, Eq. 6.

    The trace of sqrt(cov_1 cov_2) is the sum of the roots of the eigenvalues of the symmetric
    sqrt(cov_1) cov_2 sqrt(cov_1), which are real and at least 0: no matrix square root of a singular product.

    Args:
        mean_1, mean_2: (D,) float64.
        cov_1, cov_2: (D, D) float64, positive semidefinite.
    """
    return frechet_from(mean_1, cov_1)(mean_2, cov_2)


def frechet_from(mean_1: Tensor, cov_1: Tensor) -> Callable[[Tensor, Tensor], float]:
    """Return `frechet` from one fixed distribution, whose root is taken once, as a function of the other's moments."""
    values, vectors = torch.linalg.eigh(cov_1)
    root_1 = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def distance(mean_2: Tensor, cov_2: Tensor) -> float:
        product = root_1 @ cov_2 @ root_1
        roots = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
        squared = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * roots
        return max(0.0, float(squared))

    return distance


def frechet_estimate(distance: Callable[[Tensor, Tensor], float], features: Tensor) -> Estimate:
    """Estimate the Frechet distance of (N, D) features; `distance` comes from `frechet_from`."""
    n = len(features)
    mean, cov = moments(features)
    x = features.double() - mean
    scatter, parts = cov * (n - 1), []
    for group in split_groups(n):
        y, size = x[group], group.stop - group.start
        rest = n - size
        shift = -y.sum(0) / rest  # of the mean without the group; x is centred
        left = (scatter - y.T @ y - rest * torch.outer(shift, shift)) / (rest - 1)
        parts.append(distance(mean + shift, left))
    return jackknife(distance(mean, cov), parts, n, low=0)


# Kernel distance


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


def _own_kernel(a: Tensor) -> Tensor:
    return (a.double().square().sum(1) / a.shape[1] + 1) ** 3


def kernel_self(features: Tensor) -> float:
    """Return the mean kernel between different images of one set, the reference's part of `kernel_estimate`."""
    n = len(features)
    total = _kernel_sums(features, features, [slice(0, n)], [slice(0, n)]).sum() - _own_kernel(features).sum()
    return float(total / (n * (n - 1)))


def kernel_estimate(reference: Tensor, reference_self: float, features: Tensor) -> Estimate:
    """Estimate the kernel distance: squared MMD with the cubic kernel, unbiased, over all pairs of images.

    Binkowski et al. 2018, Eq. 4, without drawing subsets. It may be below 0 for equal distributions.

    Args:
        reference: (M, D) float32.
        reference_self: from `kernel_self(reference)`.
        features: (N, D) float32.
    """
    n, groups = len(features), split_groups(len(features))
    within = _kernel_sums(features, features, groups, groups)
    own = torch.stack([_own_kernel(features[g]).sum() for g in groups])
    across = _kernel_sums(features, reference, groups, [slice(0, len(reference))])[:, 0]

    def distance(keep: Tensor, size: int) -> float:
        inner = (keep @ within @ keep - keep @ own) / (size * (size - 1))
        return float(reference_self + inner - 2 * (keep @ across) / (size * len(reference)))

    all_groups = torch.ones(len(groups), dtype=torch.float64)
    parts = []
    for i, group in enumerate(groups):
        keep = all_groups.clone()
        keep[i] = 0
        parts.append(distance(keep, n - (group.stop - group.start)))
    return jackknife(distance(all_groups, n), parts, n)
