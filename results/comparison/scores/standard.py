"""The standard scores, which published figures use: FID, KID, inception score, precision, recall.

Only the standard Inception network gives them; a file of weights counts as such by its SHA-256, and without it there
is an error, never another network. Features and scores are torch-fidelity's, but for the FID's formula, which is
steadier for few images; the FID is taken a second time in the features of pytorch-fid where that is installed.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import UserError
from comparison.scores.inception import (
    SHA256_PREFIX,
    Library,
    check_weights,
    embed,
    embed_reference,
    find_weights,
    full_float32,
    installed,
    made_by,
    require,
)
from comparison.scores.statistics import Statistics

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from comparison.scores.metrics import Estimate

__all__ = ["SHA256_PREFIX", "check_weights", "find_weights", "require", "score"]

MIN_IMAGES = 20  # two for each split of the inception score
PAIRWISE_IMAGES = 10_000  # of which precision and recall are taken: they compare all with all
SPLITS, SUBSETS, SUBSET_SIZE, NEIGHBOURS = 10, 100, 1000, 3  # as published figures


def frechet_estimate(mu: Tensor, sigma: Tensor, features: Tensor) -> Estimate:
    """Estimate the Frechet distance of (N, D) features from a fixed mean (D,) and covariance (D, D), float64.

    Heusel et al. 2017, Eq. 6. For N <= D the eigenvalues of the product of the covariances are those of an N x N
    matrix, X sigma X^T / (N - 1) with the centred features X. There the interval is up to twice as wide as need be.
    """
    import torch

    from comparison.scores.metrics import frechet_from, jackknife, split_groups

    n, dimensions = features.shape
    x = features.double() - mu
    numbers = torch.arange(n)
    if n > dimensions:
        distance_of = frechet_from(torch.zeros_like(mu), sigma)
        total, square = x.sum(0), x.T @ x

        def distance(left_out: slice) -> float:
            y, k = x[left_out], n - (left_out.stop - left_out.start)
            mean = (total - y.sum(0)) / k
            return distance_of(mean, (square - y.T @ y - k * torch.outer(mean, mean)) / (k - 1))

    else:
        inner, across, trace = x @ x.T, x @ sigma @ x.T, sigma.trace()

        def distance(left_out: slice) -> float:
            keep = torch.cat([numbers[: left_out.start], numbers[left_out.stop :]])
            k, a, b = len(keep), inner[keep][:, keep], across[keep][:, keep]
            shift = a.mean()  # squared distance of the means
            spread = (a.trace() - k * shift) / (k - 1)
            b = b - b.mean(0) - b.mean(1, keepdim=True) + b.mean()
            roots = torch.linalg.eigvalsh((b + b.T) / (2 * (k - 1))).clamp(min=0).sqrt().sum()
            return max(0.0, float(shift + spread + trace - 2 * roots))

    return jackknife(distance(slice(0, 0)), [distance(group) for group in split_groups(n)], n, low=0)


def kid_subsets(n: int, m: int) -> tuple[int, int]:
    """Return number and size of the KID's subsets for n and m images; one where each would be the whole of both."""
    size = min(SUBSET_SIZE, n, m)
    return (1 if n == m == size else SUBSETS), size


def kernel_inception_distance(features: Tensor, reference: Tensor, seed: int) -> Estimate:
    """Estimate the KID, the mean over 100 random subsets of at most 1,000 images of each set (Binkowski et al. 2018).

    The interval joins the jackknife's, of the mean over all pairs, with the scatter of so many subsets.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    from comparison.scores.kernel import kernel_estimate, kernel_self
    from comparison.scores.metrics import Estimate

    count, size = kid_subsets(len(features), len(reference))
    found = kid_features_to_metric(
        features, reference, kid_subsets=count, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    value = found[KEY_METRIC_KID_MEAN]
    whole = kernel_estimate(reference, kernel_self(reference), features)
    half = math.hypot((whole.high - whole.low) / 2, 1.96 * found[KEY_METRIC_KID_STD] / math.sqrt(count))
    return Estimate(value, value - half, value + half, len(features))


def inception_score(logits: Tensor) -> Estimate:
    """Estimate the inception score of (N, 1008) logits, the mean over ten splits (Salimans et al. 2016, Sec. 4)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    from comparison.scores.metrics import jackknife

    n = len(logits)
    edges = [i * n // SPLITS for i in range(SPLITS + 1)]
    splits = [
        isc_features_to_metric(logits[a:b], splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN] for a, b in pairwise(edges)
    ]
    total = math.fsum(splits)
    return jackknife(total / SPLITS, [(total - one) / (SPLITS - 1) for one in splits], n, low=1)


def precision_recall(
    features: Tensor, reference: Tensor, device: torch.device | str = "cpu"
) -> tuple[Estimate, Estimate]:
    """Estimate precision and recall, k = 3 (Kynkaanniemi et al. 2019), from at most 10,000 images of each set."""
    import torch
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    from comparison.scores.metrics import jackknife, split_groups

    x, real = (_spread(part, PAIRWISE_IMAGES).to(device) for part in (features, reference))

    def measure(part: Tensor) -> tuple[float, float]:
        # in blocks of rows: whole, three matrices of 10,000 x 10,000 would take 1.2 GB
        found = prc_features_to_metric(
            part, real, prc_neighborhood=NEIGHBOURS, prc_batch_size=1000, save_cpu_ram=True, verbose=False
        )
        return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]

    n = len(x)
    with full_float32():
        whole = measure(x)
        parts = [measure(torch.cat([x[: group.start], x[group.stop :]])) for group in split_groups(n)]
    precision, recall = (
        jackknife(value, list(left_out), n, low=0, high=1)
        for value, left_out in zip(whole, zip(*parts, strict=True), strict=True)
    )
    return precision, recall


def _spread(values: Tensor, limit: int) -> Tensor:
    import torch

    if len(values) <= limit:
        return values
    return values[torch.linspace(0, len(values) - 1, limit).round().long()]


def score(
    images: Tensor,
    reference: Tensor | Statistics,
    *,
    weights: Path,
    expected: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Take the standard scores of a sample set.

    Args:
        images: (N, 3, S, S) uint8, in random order, at least 20.
        reference: (M, 3, S, S) uint8; or statistics, which allow FID and inception score only.
        weights: of the standard Inception, see `find_weights`.
        expected: how the weights' SHA-256 must begin, see `check_weights`.
        device: of the Inception passes.
        seed: of the KID's subsets.

    Returns:
        The section `standard` of metrics.json: weights, libraries, protocol, n, reference, and metrics with an entry
        (value, interval, n) each for fid, kid, inception_score, inception_precision, inception_recall; pytorch_fid
        where that package is installed.

    Raises:
        UserError: too few images, weights that are not the standard ones, or no torch-fidelity.
        ValueError: images of another type.
    """
    import torch

    from comparison.data.images import fingerprint
    from comparison.scores.metrics import INTERVAL, moments

    require("torch-fidelity")
    digest = check_weights(weights, expected)
    sets = [images] if isinstance(reference, Statistics) else [images, reference]
    for part in sets:
        if part.dtype != torch.uint8 or part.ndim != 4 or part.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W), not {part.dtype} {tuple(part.shape)}")
        if len(part) < MIN_IMAGES:
            raise UserError(f"the standard scores need at least {MIN_IMAGES} images in each set, not {len(part)}")

    def against(library: Library) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the reference's features, if there are images, its mean and its covariance."""
        if isinstance(reference, Statistics):
            return None, torch.from_numpy(reference.mu), torch.from_numpy(reference.sigma)
        real = embed_reference(reference, library, weights, digest, device)
        return real, *moments(real)

    features, logits = embed(images, "torch-fidelity", weights, device, "samples, torch-fidelity")
    real, mu, sigma = against("torch-fidelity")
    found = {"fid": frechet_estimate(mu, sigma, features)}
    if real is not None:
        found["kid"] = kernel_inception_distance(features, real, seed)
    found["inception_score"] = inception_score(logits)
    if real is not None:
        found["inception_precision"], found["inception_recall"] = precision_recall(features, real, device)
    libraries = [made_by("torch-fidelity")]
    if installed("pytorch-fid"):
        libraries.append(made_by("pytorch-fid"))
        [features] = embed(images, "pytorch-fid", weights, device, "samples, pytorch-fid")
        _, mu, sigma = against("pytorch-fid")
        found["pytorch_fid"] = frechet_estimate(mu, sigma, features)
    if isinstance(reference, Statistics):
        described = reference.describe()
    else:
        described = {"kind": "images", "n": len(reference), "fingerprint": fingerprint(reference)}
    count, size = kid_subsets(len(sets[0]), len(sets[-1]))
    return {
        "weights": {"file": weights.name, "sha256": digest},
        "libraries": libraries,
        "protocol": {
            "inception_score_splits": SPLITS,
            "kid_subsets": count,
            "kid_subset_size": size,
            "neighbours": NEIGHBOURS,
            "seed": seed,
            "intervals": f"{INTERVAL}; of the inception score one of its {SPLITS} splits",
        },
        "n": len(images),
        "reference": described,
        "metrics": {name: estimate.as_json() for name, estimate in found.items()},
    }
