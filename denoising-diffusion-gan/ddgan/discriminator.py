"""Time-dependent discriminators D(x_t, t, x_{t+1}) (Xiao et al. 2022, section 4 and appendix C).

With classes it is D(x_t, t, x_{t+1}, y): the inner product of features and label embedding is added to the logit, the
projection of Miyato and Koyama 2018, Eq. 4.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddgan.conditional import label_embedding
from ddgan.fir import FirDown
from ddgan.layers import ROOT_HALF, MinibatchStddev, conv, full_precision, linear, sinusoids

# Output width of each block in units of ngf, and whether it halves the image.
PLANS = {
    "small": [(2, False), (4, True), (8, True), (8, True)],
    "large": [(4, True), (8, True), (8, True), (8, True), (8, True), (8, True)],
}

SLOPE = 0.2  # of leaky ReLU
_conv, _linear = partial(conv, fan="out"), partial(linear, fan="out")


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class DownBlock(nn.Module):
    """Residual block with time added after the first convolution."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, down: bool):
        super().__init__()
        self.conv_in = _conv(in_channels, out_channels, 3)
        self.time = _linear(time_dim, out_channels)
        self.conv_out = _conv(out_channels, out_channels, 3, scale=0)
        self.shortcut = _conv(in_channels, out_channels, 1, bias=False)
        self.down_main = FirDown(out_channels) if down else nn.Identity()
        self.down_shortcut = FirDown(in_channels) if down else nn.Identity()

    def forward(self, x: Tensor, time_emb: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W'); `time_emb` is already activated."""
        h = self.conv_in(_leaky(x)) + self.time(time_emb)[:, :, None, None]
        h = self.conv_out(self.down_main(_leaky(h)))
        return (h + self.shortcut(self.down_shortcut(x))).mul_(ROOT_HALF)


class Discriminator(nn.Module):
    """Published network, which compares pairs (x_t, x_{t+1}) of the forward process with pairs of a generated x_t.

    Args:
        size: "small" (for 32 pixels, halves three times) or "large" (for 256 pixels, halves six times).
        num_channels: channels of one image; the input is two images, concatenated.
        ngf: base width.
        t_emb_dim: length of the time embedding.
        num_classes: number of classes, 0 for none.
    """

    def __init__(self, size: str, num_channels: int = 3, ngf: int = 64, t_emb_dim: int = 256, num_classes: int = 0):
        super().__init__()
        self.t_emb_dim = t_emb_dim
        self.time_in = _linear(t_emb_dim, t_emb_dim)
        self.time_out = _linear(t_emb_dim, t_emb_dim)
        self.conv_in = _conv(2 * num_channels, 2 * ngf, 1)
        self.blocks = nn.ModuleList()
        channels = 2 * ngf
        for width, down in PLANS[size]:
            self.blocks.append(DownBlock(channels, width * ngf, t_emb_dim, down))
            channels = width * ngf
        self.stddev = MinibatchStddev()
        # As published, the small network starts at logit 0 for every input and the large one does not.
        self.conv_out = _conv(channels + 1, channels, 3, scale=0 if size == "small" else 1)
        self.head = _linear(channels, 1)
        self.label_embedding = label_embedding(num_classes, channels)

    def forward(self, x_t: Tensor, t: Tensor, x_t_plus_1: Tensor, y: Tensor | None = None, *, parts: int = 1) -> Tensor:
        """Return (N, 1) float32 logits, high for real pairs.

        Args:
            x_t: (N, C, H, W) float32, real or generated.
            t: (N,) int64 in [0, T), index of x_t.
            x_t_plus_1: (N, C, H, W) float32, image that x_t was denoised from.
            y: (N,) int64 class labels; None without classes.
            parts: number of equal batches that the N consist of; each gets the logits that it has alone.
        """
        time_emb = _leaky(self.time_out(_leaky(self.time_in(sinusoids(t, self.t_emb_dim).to(self.head.weight.dtype)))))
        h = self.conv_in(torch.cat([x_t, x_t_plus_1], dim=1))
        for block in self.blocks:
            h = block(h, time_emb)
        h = _leaky(self.conv_out(self.stddev(h, parts)))
        features = h.sum(dim=(2, 3), dtype=full_precision(h))  # bf16 is too coarse for a sum of 16 to 256 terms
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(features)
            if self.label_embedding is not None:
                logits = logits + (self.label_embedding(y) * features).sum(dim=1, keepdim=True)
            return logits


class PlainDiscriminator(nn.Module):
    """Convolutions that halve the image down to 4 pixels, then a linear layer on all features.

    It learns within few updates. Its first logits are of order 1, as every layer is He-initialized and there is no sum
    over positions. Its weights of x_{t+1} start at a tenth, so that the noise does not hide the difference between the
    pairs. In the published network each block's second convolution starts near zero, and a sum over positions gives
    logits of tens as soon as the last convolution has grown.

    Args:
        image_size: size of the input, at least 8.
        num_channels: channels of one image; the input is two images, concatenated.
        ngf: base width; each halving doubles it, up to 8 ngf.
        t_emb_dim: length of the time embedding.
        num_classes: number of classes, 0 for none.
    """

    CONDITION = 0.1  # factor of the initial weights of x_{t+1}

    def __init__(
        self, image_size: int, num_channels: int = 3, ngf: int = 64, t_emb_dim: int = 256, num_classes: int = 0
    ):
        super().__init__()
        self.t_emb_dim = t_emb_dim
        self.time_in = nn.Linear(t_emb_dim, t_emb_dim)
        self.conv_in = nn.Conv2d(2 * num_channels, ngf, 3, padding=1)
        self.halvings, self.times = nn.ModuleList(), nn.ModuleList()
        channels, size = ngf, image_size
        while size >= 8:
            width = min(2 * channels, 8 * ngf)
            self.halvings.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))
            self.times.append(nn.Linear(t_emb_dim, width))
            channels, size = width, size // 2
        self.stddev = MinibatchStddev()
        self.conv_out = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.head = nn.Linear(channels * size**2, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=SLOPE)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            nn.init.normal_(self.head.weight, std=self.head.in_features**-0.5)
            self.conv_in.weight[:, num_channels:] *= self.CONDITION
        self.label_embedding = label_embedding(num_classes, channels)

    def forward(self, x: Tensor, t: Tensor, x_t_plus_1: Tensor, y: Tensor | None = None, *, parts: int = 1) -> Tensor:
        """Return (N, 1) float32 logits; see `Discriminator.forward`."""
        time_emb = _leaky(self.time_in(sinusoids(t, self.t_emb_dim).to(self.head.weight.dtype)))
        h = _leaky(self.conv_in(torch.cat([x, x_t_plus_1], dim=1)))
        for halve, time in zip(self.halvings, self.times, strict=True):
            h = _leaky(halve(h) + time(time_emb)[:, :, None, None])
        h = _leaky(self.conv_out(self.stddev(h, parts)))
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(full_precision(h))
            logits = self.head(h.flatten(1))
            if self.label_embedding is not None:
                logits = logits + (self.label_embedding(y) * h.mean(dim=(2, 3))).sum(dim=1, keepdim=True)
            return logits
