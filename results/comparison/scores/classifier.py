"""A small CIFAR-10 classifier as feature extractor, which is sensitive to objects, unlike a random network.

A residual network of seven 3x3 convolutions (He et al. 2016), trained by train_classifier.py on the training images
alone. `cifar_classifier.npz` holds its weights, rounded to float16, with batch norms folded in; `cifar_classifier.json`
holds test accuracy, data and commit. Distances in its features are comparable within one report only, and not with
those of the standard Inception.
"""

import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from comparison.cli import UserError
from comparison.data.images import from_uint8
from comparison.files import digest, read_json

WEIGHTS = Path(__file__).with_name("cifar_classifier.npz")
FACTS = Path(__file__).with_name("cifar_classifier.json")
STEM = 24
WIDTHS = (48, 96, 192)
CLASSES = 10
DIMENSIONS = 2 * WIDTHS[-1]
LOGIT_SCALE = 1 / 9
ARCHITECTURE = (
    f"RGB in [-1, 1], 32 px; conv 3x3 3-{STEM}; three blocks of conv 3x3 to {WIDTHS} channels, max pool 2, residual "
    f"conv 3x3; batch norm folded, ReLU; mean and maximum over the 4 x 4 positions; {DIMENSIONS} features, z-scored by "
    "the reference set"
)


class Block(nn.Module):
    """Convolution to more channels, max pooling, and a residual convolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm_in = nn.BatchNorm2d(outputs)
        self.conv_skip = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_skip = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.max_pool2d(self.norm_in(self.conv_in(x)), 2))
        return x + functional.relu(self.norm_skip(self.conv_skip(x)))


class Classifier(nn.Module):
    """The trained network; maps (N, 3, 32, 32) float in [-1, 1] to (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(STEM)
        sizes = (STEM, *WIDTHS)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in zip(sizes, WIDTHS, strict=False)))
        self.head = nn.Linear(DIMENSIONS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.head(pool(x)) * LOGIT_SCALE


def pool(x: Tensor) -> Tensor:
    """Return the mean and maximum over the positions of (N, C, H, W), as (N, 2C)."""
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def fold(network: Classifier) -> dict[str, np.ndarray]:
    """Return the float16 arrays of the weight file: convolutions with folded batch norms, and the head."""

    def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    pairs = {"stem": folded(network.stem, network.norm)}
    for i, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        pairs[f"block{i}_in"] = folded(block.conv_in, block.norm_in)
        pairs[f"block{i}_skip"] = folded(block.conv_skip, block.norm_skip)
    pairs["head"] = (network.head.weight * LOGIT_SCALE, network.head.bias * LOGIT_SCALE)
    return {
        f"{name}.{part}": tensor.detach().cpu().numpy().astype(np.float16)
        for name, pair in pairs.items()
        for part, tensor in zip(("weight", "bias"), pair, strict=True)
    }


def fingerprint_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of architecture and weights."""
    return digest(ARCHITECTURE, *(name.encode() + arrays[name].astype(np.float16).tobytes() for name in sorted(arrays)))


class Extractor:
    """The exported network, from the arrays of the weight file in float32."""

    def __init__(self, arrays: Mapping[str, Tensor], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.arrays = {name: array.to(self.device) for name, array in arrays.items()}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, 384) features and (N, 10) logits, float32 on the device, of (N, 3, 32, 32) uint8 images."""
        x = from_uint8(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        x = self._conv(x, "stem").relu_()
        for i in range(len(WIDTHS)):
            x = functional.max_pool2d(self._conv(x, f"block{i}_in"), 2).relu_()
            x = x + self._conv(x, f"block{i}_skip").relu_()
        features = pool(x)
        return features, torch.addmm(self.arrays["head.bias"], features, self.arrays["head.weight"].T)

    def _conv(self, x: Tensor, name: str) -> Tensor:
        return functional.conv2d(x, self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"], padding=1)


@lru_cache
def stored() -> dict[str, np.ndarray]:
    """Return the arrays of the weight file.

    Raises:
        UserError: the file is missing, damaged or not the one that `cifar_classifier.json` describes.
    """
    try:
        with np.load(WEIGHTS, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{WEIGHTS}: not readable ({error}); restore it with git, or run train_classifier.py") from None
    if fingerprint_of(arrays) != facts()["fingerprint"]:
        raise UserError(f"{WEIGHTS}: not the weights that {FACTS.name} describes; restore both with git")
    return arrays


@lru_cache
def facts() -> dict[str, Any]:
    """Return accuracy, data, commit and versions of the weights."""
    return read_json(FACTS)


def load(device: torch.device | str = "cpu") -> Extractor:
    """Return the network with the repository's weights.

    Raises:
        UserError: the weight file is missing or damaged.
    """
    return Extractor({name: torch.from_numpy(array).float() for name, array in stored().items()}, device)
