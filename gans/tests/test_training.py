import helpers_gans
import pytest
import torch

OPTIONS = {
    **{"image_size": 16, "nz": 8, "ngf": 4, "ndf": 4, "seed": 0},
    **{"g_lr": 1e-3, "d_lr": 1e-3, "beta1": 0.5, "ema_decay": 0.0},
}


def make_gan(dtype=None, **options):
    return helpers_gans.make_gan(OPTIONS, dtype, **options)


def test_losses_after_five_steps_are_the_golden_ones():
    row = helpers_gans.play(make_gan(), 0, 5)[-1]
    golden = {"loss_d": 1.3430893, "loss_g": 0.6717107, "d_real": 0.5367140}
    assert {name: row[name].item() for name in golden} == pytest.approx(golden, rel=1e-4)


def test_each_player_moves_only_in_its_own_update():
    gan = make_gan()
    gan.optimizer_g.param_groups[0]["lr"] = 0.0
    before = [p.clone() for p in gan.generator.parameters()]
    scores = [p.clone() for p in gan.discriminator.parameters()]
    helpers_gans.play(gan, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, gan.generator.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(scores, gan.discriminator.parameters(), strict=True))
    assert all(p.requires_grad for p in gan.discriminator.parameters())
