"""The controls of every table: real images, and real images with known corruptions.

All but `copies` and `noise` are made from training images outside the reference set, as many as it has, so that each
differs from the floor in one respect only.
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
from comparison.formatting import METRICS, differ_significantly

BLUR_SIGMA = 1.0  # pixels at 32 pixels; scaled with the image
SMEAR_SIGMA = 3.0  # pixels at 32 pixels: half the radius of a large figure
JPEG_QUALITY = 10  # at 30, CIFAR-10 that was JPEG before does not differ from the floor


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        label: name in tables.
        note: description in one clause.
        images: (N, 3, S, S) uint8.
        made_from: (L,) int64 training images that the images come from, excluded from the search for the nearest one.
    """

    label: str
    note: str
    images: Tensor
    made_from: Tensor | None = None


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur (N, 3, S, S) uint8 images by a Gaussian of `sigma` pixels, with reflected borders."""
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
    """Compress and decode (N, 3, S, S) uint8 images as JPEG (Pillow, 4:2:0)."""
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

    With labels, these are the lower half of the classes. Without, they are the images below the median along the
    first principal component of the features. If they are fewer than `count`, they are repeated mirrored, then again.

    Args:
        labels: (T,) int64 labels of the training images, or None.
        features: (T, D) float32 features of the training images.
        others: (O,) int64, the training images to choose from, in random order.
        count: number of images.

    Returns:
        (count,) int64 training images, (count,) bool, True if mirrored, and the rule as text.
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


def make_controls(
    images: Tensor, labels: Tensor | None, features: Tensor, reference: Tensor, others: Tensor, seed: int
) -> dict[str, Control]:
    """Make the controls, each with as many images as the reference.

    Args:
        images: (T, 3, S, S) uint8, the training set.
        labels: (T,) int64 or None.
        features: (T, D) float32 features of the training set.
        reference: (N,) int64, the reference's training images.
        others: (O,) int64, O >= N, all others in random order.
        seed: seed of the noise.
    """
    count = len(reference)
    floor = others[:count]
    real = images[floor]
    sigma = BLUR_SIGMA * images.shape[-1] / 32
    chosen, mirrored, rule = half_of_the_modes(labels, features, others, count)
    half = torch.where(mirrored[:, None, None, None], images[chosen].flip(3), images[chosen])
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    noise = generator.integers(0, 256, tuple(real.shape), dtype=np.uint8)
    note = f"the floor's images, Gaussian blur of {sigma:g} pixels"
    return {
        "floor": Control("real images (floor)", "training images outside the reference set", real, floor),
        "copies": Control("copied training images", "the reference set itself", images[reference]),
        "jpeg": Control(f"JPEG, quality {JPEG_QUALITY}", "the floor's images as JPEG", jpeg(real, JPEG_QUALITY), floor),
        "half": Control("half of the modes", f"real images of {rule}", half, chosen.unique()),
        "blur": Control(f"blur, {sigma:g} px", note, blur(real, sigma), floor),
        "noise": Control("uniform noise", "each value drawn alone", torch.from_numpy(noise)),
    }


def figure_controls(floor: Control, seed: int) -> dict[str, Control]:
    """Make the controls of `shapes` that show colours and positions of figures but no figure."""
    generator = np.random.Generator(np.random.PCG64([seed, 3]))
    blobs = shapes.blobs(len(floor.images), floor.images.shape[-1], generator)
    sigma = SMEAR_SIGMA * floor.images.shape[-1] / 32
    smears, note = blur(floor.images, sigma), f"the floor's images, Gaussian blur of {sigma:g} pixels"
    return {
        "blobs": Control("two-coloured blobs", "soft spots of two colours on the backgrounds of `shapes`", blobs),
        "smears": Control(f"smears, {sigma:g} px", note, smears, floor.made_from),
    }


WORSE, UNCHANGED, BETTER = "worse", "unchanged", "better"

# The accepted verdicts of each metric on each control, compared with the floor. Several are accepted if a sound metric
# may miss the control, or if the effect depends on the data.
_NO_FIGURES = {"blobs": (WORSE,), "smears": (WORSE,)}
_NOT_BETTER, _NOT_WORSE = (WORSE, UNCHANGED), (UNCHANGED, BETTER)
_DISTANCE = {"copies": (BETTER,), "jpeg": _NOT_BETTER, "half": (WORSE,), "blur": (WORSE,), "noise": (WORSE,)}
_FIDELITY = {"copies": _NOT_WORSE, "half": (), "jpeg": _NOT_BETTER, "blur": _NOT_BETTER, "noise": (WORSE,)}
EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "frechet_distance": {**_DISTANCE, "jpeg": (WORSE,)},
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
    """Return `worse`, `better` or `unchanged`: how an entry of metrics.json differs from another, by the intervals."""
    if not differ_significantly(entry, other):
        return UNCHANGED
    lower = entry["value"] < other["value"]
    return BETTER if lower == (METRICS[metric][1] == "lower") else WORSE


def check_controls(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Compare the verdict of each metric on each control with the accepted ones.

    Args:
        metrics: control -> metric -> entry of metrics.json.

    Returns:
        One dictionary per metric and control except the floor, and per comparison in FURTHER: metric, anchor, against,
        verdict, expected (the accepted verdicts, empty for all), ok.
    """
    pairs = [(m, a, "floor", words.get(a, ())) for m, words in EXPECTED.items() for a in metrics if a != "floor"]
    pairs += [(metric, control, against, (WORSE,)) for metric, control, against in FURTHER]
    checks = []
    for metric, control, against, expected in pairs:
        if metric in metrics.get(control, {}) and metric in metrics.get(against, {}):
            result = verdict(metric, metrics[control][metric], metrics[against][metric])
            check = {"metric": metric, "anchor": control, "against": against, "verdict": result}
            checks.append({**check, "expected": list(expected), "ok": not expected or result in expected})
    return checks
