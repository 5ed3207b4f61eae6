"""Group normalisation of channels-last images, fused with affine map and activation: one GPU kernel per pass.

PyTorch's kernel needs channels first, so images are copied twice, and each step writes its result to memory. The
Triton kernels read an image from memory once and write the result once. Without a GPU or Triton, the networks use
PyTorch's operations.
"""

import functools
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_fused(x: Tensor) -> bool:
    """Return True if `group_norm` accepts x (N, C, H, W): CUDA, channels last, Triton works, no `torch.compile`."""
    return (
        not torch.compiler.is_compiling()  # torch.compile fuses the operations itself
        and x.device.type == "cuda"
        and x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and x.is_contiguous(memory_format=torch.channels_last)
        and _works(x.device)
    )


def group_norm(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, *, eps: float = 1e-5, silu: bool = False
) -> Tensor:
    """Return u = scale * (x - mean) / sqrt(variance + eps) + shift, or with `silu` u * sigmoid(u).

    Mean and variance are taken over each image's groups of channels (Wu & He 2018), in float32, also under autocast.
    The function can be differentiated once.

    Args:
        x: (N, C, H, W) accepted by `is_fused`.
        groups: a divisor of C.
        scale, shift: (N, C) or (1, C), any floating type.
        eps: constant added to the variance.
        silu: apply the activation.

    Returns:
        (N, C, H, W) of x's dtype, channels last.
    """
    scale, shift = (part.expand(x.shape[:2]) for part in (scale, shift))
    scale, shift = (part if part.stride(1) == 1 else part.contiguous() for part in (scale, shift))
    out: Tensor = _GroupNorm.apply(x, scale, shift, groups, eps, silu)
    return out


class _GroupNorm(torch.autograd.Function):
    """The kernels as a differentiable function of x (channels last), scale (N, C) and shift (N, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        from comparison.gpu.kernels import forward

        y, mean, rstd = forward(x, scale, shift, groups, eps, silu)
        ctx.save_for_backward(x, scale, shift, mean, rstd)
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from comparison.gpu.kernels import backward

        x, scale, shift, mean, rstd = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, dscale, dshift = backward(dy, x, scale, shift, mean, rstd, ctx.silu)
        return dx, dscale.to(scale.dtype), dshift.to(shift.dtype), None, None, None


@functools.cache
def _works(device: torch.device) -> bool:
    """Return True if the kernels run: they need Triton, and Triton needs a C compiler."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(1, 8, 2, 2, device=device).to(memory_format=torch.channels_last).requires_grad_()
            scale = torch.ones(1, 8, device=device)
            group_norm(x, 2, scale, scale, silu=True).sum().backward()
            torch.cuda.synchronize(device)
    except Exception as error:  # compiler errors have many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"group normalisation is not fused (slower, same results): {reason}", stacklevel=2)
        return False
    return True
