"""Distances and shares between a set of features and the reference's, each with a 95% interval.

One rule gives every interval: the generated set is cut into groups, each group is left out once, and the spread of
the results is that of the whole (the delete-a-group jackknife; Shao and Wu 1989). The reference set stays fixed, so
an interval tells what another draw of as many images from the same model would give. A bootstrap would not do:
repeated images bias a Frechet distance upwards and nearest neighbours downwards.
"""

import math
from collections.abc import Callable, Sequence
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
EXTRAPOLATION = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # shares of the images between which the line in 1 / N is fitted


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


class GroupMoments:
    """Sums and second moments of features, group by group, so that images can stream and any group be left out.

    Args:
        groups: number of groups.
        dimensions: D.
    """

    def __init__(self, groups: int, dimensions: int):
        self.count = torch.zeros(groups, dtype=torch.float64)
        self.total = torch.zeros(groups, dimensions, dtype=torch.float64)
        self.second = torch.zeros(groups, dimensions, dimensions, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> "GroupMoments":
        """Take (N, D) features in random order, cut by `split_groups`."""
        groups = split_groups(len(features))
        found = cls(len(groups), features.shape[1])
        for number, group in enumerate(groups):
            for part in features[group].split(4 * BLOCK):
                found.add(part, number)
        return found

    def add(self, features: Tensor, group: int) -> None:
        """Add (n, D) features to a group."""
        x = features.double()
        self.count[group] += len(x)
        self.total[group] += x.sum(0)
        self.second[group] += x.T @ x

    def moments(self, groups: Sequence[int] | None = None) -> tuple[Tensor, Tensor, int]:
        """Return mean (D,), unbiased covariance (D, D) and the number of images of some groups, by default of all."""
        chosen = list(range(len(self.count))) if groups is None else list(groups)
        n = int(self.count[chosen].sum())
        mean = self.total[chosen].sum(0) / n
        return mean, (self.second[chosen].sum(0) - n * torch.outer(mean, mean)) / (n - 1), n


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


def frechet_estimate(distance: Callable[[Tensor, Tensor], float], features: Tensor | GroupMoments) -> Estimate:
    """Estimate the Frechet distance of (N, D) features or of their moments; `distance` comes from `frechet_from`."""
    found = features if isinstance(features, GroupMoments) else GroupMoments.of(features)
    mean, cov, n = found.moments()
    whole, second, total = distance(mean, cov), found.second.sum(0), found.total.sum(0)
    parts = []
    for group, size in enumerate(found.count.tolist()):
        rest = n - size
        mean = (total - found.total[group]) / rest
        parts.append(distance(mean, (second - found.second[group] - rest * torch.outer(mean, mean)) / (rest - 1)))
    return jackknife(whole, parts, n, low=0)


def frechet_infinite(distance: Callable[[Tensor, Tensor], float], features: GroupMoments) -> Estimate:
    """Extrapolate the Frechet distance to infinitely many generated images; Chong and Forsyth 2020.

    The bias falls as 1 / N: distances of parts of the images, from a quarter to all, are fitted by a line in 1 / N,
    whose intercept counts. The bias of the finite reference stays. The result may lie below 0.
    """
    everything = list(range(len(features.count)))
    value = _intercept(distance, features, everything)
    parts = [_intercept(distance, features, [g for g in everything if g != left]) for left in everything]
    return jackknife(value, parts, int(features.count.sum()))


def _intercept(distance: Callable[[Tensor, Tensor], float], features: GroupMoments, groups: list[int]) -> float:
    count = len(groups)
    points = []
    for size in sorted({max(1, round(count * part)) for part in EXTRAPOLATION}):
        starts = {0} if size == count else {0, count // 2}
        for start in starts:
            chosen = [groups[(start + i) % count] for i in range(size)]
            mean, cov, n = features.moments(chosen)
            points.append((1 / n, distance(mean, cov)))
    x, y = np.array(points).T
    if np.ptp(x) == 0:
        return float(y.mean())
    return float(np.polyfit(x, y, 1)[1])


def class_entropy(counts: Tensor) -> Estimate:
    """Estimate the entropy, in bits, of the classes that a classifier sees in the images.

    Args:
        counts: (groups, classes) images of each class in each group of the jackknife.
    """
    counts = counts.double()
    total = counts.sum(0)
    parts = [_entropy(total - group) for group in counts]
    return jackknife(_entropy(total), parts, int(total.sum()), low=0, high=math.log2(counts.shape[1]))


def _entropy(counts: Tensor) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log2()).sum()) + 0.0
