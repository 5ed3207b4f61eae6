"""--accum_iter: K micro-batches give the update of one batch K times as large."""

import json
from itertools import pairwise

import pytest
import torch
import train_ddgan
from comparison import rng
from comparison.cli import UserError
from comparison.runs import load_torch, read_progress
from ddgan.checkpoints import seeded_networks
from ddgan.ema import Ema
from ddgan.layers import MinibatchStddev
from ddgan.process import DenoisingProcess
from ddgan.training import Batch, PairNoise, Trainer
from ddgan.windows import Windows
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING, make_images

CONFIG = {
    **{"image_size": 16, "num_channels": 3, "num_channels_dae": 8, "ch_mult": [1, 2], "num_res_blocks": 1},
    **{"attn_resolutions": [8], "nz": 4, "z_emb_dim": 8, "n_mlp": 1, "ngf": 2, "t_emb_dim": 8},
}
N = 8  # images of a micro-batch


def make_trainer(**changes) -> Trainer:
    """A trainer of networks whose every layer matters; the published ones begin with layers of nearly zero."""
    generator, discriminator = seeded_networks(CONFIG, "small", seed=0)
    torch.manual_seed(0)
    for network in (generator, discriminator):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    settings = {"seed": 0, "nz": 4, "lr_g": 1e-3, "lr_d": 1e-3, "r1_gamma": 1.0, "lazy_reg": 2, **changes}
    return Trainer(generator, discriminator, DenoisingProcess(2), Ema(generator, 0.9), **settings)


def micro_batches(count: int, first: int = 0) -> list[Batch]:
    return [Batch(rng.normal((N, 3, 16, 16), "images", k), None, k) for k in range(first, first + count)]


def large_batch_order(count: int) -> torch.Tensor:
    """Numbers of the joint batch's images, so that each of its stddev groups is a group of one micro-batch."""
    return torch.arange(count * N).view(count, 4, N // 4).transpose(0, 1).reshape(-1)


@pytest.fixture
def joint(monkeypatch):
    """Let a trainer's joint batch draw what its micro-batches draw; returns the batch to update with."""

    def prepare(trainer: Trainer, count: int, first: int = 0) -> list[Batch]:
        order = large_batch_order(count)

        def draw(batch: Batch, half: str):
            shape, device = (N, 3, 16, 16), torch.device("cpu")
            parts = [PairNoise(shape, 4, 2, (0, k, half), device) for k in range(first, first + count)]
            noise = parts[0]
            for name in vars(noise):
                setattr(noise, name, torch.cat([getattr(part, name) for part in parts])[order])
            pair = trainer.process.q_sample_pairs(batch.x_0, noise.t, noise.x_t, noise.x_t_plus_1)
            return noise, *pair

        monkeypatch.setattr(trainer, "_draw", draw)
        x_0 = torch.cat([batch.x_0 for batch in micro_batches(count, first)])[order]
        return [Batch(x_0, None, first)]

    return prepare


def gradients(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def assert_equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert wanted.norm() > 0


def test_large_batch_is_ordered_so_that_its_groups_are_those_of_the_micro_batches():
    x = torch.randn(3 * N, 2, 4, 4)
    order = large_batch_order(3)
    spread = torch.cat([MinibatchStddev()(part)[:, -1, 0, 0] for part in x.split(N)])
    torch.testing.assert_close(MinibatchStddev()(x[order])[:, -1, 0, 0], spread[order])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("step", [0, 1], ids=["penalty due", "no penalty"])
def test_accumulated_gradients_equal_those_of_the_large_batch(joint, count, step):
    accumulated, large = make_trainer(), make_trainer()
    reports = [
        accumulated.update(micro_batches(count, first=step * count), step),
        large.update(joint(large, count, first=step * count), step),
    ]
    assert ("r1" in reports[0]) == (step == 0)
    for name in reports[0]:
        assert reports[0][name].item() == pytest.approx(reports[1][name].item(), rel=1e-5)
    for name in ("discriminator", "generator"):
        assert_equal(gradients(getattr(accumulated, name)), gradients(getattr(large, name)))


def test_accumulated_penalty_equals_that_of_the_large_batch_where_it_outweighs_the_losses(joint):
    accumulated, large, plain = make_trainer(r1_gamma=1e6), make_trainer(r1_gamma=1e6), make_trainer(r1_gamma=0.0)
    for trainer, batches in ((accumulated, micro_batches(3)), (large, joint(large, 3)), (plain, micro_batches(3))):
        trainer._update_discriminator(batches, 0)
    assert_equal(gradients(accumulated.discriminator), gradients(large.discriminator))
    assert gradients(large.discriminator).norm() > 100 * gradients(plain.discriminator).norm()


def test_every_micro_batch_counts():
    """Not the last one alone: a gradient zeroed between micro-batches would hide the others."""
    found = []
    for changed in (None, 0, 1, 2):
        trainer, batches = make_trainer(), micro_batches(3)
        if changed is not None:
            batches[changed] = batches[changed]._replace(x_0=-batches[changed].x_0)
        trainer.update(batches, 1)
        found.append((gradients(trainer.discriminator), gradients(trainer.generator)))
    for grad_d, grad_g in found[1:]:
        assert not torch.allclose(grad_d, found[0][0], rtol=1e-3)
        assert not torch.allclose(grad_g, found[0][1], rtol=1e-3)


def test_gradients_are_zeroed_and_stepped_once_per_update(monkeypatch):
    trainer, calls = make_trainer(), []
    for name in ("optimizer_d", "optimizer_g"):
        for method in ("zero_grad", "step"):
            optimizer = getattr(trainer, name)
            real = getattr(optimizer, method)
            monkeypatch.setattr(
                optimizer, method, lambda real=real, what=(name, method): (calls.append(what), real())[1]
            )
    trainer.update(micro_batches(3), 0)
    assert calls == [(n, m) for n in ("optimizer_d", "optimizer_g") for m in ("zero_grad", "step")]
    assert trainer.ema.updates == 1


def test_second_update_does_not_carry_gradients_of_the_first():
    fresh, used = make_trainer(lr_d=0.0, lr_g=0.0), make_trainer(lr_d=0.0, lr_g=0.0)
    used.update(micro_batches(2), 0)
    for trainer in (fresh, used):
        trainer.update(micro_batches(2, first=2), 1)
    for name in ("discriminator", "generator"):
        assert torch.equal(gradients(getattr(fresh, name)), gradients(getattr(used, name)))


def test_penalty_is_due_by_updates_and_not_by_micro_batches():
    trainer = make_trainer(lazy_reg=3)
    due = ["r1" in trainer.update(micro_batches(2, first=2 * step), step) for step in range(4)]
    assert due == [True, False, False, True]


def test_update_from_one_micro_batch_is_the_update_of_before():
    one, other = make_trainer(), make_trainer()
    for step in range(2):
        one.update(micro_batches(1, first=step), step)
        other.update(micro_batches(1, first=step)[0].x_0, step)
    assert torch.equal(gradients(one.generator), gradients(other.generator))


def test_windows_cover_each_epoch_once_the_last_one_shorter():
    windows = Windows(7, 3)
    assert windows.updates_per_epoch == 3
    assert [list(windows.micro_steps(step)) for step in range(4)] == [[0, 1, 2], [3, 4, 5], [6], [7, 8, 9]]
    assert [windows.epoch(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [windows.micro_done(step) for step in range(5)] == [0, 3, 6, 7, 10]


@pytest.mark.parametrize(("micro", "accum_iter"), [(7, 3), (6, 3), (5, 1), (2, 8)])
def test_updates_for_a_number_of_micro_batches_are_the_fewest_that_use_them(micro, accum_iter):
    windows = Windows(micro, accum_iter)
    for wanted in range(30):
        updates = windows.updates_for(wanted)
        assert windows.micro_done(updates) >= wanted
        assert updates == 0 or windows.micro_done(updates - 1) < wanted


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "pictures", count=20)


def train(pictures, folder, *more) -> int:
    """Five micro-batches of four images make an epoch; windows of two make three updates of it."""
    flags = ["--dataset", str(pictures), "--exp", f"{folder}/", *TINY_NETWORK, *TINY_TRAINING]
    flags += ["--batch_size", "4", "--accum_iter", "2", "--log_interval", "1", "--num_epoch", "2", *more]
    return train_ddgan.main(train_ddgan.parse_args(flags))


@pytest.fixture(scope="module")
def unbroken(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("accumulated") / "run"
    assert train(pictures, folder) == 0
    return folder


def test_images_and_updates_are_counted_with_shorter_windows(unbroken):
    rows = read_progress(unbroken / "progress.csv")
    assert [(row["step"], row["images_seen"]) for row in rows] == [(1, 8), (2, 16), (3, 20), (4, 28), (5, 36), (6, 40)]
    assert ["r1" in row for row in rows] == [True, False] * 3
    finished = json.loads((unbroken / "config.json").read_text())["finished"]
    assert (finished["steps"], finished["images_seen"]) == (6, 40)
    assert load_torch(unbroken / "netG_2.pth")["images_seen"] == 40
    content = load_torch(unbroken / "content.pth")
    assert (content["step"], content["ema"]["updates"]) == (6, 6)


def test_learning_rate_falls_in_every_update(unbroken):
    rates = [row["lr"] for row in read_progress(unbroken / "progress.csv")]
    assert all(later < earlier for earlier, later in pairwise(rates))


@pytest.mark.parametrize("stop", [2, 3], ids=["in the middle of an epoch", "behind a shorter window"])
def test_resumed_run_equals_unbroken_run(pictures, tmp_path, unbroken, stop):
    folder = tmp_path / "run"
    assert train(pictures, folder, "--max_steps", str(stop)) == 0
    assert load_torch(folder / "content.pth")["step"] == stop
    assert train(pictures, folder) == 0
    for name in ("generator", "discriminator"):
        first, second = (load_torch(path / "content.pth")[name] for path in (folder, unbroken))
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("images", "steps"), [(16, 2), (17, 3), (21, 4)])
def test_max_images_ends_the_training_behind_the_window_that_reaches_it(pictures, tmp_path, images, steps):
    assert train(pictures, tmp_path / "run", "--num_epoch", "0", "--max_images", str(images)) == 0
    assert load_torch(tmp_path / "run" / "content.pth")["step"] == steps


def test_run_from_before_the_option_continues_and_keeps_its_windows(pictures, tmp_path):
    folder = tmp_path / "run"
    assert train(pictures, folder, "--accum_iter", "1", "--max_steps", "1") == 0
    config = json.loads((folder / "config.json").read_text())
    del config["options"]["accum_iter"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="accum_iter 1 there, 2 here"):
        train(pictures, folder, "--max_steps", "2")
    assert train(pictures, folder, "--accum_iter", "1", "--max_steps", "2") == 0
