"""What decides the speed on a GPU, seen without one: no waiting for the device, and a network that compiles whole."""

import pytest
import torch
from diffusion_testing import VALUE_READ, fake_cuda, tiny_flags
from improved_diffusion.resample import LossSecondMomentResampler, UniformSampler
from improved_diffusion.samplers import SAMPLERS, classifier_free, sample
from improved_diffusion.script_util import create_model_and_diffusion
from improved_diffusion.training import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


def on_cuda(**changes):
    with torch.device("cuda"):
        return create_model_and_diffusion(**tiny_flags(learn_sigma=True, **changes))


def batch(n=4):
    x = torch.zeros(n, 3, 16, 16, device="cuda")
    return x, torch.zeros(n, dtype=torch.int64, device="cuda"), torch.zeros_like(x)


@pytest.mark.parametrize("use_checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_update_never_waits_for_the_device(dtype, use_checkpoint):
    with fake_cuda() as waits:
        model, diffusion = on_cuda(dropout=0.1, use_checkpoint=use_checkpoint)
        trainer = Trainer(model, diffusion, lr=1e-3, microbatch=2, lr_anneal_steps=9, autocast_dtype=dtype)
        computed = set()
        model.middle_block.register_forward_hook(lambda *args: computed.add(args[-1].dtype))
        trainer.update(0, *batch())
        assert computed == {dtype or torch.float32}
        waits.clear()
        trainer.update(1, *batch(), factors=torch.ones(4, device="cuda"))
        assert waits == []
        assert all(p.grad is not None for p in model.parameters())
        with pytest.raises(VALUE_READ):
            trainer.meter.read()
        assert waits == ["_to_copy from the device"]


@pytest.mark.parametrize("sampler", [UniformSampler, LossSecondMomentResampler])
def test_drawing_timesteps_never_waits_for_the_device(sampler):
    with fake_cuda() as waits:
        _, diffusion = on_cuda()
        drawing = sampler(diffusion)
        for _ in range(2):
            waits.clear()
            t, factors = drawing.sample(4, torch.device("cuda"))
            if isinstance(drawing, LossSecondMomentResampler):
                drawing.update_with_local_losses(t, factors)
        assert (t.device.type, factors.device.type) == ("cuda", "cuda")
    assert waits == []


def test_dropping_labels_never_waits_for_the_device():
    from script_loop import drop_labels

    with fake_cuda() as waits:
        _, labels, _ = batch()
        assert drop_labels(labels, 0.5, 8, slice(4, 8), 0, 0).device.type == "cuda"
    assert waits == []


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_sampling_never_waits_for_the_device(loop):
    with fake_cuda() as waits:
        model, diffusion = on_cuda(timestep_respacing="3")
        for _ in range(2):
            waits.clear()
            drawn = getattr(diffusion, loop)(model.eval(), (2, 3, 16, 16))
        assert drawn.device.type == "cuda"
    assert waits == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_wait_for_the_device_only_before_the_first_step(sampler):
    with fake_cuda() as waits:
        model, diffusion = on_cuda(class_cond=True)
        noise, y, _ = batch(2)
        guided, seen = classifier_free(model.eval(), 2.0), []
        model.register_forward_hook(lambda *_: seen.append(list(waits)))
        waits.clear()
        sample(guided, diffusion, noise, sampler=sampler, num_sampling_steps=4, model_kwargs={"y": y})
    assert len(seen) == 4
    assert seen[0] == waits == ["_to_copy to the device"] * 2  # the timesteps, and what the network is told of them


def test_network_compiles_as_one_graph():
    model, _ = create_model_and_diffusion(**tiny_flags(learn_sigma=True, class_cond=True), num_classes=3)
    model.eval()
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 40.0]), torch.tensor([-1, 2])
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(x, t, y=y)
        torch.testing.assert_close(compiled, model(x, t, y=y))
