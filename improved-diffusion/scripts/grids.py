"""Layouts of the super-resolution pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 8


def enlarge(images: Tensor, size: int) -> Tensor:
    """Enlarge (N, C, s, s) images to (N, C, size, size), each pixel as a square."""
    return F.interpolate(images, size, mode="nearest")


def in_rows(*sets: Tensor) -> Tensor:
    """Interleave sets of (N, 3, S, S) images in [-1, 1] for `save_grid`, a row of each in turn, padded with white."""
    pad = -len(sets[0]) % COLUMNS
    padded = [torch.cat([images, images.new_ones(pad, *images.shape[1:])]) for images in sets]
    return torch.cat([part for parts in zip(*(p.split(COLUMNS) for p in padded), strict=True) for part in parts])
