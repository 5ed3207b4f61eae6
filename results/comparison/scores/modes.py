"""Mode counting for data sets with known modes: modes covered, evenness, share of images that show a mode."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comparison.data import shapes, stacked_mnist
from comparison.data.digits import load_counter
from comparison.data.sources import STACKED, shapes_modes
from comparison.scores.metrics import Estimate, jackknife, share, split_groups


@dataclass(frozen=True)
class ModeCounter:
    """Finds the modes of a data set's images.

    Attributes:
        total: number of modes of the data.
        fit: maps (N, 3, S, S) uint8 images to their (N,) int64 modes, -1 for none, and the (N,) float32 residuals of
            `shapes.fit_modes`, None if a network finds the modes.
        facts: acceptance or network that decides the modes, for metrics.json.
    """

    total: int
    fit: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    facts: dict[str, Any]


def mode_counter(source: str, device: torch.device | str = "cpu") -> ModeCounter | None:
    """Return the mode counter of a data source, None if its modes are unknown.

    Raises:
        UserError: MNIST, on which the classifier of StackedMNIST is trained, is missing.
    """
    if count := shapes_modes(source):
        return ModeCounter(count, lambda images: shapes.match_modes(images, count), {"acceptance": shapes.ACCEPT})
    if source not in STACKED:
        return None
    digits = load_counter(source, device)
    return ModeCounter(stacked_mnist.MODES, lambda images: (digits.modes(images), None), digits.facts)


def modes_estimates(modes: Tensor, count: int, residuals: Tensor | None = None) -> dict[str, Estimate]:
    """Estimate the mode metrics of a sample set.

    Args:
        modes: (N,) int64 modes of the images, -1 for none.
        count: number of modes of the data.
        residuals: (N,) float32 residuals of the fits, or None.

    Returns:
        modes_covered, modes with at least one image; modes_kl, the Kullback-Leibler divergence in nats of the modes'
        frequencies from uniform (Metz et al. 2017); modes_matched, the share of images that show a mode; with residuals
        also sharpness, their median.
    """
    n, groups = len(modes), split_groups(len(modes))
    hits = torch.stack([torch.bincount(modes[g][modes[g] >= 0], minlength=count) for g in groups])
    total = hits.sum(0)
    parts = [float((total > hits[g]).sum()) for g in range(len(groups))]
    without = [divergence(total - hits[g]) for g in range(len(groups))]
    estimates = {
        "modes_covered": jackknife(float((total > 0).sum()), parts, n, low=0, high=count),
        "modes_kl": jackknife(divergence(total), without, n, low=0, high=math.log(count)),
        "modes_matched": share(modes >= 0),
    }
    if residuals is not None:
        keep = [torch.cat([residuals[: g.start], residuals[g.stop :]]) for g in groups]
        medians = [float(part.median()) for part in keep]
        estimates["sharpness"] = jackknife(float(residuals.median()), medians, n, low=0)
    return estimates


def divergence(frequency: Tensor) -> float:
    """Return the Kullback-Leibler divergence of (M,) counts from uniform, in nats; its maximum log M if all are 0."""
    part = frequency[frequency > 0].double() / max(int(frequency.sum()), 1)
    return math.log(len(frequency)) + float((part * part.log()).sum())
