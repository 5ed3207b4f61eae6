"""What the network predicts, how its errors are weighted, and the patches that it sees."""

import numpy as np
import pytest
import torch
from diffusion_testing import fill_from_names, tiny_flags
from improved_diffusion.flags import PREDICTIONS, check_flags
from improved_diffusion.nn import Dropout, GroupNorm32, norm_silu
from improved_diffusion.resample import create_named_schedule_sampler
from improved_diffusion.script_util import (
    create_gaussian_diffusion,
    create_model_and_diffusion,
)
from improved_diffusion.training import Trainer
from improved_diffusion.unet import UNetModel

STEPS = {"linear": 1000, "cosine": 4000}


def process(prediction, schedule="cosine", steps=None, **options):
    steps = steps or STEPS[schedule]
    return create_gaussian_diffusion(steps=steps, noise_schedule=schedule, prediction=prediction, **options)


def pair(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 4, 4, generator=generator, dtype=dtype) * 2 - 1
    return x, torch.randn(2, 3, 4, 4, generator=generator, dtype=dtype)


@pytest.mark.parametrize("schedule", STEPS)
def test_min_snr_weights_are_one_weight_of_the_image(schedule):
    gamma = 5.0
    weights = {name: process(name, schedule, loss_weighting="min-snr", snr_gamma=gamma) for name in PREDICTIONS}
    a = weights["x_start"].alphas_cumprod
    snr = a / (1 - a)
    expected = np.minimum(snr, gamma)
    np.testing.assert_allclose(weights["x_start"].loss_weights, expected, rtol=1e-9)
    np.testing.assert_allclose(weights["velocity"].loss_weights * (snr + 1), expected, rtol=1e-9)
    np.testing.assert_allclose(weights["epsilon"].loss_weights * snr, expected, rtol=1e-9)
    assert all(d.loss_weights.max() <= gamma for d in weights.values())


def test_weighted_loss_of_the_same_image_is_the_same_whatever_the_network_predicts():
    x, noise = pair(torch.float32)
    t = torch.tensor([100, 700])
    losses = {}
    for name in PREDICTIONS:
        d = process(name, "linear", loss_weighting="min-snr")
        a = d._at("alphas_cumprod", t, x)
        other = 0.9 * x
        other_noise = (a.sqrt() * (x - other)) / (1 - a).sqrt() + noise
        answers = {"x_start": other, "epsilon": other_noise, "velocity": d.velocity(other, other_noise, t)}
        losses[name] = d.training_losses(lambda *_, answer=answers[name]: answer, x, t, noise=noise)
    for found in losses.values():
        torch.testing.assert_close(found["loss"], losses["x_start"]["loss"], rtol=1e-3, atol=0)
    assert not torch.allclose(losses["x_start"]["mse"], losses["x_start"]["loss"])  # mse is reported unweighted


@pytest.mark.parametrize("schedule", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_last_step_is_finite_with_learned_variances(prediction, schedule):
    d = process(prediction, schedule, learn_sigma=True, rescale_learned_sigmas=True, loss_weighting="min-snr")
    x, noise = pair(torch.float32)
    t = torch.full((2,), d.num_timesteps - 1)
    output = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    losses = d.training_losses(lambda *_: output, x, t, noise=noise)
    losses["loss"].sum().backward()
    assert output.grad.isfinite().all()
    moments = d.p_mean_variance(lambda *_: output.detach(), noise, t)
    assert all(value.isfinite().all() for value in moments.values())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bound_teaches_the_variance_alone(prediction):
    x, noise = pair(torch.float32)
    t = torch.tensor([10, 500])
    d = process(prediction, "linear", learn_sigma=True, rescale_learned_sigmas=True)
    output = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    d.training_losses(lambda *_: output, x, t, noise=noise)["vb"].sum().backward()
    assert not output.grad[:, :3].any()
    assert output.grad[:, 3:].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction": "image"}, "prediction must be one of"),
        ({"prediction": "velocity", "predict_xstart": True}, "contradict"),
        ({"loss_weighting": "snr"}, "loss_weighting must be one of"),
        ({"loss_weighting": "min-snr", "use_kl": True}, "use_kl"),
        ({"snr_gamma": 0.0}, "snr_gamma must be above 0"),
        ({"patch_size": -1}, "patch_size must be 0 or one of 1 at image_size 16"),
        ({"image_size": 64, "patch_size": 4, "attention_resolutions": "32"}, "attention_resolutions"),
        ({"attention_resolutions": "a"}, "attention_resolutions"),
        ({"image_size": 33}, "image_size must be one of"),
        ({"num_channels": 48}, "num_channels must be a multiple"),
        ({"norm_groups": 0}, "norm_groups"),
        ({"num_res_blocks": 0}, "num_res_blocks must be from 1 to 128"),
        ({"num_heads": 5}, "num_heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"diffusion_steps": 20}, "diffusion_steps must be above 20 for the linear schedule"),
        ({"diffusion_steps": 10_000_000}, "diffusion_steps must be at most 1000000"),
        ({"noise_schedule": "sigmoid"}, "noise_schedule"),
        ({"timestep_respacing": "101"}, "timestep_respacing"),
    ],
)
def test_flags_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        check_flags(tiny_flags(**changes))


# Patches


def test_network_on_patches_is_the_network_on_folded_images():
    sizes = {"model_channels": 32, "num_res_blocks": 1, "attention_resolutions": (2,), "channel_mult": (1, 2)}
    folded = fill_from_names(UNetModel(in_channels=12, out_channels=24, **sizes))
    network = UNetModel(in_channels=3, out_channels=6, patch_size=2, **sizes).eval()
    network.load_state_dict(folded.state_dict())
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 40])
    with torch.no_grad():
        expected = torch.nn.functional.pixel_shuffle(folded(torch.nn.functional.pixel_unshuffle(x, 2), t), 2)
        assert torch.equal(network(x, t), expected)
        assert network(x, t).shape == (2, 6, 16, 16)


def test_same_flags_make_one_network_at_every_size():
    shapes = {}
    for size in (32, 64, 128):
        model, _ = create_model_and_diffusion(**tiny_flags(image_size=size, patch_size=0, attention_resolutions="8"))
        assert model.patch_size == size // 16
        shapes[size] = [tuple(p.shape) for p in model.parameters()]
        with torch.no_grad():
            assert model(torch.zeros(1, 3, size, size), torch.zeros(1)).shape == (1, 3, size, size)
    for size in (64, 128):
        differing = [pair for pair in zip(shapes[32], shapes[size], strict=True) if pair[0] != pair[1]]
        assert len(differing) == 3  # weight of the first convolution, weight and bias of the last


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_conditioned_norm_has_the_same_gradients_in_both_memory_formats(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    norm = GroupNorm32(4, 16)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    x = torch.randn(3, 16, 8, 8, generator=generator).to(dtype)
    scale, shift = torch.randn(2, 3, 16, generator=generator).to(dtype)
    upstream = torch.randn(x.shape, generator=generator).to(dtype)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = [x.contiguous(memory_format=layout), scale.clone(), shift.clone()]
        inputs = [value.detach().requires_grad_() for value in inputs]
        y = norm_silu(norm, *inputs)
        results.append([y.detach(), *torch.autograd.grad(y, [*inputs, norm.weight, norm.bias], upstream)])
    for joint, apart in zip(*results, strict=True):
        torch.testing.assert_close(joint, apart, rtol=0, atol=tolerance * apart.abs().max().item())


# Timesteps, averages and dropout of a training step


def test_stratified_timesteps_fill_each_batch_evenly():
    sampler = create_named_schedule_sampler("stratified", process("epsilon", "linear"))
    generator = torch.Generator().manual_seed(0)
    t, factors = sampler.sample(8, torch.device("cpu"), generator)
    assert sorted((t // 125).tolist()) == list(range(8))
    assert t.tolist() != sorted(t.tolist())
    assert torch.equal(factors, torch.ones(8))
    again, _ = sampler.sample(8, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert torch.equal(again, t)
    many = torch.cat([sampler.sample(7, torch.device("cpu"), generator)[0] for _ in range(3000)])
    assert 0 <= many.min() <= many.max() < 1000
    counts = torch.bincount(many // 100, minlength=10).double()
    assert (counts / counts.mean() - 1).abs().max() < 0.1


def test_averages_moved_every_second_update_take_the_rate_squared():
    def average(every):
        torch.manual_seed(0)
        model, diffusion = create_model_and_diffusion(**tiny_flags())
        trainer = Trainer(model, diffusion, lr=0.1, ema_rates=(0.9,), ema_rule=lambda rate, n: rate, ema_every=every)
        for p in trainer.optimizer.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        for step in range(4):
            for p in model.parameters():
                p.data.fill_(step // 2)  # moves only where both averages look
            trainer.optimize(step)
        return next(trainer.ema[0.9].parameters()).flatten()[0], next(iter(model.parameters()))

    each, last = average(1)
    second, _ = average(2)
    torch.testing.assert_close(second, each)
    assert not torch.equal(second, last.flatten()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_on_a_cpu_drops_with_its_probability_and_keeps_the_mean(dtype):
    dropout, x = Dropout(0.3), torch.ones(10, 100, 33, 31, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x)
    y.sum().backward()
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(0.3, abs=0.0023)  # five standard deviations of a million elements
    assert y[y != 0].unique().tolist() == pytest.approx([1 / 0.7], rel=4e-3)
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)
    assert not torch.equal(dropout(x), y)
    assert dropout.eval()(x) is x
    row = y.detach()[0, 0] == 0
    assert abs(torch.corrcoef(torch.stack([row[:, :-1].flatten().float(), row[:, 1:].flatten().float()]))[0, 1]) < 0.15
