"""The network's options and the training step."""

import math

import pytest
import torch
from diffusion_testing import tiny_flags
from improved_diffusion.nn import update_ema, warmed_up_rate
from improved_diffusion.script_util import create_model_and_diffusion
from improved_diffusion.training import LossMeter, Trainer


def tiny_trainer(**options):
    torch.manual_seed(0)
    flags = {name: options.pop(name) for name in list(options) if name in tiny_flags()}
    model, diffusion = create_model_and_diffusion(**{**tiny_flags(), **flags}, num_classes=10)
    for parameter in model.parameters():  # the zero-initialised layers would hide what lies before them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return Trainer(model, diffusion, lr=1e-3, **options)


def tiny_batch(n=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, 16, 16, generator=generator) * 2 - 1
    t = torch.randint(100, (n,), generator=generator)
    return x, t, torch.randn(n, 3, 16, 16, generator=generator)


def gradients(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("microbatch", [1, 3, 4])
def test_microbatches_have_the_gradient_of_the_whole_batch(microbatch):
    whole, parts = tiny_trainer(), tiny_trainer(microbatch=microbatch)
    for trainer in (whole, parts):
        trainer.update(0, *tiny_batch())
    expected = gradients(whole)
    assert expected.norm() > 0.1
    torch.testing.assert_close(gradients(parts), expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-3)
    losses = [trainer.meter.read() for trainer in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_recomputed_activations_have_the_gradient_of_stored_ones_with_dropout():
    trainers = [tiny_trainer(dropout=0.3, use_checkpoint=flag) for flag in (False, True)]
    for trainer in trainers:
        torch.manual_seed(5)
        trainer.update(0, *tiny_batch())
    stored, recomputed = map(gradients, trainers)
    torch.testing.assert_close(recomputed, stored, atol=1e-6, rtol=1e-4)


def test_losses_after_a_few_steps_are_golden():
    trainer = tiny_trainer(dropout=0.1, learn_sigma=True)
    losses = []
    for step in range(5):
        torch.manual_seed(step)
        trainer.update(step, *tiny_batch())
        losses.append(trainer.meter.read()["loss"])
    assert losses == pytest.approx([1.06286, 0.8822, 0.75473, 0.66209, 0.58771], rel=1e-3)
    assert losses[-1] < losses[0]


def test_bfloat16_pass_stays_near_float32():
    x, t, _ = tiny_batch()
    outputs = {}
    for dtype in (None, torch.bfloat16):
        trainer = tiny_trainer(autocast_dtype=dtype)
        with torch.no_grad():
            outputs[dtype] = trainer._forward(x, t)
    assert outputs[torch.bfloat16].dtype == torch.float32
    error = (outputs[torch.bfloat16] - outputs[None]).norm() / outputs[None].norm()
    assert 0 < error < 0.02


def test_moving_average_forgets_the_initial_weights_early():
    assert warmed_up_rate(0.9999, 1) == 2 / 11
    assert warmed_up_rate(0.9999, 10**6) == 0.9999
    remaining = math.prod(warmed_up_rate(0.9999, n) for n in range(1, 101))
    assert remaining < 1e-8
    target, source = [torch.zeros(3)], [torch.ones(3)]
    update_ema(target, source, rate=0.75)
    torch.testing.assert_close(target[0], torch.full((3,), 0.25))


def test_every_rate_has_its_own_average():
    trainer = tiny_trainer(ema_rates=(0.0, 0.9999))
    start = [p.clone() for p in trainer.model.parameters()]
    trainer.update(0, *tiny_batch())
    for p, p_start, last, average in zip(
        trainer.model.parameters(), start, *(e.parameters() for e in trainer.ema.values()), strict=True
    ):
        torch.testing.assert_close(last, p)
        torch.testing.assert_close(average, p_start * 2 / 11 + p * 9 / 11, atol=1e-6, rtol=1e-4)


def test_learning_rate_anneals_to_zero_and_never_below():
    trainer = tiny_trainer(lr_anneal_steps=4)
    for step, lr in ((0, 1e-3), (2, 5e-4), (4, 0.0), (6, 0.0)):
        trainer.update(step, *tiny_batch(2))
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(lr)


def test_weights_that_are_not_finite_are_noticed():
    trainer = tiny_trainer()
    assert trainer.is_finite()
    with torch.no_grad():
        next(trainer.model.parameters()).view(-1)[0] = torch.nan
    assert not trainer.is_finite()


def test_class_labels_reach_the_network_and_are_demanded():
    trainer = tiny_trainer(class_cond=True)
    x, t, _ = tiny_batch(4)
    with torch.no_grad():
        first, second = (trainer.model(x, t, y=torch.full((4,), y)) for y in (0, 1))
    assert (first - second).abs().max() > 0
    with pytest.raises(ValueError, match="y must be given"):
        trainer.model(x, t)
    with pytest.raises(ValueError, match="y must be given"):
        tiny_trainer().model(x, t, y=torch.zeros(4).long())


def test_loss_meter_averages_by_quartile():
    meter = LossMeter(100)
    assert meter.read() == {}
    meter.add_losses({"loss": torch.tensor([1.0, 2.0, 3.0])}, torch.tensor([0, 24, 99]))
    meter.add_losses({"loss": torch.tensor([5.0])}, torch.tensor([75]))
    meter.add_grad_norm(torch.tensor(7.0))
    assert meter.read() == {"loss": 2.75, "loss_q0": 1.5, "loss_q3": 4.0, "grad_norm": 7.0}
    assert meter.read() == {}
