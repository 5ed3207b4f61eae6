"""Generator and discriminator of DCGAN, for any power-of-two image size.

Radford, Metz, Chintala 2016, "Unsupervised representation learning with deep convolutional GANs".
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

MAX_WIDTH = 8  # times base: the 4x4 stage of the paper's 64-pixel networks


def stage_widths(image_size: int, base: int) -> list[int]:
    """Return the channels of each hidden stage, from 4x4 (widest) to the finest.

    64 pixels: 8, 4, 2, 1 times base; 32 pixels: 4, 2, 1 times base; above 64 pixels the widest stages stay at 8.
    """
    stages = image_size.bit_length() - 3  # 4x4 doubles this often until half of image_size
    return [base * min(2**i, MAX_WIDTH) for i in reversed(range(stages))]


class Generator(nn.Module):
    """Map noise to images by transposed convolutions with batch norm and ReLU, then tanh.

    In training mode batch norm uses the statistics of the batch, so an image depends on the rest of its batch. In
    eval mode it uses the running averages, and image i depends on z[i] alone.

    Args:
        image_size: pixels, a power of two of at least 16.
        nz: length of the noise vector.
        ngf: channels of the finest hidden stage.
    """

    def __init__(self, image_size: int, nz: int = 100, ngf: int = 64) -> None:
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
        layers += [nn.ConvTranspose2d(widths[-1], 3, kernel_size=4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map (N, nz) standard normal noise to (N, 3, image_size, image_size) images in [-1, 1]."""
        return self.layers(z[:, :, None, None])  # (N, nz, 1, 1) -> (N, 8 * ngf, 4, 4) -> ...


class Discriminator(nn.Module):
    """Map images to logits, high for real, by strided convolutions with leaky ReLU.

    With batch norm it is the paper's network. Without it the convolutions have biases; for spectral norm call
    `normalize_spectrally` after the initial weights are drawn.

    Args:
        image_size: pixels, a power of two of at least 16.
        ndf: channels of the finest hidden stage.
        d_norm: "batch", "spectral" or "none".
    """

    def __init__(self, image_size: int, ndf: int = 64, d_norm: str = "batch") -> None:
        super().__init__()
        bias = d_norm != "batch"
        widths = stage_widths(image_size, ndf)[::-1]
        layers: list[nn.Module] = [
            # No batch norm on the pixels: Radford et al. 2016, section 3, found it unstable.
            nn.Conv2d(3, widths[0], kernel_size=4, stride=2, padding=1, bias=bias),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for narrow, wide in pairwise(widths):
            layers.append(nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1, bias=bias))
            if d_norm == "batch":
                layers.append(nn.BatchNorm2d(wide))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        layers.append(nn.Conv2d(widths[-1], 1, kernel_size=4, stride=1, padding=0, bias=bias))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, image_size, image_size) images in [-1, 1] to (N,) logits."""
        return self.layers(images).flatten()  # (N, 1, 1, 1) -> (N,)


def normalize_spectrally(network: nn.Module, seed: int) -> None:
    """Add spectral norm to each convolution of a network whose weights are drawn; `seed` draws the initial vectors.

    Miyato et al. 2018, "Spectral normalization for generative adversarial networks", Eqs. 8 and 9 and algorithm 1:
    one power iteration per forward pass; its vectors are buffers, so they are in the state_dict.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if type(module) is nn.Conv2d:
                spectral_norm(module)


@torch.no_grad()
def init_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Initialize convolutions from N(0, 0.02), batch norm scales from N(1, 0.02), and biases to 0.

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
    """Return the number of trainable parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
