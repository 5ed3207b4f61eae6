"""The random embedding: features of images without trained weights, the same on every machine.

A convolutional network of two layers whose weights are drawn once from a fixed seed, as in Naeem et al. 2020
(arXiv 2002.09797), who embed data unlike ImageNet with a random VGG16. It sees colours, textures, sharpness, noise
and coarse layout; it knows no objects. Distances in it are relative: they compare rows of one report, nothing else.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from comparison.cli import data_root
from comparison.images import from_uint8, read_cache, write_cache
from comparison.progress import bar

NAME = "random embedding"
SEED = 0
LAYERS = ((32, 5, 1), (48, 5, 2))  # channels, kernel, stride
GRID_CHANNELS = 8  # of the last layer, averaged in quadrants: where things are
DIMENSIONS = 2 * sum(channels for channels, _, _ in LAYERS) + 4 * GRID_CHANNELS
ARCHITECTURE = (
    "RGB in [-1, 1]; conv 5x5 3-32 ELU; conv 5x5 stride 2 32-48 ELU; orthogonal weights, biases N(0, 0.3^2), "
    f"numpy PCG64 seed {SEED}; mean and standard deviation over the image of each channel of both layers, quadrant "
    f"means of {GRID_CHANNELS} channels; {DIMENSIONS} features, z-scored by the reference set"
)
CACHE_FROM = 1000  # images; fewer are embedded faster than a file is worth


@lru_cache
def weights(seed: int = SEED) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return (weight, bias) of each layer; NumPy's PCG64 draws the same on every machine and torch version."""
    generator = np.random.Generator(np.random.PCG64(seed))
    layers, inputs = [], 3
    for channels, kernel, _ in LAYERS:
        fan_in = inputs * kernel**2
        q, r = np.linalg.qr(generator.standard_normal((max(fan_in, channels), min(fan_in, channels))))
        q = q * np.sign(np.diag(r))  # LAPACK leaves the signs open
        rows = q if len(q) == channels else q.T
        weight = rows.reshape(channels, inputs, kernel, kernel) * np.sqrt(2)
        bias = 0.3 * generator.standard_normal(channels)
        # rounded, so that the last bits of LAPACK's builds do not show
        layers.append((torch.from_numpy(weight.round(5)).float(), torch.from_numpy(bias.round(5)).float()))
        inputs = channels
    return tuple(layers)


@lru_cache
def fingerprint(seed: int = SEED) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of architecture and weights."""
    digest = hashlib.sha256(ARCHITECTURE.encode())
    for weight, bias in weights(seed):
        digest.update(weight.numpy().tobytes() + bias.numpy().tobytes())
    return digest.hexdigest()[:16]


def describe() -> dict[str, object]:
    """Return what reports say of the extractor."""
    return {"name": NAME, "fingerprint": fingerprint(), "architecture": ARCHITECTURE, "dimensions": DIMENSIONS}


@torch.inference_mode()
def embed(images: Tensor, *, device: torch.device | str = "cpu", desc: str = "embed") -> Tensor:
    """Map (N, 3, H, W) uint8 to (N, 192) float32 features on the CPU, not yet z-scored; computed in full float32."""
    layers = [(weight.to(device), bias.to(device)) for weight, bias in weights()]
    batch = max(1, 200 * 32**2 // (images.shape[-1] * images.shape[-2]))
    features = []
    with bar(len(images), 0, desc, "images") as progress, torch.backends.cudnn.flags(allow_tf32=False):
        for part in images.split(batch):
            x = from_uint8(part.to(device)).contiguous(memory_format=torch.channels_last)
            pooled = []
            for (weight, bias), (_, kernel, stride) in zip(layers, LAYERS, strict=True):
                x = functional.elu(functional.conv2d(x, weight, bias, stride=stride, padding=kernel // 2))
                deviation, mean = torch.std_mean(x, (2, 3), correction=0)
                pooled += [mean, deviation]
            pooled.append(functional.adaptive_avg_pool2d(x[:, :GRID_CHANNELS], 2).flatten(1))
            features.append(torch.cat(pooled, 1).cpu())
            progress.update(len(part))
    return torch.cat(features)


def embed_cached(
    images: Tensor, images_fingerprint: str, *, device: torch.device | str = "cpu", desc: str = "embed"
) -> Tensor:
    """As `embed`, kept below the data root under the hashes of images and extractor."""
    if len(images) < CACHE_FROM:
        return embed(images, device=device, desc=desc)
    path = data_root() / "cache" / f"features-{images_fingerprint}-{fingerprint()}.npy"
    if (found := read_cache(path, (len(images), DIMENSIONS))) is not None:
        return torch.from_numpy(found)
    features = embed(images, device=device, desc=desc)
    write_cache(path, features.numpy())
    return features


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the reference's features, (D,) float32 each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Scale":
        """Measure (N, D) features; a feature that hardly varies is not blown up."""
        deviation, mean = torch.std_mean(features.double(), 0)
        return cls(mean.float(), deviation.clamp(min=1e-4).float())

    def __call__(self, features: Tensor) -> Tensor:
        """Return z-scored (N, D) features."""
        return (features - self.mean) / self.deviation
