"""Generator and discriminator of R3GAN: plain residual blocks without normalisation, for any power-of-two image size.

Huang et al. 2024, "The GAN is dead; long live the GAN! A modern GAN baseline", section 4 and appendix.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLU
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # keeps the variance through a convolution and a leaky ReLU
EXPANSION = 2  # channels inside a grouped block, as a multiple of those outside


def residual_widths(image_size: int, base: int, max_width: int) -> list[int]:
    """Return the channels of each stage, from 4x4 to the finest: base, doubled at each coarser one up to max_width."""
    stages = image_size.bit_length() - 2  # of 4, 8, ..., image_size pixels
    return [min(base * 2**i, max(base, max_width)) for i in reversed(range(stages))]


class ResidualBlock(nn.Module):
    """Add to (N, C, H, W) what convolutions with leaky ReLU make of it; at first nothing, as the last one starts at 0.

    Args:
        channels: C.
        group_size: channels per group of the 3x3 convolution, between 1x1 convolutions from and to C channels (Xie et
            al. 2017, with the bottleneck inverted); 0 for two ordinary 3x3 convolutions, which CPUs compute faster.
    """

    def __init__(self, channels: int, group_size: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        if group_size:
            self.convs = nn.ModuleList(
                [
                    nn.Conv2d(channels, inner, 1),
                    nn.Conv2d(inner, inner, 3, padding=1, groups=inner // group_size),
                    nn.Conv2d(inner, channels, 1, bias=False),
                ]
            )
        else:
            first = nn.Conv2d(channels, channels, 3, padding=1)
            self.convs = nn.ModuleList([first, nn.Conv2d(channels, channels, 3, padding=1, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        h = x
        *hidden, last = self.convs
        for conv in hidden:
            h = F.leaky_relu(conv(h), SLOPE)
        return x + last(h)


def up(x: Tensor) -> Tensor:
    """Double height and width by bilinear interpolation."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def down(x: Tensor) -> Tensor:
    """Halve height and width by bilinear interpolation, which is the mean of 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)


class Transition(nn.Module):
    """Change the size by a function, and the channels, where they differ, by a 1x1 convolution at the smaller size."""

    def __init__(self, channels: int, to_channels: int, resample: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        same = channels == to_channels
        self.conv = nn.Identity() if same else nn.Conv2d(channels, to_channels, 1, bias=False)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, to_channels, H', W')."""
        return self.resample(self.conv(x)) if self.resample is up else self.conv(self.resample(x))


class ResidualGenerator(nn.Module):
    """Map noise to images: a learned 4x4 picture per channel, weighted by a linear map of the noise, then stages.

    Args:
        image_size: pixels, a power of two of at least 16.
        nz: length of the noise vector.
        ngf: channels of the finest stage.
        max_width: channels of the widest stages.
        blocks: residual blocks per stage.
        group_size: see `ResidualBlock`.
    """

    def __init__(self, image_size: int, nz: int, ngf: int, max_width: int, blocks: int, group_size: int) -> None:
        super().__init__()
        self.nz = nz
        widths = residual_widths(image_size, ngf, max_width)
        self.basis = nn.Parameter(torch.empty(widths[0], 4, 4))
        self.linear = nn.Linear(nz, widths[0], bias=False)
        layers: list[nn.Module] = []
        for before, width in zip([None, *widths[:-1]], widths, strict=True):
            layers += [] if before is None else [Transition(before, width, up)]
            layers += [ResidualBlock(width, group_size) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Map (N, nz) standard normal noise to (N, 3, image_size, image_size) images around [-1, 1], not clipped."""
        return self.layers(self.basis * self.linear(z)[:, :, None, None])


class ResidualDiscriminator(nn.Module):
    """Map images to logits, high for real, by the stages of `ResidualGenerator` in reverse.

    Args:
        image_size, ndf, max_width, blocks, group_size: see `ResidualGenerator`.
    """

    def __init__(self, image_size: int, ndf: int, max_width: int, blocks: int, group_size: int) -> None:
        super().__init__()
        widths = residual_widths(image_size, ndf, max_width)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 1)]
        for width, after in zip(widths, [*widths[1:], None], strict=True):
            layers += [ResidualBlock(width, group_size) for _ in range(blocks)]
            layers += [] if after is None else [Transition(width, after, down)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], widths[-1], 4, groups=widths[-1], bias=False)
        self.linear = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, image_size, image_size) images to (N,) logits."""
        return self.linear(self.head(self.layers(images)).flatten(1)).flatten()


@torch.no_grad()
def init_residual(network: nn.Module, generator: torch.Generator) -> None:
    """Initialize the weights so that the variance is kept however deep the network is (Zhang et al. 2019, "Fixup").

    Within a block of m convolutions, one of L in the network, weights are drawn from
    N(0, (GAIN / L^(1 / (2 m - 2)))^2 / fan_in), and the last convolution starts at 0. Biases start at 0.
    """
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    inside = {id(conv): (block, i) for block in blocks for i, conv in enumerate(block.convs)}
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            gain = 1.0
            if id(module) in inside:
                block, i = inside[id(module)]
                count = len(block.convs)
                gain = 0.0 if i == count - 1 else GAIN * len(blocks) ** (-1 / (2 * count - 2))
            module.weight.normal_(0.0, gain / math.sqrt(module.weight[0].numel()), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    if isinstance(network, ResidualGenerator):
        network.basis.normal_(0.0, 1.0, generator=generator)
