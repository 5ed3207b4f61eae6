"""The networks' ways on a GPU, channels last and with fused norms, against those on a CPU."""

import pytest
import torch
from comparison.gpu.group_norm import group_norm, is_fused
from improved_diffusion.nn import GroupNorm32, NormKernel, use_norm_kernel
from improved_diffusion.unet import AttentionBlock, UNetModel
from torch import Tensor

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def filled(network: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter random values: blocks that start as the identity would hide what they compute."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
    return network


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_by_tokens_is_attention(heads):
    block = filled(AttentionBlock(16, heads, False, 4)).double()
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    found = block._by_tokens(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, block(x))
    assert found.is_contiguous(memory_format=torch.channels_last)


def outputs(network: torch.nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    y = network(x, torch.arange(len(x), device=x.device))
    gradients = torch.autograd.grad(y, list(network.parameters()), dy)
    return [y.detach(), torch.cat([gradient.flatten() for gradient in gradients])]


@needs_gpu
@pytest.mark.parametrize("use_scale_shift_norm", [True, False])
def test_fused_network_is_the_plain_one(monkeypatch, use_scale_shift_norm):
    options = {"num_res_blocks": 1, "attention_resolutions": (2,), "channel_mult": (1, 2), "num_heads": 2}
    network = filled(
        UNetModel(
            in_channels=3, model_channels=64, out_channels=6, use_scale_shift_norm=use_scale_shift_norm, **options
        )
    )
    x, dy = torch.randn(4, 3, 16, 16), torch.randn(4, 6, 16, 16)
    expected = outputs(network, x, dy)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network.cuda().to(memory_format=torch.channels_last)
    calls = []
    kernel = NormKernel(is_fused, lambda *args, **kwargs: calls.append(0) or group_norm(*args, **kwargs))
    use_norm_kernel(network, kernel)
    for dtype in (torch.float32, torch.bfloat16):
        del calls[:]
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            found = outputs(network, x.cuda(), dy.cuda())
        assert len(calls) == sum(isinstance(module, GroupNorm32) for module in network.modules())
        for one, other in zip(found, expected, strict=True):
            error = (one.cpu() - other).norm() / other.norm()
            assert error < (0.03 if dtype == torch.bfloat16 else 3e-3)
