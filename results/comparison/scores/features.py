"""Feature extractors that need no download: a random embedding, and the project's own CIFAR-10 classifier.

The random embedding is a convolutional network of two layers with fixed random weights, as in Naeem et al. 2020 (arXiv
2002.09797), who embed data unlike ImageNet by a random VGG16. It is sensitive to colours, textures, sharpness, noise
and coarse layout, but not to objects; `classifier` is, for CIFAR-10's classes. Distances in either are comparable
within one report only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from comparison.cli import data_root
from comparison.data.images import CIFAR10_CLASSES, ImageSet, from_uint8, read_cache, write_cache
from comparison.files import digest
from comparison.progress import bar
from comparison.scores import classifier

NAME = "random embedding"
SEED = 0
LAYERS = ((32, 5, 1), (48, 5, 2))  # channels, kernel, stride
GRID_CHANNELS = 8  # channels of the last layer that are averaged by quadrant, for the layout
DIMENSIONS = 2 * sum(channels for channels, _, _ in LAYERS) + 4 * GRID_CHANNELS
ARCHITECTURE = (
    "RGB in [-1, 1]; conv 5x5 3-32 ELU; conv 5x5 stride 2 32-48 ELU; orthogonal weights, biases N(0, 0.3^2), "
    f"numpy PCG64 seed {SEED}; mean and standard deviation over the image of each channel of both layers, quadrant "
    f"means of {GRID_CHANNELS} channels; {DIMENSIONS} features, z-scored by the reference set"
)
CACHE_FROM, CACHE_TO = 1000, 100_000  # features of fewer or more images are not cached


@lru_cache
def weights() -> tuple[tuple[Tensor, Tensor], ...]:
    """Return (weight, bias) of each layer, drawn by NumPy's PCG64, the same on every machine."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    layers, inputs = [], 3
    for channels, kernel, _ in LAYERS:
        fan_in = inputs * kernel**2
        q, r = np.linalg.qr(generator.standard_normal((max(fan_in, channels), min(fan_in, channels))))
        q = q * np.sign(np.diag(r))  # LAPACK does not fix the signs
        rows = q if len(q) == channels else q.T
        weight = rows.reshape(channels, inputs, kernel, kernel) * np.sqrt(2)
        bias = 0.3 * generator.standard_normal(channels)
        # rounded, so that LAPACK builds with other last bits give the same weights
        layers.append((torch.from_numpy(weight.round(5)).float(), torch.from_numpy(bias.round(5)).float()))
        inputs = channels
    return tuple(layers)


@lru_cache
def fingerprint() -> str:
    """Return 16 hexadecimal digits of the SHA-256 of architecture and weights."""
    parts = (weight.numpy().tobytes() + bias.numpy().tobytes() for weight, bias in weights())
    return digest(ARCHITECTURE, *parts)


class Extractor(Protocol):
    """Feature extractor.

    Attributes:
        key: value of --features.
        dimensions: D.
        batch_pixels: pixels per call that fit a CPU's caches.
    """

    key: str
    dimensions: int
    batch_pixels: int

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, 3, S, S) uint8 to (N, D) float32 features on the CPU, not yet z-scored."""

    def describe(self) -> dict[str, Any]:
        """Return key, name, fingerprint, architecture and dimensions for reports."""

    def classes(self, features: Tensor) -> Tensor | None:
        """Return the (N,) int64 classes predicted from features; None if the extractor predicts no classes."""


class RandomEmbedding:
    """The network with fixed random weights, computed in float32 without TF32."""

    key, dimensions, batch_pixels = "random", DIMENSIONS, 200 * 32**2

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device
        self._layers = [(weight.to(device), bias.to(device)) for weight, bias in weights()]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, 3, S, S) uint8 to (N, 192) float32."""
        x = from_uint8(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        pooled = []
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for (weight, bias), (_, kernel, stride) in zip(self._layers, LAYERS, strict=True):
                x = functional.elu(functional.conv2d(x, weight, bias, stride=stride, padding=kernel // 2))
                deviation, mean = torch.std_mean(x, (2, 3), correction=0)
                pooled += [mean, deviation]
        pooled.append(functional.adaptive_avg_pool2d(x[:, :GRID_CHANNELS], 2).flatten(1))
        return torch.cat(pooled, 1).cpu()

    def describe(self) -> dict[str, Any]:
        """Return the facts of `Extractor.describe`."""
        facts = {"key": self.key, "name": NAME, "fingerprint": fingerprint(), "architecture": ARCHITECTURE}
        return {**facts, "dimensions": DIMENSIONS}

    def classes(self, features: Tensor) -> None:
        """Return None."""
        return None


class ClassifierFeatures:
    """The pooled features of the CIFAR-10 classifier, for images resized to 32 pixels.

    Raises:
        UserError: the weight file is missing or damaged.
    """

    key, dimensions, batch_pixels = "cifar", classifier.DIMENSIONS, 100 * 32**2

    def __init__(self, device: torch.device | str = "cpu"):
        self._network = classifier.load(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, 3, S, S) uint8 to (N, 384) float32."""
        if images.shape[-2:] != (32, 32):
            x = functional.interpolate(images.float(), (32, 32), mode="bilinear", antialias=True)
            images = x.round().clamp(0, 255).to(torch.uint8)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._network(images)[0].cpu()

    def describe(self) -> dict[str, Any]:
        """Return the facts of `Extractor.describe`, accuracy and training data."""
        trained = classifier.facts()
        facts = {"key": self.key, "name": "CIFAR-10 classifier", "fingerprint": trained["fingerprint"]}
        facts |= {"architecture": classifier.ARCHITECTURE, "dimensions": self.dimensions}
        return {**facts, "accuracy": trained["accuracy"], "trained_on": trained["data"]["name"]}

    def classes(self, features: Tensor) -> Tensor:
        """Return the (N,) int64 most probable of the ten classes."""
        weight, bias = (self._network.arrays[f"head.{part}"].cpu() for part in ("weight", "bias"))
        return torch.addmm(bias, features, weight.T).argmax(1)


def make_extractor(key: str, device: torch.device | str = "cpu") -> Extractor:
    """Return the extractor `cifar` or `random`."""
    return ClassifierFeatures(device) if key == "cifar" else RandomEmbedding(device)


def choose_key(requested: str, data: ImageSet) -> str:
    """Return `cifar` or `random` for --features; `auto` is `cifar` for images of its ten classes."""
    if requested != "auto":
        return requested
    return "cifar" if data.class_names == CIFAR10_CLASSES else "random"


def embed(images: Tensor, extractor: Extractor, *, desc: str = "embed") -> Tensor:
    """Map (N, 3, S, S) uint8 to (N, D) float32 features on the CPU, not yet z-scored."""
    features = []
    with bar(len(images), 0, desc, "images") as progress:
        for part in images.split(batch_size(extractor, images.shape[-1])):
            features.append(extractor(part))
            progress.update(len(part))
    return torch.cat(features)


def batch_size(extractor: Extractor, image_size: int) -> int:
    """Return the batch size of an extractor for images of `image_size` pixels."""
    return max(1, extractor.batch_pixels // image_size**2)


def cached(name: str, count: int, extractor: Extractor, compute: Callable[[], Tensor]) -> Tensor:
    """Return (count, D) features from the cache below the data root, or compute and cache them.

    Args:
        name: hash of the images and of their selection.
        count: number of images.
        extractor: extractor of the features.
        compute: returns the features if the cache lacks them.
    """
    if not CACHE_FROM <= count <= CACHE_TO:
        return compute()
    path = data_root() / "cache" / f"features-{name}-{extractor.describe()['fingerprint']}.npy"
    if (saved := read_cache(path, (count, extractor.dimensions))) is not None:
        return torch.from_numpy(saved)
    features = compute()
    write_cache(path, features.numpy())
    return features


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the reference's features, (D,) float32 each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Scale":
        """Return the scale of (N, D) features, with deviations of at least 1e-4."""
        deviation, mean = torch.std_mean(features.double(), 0)
        return cls(mean.float(), deviation.clamp(min=1e-4).float())

    def __call__(self, features: Tensor) -> Tensor:
        """Return z-scored (N, D) features."""
        return (features - self.mean) / self.deviation
