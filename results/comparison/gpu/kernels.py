"""The Triton kernels of `comparison.gpu.group_norm`; importing this module needs Triton.

A program processes some whole groups of channels of one image, in tiles of (pixels, channels). Its second read of the
pixels hits the cache: 64 kB for a 32x32 image in bf16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # values in a tile
CHANNELS = 32  # minimum of contiguous channels in a tile: 64 bytes in bf16, two sectors of memory
WARPS = 8


@triton.jit
def _over_groups(values, GROUPS: tl.constexpr, LANES: tl.constexpr):
    """Replace (GROUPS * LANES,) values by the sums over each group's lanes."""
    sums = tl.sum(tl.reshape(values, [GROUPS, LANES]), axis=1)
    return tl.reshape(tl.broadcast_to(sums[:, None], [GROUPS, LANES]), [GROUPS * LANES])


@triton.jit
def _load(pointers, inside, EVEN: tl.constexpr):
    """Load as float32, zero outside; EVEN if no program needs the mask."""
    if EVEN:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=inside, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _store(pointers, values, inside, EVEN: tl.constexpr):
    if EVEN:
        tl.store(pointers, values.to(pointers.dtype.element_ty))
    else:
        tl.store(pointers, values.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def _sigmoid(u):
    return 1 / (1 + tl.exp(-u))


@triton.jit
def _program(
    pixels, channels, groups, PER_GROUP: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """Return the program's image, groups, channels, mask of the lanes in use, pixels, and offsets of the first tile."""
    n = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS * LANES)
    group = tl.program_id(1) * GROUPS + lane // LANES
    if PER_GROUP == LANES:
        channel = tl.program_id(1) * (GROUPS * LANES) + lane  # contiguous for the compiler: vectorized loads
    else:
        channel = group * PER_GROUP + lane % LANES
    real = (lane % LANES < PER_GROUP) & (group < groups)
    pixel = tl.arange(0, PIXELS)
    first = n * pixels * channels + pixel[:, None] * channels + channel[None, :]
    return n, group, channel, real, pixel, first


@triton.jit
def _gradients(dy_ptr, x_ptr, at, inside, mean, rstd, scale, shift, EVEN: tl.constexpr, SILU: tl.constexpr):
    """Return z = (x - mean) * rstd of a tile and du, the gradient of u = scale * z + shift."""
    z = (_load(x_ptr + at, inside, EVEN) - mean[None, :]) * rstd[None, :]
    du = _load(dy_ptr + at, inside, EVEN)
    if SILU:
        u = z * scale[None, :] + shift[None, :]
        s = _sigmoid(u)
        du *= s * (1 + u * (1 - s))
    return z, du


@triton.jit
def _forward(
    x_ptr, scale_ptr, shift_ptr, y_ptr, mean_ptr, rstd_ptr, scale_stride, shift_stride, pixels, channels, groups, eps,
    PER_GROUP: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr, EVEN: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    n, group, channel, real, pixel, first = _program(pixels, channels, groups, PER_GROUP, LANES, GROUPS, PIXELS)
    count = pixels * PER_GROUP

    total = tl.zeros([PIXELS, GROUPS * LANES], tl.float32)
    for start in range(0, pixels, PIXELS):
        inside = (start + pixel < pixels)[:, None] & real[None, :]
        total += _load(x_ptr + first + start * channels, inside, EVEN)
    mean = _over_groups(tl.sum(total, axis=0), GROUPS, LANES) / count
    total = tl.zeros([PIXELS, GROUPS * LANES], tl.float32)
    for start in range(0, pixels, PIXELS):
        inside = (start + pixel < pixels)[:, None] & real[None, :]
        x = _load(x_ptr + first + start * channels, inside, EVEN)
        centred = tl.where(inside, x - mean[None, :], 0.0)
        total += centred * centred
    rstd = 1 / tl.sqrt(_over_groups(tl.sum(total, axis=0), GROUPS, LANES) / count + eps)
    one_per_group = real & (tl.arange(0, GROUPS * LANES) % LANES == 0)
    tl.store(mean_ptr + n * groups + group, mean, mask=one_per_group)
    tl.store(rstd_ptr + n * groups + group, rstd, mask=one_per_group)

    scale = tl.load(scale_ptr + n * scale_stride + channel, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + n * shift_stride + channel, mask=real, other=0.0).to(tl.float32)
    for start in range(0, pixels, PIXELS):
        inside = (start + pixel < pixels)[:, None] & real[None, :]
        x = _load(x_ptr + first + start * channels, inside, EVEN)
        u = (x - mean[None, :]) * rstd[None, :] * scale[None, :] + shift[None, :]
        if SILU:
            u = u * _sigmoid(u)
        _store(y_ptr + first + start * channels, u, inside, EVEN)


@triton.jit
def _backward(
    dy_ptr, x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, dx_ptr, dscale_ptr, dshift_ptr, scale_stride,
    shift_stride, pixels, channels, groups,
    PER_GROUP: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr, EVEN: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    n, group, channel, real, pixel, first = _program(pixels, channels, groups, PER_GROUP, LANES, GROUPS, PIXELS)
    count = pixels * PER_GROUP
    mean = tl.load(mean_ptr + n * groups + group, mask=real, other=0.0)
    rstd = tl.load(rstd_ptr + n * groups + group, mask=real, other=0.0)
    scale = tl.load(scale_ptr + n * scale_stride + channel, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + n * shift_stride + channel, mask=real, other=0.0).to(tl.float32)

    along = tl.zeros([PIXELS, GROUPS * LANES], tl.float32)  # sums of du and du * z, z = (x - mean) * rstd
    across = tl.zeros([PIXELS, GROUPS * LANES], tl.float32)
    for start in range(0, pixels, PIXELS):
        inside = (start + pixel < pixels)[:, None] & real[None, :]
        at = first + start * channels
        z, du = _gradients(dy_ptr, x_ptr, at, inside, mean, rstd, scale, shift, EVEN, SILU)
        along += du
        across += du * z
    dshift, dscale = tl.sum(along, axis=0), tl.sum(across, axis=0)
    tl.store(dshift_ptr + n * channels + channel, dshift, mask=real)
    tl.store(dscale_ptr + n * channels + channel, dscale, mask=real)
    offset = _over_groups(dshift * scale, GROUPS, LANES) / count
    slope = _over_groups(dscale * scale, GROUPS, LANES) / count

    for start in range(0, pixels, PIXELS):
        inside = (start + pixel < pixels)[:, None] & real[None, :]
        at = first + start * channels
        z, du = _gradients(dy_ptr, x_ptr, at, inside, mean, rstd, scale, shift, EVEN, SILU)
        dx = rstd[None, :] * (du * scale[None, :] - offset[None, :] - z * slope[None, :])
        _store(dx_ptr + at, dx, inside, EVEN)


def _plan(x: Tensor, groups: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid of programs and the kernels' constants."""
    n, c, h, w = x.shape
    lanes = triton.next_power_of_2(c // groups)
    together = min(max(1, CHANNELS // lanes), triton.next_power_of_2(groups))
    pixels = min(max(16, TILE // (together * lanes)), triton.next_power_of_2(h * w))
    constants = {"PER_GROUP": c // groups, "LANES": lanes, "GROUPS": together, "PIXELS": pixels, "num_warps": WARPS}
    constants["EVEN"] = c // groups == lanes and groups % together == 0 and h * w % pixels == 0
    return (n, triton.cdiv(groups, together)), constants


def forward(
    x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (N, C, H, W) like x, and mean and 1 / sqrt(variance + eps), each (N, groups) float32.

    x is (N, C, H, W), channels last; scale and shift are (N, C) with contiguous channels; groups divides C.
    """
    grid, constants = _plan(x, groups)
    y = torch.empty_like(x)
    mean, rstd = torch.empty(2, len(x), groups, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _forward[grid](
            x, scale, shift, y, mean, rstd, scale.stride(0), shift.stride(0), x.shape[2] * x.shape[3], x.shape[1],
            groups, eps, SILU=silu, **constants,
        )  # fmt: skip
    return y, mean, rstd


def backward(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, like x, and of scale and shift, (N, C) float32, given dy (N, C, H, W)."""
    groups = mean.shape[1]
    grid, constants = _plan(x, groups)
    dx = torch.empty_like(x)
    dscale, dshift = torch.empty(2, *scale.shape, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _backward[grid](
            dy, x, scale, shift, mean, rstd, dx, dscale, dshift, scale.stride(0), shift.stride(0),
            x.shape[2] * x.shape[3], x.shape[1], groups, SILU=silu, **constants,
        )  # fmt: skip
    return dx, dscale, dshift
