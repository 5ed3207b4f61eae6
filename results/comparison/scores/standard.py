"""The standard scores, comparable with published ones: FID, KID, inception score, precision, recall.

Only the standard Inception network gives them, whose weights are checked by their SHA-256. Features and scores are
torch-fidelity's, except for the formula of FID, which is more stable for few images. Where pytorch-fid is installed,
FID is also computed from its features.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comparison.cli import UserError
from comparison.data.images import evenly_spread, fingerprint
from comparison.scores.distances import kernel_estimate, kernel_self
from comparison.scores.inception import (
    Library,
    check_weights,
    embed,
    embed_reference,
    full_float32,
    installed,
    made_by,
    require,
)
from comparison.scores.metrics import INTERVAL, Estimate, frechet_from, jackknife, moments, split_groups
from comparison.scores.statistics import Statistics

MIN_IMAGES = 20  # two for each split of the inception score
PAIRWISE_IMAGES = 10_000  # limit of precision and recall, which compare all pairs
SPLITS, SUBSETS, SUBSET_SIZE, NEIGHBOURS = 10, 100, 1000, 3  # as in published figures


def frechet_estimate(mu: Tensor, sigma: Tensor, features: Tensor) -> Estimate:
    """Estimate the Frechet distance of (N, D) features from a fixed mean (D,) and covariance (D, D), float64.

    Heusel et al. 2017, Eq. 6. For N <= D the eigenvalues of the product of the covariances are those of an N x N
    matrix, X sigma X^T / (N - 1) with the centred features X. The interval is then up to twice too wide.
    """
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
    """Return number and size of KID's subsets for n and m images; one subset if it would be the whole of both sets."""
    size = min(SUBSET_SIZE, n, m)
    return (1 if n == m == size else SUBSETS), size


def kernel_inception_distance(features: Tensor, reference: Tensor, seed: int) -> Estimate:
    """Estimate KID, the mean over 100 random subsets of at most 1,000 images of each set (Binkowski et al. 2018).

    The interval combines the jackknife of the mean over all pairs with the spread of the subsets.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    count, size = kid_subsets(len(features), len(reference))
    kid = kid_features_to_metric(
        features, reference, kid_subsets=count, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    value = kid[KEY_METRIC_KID_MEAN]
    whole = kernel_estimate(reference, kernel_self(reference), features)
    half = math.hypot((whole.high - whole.low) / 2, 1.96 * kid[KEY_METRIC_KID_STD] / math.sqrt(count))
    return Estimate(value, value - half, value + half, len(features))


def inception_score(logits: Tensor) -> Estimate:
    """Estimate the inception score of (N, 1008) logits, the mean over ten splits (Salimans et al. 2016, Sec. 4)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

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
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    x, real = (evenly_spread(part, PAIRWISE_IMAGES).to(device) for part in (features, reference))

    def measure(part: Tensor) -> tuple[float, float]:
        # in blocks of rows: three whole matrices of 10,000 x 10,000 would take 1.2 GB
        values = prc_features_to_metric(
            part, real, prc_neighborhood=NEIGHBOURS, prc_batch_size=1000, save_cpu_ram=True, verbose=False
        )
        return values[KEY_METRIC_PRECISION], values[KEY_METRIC_RECALL]

    n = len(x)
    with full_float32():
        whole = measure(x)
        parts = [measure(torch.cat([x[: group.start], x[group.stop :]])) for group in split_groups(n)]
    precision, recall = (
        jackknife(value, list(left_out), n, low=0, high=1)
        for value, left_out in zip(whole, zip(*parts, strict=True), strict=True)
    )
    return precision, recall


def score(
    images: Tensor,
    reference: Tensor | Statistics,
    *,
    weights: Path,
    expected: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Return the section `standard` of metrics.json for a sample set.

    Args:
        images: (N, 3, S, S) uint8, in random order, N >= 20.
        reference: (M, 3, S, S) uint8; or statistics, which allow FID and inception score only.
        weights: file of the standard Inception, see `find_weights`.
        expected: first digits of the weights' SHA-256, see `check_weights`.
        device: device of the Inception passes.
        seed: seed of KID's subsets.

    Raises:
        UserError: too few images, weights that are not the standard ones, or no torch-fidelity.
        ValueError: images of another type.
    """
    require("torch-fidelity")
    digest = check_weights(weights, expected)
    sets = [images] if isinstance(reference, Statistics) else [images, reference]
    for part in sets:
        if part.dtype != torch.uint8 or part.ndim != 4 or part.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W), not {part.dtype} {tuple(part.shape)}")
        if len(part) < MIN_IMAGES:
            raise UserError(f"the standard scores need at least {MIN_IMAGES} images in each set, not {len(part)}")

    def reference_moments(library: Library) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the reference's features (None for statistics), mean and covariance."""
        if isinstance(reference, Statistics):
            return None, torch.from_numpy(reference.mu), torch.from_numpy(reference.sigma)
        real = embed_reference(reference, library, weights, digest, device)
        return real, *moments(real)

    features, logits = embed(images, "torch-fidelity", weights, device, "samples, torch-fidelity")
    real, mu, sigma = reference_moments("torch-fidelity")
    metrics = {"fid": frechet_estimate(mu, sigma, features)}
    if real is not None:
        metrics["kid"] = kernel_inception_distance(features, real, seed)
    metrics["inception_score"] = inception_score(logits)
    if real is not None:
        metrics["inception_precision"], metrics["inception_recall"] = precision_recall(features, real, device)
    libraries = [made_by("torch-fidelity")]
    if installed("pytorch-fid"):
        libraries.append(made_by("pytorch-fid"))
        [features] = embed(images, "pytorch-fid", weights, device, "samples, pytorch-fid")
        metrics["pytorch_fid"] = frechet_estimate(*reference_moments("pytorch-fid")[1:], features)
    if isinstance(reference, Statistics):
        description = reference.describe()
    else:
        description = {"kind": "images", "n": len(reference), "fingerprint": fingerprint(reference)}
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
        "reference": description,
        "metrics": {name: estimate.as_json() for name, estimate in metrics.items()},
    }
