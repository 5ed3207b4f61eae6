"""What decides the speed on a GPU, seen on a CPU: no waiting for the device, and a network that compiles whole."""

import pytest
import torch
from diffusion_testing import tiny_flags
from improved_diffusion.samplers import SAMPLERS, sample
from improved_diffusion.script_util import create_model_and_diffusion
from improved_diffusion.training import Trainer
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"}


class HostReads(TorchDispatchMode):
    """Collects the operations by which the host reads a value from the device, and so waits for it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split(".")[0] in READS:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def batch(n=4):
    x = torch.rand(n, 3, 16, 16) * 2 - 1
    return x, torch.randint(100, (n,)), torch.randn(n, 3, 16, 16)


def test_reading_a_value_is_noticed():
    with HostReads() as reads:
        torch.ones(3).sum().item()
    assert reads.found == ["aten::_local_scalar_dense"]


@pytest.mark.parametrize("use_checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_update_never_waits_for_the_device(dtype, use_checkpoint):
    flags = tiny_flags(learn_sigma=True, dropout=0.1, use_checkpoint=use_checkpoint)
    model, diffusion = create_model_and_diffusion(**flags)
    trainer = Trainer(model, diffusion, lr=1e-3, microbatch=2, lr_anneal_steps=9, autocast_dtype=dtype)
    trainer.update(0, *batch())
    with HostReads() as reads:
        trainer.update(1, *batch(), factors=torch.ones(4))
    assert reads.found == []
    with HostReads() as reads:
        trainer.meter.read()
    assert reads.found


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_sampling_never_waits_for_the_device(loop):
    model, diffusion = create_model_and_diffusion(**tiny_flags(learn_sigma=True, timestep_respacing="3"))
    with HostReads() as reads:
        getattr(diffusion, loop)(model.eval(), (2, 3, 16, 16))
    assert reads.found == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_never_wait_for_the_device(sampler):
    model, diffusion = create_model_and_diffusion(**tiny_flags(learn_sigma=True))
    noise = torch.randn(2, 3, 16, 16)
    with HostReads() as reads:
        sample(model.eval(), diffusion, noise, sampler=sampler, num_sampling_steps=4)
    assert reads.found == []


def test_network_compiles_as_one_graph():
    model, _ = create_model_and_diffusion(**tiny_flags(learn_sigma=True, class_cond=True), num_classes=3)
    model.eval()
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 40.0]), torch.tensor([-1, 2])
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(x, t, y=y)
        torch.testing.assert_close(compiled, model(x, t, y=y))
