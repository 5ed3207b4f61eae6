"""The two networks of DCGAN, for any power-of-two image size.

Radford, Metz, Chintala 2016, "Unsupervised representation learning with deep convolutional GANs".
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

SMALLEST_IMAGE = 16
WIDEST = 8  # the 4x4 stage of the paper's 64-pixel networks is 8 times as wide as the last one


def stage_widths(image_size: int, base: int) -> list[int]:
    """Count the channels of each hidden stage, from the 4x4 one (widest) to the finest one.

    64 pixels: 8, 4, 2, 1 times base; 32 pixels: 4, 2, 1; above 64 pixels the coarse stages stay at 8.

    Raises:
        ValueError: image_size is no power of two, or below 16.
    """
    if image_size < SMALLEST_IMAGE or image_size & (image_size - 1):
        raise ValueError(f"image_size must be a power of two of at least {SMALLEST_IMAGE}, not {image_size}")
    stages = image_size.bit_length() - 3  # 4x4 doubles this often until half of image_size
    return [base * min(2**i, WIDEST) for i in reversed(range(stages))]


class Generator(nn.Module):
    """Map noise to images: transposed convolutions with batch norm and ReLU, tanh at the end.

    In training mode batch norm uses the statistics of the batch, so an image depends on its neighbours.
    In eval mode it uses the running averages, and image i depends on z[i] alone.
    """

    def __init__(self, image_size: int, nz: int = 100, ngf: int = 64, nc: int = 3) -> None:
        """Build the layers.

        Args:
            image_size: pixels, a power of two of at least 16.
            nz: length of the noise vector.
            ngf: channels of the finest hidden stage.
            nc: colour channels.
        """
        super().__init__()
        self.nz = nz
        widths = stage_widths(image_size, ngf)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(nz, widths[0], kernel_size=4, stride=1, padding=0, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        for wide, narrow in pairwise(widths):
            layers += [
                nn.ConvTranspose2d(wide, narrow, kernel_size=4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(narrow),
                nn.ReLU(inplace=True),
            ]
        layers += [
            nn.ConvTranspose2d(widths[-1], nc, kernel_size=4, stride=2, padding=1, bias=False),
            nn.Tanh(),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Generate images.

        Args:
            z: (N, nz), standard normal.

        Returns:
            (N, nc, image_size, image_size) in [-1, 1].
        """
        return self.layers(z[:, :, None, None])  # (N, nz, 1, 1) -> (N, 8 * ngf, 4, 4) -> ...


class Discriminator(nn.Module):
    """Score images: strided convolutions with batch norm and leaky ReLU; high logits mean real."""

    def __init__(self, image_size: int, ndf: int = 64, nc: int = 3) -> None:
        """Build the layers.

        Args:
            image_size: pixels, a power of two of at least 16.
            ndf: channels of the finest hidden stage.
            nc: colour channels.
        """
        super().__init__()
        widths = stage_widths(image_size, ndf)[::-1]
        layers: list[nn.Module] = [
            # No batch norm on the pixels: Radford et al. 2016, section 3, found it unstable.
            nn.Conv2d(nc, widths[0], kernel_size=4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for narrow, wide in pairwise(widths):
            layers += [
                nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wide),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, kernel_size=4, stride=1, padding=0, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Score images.

        Args:
            images: (N, nc, image_size, image_size) in [-1, 1].

        Returns:
            (N,) logits, not probabilities.
        """
        return self.layers(images).flatten()  # (N, 1, 1, 1) -> (N,)


@torch.no_grad()
def init_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the initial weights: N(0, 0.02) for convolutions, N(1, 0.02) for batch norm scales.

    Radford et al. 2016, section 4.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.weight.normal_(0.0, 0.02, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, 0.02, generator=generator)
            module.bias.zero_()


def count_parameters(network: nn.Module) -> int:
    """Count the trainable numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
