"""The controls of every table: real pictures, and real pictures spoilt in known ways.

All but `copies` and `noise` are made from training images that are not in the reference set, as many as it has, so
that each differs from the floor in one thing only.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from comparison.data import shapes
from comparison.formatting import METRICS, apart

BLUR_SIGMA = 1.0  # pixels at 32 pixels; scaled with the image
SMEAR_SIGMA = 3.0  # pixels at 32 pixels: half the radius of a large figure
JPEG_QUALITY = 10  # 30 cannot be told from the floor on CIFAR-10 that was JPEG before


@dataclass(frozen=True)
class Anchor:
    """One control.

    Attributes:
        label: for tables.
        note: what it is, one clause.
        images: (N, 3, S, S) uint8.
        made_from: (L,) int64 training images that must not count when the nearest training image is sought, because
            they are this control's own.
    """

    label: str
    note: str
    images: Tensor
    made_from: Tensor | None = None


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur (N, 3, S, S) uint8 with a Gaussian of `sigma` pixels, borders reflected."""
    radius = min(math.ceil(4 * sigma), images.shape[-1] - 1)
    kernel = torch.exp(-torch.arange(-radius, radius + 1).float().square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    blurred = []
    for part in images.split(1000):
        x = torch.nn.functional.pad(part.float(), (radius, radius, radius, radius), mode="reflect")
        x = torch.nn.functional.conv2d(x, kernel, groups=3)
        x = torch.nn.functional.conv2d(x, kernel.transpose(2, 3), groups=3)
        blurred.append(x.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(blurred)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress and decode (N, 3, S, S) uint8 as JPEG of that quality (Pillow, 4:2:0)."""
    decoded = np.empty((len(images), *images.shape[2:], 3), np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded[i] = np.asarray(Image.open(file))
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous()


def half_of_the_modes(
    labels: Tensor | None, features: Tensor, others: Tensor, count: int
) -> tuple[Tensor, Tensor, str]:
    """Choose `count` training images from half of the modes.

    Labelled data keep the classes below the median label. Unlabelled data keep the half that lies below the median
    along the first principal component of the features. Where that half is smaller than `count`, it is used again
    mirrored, then once more.

    Args:
        labels: (T,) int64 of the training images, or None.
        features: (T, D) float32 of the training images.
        others: (O,) int64, the training images to choose from, in random order.
        count: images wanted.

    Returns:
        (count,) int64 training images, (count,) bool whether mirrored, and the rule in words.
    """
    if labels is not None and len(labels.unique()) > 1:
        classes = labels.unique()
        kept = classes[: len(classes) // 2]
        keep = torch.isin(labels[others], kept)
        rule = f"{len(kept)} of {len(classes)} classes"
    else:
        x = features[others].double()
        x = x - x.mean(0)
        axis = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1]
        along = x @ (axis * axis[axis.abs().argmax()].sign())
        keep = along < along.median()
        rule = "the half below the median of the first principal component"
    chosen = others[keep]
    if not len(chosen):
        chosen = others[: max(1, len(others) // 2)]
    turns = torch.arange(count)
    return chosen[turns % len(chosen)], (turns // len(chosen)) % 2 == 1, rule


def make_anchors(
    images: Tensor, labels: Tensor | None, features: Tensor, reference: Tensor, others: Tensor, seed: int
) -> dict[str, Anchor]:
    """Make the controls, as many images each as the reference has.

    Args:
        images: (T, 3, S, S) uint8, the training set.
        labels: (T,) int64 or None.
        features: (T, D) float32 of the training set.
        reference: (N,) int64, the reference's training images.
        others: (O,) int64, O >= N, the remaining ones in random order.
        seed: of the noise.
    """
    count, size = len(reference), images.shape[-1]
    floor = others[:count]
    real = images[floor]
    sigma = BLUR_SIGMA * size / 32
    chosen, mirrored, rule = half_of_the_modes(labels, features, others, count)
    half = torch.where(mirrored[:, None, None, None], images[chosen].flip(3), images[chosen])
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    noise = generator.integers(0, 256, tuple(real.shape), dtype=np.uint8)
    return {
        "floor": Anchor("real images (floor)", "training images outside the reference set", real, floor),
        "copies": Anchor("copied training images", "the reference set itself", images[reference]),
        "jpeg": Anchor(f"JPEG, quality {JPEG_QUALITY}", "the floor's images as JPEG", jpeg(real, JPEG_QUALITY), floor),
        "half": Anchor("half of the modes", f"real images of {rule}", half, chosen.unique()),
        "blur": Anchor(
            f"blur, {sigma:g} px", f"the floor's images, Gaussian blur of {sigma:g} pixels", blur(real, sigma), floor
        ),
        "noise": Anchor("uniform noise", "each value drawn alone", torch.from_numpy(noise)),
    }


def figure_anchors(floor: Anchor, seed: int) -> dict[str, Anchor]:
    """Make the controls of `shapes` that show colours and places of figures but no figure.

    Args:
        floor: real images, (N, 3, S, S) uint8.
        seed: of what is drawn at random.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 3]))
    blobs = shapes.blobs(len(floor.images), floor.images.shape[-1], generator)
    sigma = SMEAR_SIGMA * floor.images.shape[-1] / 32
    smears = blur(floor.images, sigma)
    return {
        "blobs": Anchor("two-coloured blobs", "soft spots of two colours on the backgrounds of `shapes`", blobs),
        "smears": Anchor(
            f"smears, {sigma:g} px", f"the floor's images, Gaussian blur of {sigma:g} pixels", smears, floor.made_from
        ),
    }


WORSE, UNCHANGED, BETTER = "worse", "unchanged", "better"

# What each metric must say of each control beside the floor. A metric may be honest and yet blind to a control, or be
# moved by it in a way that depends on the data: there more than one word is right.
_NO_FIGURES = {"blobs": (WORSE,), "smears": (WORSE,)}
_NOT_BETTER, _NOT_WORSE = (WORSE, UNCHANGED), (UNCHANGED, BETTER)
_DISTANCE = {"copies": (BETTER,), "jpeg": _NOT_BETTER, "half": (WORSE,), "blur": (WORSE,), "noise": (WORSE,)}
_FIDELITY = {"copies": _NOT_WORSE, "half": (), "jpeg": _NOT_BETTER, "blur": _NOT_BETTER, "noise": (WORSE,)}
EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "frechet_distance": {**_DISTANCE, "jpeg": (WORSE,)},
    "frechet_infinite": {**_DISTANCE, "copies": _NOT_WORSE},
    "kernel_distance": {**_DISTANCE, "copies": _NOT_WORSE},
    "sliced_wasserstein": _DISTANCE,
    "precision": _FIDELITY,
    "recall": {"copies": _NOT_WORSE, "half": _NOT_BETTER, "jpeg": _NOT_BETTER, "blur": _NOT_BETTER, "noise": (WORSE,)},
    "density": {**_FIDELITY, "copies": (BETTER,), "blur": (WORSE,)},
    "coverage": {"copies": _NOT_WORSE, "half": (WORSE,), "jpeg": _NOT_BETTER, "blur": (WORSE,), "noise": (WORSE,)},
    "class_entropy": {"copies": (UNCHANGED,), "half": (WORSE,), "noise": (WORSE,)},
    "memorised": {"copies": (WORSE,), "half": (), "jpeg": _NOT_WORSE, "blur": _NOT_WORSE, "noise": _NOT_WORSE},
    "modes_covered": {"copies": (UNCHANGED,), "half": (WORSE,), "noise": (WORSE,), **_NO_FIGURES},
    "modes_kl": {"copies": (UNCHANGED,), "half": (WORSE,), "noise": (WORSE,), **_NO_FIGURES},
    "modes_matched": {"copies": (UNCHANGED,), "half": (UNCHANGED,), "noise": (WORSE,), **_NO_FIGURES},
    "sharpness": {"copies": _NOT_WORSE, "jpeg": (WORSE,), "blur": (WORSE,), "noise": (WORSE,), **_NO_FIGURES},
}
FURTHER = (("frechet_distance", "noise", "blur"), ("modes_covered", "noise", "half"))  # worse than another control


def verdict(metric: str, entry: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say whether an entry of metrics.json is significantly worse or better than another one, or unchanged."""
    if not apart(entry, other):
        return UNCHANGED
    lower = entry["value"] < other["value"]
    return BETTER if lower == (METRICS[metric][1] == "lower") else WORSE


def check_anchors(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Judge how each metric moves on each control.

    Args:
        metrics: control -> metric -> entry of metrics.json.

    Returns:
        One dictionary per metric and control but the floor, and per comparison in FURTHER: metric, anchor, against,
        verdict (worse, unchanged or better), expected (the verdicts that are right, empty where all are), ok.
    """
    pairs = [(m, a, "floor", words.get(a, ())) for m, words in EXPECTED.items() for a in metrics if a != "floor"]
    pairs += [(metric, anchor, against, (WORSE,)) for metric, anchor, against in FURTHER]
    checks = []
    for metric, anchor, against, expected in pairs:
        if metric not in metrics.get(anchor, {}) or metric not in metrics.get(against, {}):
            continue
        found = verdict(metric, metrics[anchor][metric], metrics[against][metric])
        checks.append(
            {
                "metric": metric,
                "anchor": anchor,
                "against": against,
                "verdict": found,
                "expected": list(expected),
                "ok": not expected or found in expected,
            }
        )
    return checks
