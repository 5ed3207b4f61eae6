"""The switches of dcgan-plus, one by one: what each of them is, and that a game with all of them can be resumed."""

import helpers_gans
import pytest
import torch
from gan.losses import gradient_penalty, hinge_discriminator_loss, hinge_generator_loss
from gan.networks import Discriminator, normalize_spectrally
from gan.options import PRESETS

OPTIONS = {
    **PRESETS["dcgan-plus"],
    **{"image_size": 16, "nz": 8, "ngf": 4, "ndf": 4, "seed": 0},
    "batch_size": 16,
    **{"r1_gamma": 0.5, "r1_every": 2, "ema_decay": 0.9, "diffaugment": "color,translation,cutout"},
}


def make_gan(dtype=None, **options):
    return helpers_gans.make_gan(OPTIONS, dtype, **options)


def singular_values(network):
    return [
        torch.linalg.matrix_norm(m.weight.flatten(1), 2).item()
        for m in network.modules()
        if isinstance(m, torch.nn.Conv2d)
    ]


def test_hinge_loss_is_zero_where_both_margins_are_kept():
    assert hinge_discriminator_loss(torch.tensor([1.0, 7.0]), torch.tensor([-1.0, -3.0])).item() == 0
    assert hinge_discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == 2
    assert hinge_discriminator_loss(torch.tensor([0.5]), torch.tensor([-3.0])).item() == 0.5
    assert hinge_generator_loss(torch.tensor([1.0, -3.0])).item() == 1.0


def test_r1_penalty_of_a_linear_score_is_its_squared_weights():
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    weight = torch.randn(3, 4, 4, requires_grad=True)
    penalty = gradient_penalty((x * weight).flatten(1).sum(1), x, gamma=3.0)
    assert penalty.item() == pytest.approx(1.5 * weight.square().sum().item(), rel=1e-5)
    penalty.backward()
    assert torch.allclose(weight.grad, 3 * weight, rtol=1e-4)


def test_lazy_penalty_comes_every_so_many_updates():
    penalised, plain = make_gan(), make_gan(r1_gamma=0.0)
    norms = [[row["grad_norm_d"].item() for row in helpers_gans.play(gan, 1, 2)] for gan in (penalised, plain)]
    assert norms[0] == norms[1]
    norms = [[row["grad_norm_d"].item() for row in helpers_gans.play(gan, 2, 3)] for gan in (penalised, plain)]
    assert norms[0] != norms[1]


def test_spectral_norm_brings_every_layer_to_one_and_depends_on_the_seed_alone():
    networks = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        network = Discriminator(16, ndf=4, d_norm="spectral")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        torch.set_rng_state(state)
        normalize_spectrally(network, 5)
        assert torch.equal(torch.get_rng_state(), state)
        networks.append(network)
    values = zip(networks[0].state_dict().values(), networks[1].state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in values)
    assert singular_values(networks[0]) == pytest.approx([1.0] * 3, abs=0.05)


def test_losses_with_every_switch_on_are_the_golden_ones():
    row = helpers_gans.play(make_gan(), 0, 5)[-1]
    golden = {"loss_d": 1.9131830, "loss_g": -0.0084622, "d_real": 0.5152183}
    assert {name: row[name].item() for name in golden} == pytest.approx(golden, rel=1e-4, abs=1e-5)


def test_restored_game_with_every_switch_on_goes_on_bit_for_bit():
    unbroken, first = make_gan(), make_gan()
    helpers_gans.play(unbroken, 0, 5)
    helpers_gans.play(first, 0, 3)
    second = make_gan(seed=1)
    second.augment = first.augment  # whose draws hang on the seed
    second.load_state_dict(first.state_dict())
    helpers_gans.play(second, 3, 5)
    pairs = ((getattr(unbroken, n), getattr(second, n)) for n in ("generator", "discriminator"))
    for ours, theirs in (*pairs, (unbroken.ema.network, second.ema.network)):
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_bfloat16_stays_close_to_float32_with_every_switch_on(norm):
    exact, rounded = (helpers_gans.play(make_gan(dtype, d_norm=norm), 0, 3)[-1] for dtype in (None, torch.bfloat16))
    assert rounded["loss_d"].item() == pytest.approx(exact["loss_d"].item(), rel=0.1)
    assert rounded["grad_norm_d"].isfinite()


def test_first_bad_update_is_remembered_and_the_later_ones_are_not():
    gan = make_gan()
    helpers_gans.play(gan, 0, 2)
    assert gan.first_nonfinite_step.item() == -1
    with torch.no_grad():
        next(gan.generator.parameters())[0] = float("nan")
    helpers_gans.play(gan, 2, 4)
    assert gan.first_nonfinite_step.item() == 2
