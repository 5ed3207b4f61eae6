"""Resampling: FIR filters as depthwise convolutions or matrix products, and nearest neighbours; Karras et al. 2020."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddgan.layers import conv, kernel_dtype


class FirDown(nn.Module):
    """Halve height and width behind a FIR low-pass filter: a strided depthwise convolution, on CUDA `AlongAxes`.

    Args:
        channels: of the input.
        kernel: the separable filter's taps, an even number of them.
        stride: 2 halves; 1 filters only.
        padding: added on every side; the default gives exactly half the size.
    """

    weight: Tensor

    def __init__(
        self, channels: int, kernel: Sequence[int] = (1, 3, 3, 1), stride: int = 2, padding: int | None = None
    ):
        super().__init__()
        self.stride = stride
        self.padding = len(kernel) // 2 - 1 if padding is None else padding
        self.register_buffer("weight", fir_weight(channels, kernel), persistent=False)
        self._along_axes = AlongAxes(F.conv2d, fir_taps(kernel), stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / 2, W / 2)."""
        if x.device.type == "cuda":
            return self._along_axes(x)
        return _depthwise(F.conv2d, x, self.weight, stride=self.stride, padding=self.padding)


class FirUp(nn.Module):
    """Double height and width with a FIR filter: a transposed depthwise convolution, on CUDA `AlongAxes`."""

    weight: Tensor

    def __init__(self, channels: int, kernel: Sequence[int] = (1, 3, 3, 1), padding: int | None = None):
        super().__init__()
        self.padding = len(kernel) // 2 - 1 if padding is None else padding
        # Zero insertion divides the mean by 4: the filter's gain gives it back.
        self.register_buffer("weight", 4 * fir_weight(channels, kernel), persistent=False)
        self._along_axes = AlongAxes(F.conv_transpose2d, 2 * fir_taps(kernel), 2, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2 H, 2 W)."""
        if x.device.type == "cuda":
            return self._along_axes(x)
        return _depthwise(F.conv_transpose2d, x, self.weight, stride=2, padding=self.padding)


class AlongAxes:
    """A separable filter as one matrix product along each axis, which is what GPUs are fast at.

    Their depthwise convolutions of interleaved channels took a fifth of a training update.

    Args:
        operation: `conv2d` or `conv_transpose2d`.
        taps: (1, 1, 1, K) float32, on the CPU.
        stride, padding: of the operation, along each axis.
    """

    def __init__(self, operation: Callable[..., Tensor], taps: Tensor, stride: int, padding: int):
        self._operation, self._taps = operation, taps
        self._options = {"stride": (1, stride), "padding": (0, padding)}
        self._matrices: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W') in x's dtype, channels last."""
        n, c, h, w = x.shape
        rows, columns = self._matrix(w, x), self._matrix(h, x)
        with torch.autocast(x.device.type, enabled=False):
            flat = x.permute(0, 2, 3, 1).reshape(n * h, w, c)  # a view where channels are last
            flat = torch.bmm(rows.expand(n * h, -1, -1), flat).view(n, h, -1)
            flat = torch.bmm(columns.expand(n, -1, -1), flat)
        return flat.view(n, len(columns), len(rows), c).permute(0, 3, 1, 2)

    def _matrix(self, size: int, x: Tensor) -> Tensor:
        """Return (size', size): the map of each unit vector as a column."""
        key = (size, x.dtype, x.device)
        if key not in self._matrices:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                units = torch.eye(size, device="cpu")[None, None]
                found = self._operation(units, self._taps, **self._options)[0, 0].T
                self._matrices[key] = found.contiguous().to(x.device, x.dtype)
        return self._matrices[key]


def _depthwise(operation: Callable[..., Tensor], x: Tensor, weight: Tensor, **options: int) -> Tensor:
    """Filter every channel by itself, in x's dtype whatever autocast says.

    CPUs compute in float32: their bf16 transposed depthwise convolution (the backward pass of this one too) has no
    fast path and is 20 to 50 times slower.
    """
    dtype = kernel_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return operation(x.to(dtype), weight.to(dtype), groups=x.shape[1], **options).to(x.dtype)


def fir_taps(kernel: Sequence[int]) -> Tensor:
    """Return the (1, 1, 1, K) float32 taps of a filter along the rows, summing to 1."""
    taps = torch.tensor(kernel, dtype=torch.float32)
    return (taps / taps.sum())[None, None, None]


def fir_weight(channels: int, kernel: Sequence[int]) -> Tensor:
    """Return the (channels, 1, K, K) float32 depthwise weight of a separable filter, summing to 1 per channel."""
    taps = fir_taps(kernel).flatten()
    return torch.outer(taps, taps).expand(channels, 1, -1, -1).clone()


class NearestUp(nn.Module):
    """Double height and width by repeating pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2 H, 2 W)."""
        return F.interpolate(x, scale_factor=2, mode="nearest")


class Resample(nn.Sequential):
    """A resampling filter and, if `out_channels` is given, a learned 3x3 convolution.

    Down: filter, then convolution with stride 2. Up: filter, then convolution. The filter keeps a margin that the
    convolution consumes, so that both act as if the plane outside the image were zero.
    """

    def __init__(
        self, direction: str, channels: int, fir_kernel: Sequence[int] | None, out_channels: int | None = None
    ):
        if direction not in ("up", "down"):
            raise ValueError(f"direction must be 'up' or 'down', not {direction!r}")
        super().__init__(*_resampling_layers(direction, channels, fir_kernel, out_channels))


def _resampling_layers(
    direction: str, channels: int, fir_kernel: Sequence[int] | None, out_channels: int | None
) -> list[nn.Module]:
    if fir_kernel is None:
        if direction == "up":
            return [NearestUp()] + ([conv(channels, out_channels)] if out_channels else [])
        if out_channels is None:
            return [nn.AvgPool2d(2)]
        return [nn.ZeroPad2d((0, 1, 0, 1)), conv(channels, out_channels, stride=2, padding=0)]
    if out_channels is None:
        return [FirUp(channels, fir_kernel) if direction == "up" else FirDown(channels, fir_kernel)]
    margin = len(fir_kernel) // 2
    if direction == "up":
        return [FirUp(channels, fir_kernel, padding=margin - 2), conv(channels, out_channels, padding=0)]
    return [FirDown(channels, fir_kernel, stride=1, padding=margin), conv(channels, out_channels, stride=2, padding=0)]
