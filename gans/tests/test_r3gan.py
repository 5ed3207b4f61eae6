"""The residual networks, the relativistic loss, both penalties and their estimate, and the schedules of r3gan."""

import math

import helpers_gans
import pytest
import torch
from gan.augmentation import DiffAugment
from gan.build import build_gan
from gan.losses import finite_penalty, gradient_penalty, relativistic_loss
from gan.networks import count_parameters
from gan.options import PRESETS, BurnIn
from gan.residual import ResidualDiscriminator, ResidualGenerator, init_residual

GOLDEN = [  # losses and penalties of the first three updates
    [0.680565, 0.722697, 0.0158096, 0.0158096],
    [0.756911, 0.659376, 0.0153779, 0.0153896],
    [0.687423, 0.715156, 0.0146674, 0.0146548],
]
TINY = {
    **PRESETS["r3gan"],
    **{"image_size": 16, "nz": 8, "ngf": 4, "ndf": 4, "max_width": 8, "seed": 0},
    **{"blocks": 1, "group_size": 0},
    **{"batch_size": 16, "g_lr": 1e-3, "d_lr": 1e-3, "r1_gamma": 1.0, "gamma_end": 0.1},
}


def make_gan(**options):
    return helpers_gans.make_gan(TINY, None, **options)


def test_published_networks_have_the_published_size():
    preset = PRESETS["r3gan"]
    sizes = [preset[name] for name in ("max_width", "blocks", "group_size")]
    with torch.device("meta"):
        networks = ResidualGenerator(32, preset["nz"], preset["ngf"], *sizes), ResidualDiscriminator(32, 768, *sizes)
    assert [count_parameters(network) / 1e6 for network in networks] == pytest.approx([20.7, 20.7], abs=0.2)


@pytest.mark.parametrize("group_size", [0, 4])
def test_networks_map_noise_to_images_to_logits_and_keep_the_variance(group_size):
    generator = ResidualGenerator(32, 8, 16, 64, 2, group_size)
    discriminator = ResidualDiscriminator(32, 16, 64, 2, group_size)
    for network in (generator, discriminator):
        init_residual(network, torch.Generator().manual_seed(0))
    images = generator(torch.randn(64, 8))
    assert images.shape == (64, 3, 32, 32)
    assert 0.2 < images.std().item() < 2
    logits = discriminator(images)
    assert logits.shape == (64,)
    assert 0.01 < logits.std().item() < 3


def test_relativistic_loss_depends_on_differences_alone():
    real, fake = torch.randn(2, 6).unbind()
    assert relativistic_loss(real + 3, fake + 3).item() == pytest.approx(relativistic_loss(real, fake).item())
    assert relativistic_loss(real, real).item() == pytest.approx(math.log(2))
    expected = torch.log1p(torch.exp(fake - real)).mean().item()
    assert relativistic_loss(real, fake).item() == pytest.approx(expected, rel=1e-6)


def test_finite_differences_estimate_the_penalty():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    network = network.double()

    def judge(images):
        return network(images).flatten()

    x = torch.randn(1, 3, 2, 2, dtype=torch.float64).expand(40_000, -1, -1, -1).clone().requires_grad_()
    exact = gradient_penalty(judge(x), x, gamma=2.0).item()
    noise = torch.randn(x.shape, dtype=torch.float64)
    found = finite_penalty(judge, judge(x), x, 2.0, noise)
    assert found.item() == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("estimate", ["exact", "finite"])
@pytest.mark.parametrize(("penalty", "names"), [("none", []), ("r1", ["real"]), ("r1r2", ["real", "fake"])])
@pytest.mark.parametrize("loss", ["bce", "hinge", "relativistic"])
def test_every_loss_goes_with_every_penalty(loss, penalty, names, estimate):
    gan = make_gan(loss=loss, penalty=penalty, penalty_estimate=estimate, penalty_fraction=0.5, d_norm="none")
    rows = helpers_gans.play(gan, 0, 2)
    assert [name for name in rows[-1] if name.startswith("penalty")] == [f"penalty_{name}" for name in names]
    assert all(value.isfinite() for row in rows for value in row.values())
    assert all(rows[-1][f"penalty_{name}"] > 0 for name in names)
    assert ("margin" in rows[-1]) == (loss == "relativistic")


@pytest.mark.parametrize("fraction", [0.25, 1.0])
@pytest.mark.parametrize("estimate", ["exact", "finite"])
@pytest.mark.parametrize("network", ["dcgan", "residual"])
def test_penalties_are_float32_where_the_networks_compute_in_bfloat16(network, estimate, fraction):
    options = {"network": network, "d_norm": "none", "penalty_estimate": estimate, "penalty_fraction": fraction}
    gan = build_gan({**TINY, **options}, "cpu", torch.bfloat16, slice(0, 16))
    row = helpers_gans.play(gan, 0, 2)[-1]
    assert all(value.isfinite() for value in row.values())
    assert {row[name].dtype for name in ("penalty_real", "penalty_fake")} == {torch.float32}


@pytest.mark.parametrize("network", ["dcgan", "residual"])
def test_penalty_at_the_whole_batch_is_that_of_passes_of_its_own(network):
    norms = []
    for fraction in (1.0, 0.999):  # the second takes another way to the same 16 images
        gan = make_gan(network=network, penalty_fraction=fraction)
        norms.append([row["grad_norm_d"].item() for row in helpers_gans.play(gan, 0, 2)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("estimate", ["exact", "finite"])
@pytest.mark.parametrize("fraction", [0.25, 0.05])  # 4 images, 2 of each rank; and 1, of the first rank alone
def test_parts_of_the_penalty_average_to_that_of_one_process(estimate, fraction, monkeypatch):
    images = torch.randn(16, 3, 16, 16)
    options = {"network": "dcgan", "d_norm": "none", "penalty_fraction": fraction, "penalty_estimate": estimate}
    whole = make_gan(**options)._penalty(images, 10.0, 3, "real")
    monkeypatch.setattr("gan.training.world_size", lambda: 2)
    parts = []
    for rows in (slice(0, 8), slice(8, 16)):
        gan = build_gan({**TINY, **options}, "cpu", None, rows)
        parts.append(gan._penalty(images[rows], 10.0, 3, "real"))
    assert sum(parts).item() / 2 == pytest.approx(whole.item(), rel=1e-4)
    assert whole > 0


def test_first_updates_are_known():
    rows = helpers_gans.play(make_gan(), 0, 3)
    found = [[row[name].item() for name in ("loss_d", "loss_g", "penalty_real", "penalty_fake")] for row in rows]
    assert found == [pytest.approx(row, rel=1e-3) for row in GOLDEN]


def test_schedules_move_by_half_a_cosine_over_the_burn_in():
    burn_in = BurnIn(fraction=0.4, lr_end=0.25, gamma_end=0.1, beta2_end=0.99)
    assert [burn_in.done(progress) for progress in (0.0, 0.2, 0.4, 1.0)] == pytest.approx([0, 0.5, 1, 1])
    gan = make_gan()
    gan.set_schedule(1.0, 0.2)
    group = gan.optimizer_d.param_groups[0]
    assert group["lr"] == pytest.approx(1e-3 * 0.625)
    assert group["betas"] == pytest.approx((0.0, 0.945))
    assert gan.gamma_factor == pytest.approx(0.55)
    assert gan.augment_p.item() == pytest.approx(0.5)


def test_augmentation_changes_as_many_images_as_its_probability_says():
    augment = DiffAugment("translation", 0, 4000, slice(0, 4000))
    images = torch.arange(16.0).expand(4000, 1, 4, 16)
    always = augment(images, 3, "real")
    half = augment(images, 3, "real", torch.tensor(0.5))
    changed = (half != images).flatten(1).any(1)
    assert torch.equal(half[changed], always[changed])
    moved = (always != images).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.5 * moved.float().mean().item(), abs=0.03)
    assert torch.equal(augment(images, 3, "real", torch.tensor(0.0)), images)


@pytest.mark.parametrize(("target", "end"), [(0.01, 1.0), (1.0, 0.0)])
def test_augmentation_adapts_to_how_sure_the_discriminator_is(target, end, monkeypatch):
    monkeypatch.setattr("gan.training.ADA_IMAGES", 32)
    gan = make_gan(diffaugment="color", ada_target=target)
    gan.augment_p.fill_(0.5)
    with torch.no_grad():
        gan._adapt_augmentation(torch.ones(16), torch.zeros(16))
    assert gan.augment_p.item() == (end if target < 1 else 0.5)
    state = gan.state_dict()
    other = make_gan(diffaugment="color", ada_target=target)
    other.load_state_dict(state)
    assert other.augment_p.item() == gan.augment_p.item()


def test_resumed_game_goes_on_as_an_unbroken_one():
    whole, first, second = make_gan(), make_gan(), make_gan()
    rows = helpers_gans.play(whole, 0, 4)
    helpers_gans.play(first, 0, 2)
    second.load_state_dict(first.state_dict())
    again = helpers_gans.play(second, 2, 4)
    assert [row["loss_g"].item() for row in again] == [row["loss_g"].item() for row in rows[2:]]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--penalty", "r1", "--r1_gamma", 0], "--penalty: r1 needs --r1_gamma"),
        (["--preset", "r3gan", "--d_norm", "batch"], "--network: residual takes no --d_norm"),
        (["--preset", "r3gan", "--group_size", 7], "--group_size: 7 does not divide"),
        (["--ada_target", 0.6], "--ada_target: needs --diffaugment"),
    ],
)
def test_wrong_combinations_are_refused(flags, words):
    assert words in helpers_gans.refused("cifar_gan.py", *flags)


@pytest.mark.parametrize("network", ["dcgan", "residual"])
def test_preset_trains_and_samples(tmp_path, network):
    flags = ["--preset", "r3gan-tiny", "--network", network, *helpers_gans.TINY, "--max_width", 8, "--held_out", 0]
    flags += ["--data", "shapes", "--limit", 64, "--run_dir", tmp_path / "run", "--max_steps", 4, "--score_every", 0]
    assert helpers_gans.train_here(*flags, "--num_samples", 16) == 0
    assert (tmp_path / "run" / "samples.npz").is_file()
