"""The two networks of DCGAN, for any power-of-two image size.

Radford, Metz, Chintala 2016, "Unsupervised representation learning with deep convolutional GANs".
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

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
    """Score images: strided convolutions, normalised or not, with leaky ReLU; high logits mean real.

    With batch norm the network is that of the paper. Without it the convolutions have biases instead; for spectral
    norm `normalise_spectrally` comes after the initial weights.
    """

    def __init__(
        self, image_size: int, ndf: int = 64, nc: int = 3, d_norm: str = "batch", minibatch_stddev: int = 0
    ) -> None:
        """Build the layers.

        Args:
            image_size: pixels, a power of two of at least 16.
            ndf: channels of the finest hidden stage.
            nc: colour channels.
            d_norm: "batch", "spectral" or "none".
            minibatch_stddev: images per group of `MinibatchStddev` in front of the last layer; 0 leaves it out.

        Raises:
            ValueError: image_size or d_norm has another value.
        """
        super().__init__()
        if d_norm not in ("batch", "spectral", "none"):
            raise ValueError(f"d_norm must be batch, spectral or none, not {d_norm!r}")
        bias = d_norm != "batch"
        widths = stage_widths(image_size, ndf)[::-1]
        layers: list[nn.Module] = [
            # No batch norm on the pixels: Radford et al. 2016, section 3, found it unstable.
            nn.Conv2d(nc, widths[0], kernel_size=4, stride=2, padding=1, bias=bias),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for narrow, wide in pairwise(widths):
            layers.append(nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1, bias=bias))
            if d_norm == "batch":
                layers.append(nn.BatchNorm2d(wide))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        extra = 0
        if minibatch_stddev:
            layers.append(MinibatchStddev(minibatch_stddev))
            extra = 1
        layers.append(nn.Conv2d(widths[-1] + extra, 1, kernel_size=4, stride=1, padding=0, bias=bias))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Score images.

        Args:
            images: (N, nc, image_size, image_size) in [-1, 1].

        Returns:
            (N,) logits, not probabilities.
        """
        return self.layers(images).flatten()  # (N, 1, 1, 1) -> (N,)


class MinibatchStddev(nn.Module):
    """Append a channel that tells how much the images of a group differ, so that a collapsed generator shows.

    Karras et al. 2018, "Progressive growing of GANs", section 3: the standard deviation over the group of each
    feature at each place, averaged over features and places.
    """

    def __init__(self, group: int) -> None:
        """Remember the size of the groups, images."""
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + 1, H, W); image i is in the group of all i with equal i mod (N / group).

        Raises:
            ValueError: N is no multiple of the group's size.
        """
        n, _, height, width = x.shape
        if n % self.group:
            raise ValueError(f"{n} images are no multiple of the group of {self.group}")
        groups = x.float().reshape(self.group, n // self.group, -1)
        deviation = (groups.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=1)  # 1e-8: the root's slope at 0
        channel = deviation.repeat(self.group)[:, None, None, None].expand(n, 1, height, width)
        return torch.cat([x, channel.to(x.dtype)], dim=1)


def normalise_spectrally(network: nn.Module, seed: int) -> None:
    """Divide each convolution's weight by its largest singular value from now on.

    Miyato et al. 2018, "Spectral normalization for generative adversarial networks", Eqs. 8 and 9, and their
    algorithm 1: one power iteration per computed weight, whose vectors are buffers and so in the state_dict.

    Args:
        network: its weights already drawn.
        seed: of the vectors at the start.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if type(module) is nn.Conv2d:
                spectral_norm(module)


@torch.no_grad()
def init_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the initial weights: N(0, 0.02) for convolutions, N(1, 0.02) for batch norm scales, 0 for biases.

    Radford et al. 2016, section 4.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.weight.normal_(0.0, 0.02, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, 0.02, generator=generator)
            module.bias.zero_()


def count_parameters(network: nn.Module) -> int:
    """Count the trainable numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
