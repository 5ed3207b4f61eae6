"""What the networks are trained for: inputs, losses and penalties by closed form, phases, accuracies."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import test_ddgan
import torch
import train_ddgan
from comparison.checkpoints import load_torch
from comparison.ranks import RankInfo
from comparison.runs import read_progress
from ddgan.checkpoints import seeded_networks
from ddgan.discriminator import PlainDiscriminator
from ddgan.domain import Domain
from ddgan.draws import Batch, PairNoise
from ddgan.ema import Ema
from ddgan.meters import LossMeter, count_hits
from ddgan.objective import FINITE_DIFFERENCE, Objective, Phase
from ddgan.process import DenoisingProcess
from ddgan.training import Trainer
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING, make_images
from joint_batches import CONFIG
from torch import nn


def make_trainer(size: str = "plain", config=CONFIG, domain=None, **changes) -> Trainer:
    generator, discriminator = seeded_networks(config, size, seed=0)
    settings = {"seed": 0, "nz": 4, "lr_g": 1e-3, "lr_d": 1e-3, "lr_denoiser": 1e-2, "r1_gamma": 0.1, **changes}
    return Trainer(generator, discriminator, DenoisingProcess(2), Ema(generator, 0.9), domain=domain, **settings)


def images(n: int = 8) -> torch.Tensor:
    return torch.linspace(-1, 1, n * 3 * 16 * 16).view(n, 3, 16, 16)


class Quadratic(nn.Module):
    """D(x, t, x_{t+1}) = sum of a x^2 / 2 over each image, whose gradient is a x; it keeps what it was asked."""

    def __init__(self, a: float = 0.5):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.seen = []

    def forward(self, x, t, x_t_plus_1, y=None, *, parts=1):
        self.seen.append((x.detach(), x_t_plus_1.detach()))
        return self.a * x.square().sum((1, 2, 3))[:, None] / 2


class Fixed(nn.Module):
    """A generator that predicts one value everywhere."""

    def __init__(self, value: float = 0.25):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x_t_plus_1, t, z, y=None):
        return self.value.expand(x_t_plus_1.shape)


def closed_form_trainer(**objective) -> Trainer:
    settings = {"seed": 0, "nz": 2, "lr_g": 0.0, "lr_d": 0.0, "r1_gamma": 2.0, "objective": Objective(**objective)}
    return Trainer(Fixed(), Quadratic(), DenoisingProcess(2), None, **settings)


@pytest.mark.parametrize("given", ["x_t", "x_0"])
def test_the_discriminator_judges_what_the_flag_says(given):
    trainer, x_0 = closed_form_trainer(discriminator_input=given), images()
    trainer.update(x_0, 1)
    (real, condition), (fake, again) = trainer.discriminator.seen[:2]
    noise, x_t, x_t_plus_1 = trainer._draw(Batch(x_0, None, 1), "d")
    assert torch.equal(condition, x_t_plus_1)
    assert torch.equal(again, x_t_plus_1)
    predicted = torch.full_like(x_0, 0.25)
    if given == "x_0":
        assert torch.equal(real, x_0)
        assert torch.equal(fake, predicted)
    else:
        expected = trainer.process.sample_posterior(predicted, x_t_plus_1, noise.t, noise.posterior)
        assert torch.equal(real, x_t)
        assert torch.equal(fake, expected)


@pytest.mark.parametrize("name", ["pixel", "patch", "haar"])
def test_a_shifted_pair_is_rolled_as_pixels_and_as_one(name):
    domain = Domain(name, 3, 16, 2.0)
    trainer = closed_form_trainer(discriminator_input="x_t", discriminator_shift=True)
    trainer.domain, trainer._passes = domain, replace(trainer._passes, domain=domain)
    trainer.update(images(), 1)
    batch = Batch(domain.transform(images()), None, 1)
    for half, calls in (("d", trainer.discriminator.seen[:2]), ("g", trainer.discriminator.seen[2:])):
        drawn = trainer._inputs(batch, half)
        shift = drawn["shift"]
        assert shift.shape == (8, 2)
        assert set(shift.flatten().tolist()) <= set(range(16))
        assert len(shift.unique(dim=0)) > 4
        fake = trainer.process.sample_posterior(
            torch.full_like(batch.x_0, 0.25), drawn["x_t_plus_1"], drawn["t"], drawn["posterior"]
        )
        sides = [drawn["x_t"], fake] if half == "d" else [fake]
        for (seen, condition), side in zip(calls, sides, strict=True):
            torch.testing.assert_close(seen, rolled(side, shift, domain))
            torch.testing.assert_close(condition, rolled(drawn["x_t_plus_1"], shift, domain))


def rolled(x, shift, domain):
    pairs = zip(domain.inverse(x), shift.tolist(), strict=True)
    return domain.transform(torch.stack([image.roll(both, (1, 2)) for image, both in pairs]))


def test_shifts_of_each_process_are_its_rows_of_the_joint_batch():
    trainer = closed_form_trainer(discriminator_shift=True)
    joint = trainer._inputs(Batch(images(8), None, 3), "d")["shift"]
    for rank in (0, 1):
        trainer.rank_info = RankInfo(rank=rank, world_size=2)
        part = trainer._inputs(Batch(images(4), None, 3), "d")["shift"]
        assert torch.equal(part, joint[4 * rank : 4 * rank + 4])
    trainer.rank_info = RankInfo()
    assert not torch.equal(joint, trainer._inputs(Batch(images(8), None, 3), "g")["shift"])


@pytest.mark.parametrize("estimate", ["exact", "finite"])
def test_the_penalty_is_the_squared_gradient_of_the_discriminator(estimate):
    trainer = closed_form_trainer(penalty_estimate=estimate, discriminator_input="x_0")
    x_0 = images()
    found = [trainer.update(x_0, step)["r1"].item() for step in range(300 if estimate == "finite" else 1)]
    expected = 0.25 * x_0.square().sum((1, 2, 3)).mean().item()
    if estimate == "finite":  # the mean square of a size e^T e / 2, D's second-order term
        expected += (0.5 * FINITE_DIFFERENCE / 2) ** 2 * (768**2 + 2 * 768)
    assert sum(found) / len(found) == pytest.approx(expected, rel=1e-5 if estimate == "exact" else 0.1)


def test_gradients_of_the_generator_are_those_of_loss_and_reconstruction():
    """All written out for D = a x^2 / 2 and a generator of one number v."""
    trainer, x_0 = closed_form_trainer(reconstruction="constant", discriminator_input="x_0"), images()
    trainer.update(x_0, 0, Phase(False, 3.0))
    value, count = 0.25, 3 * 16 * 16
    adversarial = -0.5 * value * count / (1 + math.exp(0.25 * value**2 * count))
    reconstruction = 2 * (value - x_0).mean().item()
    assert trainer.generator.value.grad.item() == pytest.approx(adversarial + 3 * reconstruction, rel=1e-4)


def test_phases_follow_the_share_of_the_budget():
    constant = Objective(denoiser_fraction=0.4, reconstruction="constant", reconstruction_weight=5.0)
    assert [constant.phase(p) for p in (0.0, 0.39, 0.4, 1.0)] == [Phase(True)] * 2 + [Phase(False, 5.0)] * 2
    decay = Objective(denoiser_fraction=0.4, reconstruction="decay", reconstruction_weight=5.0)
    assert [decay.phase(p).reconstruction_weight for p in (0.4, 0.7, 1.0)] == pytest.approx([5.0, 2.5, 0.0])
    assert Objective().phase(0.0) == Phase()
    assert Objective(denoiser_fraction=1.0).phase(1.0) == Phase()  # the budget is over
    assert Objective(denoiser_fraction=1.0).adversarial_progress(0.5) == 0


def test_each_t_is_drawn_so_many_times_as_often_as_the_one_before():
    def shares(decay: float) -> list[float]:
        noise = PairNoise((8000, 1, 1, 1), 1, 4, (0, 0, "d"), torch.device("cpu"), t_decay=decay)
        return (noise.t.bincount(minlength=4) / 8000).tolist()

    assert shares(0.5) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=0.02)
    assert shares(1.0) == pytest.approx([0.25] * 4, abs=0.02)
    whole, half = (
        PairNoise((8, 1, 1, 1), 1, 4, (0, 0, "d"), torch.device("cpu"), rows, 0.5) for rows in (None, slice(4, 8))
    )
    assert torch.equal(half.t, whole.t[4:])


def test_the_discriminator_may_train_beside_the_denoiser():
    trainer = make_trainer(objective=Objective(denoiser_fraction=0.5), denoiser_d_every=2)
    found = [trainer.update(images(), step, Phase(True)) for step in range(3)]
    assert ["loss_d" in losses for losses in found] == [True, False, True]
    assert all("loss_g" not in losses for losses in found)


def test_hits_count_right_answers_by_t():
    real, fake = torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([[2.0], [-3.0], [-1.0]])
    hits = count_hits(real, fake, torch.tensor([0, 2, 2]), 3)
    assert hits.tolist() == [[1, 0, 1], [0, 0, 2], [1, 0, 2]]
    meter = LossMeter()
    meter.add({"hits": hits})
    meter.add({"hits": hits})
    row = meter.take()
    assert (row["accuracy_real_t2"], row["accuracy_fake_t2"]) == (0.5, 1)
    assert row["accuracy_real_t1"] == 0.5  # no image had it


def test_plain_discriminator_judges_parts_by_themselves_and_learns_in_every_layer():
    torch.manual_seed(0)
    network = PlainDiscriminator(8, 3, 4, 8)
    x, condition, t = torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    together = network(x, t, condition, parts=2)
    apart = torch.cat([network(*(v[half] for v in (x, t, condition))) for half in (slice(0, 4), slice(4, 8))])
    torch.testing.assert_close(together, apart)
    together.sum().backward()
    assert all(p.grad.abs().max() > 1e-3 for p in network.parameters())


def test_an_update_in_haar_coefficients_is_that_of_the_coefficients():
    domain = Domain("haar", 3, 16, 2.0)
    config = {**CONFIG, "domain": "haar", "detail_scale": 2.0, "attn_resolutions": [4]}
    a, b = make_trainer(config=config, domain=domain), make_trainer(config=config)
    assert a.update(images(), 0)["loss_d"] == b.update(domain.transform(images()), 0)["loss_d"]


FLAGS = (
    "--discriminator plain --discriminator_shift --discriminator_input x_0 --denoiser_fraction 0.5 --lr_denoiser 0.01 "
    "--denoiser_d_every 2 --reconstruction decay --reconstruction_weight 5 --domain haar --detail_scale 2 "
    "--penalty_estimate finite --lr_decay cosine --num_epoch 0 --max_images 96"
)


def train(folder, pictures, *more) -> int:
    arguments = ["--dataset", str(pictures), "--exp", f"{folder}/", *TINY_NETWORK, *TINY_TRAINING, *FLAGS.split()]
    return train_ddgan.main(train_ddgan.parse_args([*arguments, *more]))


def test_a_run_with_both_phases_resumes_bit_for_bit(tmp_path):
    pictures = make_images(tmp_path / "pictures")
    assert train(tmp_path / "whole", pictures) == 0
    for images_seen in ("32", "64"):  # within the denoiser's phase, and after it
        assert train(tmp_path / "parts", pictures, "--stop_after", images_seen) == 0
    assert train(tmp_path / "parts", pictures) == 0
    rows = [read_progress(tmp_path / name / "progress.csv") for name in ("whole", "parts")]
    for first, second in zip(*rows, strict=True):
        assert {**first, "wall_seconds": 0} == {**second, "wall_seconds": 0}
    assert "loss_g" not in rows[0][0]
    assert "reconstruction" in rows[0][0]
    assert {"loss_g", "r1", "accuracy_fake_t1", "reconstruction"} <= rows[0][-1].keys()
    states = [load_torch(tmp_path / name / "content.pth") for name in ("whole", "parts")]
    assert json.dumps(states[0], default=lambda v: v.tolist()).replace(
        str(states[0]["wall_seconds"]), ""
    ) == json.dumps(states[1], default=lambda v: v.tolist()).replace(str(states[1]["wall_seconds"]), "")
    sample_in_both_ways(tmp_path / "whole")


def sample_in_both_ways(run) -> None:
    """Coefficients become images of the right size, and eta reaches the sampler and its record."""
    found = {}
    for eta in ("1", "0"):
        out = run / f"eta{eta}" / "samples.npz"
        flags = ["--exp", f"{run}/", "--num_samples", "4", "--device", "cpu", "--threads", "1", "--eta", eta]
        assert test_ddgan.main(test_ddgan.parse_args([*flags, "--out", str(out)])) == 0
        found[eta] = np.load(out)["arr_0"]
        assert found[eta].shape == (4, 16, 16, 3)
        sampler = json.loads((out.parent / "sampling.json").read_text())["sampler"]
        assert sampler == {"1": "posterior, 2 steps", "0": "DDIM with eta 0, 2 steps"}[eta]
    assert not np.array_equal(found["0"], found["1"])


def test_a_denoiser_alone_is_a_run_without_adversarial_losses(tmp_path):
    pictures = make_images(tmp_path / "pictures")
    assert train(tmp_path / "run", pictures, "--denoiser_fraction", "1", "--denoiser_d_every", "0") == 0
    rows = read_progress(tmp_path / "run" / "progress.csv")
    assert all({"reconstruction", "lr", "grad_norm_g"} <= row.keys() for row in rows)
    assert not any({"loss_g", "loss_d", "accuracy_real_t0", "grad_norm_d"} & row.keys() for row in rows)
    assert rows[0]["lr"] > rows[-1]["lr"] > 0
    assert (tmp_path / "run" / "loss.png").is_file()
