"""Nearest-neighbour metrics: precision, recall, density, coverage, memorisation.

Distances are squared Euclidean in z-scored features, computed in a few blocks of BLOCK x N float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from comparison.scores.metrics import BLOCK, MEMORISED_RATIO, NEIGHBOURS, Estimate, jackknife, share, split_groups


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return (N, M) squared distances of (N, D) and (M, D) float32."""
    product = torch.addmm(a.square().sum(1)[:, None], a, b.T, beta=1, alpha=-2)
    return product.add_(b.square().sum(1)).clamp_(min=0)


def _nearest_within(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (N, count) squared distances and indices of each image's nearest other images in the set."""
    values, indices = [], []
    for start in range(0, len(features), BLOCK):
        block = squared_distances(features[start : start + BLOCK], features)
        rows = torch.arange(len(block))
        block[rows, rows + start] = torch.inf
        nearest = block.topk(count, largest=False)
        values.append(nearest.values)
        indices.append(nearest.indices)
    return torch.cat(values), torch.cat(indices)


def radii(features: Tensor) -> Tensor:
    """Return the (N,) squared distance of each image to its k-th nearest other image, k = 5."""
    return _nearest_within(features, NEIGHBOURS)[0][:, -1]


def _radii_without(features: Tensor, groups: list[slice]) -> Tensor:
    """Return (1 + G, N) squared radii: with all neighbours, and without those of each group."""
    count = min(2 * NEIGHBOURS + 2, len(features) - 1)
    values, indices = _nearest_within(features, count)
    group_of = torch.cat([torch.full((g.stop - g.start,), i) for i, g in enumerate(groups)])
    neighbour_group = group_of[indices]
    rows = [values[:, NEIGHBOURS - 1]]
    for i in range(len(groups)):
        kept = values.masked_fill(neighbour_group == i, torch.inf).sort(1).values[:, NEIGHBOURS - 1]
        # if more than k + 2 of the nearest are in one group, the last one is used
        rows.append(torch.where(kept.isinf(), values[:, -1], kept))
    return torch.stack(rows)


def prdc(reference: Tensor, reference_radii: Tensor, features: Tensor) -> dict[str, Estimate]:
    """Estimate precision and recall (Kynkaanniemi et al. 2019) and density and coverage (Naeem et al. 2020).

    For equal distributions and sizes, the expected density is 1 and the expected coverage 0.969 at k = 5; precision
    and recall are below 1.

    Args:
        reference: (M, D) float32.
        reference_radii: (M,), `radii(reference)`.
        features: (N, D) float32, in random order.
    """
    n, m = len(features), len(reference)
    groups = split_groups(n)
    fake_radii = _radii_without(features, groups)
    inside, balls = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.float64)
    covered = torch.zeros(len(groups), m, dtype=torch.int32)  # 1 if the group has an image in the real image's ball
    recalled = torch.zeros(1 + len(groups), m, dtype=torch.bool)
    for g, group in enumerate(groups):
        for start in range(group.start, group.stop, BLOCK):
            part = slice(start, min(start + BLOCK, group.stop))
            distances = squared_distances(features[part], reference)
            hits = distances <= reference_radii
            inside[part], balls[part] = hits.any(1), hits.double().sum(1)
            covered[g] |= hits.any(0)
            for i in range(len(recalled)):
                if i != g + 1:
                    recalled[i] |= (distances <= fake_radii[i, part, None]).any(0)
    density = balls / NEIGHBOURS
    total = density.sum()
    sizes = [g.stop - g.start for g in groups]
    parts = [float((total - density[g].sum()) / (n - s)) for g, s in zip(groups, sizes, strict=True)]
    reached = covered.sum(0)
    coverage = [float((reached > covered[g]).double().mean()) for g in range(len(groups))]
    recall = recalled.double().mean(1).tolist()
    return {
        "precision": share(inside),
        "recall": jackknife(recall[0], recall[1:], n, low=0, high=1),
        "density": jackknife(float(total / n), parts, n, low=0),
        "coverage": jackknife(float((reached > 0).double().mean()), coverage, n, low=0, high=1),
    }


@dataclass(frozen=True)
class Nearest:
    """Each sample's nearest training image: (N,) index, distance, and the ratio of `memorised`."""

    index: Tensor
    distance: Tensor
    ratio: Tensor


def nearest_training(features: Tensor, training: Tensor, left_out: Tensor | None = None) -> Nearest:
    """Find each sample's nearest training image.

    The ratio divides the distance by that from the training image to its nearest other training image. A sample with a
    ratio far below 1 is closer to a training image than training images are to each other.

    Args:
        features: (N, D) float32.
        training: (T, D) float32.
        left_out: (L,) int64 training images to exclude, because the samples were made from them.
    """
    counts = torch.ones(len(training), dtype=torch.bool)
    if left_out is not None:
        counts[left_out] = False
    numbers = counts.nonzero()[:, 0]
    pool = training[numbers]
    index = torch.cat([squared_distances(part, pool).argmin(1) for part in features.split(BLOCK)])
    # squared_distances loses digits for nearly equal images, so these distances are computed directly
    distance = (features - pool[index]).norm(dim=1)
    used, inverse = index.unique(return_inverse=True)
    spacings = []
    for part in used.split(BLOCK):
        block = squared_distances(pool[part], pool)
        block[torch.arange(len(part)), part] = torch.inf
        spacings.append((pool[part] - pool[block.argmin(1)]).norm(dim=1))
    spacing = torch.cat(spacings)[inverse]
    ratio = torch.where(distance > 0, distance / spacing.clamp(min=1e-12), 0.0)
    return Nearest(numbers[index], distance, ratio)


def memorised(nearest: Nearest) -> Estimate:
    """Estimate the share of samples whose ratio of `nearest_training` is below 1/2."""
    return share(nearest.ratio < MEMORISED_RATIO)


def median_ratio(nearest: Nearest) -> Estimate:
    """Estimate the median ratio of `nearest_training`; 1 for samples as far from the images as these from another."""
    n, ratio = len(nearest.ratio), nearest.ratio
    parts = [float(torch.cat([ratio[: g.start], ratio[g.stop :]]).median()) for g in split_groups(n)]
    return jackknife(float(ratio.median()), parts, n, low=0)
