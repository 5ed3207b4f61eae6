"""The fused group normalisation: its kernels in Triton's interpreter, the networks' use of it on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from comparison.gpu.group_norm import _works, group_norm, is_fused
from torch import Tensor

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# Groups of one lane, of lanes to spare, more groups than a program takes, an image of less than a tile.
CASES = [((2, 32, 8, 8), 8), ((2, 24, 4, 6), 2), ((2, 48, 3, 5), 4), ((2, 12, 2, 2), 3), ((2, 160, 4, 4), 2)]
CASES += [((1, 64, 16, 16), 32), ((1, 384, 5, 5), 32)]


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def plain(x: Tensor, groups: int, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
    h = F.group_norm(x, groups) * scale[:, :, None, None] + shift[:, :, None, None]
    return F.silu(h) if silu else h


def case(shape: tuple[int, ...], device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    x, dy = 2 * torch.randn(shape) + 3, torch.randn(shape)
    scale, shift = torch.randn(2, *shape[:2])
    return [part.to(device) for part in (last(x), scale, shift, last(dy))]


def assert_kernels_are_exact() -> None:
    """Compare the kernels with double precision; called by an interpreter of this file as a script."""
    from comparison.gpu.kernels import backward, forward

    for shape, groups in CASES:
        for silu in (True, False):
            x, scale, shift, dy = case(shape)
            if groups == 4:  # one map for all images, the other a part of something wider
                scale, shift = scale[:1].expand(len(x), -1), torch.cat([shift, scale], 1)[:, : shape[1]]
            y, mean, rstd = forward(x, scale, shift, groups, 1e-5, silu)
            found = (y, *backward(dy, x, scale, shift, mean, rstd, silu))
            inputs = [part.double().requires_grad_() for part in (x, scale, shift)]
            expected = plain(inputs[0], groups, inputs[1], inputs[2], silu)
            gradients = torch.autograd.grad(expected, inputs, dy.double())
            for one, other in zip(found, (expected, *gradients), strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
            half = forward(x.bfloat16(), scale.bfloat16(), shift.bfloat16(), groups, 1e-5, silu)[0]
            assert half.dtype == torch.bfloat16
            torch.testing.assert_close(half.double(), expected, rtol=0.05, atol=0.05)
            grouped = x.reshape(len(x), groups, -1).double()
            torch.testing.assert_close(mean.double(), grouped.mean(2), rtol=1e-5, atol=1e-5)
    print("exact")


def test_kernels_are_exact_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env={**os.environ, **environment})
    assert ran.stdout == "exact\n", ran.stderr


def test_kernels_that_do_not_run_cost_a_warning_only():
    pytest.importorskip("triton")
    with pytest.warns(UserWarning, match=r"^group normalisation is not fused \(slower, same results\): \S"):
        assert not _works.__wrapped__(torch.device("cpu"))


@needs_gpu
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("shape", "groups"), [*CASES, ((3, 256, 32, 32), 32), ((2, 384, 32, 32), 32)])
def test_gpu_results_are_those_of_pytorch(shape, groups, silu):
    x, scale, shift, dy = case(shape, "cuda")
    assert is_fused(x)
    inputs = [part.requires_grad_() for part in (x, scale, shift)]
    y = group_norm(x, groups, scale, shift, silu=silu)
    assert y.is_contiguous(memory_format=torch.channels_last)
    found = torch.autograd.grad(y, inputs, dy)
    wide = [part.detach().double().requires_grad_() for part in inputs]
    expected = plain(wide[0], groups, wide[1], wide[2], silu)
    gradients = torch.autograd.grad(expected, wide, dy.double())
    for one, other in zip((y, *found), (expected, *gradients), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


@needs_gpu
def test_bf16_is_computed_in_float32_and_a_shared_map_gets_the_sum():
    x, scale, shift, dy = case((4, 96, 16, 16), "cuda")
    x, dy = x.bfloat16().requires_grad_(), dy.bfloat16()
    scale, shift = scale[:1].requires_grad_(), shift[:1].requires_grad_()
    y = group_norm(x, 8, scale, shift, silu=True)
    found = torch.autograd.grad(y, (x, scale, shift), dy)
    wide = [part.detach().double().requires_grad_() for part in (x, scale, shift)]
    expected = plain(wide[0], 8, wide[1], wide[2], True)
    gradients = torch.autograd.grad(expected, wide, dy.double())
    assert y.dtype == found[0].dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(found[0].double(), gradients[0], rtol=2**-8, atol=1e-4)
    for one, other in zip(found[1:], gradients[1:], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-2)


if __name__ == "__main__":
    assert_kernels_are_exact()
