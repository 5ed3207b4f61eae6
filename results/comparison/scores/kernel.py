"""Kernel distance between two sets of features; Binkowski et al. 2018."""

import torch
from torch import Tensor

from comparison.scores.metrics import BLOCK, Estimate, jackknife, split_groups


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
