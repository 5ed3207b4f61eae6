"""Losses, penalty, average and schedule against closed forms; a golden loss guards the update."""

import pytest
import torch
from ddgan.checkpoints import seeded_networks
from ddgan.draws import Batch
from ddgan.ema import Ema
from ddgan.losses import fake_loss, r1_penalty, real_loss
from ddgan.process import DenoisingProcess
from ddgan.training import Trainer, cosine_lr
from joint_batches import CONFIG

# Losses of the fifth update; whoever moves them says why.
GOLDEN = {"r1": 0.00206, "loss_d_real": 0.7258, "loss_d_fake": 0.65654, "loss_d": 1.38234, "loss_g": 0.63629}


def make_trainer(**changes) -> Trainer:
    generator, discriminator = seeded_networks(CONFIG, "small", seed=0)
    settings = {"seed": 0, "nz": 4, "lr_g": 1e-3, "lr_d": 1e-3, "r1_gamma": 0.1, "lazy_reg": 2, **changes}
    return Trainer(generator, discriminator, DenoisingProcess(2), Ema(generator, 0.9), **settings)


def images(n: int = 8) -> torch.Tensor:
    return torch.linspace(-1, 1, n * 3 * 16 * 16).view(n, 3, 16, 16)


def test_losses_are_the_cross_entropies_of_the_logits():
    logits = torch.tensor([[-3.0], [0.5], [40.0]])
    expected = -torch.log_softmax(torch.cat([logits.double(), torch.zeros(3, 1)], dim=1), dim=1).mean(dim=0)
    assert real_loss(logits).item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert fake_loss(logits).item() == pytest.approx(expected[1].item(), rel=1e-6)


def test_penalty_is_applied_when_due_and_not_scaled_by_its_interval():
    reports = [make_trainer(lazy_reg=3).update(images(), step) for step in range(4)]
    assert ["r1" in report for report in reports] == [True, False, False, True]
    plain, penalised = make_trainer(r1_gamma=0), make_trainer(r1_gamma=2.0)
    for trainer in (plain, penalised):
        torch.manual_seed(0)
        for parameter in trainer.discriminator.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    noise, x_t, x_t_plus_1 = penalised._draw(Batch(images(), None, 0), "d")
    penalty = r1_penalty(penalised.discriminator(x_t.requires_grad_(), noise.t, x_t_plus_1), x_t)
    weights = list(penalised.discriminator.parameters())
    expected = torch.autograd.grad(2.0 / 2 * penalty, weights, allow_unused=True)
    for trainer in (plain, penalised):
        trainer._update_discriminator([Batch(images(), None, 0)], 0)
    for without, with_penalty, share in zip(plain.discriminator.parameters(), weights, expected, strict=True):
        share = torch.zeros_like(without) if share is None else share
        scale = with_penalty.grad.abs().max().item()
        torch.testing.assert_close(with_penalty.grad - without.grad, share, atol=1e-5 * scale, rtol=1e-4)


def test_generator_update_leaves_the_discriminator_alone():
    trainer = make_trainer()
    trainer.update(images(), 0)
    before = {name: value.clone() for name, value in trainer.discriminator.state_dict().items()}
    trainer._update_generator([Batch(images(), None, 1)])
    assert all(torch.equal(before[name], value) for name, value in trainer.discriminator.state_dict().items())
    assert all(parameter.requires_grad for parameter in trainer.discriminator.parameters())


def test_golden_losses_after_five_updates():
    trainer = make_trainer(lr_g=1e-2, lr_d=1e-2)
    losses = [trainer.update(images(), step) for step in range(5)][-1]
    hits = losses.pop("hits")
    assert hits[2].sum() == len(images())
    found = {name: round(value.item(), 5) for name, value in losses.items()}
    assert found == pytest.approx(GOLDEN, rel=1e-3, abs=1e-5)


def test_average_starts_at_the_first_update_and_follows():
    network = torch.nn.Linear(1, 1, bias=False)
    ema = Ema(network, decay=0.9)
    values = []
    for weight in (1.0, 2.0, 4.0):
        with torch.no_grad():
            network.weight.fill_(weight)
        ema.update()
        values.append(ema.weights["weight"].item())
    assert values == pytest.approx([1.0, 1.1, 0.9 * 1.1 + 0.4])


def test_average_with_warm_up_forgets_the_first_weights():
    network = torch.nn.Linear(1, 1, bias=False)
    plain, warm = Ema(network, 0.9999), Ema(network, 0.9999, warm_up=True)
    for step in range(100):
        with torch.no_grad():
            network.weight.fill_(0.0 if step == 0 else 1.0)
        plain.update()
        warm.update()
    assert plain.weights["weight"].item() < 0.01
    assert warm.weights["weight"].item() > 0.9


def test_learning_rate_falls_along_half_a_cosine_per_update():
    assert cosine_lr(1.6e-4, 0, 50) == 1.6e-4
    assert cosine_lr(1.6e-4, 1, 50) < 1.6e-4
    assert cosine_lr(1.6e-4, 25, 50) == pytest.approx((1.6e-4 + 1e-5) / 2)
    assert cosine_lr(1.6e-4, 50, 50) == pytest.approx(1e-5)
    assert cosine_lr(1.6e-4, 7, 0) == 1.6e-4
