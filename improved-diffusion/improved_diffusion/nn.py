"""Small parts that the networks and the training step share."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class NormKernel:
    """A device's own group normalisation with its affine map and activation, for networks that are handed one.

    Attributes:
        takes: returns True if `apply` accepts an image, (N, C, H, W).
        apply: (x, groups, scale, shift, *, eps, silu) -> scale * normalised x + shift, or with `silu` SiLU of that, in
            x's dtype; scale and shift are (N, C) or (1, C).
    """

    takes: Callable[[Tensor], bool]
    apply: Callable[..., Tensor]


class GroupNorm32(nn.GroupNorm):
    """Group normalisation that sums in float32, its result in the input's dtype; by a `kernel` where it takes x."""

    kernel: NormKernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if self.kernel and self.kernel.takes(x):
            return self.kernel.apply(x, self.num_groups, self.weight[None], self.bias[None], eps=self.eps, silu=False)
        if x.dtype == torch.float32 or x.device.type == "cpu":
            # The CPU kernel takes bf16 images with float32 parameters and accumulates in float32.
            return super().forward(x)
        # So does a GPU's, but with parameters of the input's dtype; autocast would widen the images.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def use_norm_kernel(network: nn.Module, kernel: NormKernel | None) -> None:
    """Set the kernel of every `GroupNorm32` of a network; None for none."""
    for module in network.modules():
        if isinstance(module, GroupNorm32):
            module.kernel = kernel


def norm_silu(norm: nn.Module, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Return SiLU(norm(x)), or SiLU(norm(x) (1 + scale) + shift) (Nichol & Dhariwal 2021, section 3).

    Args:
        norm: a `GroupNorm32`.
        x: (N, C, H, W).
        scale, shift: (N, C), both or none.
    """
    assert isinstance(norm, GroupNorm32)
    if norm.kernel and norm.kernel.takes(x):
        weight, bias = _affine(norm, scale, shift)
        return norm.kernel.apply(x, norm.num_groups, weight, bias, eps=norm.eps, silu=True)
    if scale is not None and x.device.type == "cpu" and x.is_contiguous():
        # The channels of all images as those of one image: the norm's own affine map takes the condition along.
        weight, bias = _affine(norm, scale, shift)
        n, channels, *size = x.shape
        joint = x.view(1, n * channels, *size)
        return F.silu(F.group_norm(joint, n * norm.num_groups, weight.flatten(), bias.flatten(), norm.eps).view_as(x))
    h: Tensor = norm(x)
    if scale is not None and shift is not None:
        # a CPU's addcmul takes five times as long in bf16
        h = (h * (1 + scale[:, :, None, None])).add_(shift[:, :, None, None])
    return F.silu(h)


def _affine(norm: GroupNorm32, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a norm followed by (1 + scale) and shift, (N, C), or (1, C) without these."""
    weight, bias = norm.weight[None], norm.bias[None]
    if scale is None or shift is None:
        return weight, bias
    factor = 1 + scale.to(weight.dtype)
    return weight * factor, bias * factor + shift.to(weight.dtype)


class Dropout(nn.Dropout):
    """Dropout whose mask on a CPU takes 16 random bits an element, where torch takes a 64-bit word: five times faster.

    The probability is a multiple of 2^-16, and the kept values are scaled by the exact one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of x with probability p in training; see `torch.nn.Dropout`."""
        dropped = round(self.p * 2**16)
        if not self.training or not 0 < dropped < 2**16 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))


def zero_module(module: M) -> M:
    """Set every parameter of a module to zero, so that its residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_frequencies(dim: int, max_period: float = 10000.0) -> Tensor:
    """Compute the (dim // 2,) float32 angular frequencies of a timestep embedding."""
    half = dim // 2
    return torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)


def timestep_embedding(timesteps: Tensor, frequencies: Tensor) -> Tensor:
    """Embed timesteps as cosines, then sines (Vaswani et al. 2017, section 3.5).

    Args:
        timesteps: (N,), may be fractional.
        frequencies: (D / 2,) float32, see `timestep_frequencies`.

    Returns:
        (N, D) float32.
    """
    angles = timesteps[:, None].float() * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def checkpoint(function: Callable[..., Tensor], inputs: tuple[Any, ...], flag: bool) -> Tensor:
    """Call a function; if `flag`, store only its inputs and compute the rest again in the backward pass.

    The second computation sees the random state and the autocast state of the first, so dropout's masks and
    the gradients are those of the plain call.
    """
    if flag and torch.is_grad_enabled():
        return torch_checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


@torch.no_grad()
def update_ema(target_params: Iterable[Tensor], source_params: Iterable[Tensor], rate: float = 0.99) -> None:
    """Move an exponential moving average in place: target = rate * target + (1 - rate) * source."""
    torch._foreach_lerp_(list(target_params), list(source_params), 1 - rate)


def warmed_up_rate(rate: float, updates: int) -> float:
    """Lower an EMA rate while few updates have been made, to min(rate, (1 + n) / (10 + n)).

    At a constant 0.9999 the random initial weights would still make up 78% of the average after 2,500
    updates; with this rule they are forgotten within the first dozens.

    Args:
        rate: rate of the full average, in [0, 1).
        updates: n, the updates made so far, the present one included.
    """
    return min(rate, (1 + updates) / (10 + updates))
