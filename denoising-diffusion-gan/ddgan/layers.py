"""Layers of NCSN++ and of DDGAN's discriminators: norms, embeddings, residual block, attention.

Song et al. 2021 (NCSN++ blocks), Karras et al. 2019 (adaptive normalization), Xiao et al. 2022, appendix C.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from comparison.gpu.group_norm import group_norm, is_fused
from torch import Tensor, nn

ROOT_HALF = math.sqrt(0.5)  # keeps unit variance in the sum of two branches
MAX_EXPLICIT = 1024  # positions up to which the attention matrix is computed explicitly
TINY_INIT = 1e-10  # scale of nearly zero layers, with which a residual block starts as its shortcut


def full_precision(x: Tensor) -> torch.dtype:
    """Return x's dtype, or float32 if it is half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def kernel_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for operations that have no fast half-precision kernel on CPUs."""
    return full_precision(x) if x.device.type == "cpu" else x.dtype


def init_uniform(layer: nn.Conv2d | nn.Linear, scale: float = 1.0, fan: str = "avg") -> None:
    """Initialize a layer, weights with variance `scale` / fan and bias 0.

    A scale of 0 means TINY_INIT. `fan` is "avg", the mean of fan-in and fan-out (generator), or "out" (mapping, AdaGN
    and discriminator).
    """
    area = math.prod(layer.weight.shape[2:])
    fan_out, fan_in = layer.weight.shape[0] * area, layer.weight.shape[1] * area
    size = fan_out if fan == "out" else (fan_in + fan_out) / 2
    bound = math.sqrt(3 * (scale or TINY_INIT) / size)
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv(
    in_channels: int, out_channels: int, size: int = 3, scale: float = 1.0, fan: str = "avg", **options: Any
) -> nn.Conv2d:
    """Return an initialized convolution; it keeps height and width unless `options` change them."""
    layer = nn.Conv2d(in_channels, out_channels, size, **{"padding": size // 2, **options})
    init_uniform(layer, scale, fan)
    return layer


def linear(in_features: int, out_features: int, fan: str = "avg") -> nn.Linear:
    """Return an initialized linear layer."""
    layer = nn.Linear(in_features, out_features)
    init_uniform(layer, fan=fan)
    return layer


class GroupNorm(nn.GroupNorm):
    """NCSN++'s group norm: at least four channels per group, at most 32 groups."""

    def __init__(self, channels: int, affine: bool = True):
        super().__init__(min(channels // 4, 32), channels, eps=1e-6, affine=affine)

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """Normalize (N, C, H, W), then perhaps apply SiLU; in float32 on CPUs, whose bf16 kernel takes 3x as long."""
        if self.affine and is_fused(x):
            return group_norm(x, self.num_groups, self.weight[None], self.bias[None], eps=self.eps, silu=silu)
        h = x.to(kernel_dtype(x))
        weight, bias = (None if p is None else p.to(h.dtype) for p in (self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            h = F.group_norm(h, self.num_groups, weight, bias, self.eps).to(x.dtype)
        return F.silu(h) if silu else h


def sinusoids(t: Tensor, channels: int) -> Tensor:
    """Embed (N,) int64 timesteps as sines, then cosines, (N, channels) float32 in [-1, 1].

    Vaswani et al. 2017, with the frequencies of Ho et al. 2020; `channels` is even and at least 4.
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierFeatures(nn.Module):
    """Embed log t by fixed random frequencies (Tancik et al. 2020; Song et al. 2021).

    The published code takes log(0) at t = 0; here t = 0 counts as 1/2.
    """

    frequencies: Tensor

    def __init__(self, channels: int, scale: float):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(channels) * scale)

    def forward(self, t: Tensor) -> Tensor:
        """Return (N, 2 * channels) float32 for (N,) int64."""
        angles = t.float().clamp(min=0.5).log()[:, None] * self.frequencies[None] * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class AdaptiveGroupNorm(nn.Module):
    """Group norm with scale and shift from the latent (Xiao et al. 2022, appendix C), then SiLU."""

    def __init__(self, channels: int, z_emb_dim: int):
        super().__init__()
        self.norm = GroupNorm(channels, affine=False)
        self.style = linear(z_emb_dim, 2 * channels, fan="out")
        with torch.no_grad():
            self.style.bias[:channels] = 1

    def forward(self, x: Tensor, z_emb: Tensor) -> Tensor:
        """(N, C, H, W), (N, z_emb_dim) -> (N, C, H, W)."""
        scale, shift = self.style(z_emb).chunk(2, dim=1)
        if is_fused(x):
            return group_norm(x, self.norm.num_groups, scale, shift, eps=self.norm.eps, silu=True)
        return F.silu(torch.addcmul(shift[:, :, None, None], self.norm(x), scale[:, :, None, None]))


class PlainGroupNorm(nn.Module):
    """Group norm, then SiLU; ignores the latent, in blocks with only one adaptive norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(channels)

    def forward(self, x: Tensor, z_emb: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.norm(x, silu=True)


class ResidualBlock(nn.Module):
    """BigGAN-style residual block of NCSN++; time is added, the latent modulates the norms.

    Args:
        in_channels, out_channels: channels of the image features.
        time_dim: length of the time embedding, 0 for none.
        z_emb_dim: length of the latent's embedding.
        resample: returns a new `Resample` for a channel count; None keeps the size.
        second_norm_adaptive: False for `biggan_oneadagn`.
        skip_rescale: whether to divide the sum by the square root of 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_dim: int,
        z_emb_dim: int,
        dropout: float = 0.0,
        skip_rescale: bool = True,
        resample: Callable[[int], nn.Module] | None = None,
        second_norm_adaptive: bool = True,
    ):
        super().__init__()
        self.gain = ROOT_HALF if skip_rescale else 1.0
        self.norm_in = AdaptiveGroupNorm(in_channels, z_emb_dim)
        self.resample = resample(in_channels) if resample else None
        self.conv_in = conv(in_channels, out_channels)
        self.time = linear(time_dim, out_channels) if time_dim else None
        self.norm_out = (
            AdaptiveGroupNorm(out_channels, z_emb_dim) if second_norm_adaptive else PlainGroupNorm(out_channels)
        )
        self.dropout = nn.Dropout(dropout)
        self.conv_out = conv(out_channels, out_channels, scale=0)
        self.shortcut = conv(in_channels, out_channels, 1) if in_channels != out_channels or resample else None

    def forward(self, x: Tensor, time_emb: Tensor | None, z_emb: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W'); `time_emb` is already activated."""
        h = self.norm_in(x, z_emb)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_in(h)
        if self.time is not None and time_emb is not None:
            h = h + self.time(time_emb)[:, :, None, None]
        h = self.conv_out(self.dropout(self.norm_out(h, z_emb)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return (x + h).mul_(self.gain)


class Attention(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int, skip_rescale: bool = True):
        super().__init__()
        self.gain = ROOT_HALF if skip_rescale else 1.0
        self.norm = GroupNorm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        bound = math.sqrt(3 * 0.1 / channels)  # fan of each square third, not of the joint layer
        nn.init.uniform_(self.qkv.weight, -bound, bound)
        self.out = conv(channels, channels, 1, scale=0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each (N, H * W, C)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[1] <= MAX_EXPLICIT:
            # bf16 matrix products are fast on CPUs, but there is no fast bf16 attention kernel.
            weights = (torch.bmm(q, k.transpose(1, 2)).float() * q.shape[2] ** -0.5).softmax(dim=2)
            h = torch.bmm(weights.to(v.dtype), v)
        else:
            h = F.scaled_dot_product_attention(*(part[:, None] for part in (q, k, v)))[:, 0]
        h = self.out(h.transpose(1, 2).reshape(x.shape))
        return (x + h).mul_(self.gain)


class MinibatchStddev(nn.Module):
    """Append one feature, the standard deviation over groups of images (Karras et al. 2018).

    Image i is grouped with i + N/G, i + 2N/G, ..., where G is the largest divisor of N up to 4.
    """

    def __init__(self, group_size: int = 4):
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """(N, C, H, W) -> (N, C + 1, H, W); groups do not mix the `parts` batches that the N consist of."""
        spread = torch.cat([self._spread(part) for part in x.chunk(parts)])
        return torch.cat([x, spread.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)

    def _spread(self, x: Tensor) -> Tensor:
        """Return (N,) in at least float32."""
        n = len(x)
        group = next(size for size in range(min(self.group_size, n), 0, -1) if n % size == 0)
        spread = x.to(full_precision(x)).view(group, n // group, *x.shape[1:]).var(dim=0, unbiased=False)
        return (spread + 1e-8).sqrt().mean(dim=(1, 2, 3)).repeat(group)
