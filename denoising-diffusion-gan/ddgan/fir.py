"""Resampling by nearest pixels, or by FIR filters (Karras et al. 2020) as convolutions or matrix products."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddgan.layers import conv, kernel_dtype

Filter = Callable[..., Tensor]


class Fir(nn.Module):
    """FIR filter of each channel: a strided depthwise convolution, on CUDA a `SeparableFilter`.

    Args:
        operation: `conv2d`, or `conv_transpose2d` for upsampling.
        channels: channels of the input.
        kernel: taps of the separable filter, an even number.
        stride: stride of the operation.
        padding: padding on every side; by default a stride of 2 gives exactly half or twice the size.
        gain: gain along each axis.
    """

    weight: Tensor

    def __init__(
        self, operation: Filter, channels: int, kernel: Sequence[int], stride: int, padding: int | None, gain: int = 1
    ):
        super().__init__()
        self.operation, self.stride = operation, stride
        self.padding = len(kernel) // 2 - 1 if padding is None else padding
        self.register_buffer("weight", gain**2 * fir_weight(channels, kernel), persistent=False)
        self._separable = SeparableFilter(operation, gain * fir_taps(kernel), stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W') in x's dtype, even under autocast.

        CPUs compute in float32: the bf16 transposed depthwise convolution (also in the backward pass of the other one)
        takes 20x to 50x as long there.
        """
        if x.device.type == "cuda":
            return self._separable(x)
        dtype, options = kernel_dtype(x), {"stride": self.stride, "padding": self.padding, "groups": x.shape[1]}
        with torch.autocast(x.device.type, enabled=False):
            return self.operation(x.to(dtype), self.weight.to(dtype), **options).to(x.dtype)


class FirDown(Fir):
    """Halve height and width after a FIR low-pass filter; with a stride of 1, only filter."""

    def __init__(
        self, channels: int, kernel: Sequence[int] = (1, 3, 3, 1), stride: int = 2, padding: int | None = None
    ):
        super().__init__(F.conv2d, channels, kernel, stride, padding)


class FirUp(Fir):
    """Double height and width by a FIR filter, whose gain makes up for the inserted zeros."""

    def __init__(self, channels: int, kernel: Sequence[int] = (1, 3, 3, 1), padding: int | None = None):
        super().__init__(F.conv_transpose2d, channels, kernel, 2, padding, gain=2)


class SeparableFilter:
    """Separable filter as one matrix product along each axis, which is fast on GPUs.

    Depthwise convolutions in channels-last layout took a fifth of a training update there.

    Args:
        operation: `conv2d` or `conv_transpose2d`.
        taps: (1, 1, 1, K) float32, on the CPU.
        stride, padding: stride and padding of the operation along each axis.
    """

    def __init__(self, operation: Filter, taps: Tensor, stride: int, padding: int):
        self._operation, self._taps = operation, taps
        self._options = {"stride": (1, stride), "padding": (0, padding)}
        self._matrices: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W') in x's dtype, channels last."""
        n, c, h, w = x.shape
        rows, columns = self._matrix(w, x), self._matrix(h, x)
        with torch.autocast(x.device.type, enabled=False):
            flat = x.permute(0, 2, 3, 1).reshape(n * h, w, c)  # a view if x is channels last
            flat = torch.bmm(rows.expand(n * h, -1, -1), flat).view(n, h, -1)
            flat = torch.bmm(columns.expand(n, -1, -1), flat)
        return flat.view(n, len(columns), len(rows), c).permute(0, 3, 1, 2)

    def _matrix(self, size: int, x: Tensor) -> Tensor:
        """Return the (size', size) matrix of the filter."""
        key = (size, x.dtype, x.device)
        if key not in self._matrices:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                units = torch.eye(size, device="cpu")[None, None]
                matrix = self._operation(units, self._taps, **self._options)[0, 0].T
                self._matrices[key] = matrix.contiguous().to(x.device, x.dtype)
        return self._matrices[key]


def fir_taps(kernel: Sequence[int]) -> Tensor:
    """Return the (1, 1, 1, K) float32 taps of a filter along the rows; they sum to 1."""
    taps = torch.tensor(kernel, dtype=torch.float32)
    return (taps / taps.sum())[None, None, None]


def fir_weight(channels: int, kernel: Sequence[int]) -> Tensor:
    """Return the (channels, 1, K, K) float32 depthwise weight of a separable filter; each channel sums to 1."""
    taps = fir_taps(kernel).flatten()
    return torch.outer(taps, taps).expand(channels, 1, -1, -1).clone()


class Resample(nn.Sequential):
    """Resampling filter and, if `out_channels` is given, a learned 3x3 convolution.

    Down: filter, then convolution with stride 2. Up: filter, then convolution. The filter adds a margin that the
    convolution removes, so both act as if the image were zero-padded.
    """

    def __init__(
        self, direction: str, channels: int, fir_kernel: Sequence[int] | None, out_channels: int | None = None
    ):
        up, layers = direction == "up", list[nn.Module]()
        if fir_kernel is not None and out_channels is None:
            layers = [FirUp(channels, fir_kernel) if up else FirDown(channels, fir_kernel)]
        elif fir_kernel is not None and out_channels is not None:
            margin = len(fir_kernel) // 2
            if up:
                layers = [FirUp(channels, fir_kernel, padding=margin - 2), conv(channels, out_channels, padding=0)]
            else:
                layers = [FirDown(channels, fir_kernel, stride=1, padding=margin)]
                layers += [conv(channels, out_channels, stride=2, padding=0)]
        elif up:
            layers = [nn.Upsample(scale_factor=2)] + ([conv(channels, out_channels)] if out_channels else [])
        elif out_channels is None:
            layers = [nn.AvgPool2d(2)]
        else:
            layers = [nn.ZeroPad2d((0, 1, 0, 1)), conv(channels, out_channels, stride=2, padding=0)]
        super().__init__(*layers)
