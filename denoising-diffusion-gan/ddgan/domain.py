"""Space of the diffusion process and both networks: pixels, folded pixels, or Haar coefficients.

A fold turns each 2 x 2 square of pixels into one position with four times the channels, so a network of the same
width does a quarter of the work. Both folds are orthonormal up to a factor: white noise stays white, and the process
and its posterior keep their formulas. Haar coefficients for denoising diffusion GANs: Phung et al. 2023 (WaveDiff).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows: mean, then differences of columns, of rows, and of the diagonals of a square [[a, b], [c, d]]; H H^T = 1.
HAAR = 0.5 * torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


class Domain:
    """Map from images in [-1, 1] to the diffused tensors, and back.

    Args:
        name: "pixel" (the images themselves), "patch" (2 x 2 squares folded into channels) or "haar" (the squares'
            orthonormal Haar coefficients, halved, so that the first of four is the square's mean).
        num_channels, image_size: shape of the images; the size is even unless the domain is "pixel".
        detail_scale: factor of the three detail coefficients of "haar", undone by `inverse`. In photographs they are
            small, so noise would hide them long before the means.
    """

    def __init__(self, name: str, num_channels: int, image_size: int, detail_scale: float = 1.0):
        self.name, self.detail_scale = name, detail_scale
        self.num_channels = num_channels if name == "pixel" else 4 * num_channels
        self.size = image_size if name == "pixel" else image_size // 2
        self._scales = torch.tensor([1.0, detail_scale, detail_scale, detail_scale])
        self._matrices = {"forward": self._scales[:, None] * HAAR / 2, "inverse": 2 * HAAR.T / self._scales}
        self._device_matrices: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Domain":
        """Return the domain of a run's flags."""
        scale = config.get("detail_scale", 1.0)
        return cls(config.get("domain", "pixel"), config["num_channels"], config["image_size"], scale)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the diffused tensors."""
        return self.num_channels, self.size, self.size

    def bounds(self) -> Tensor | None:
        """Return (num_channels, 1, 1) float32, the maximum magnitude of each channel; None if all are 1."""
        if self.name != "haar" or self.detail_scale == 1:
            return None
        return self._scales.repeat(self.num_channels // 4)[:, None, None]

    def transform(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) float images in [-1, 1] to the domain; a fold gives (N, 4 C, H / 2, W / 2)."""
        if self.name == "pixel":
            return images
        squares = F.pixel_unshuffle(images, 2)
        return squares if self.name == "patch" else self._mix(squares, "forward")

    def inverse(self, x: Tensor) -> Tensor:
        """Return the images of diffused tensors: the inverse of `transform`, linear for any values."""
        if self.name == "pixel":
            return x
        return F.pixel_shuffle(x if self.name == "patch" else self._mix(x, "inverse"), 2)

    def _mix(self, x: Tensor, direction: str) -> Tensor:
        """Multiply every four consecutive channels of (N, 4 C, H, W) by a (4, 4) matrix."""
        key = direction, x.device, x.dtype
        if key not in self._device_matrices:  # once: a CUDA graph cannot capture a copy from the CPU
            self._device_matrices[key] = self._matrices[direction].to(x.device, x.dtype)
        n, channels, height, width = x.shape
        bands = x.reshape(n, channels // 4, 4, height, width)
        return torch.einsum("ij,ncjhw->ncihw", self._device_matrices[key], bands).reshape(x.shape)


PIXELS = Domain("pixel", 3, 32)  # for images of any size
