"""The generator on a GPU, channels last and with fused norms, against the one on a CPU."""

import pytest
import torch
from ddgan import layers
from ddgan.checkpoints import generator_from_nvlabs
from ddgan.generator import Generator
from helpers_ddgan import archive, config_of, weights_by_recipe
from torch import Tensor


def outputs(generator: Generator, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    y = generator(*inputs)
    gradients = torch.autograd.grad(y, [p for p in generator.parameters() if p.requires_grad], dy, allow_unused=True)
    return [y.detach(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", ["cifar10", "small_fourier", "small_output_skip"])
def test_fused_generator_is_the_plain_one(monkeypatch, case):
    arrays = archive("ddgan_generator.npz")
    generator = generator_from_nvlabs(weights_by_recipe(arrays, case), config_of(arrays, case)).eval()
    inputs = [torch.tensor(arrays[f"{case}/{name}"]) for name in ("x", "t", "z")]
    dy = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(0))
    expected = outputs(generator, inputs, dy)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    generator.cuda().to(memory_format=torch.channels_last)
    calls = []
    fused = layers.group_norm
    monkeypatch.setattr(layers, "group_norm", lambda *args, **kwargs: calls.append(0) or fused(*args, **kwargs))
    for dtype in (torch.float32, torch.bfloat16):
        del calls[:]
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            found = outputs(generator, [part.cuda() for part in inputs], dy.cuda())
        assert len(calls) == sum(isinstance(module, layers.GroupNorm) for module in generator.modules())
        for one, other in zip(found, expected, strict=True):
            error = (one.float().cpu() - other).norm() / other.norm()
            assert error < (0.1 if dtype == torch.bfloat16 else 3e-3)
