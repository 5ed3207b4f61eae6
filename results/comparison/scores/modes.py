"""Counting the modes of data sets that have known ones: which images show which, how many, how evenly."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comparison.data import shapes, stacked_mnist
from comparison.data.sources import shapes_modes
from comparison.scores.metrics import Estimate, jackknife, share, split_groups


@dataclass(frozen=True)
class ModeCounter:
    """Tells the modes of a data set's images.

    Attributes:
        total: modes that the data have.
        fit: maps (N, 3, S, S) uint8 images to the (N,) int64 mode that each shows, -1 for none, and to the (N,) float32
            residual of the fit, see `shapes.fit_modes`; None where a network tells the modes.
        facts: what decides the modes, for metrics.json: the acceptance, or the network.
    """

    total: int
    fit: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    facts: dict[str, Any]


def mode_counter(source: str, device: torch.device | str = "cpu") -> ModeCounter | None:
    """Return what counts the modes of a data source, None where they are not known.

    Raises:
        UserError: the classifier of StackedMNIST must be trained first, and MNIST is missing.
    """
    if count := shapes_modes(source):
        return ModeCounter(count, lambda images: _figures(images, count), {"acceptance": shapes.ACCEPT})
    if source != "stackmnist":
        return None
    from comparison.data.digits import load_counter

    digits = load_counter(device)
    return ModeCounter(stacked_mnist.MODES, lambda images: (digits.modes(images), None), digits.facts)


def _figures(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    residual, mode = shapes.fit_modes(images, count)
    return torch.where(residual < shapes.ACCEPT, mode, -1), residual


def modes_estimates(found: Tensor, count: int, residuals: Tensor | None = None) -> dict[str, Estimate]:
    """Estimate what the modes that images show tell of a sample set.

    Args:
        found: (N,) int64 modes, -1 for none.
        count: modes that the data have.
        residuals: (N,) float32 of the fits, None where there are none.

    Returns:
        modes_covered, modes with at least one image; modes_kl, the Kullback-Leibler divergence in nats of the modes'
        frequencies from uniform (Metz et al. 2017) among the images that show one; modes_matched, the share of these;
        with residuals also sharpness, their median.
    """
    groups = split_groups(len(found))
    hits = torch.stack([torch.bincount(found[g][found[g] >= 0], minlength=count) for g in groups])
    total = hits.sum(0)
    parts = [float((total > hits[g]).sum()) for g in range(len(groups))]
    without = [divergence(total - hits[g]) for g in range(len(groups))]
    estimates = {
        "modes_covered": jackknife(float((total > 0).sum()), parts, len(found), low=0, high=count),
        "modes_kl": jackknife(divergence(total), without, len(found), low=0, high=math.log(count)),
        "modes_matched": share(found >= 0),
    }
    if residuals is not None:
        keep = [torch.cat([residuals[: g.start], residuals[g.stop :]]) for g in groups]
        medians = [float(part.median()) for part in keep]
        estimates["sharpness"] = jackknife(float(residuals.median()), medians, len(found), low=0)
    return estimates


def divergence(frequency: Tensor) -> float:
    """Return the Kullback-Leibler divergence from uniform, in nats, of (M,) counts; log M, its most, of none at all."""
    part = frequency[frequency > 0].double() / max(int(frequency.sum()), 1)
    return math.log(len(frequency)) + float((part * part.log()).sum())
