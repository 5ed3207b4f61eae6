"""--accum_iter: K micro-batches give the update of one batch K times as large."""

import json

import pytest
import torch
import train_ddgan
from comparison.checkpoints import load_torch
from comparison.runs import read_progress
from ddgan.draws import Batch
from ddgan.grad_accumulation import AccumulationSchedule
from ddgan.training import Trainer
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING
from joint_batches import N, gradients, images, let_draw, make_trainer


def micro_batches(count: int, first: int = 0) -> list[Batch]:
    return [Batch(images(number), None, number) for number in range(first, first + count)]


def joint(trainer: Trainer, count: int, first: int = 0) -> list[Batch]:
    """The same as one batch."""
    return [let_draw(trainer, list(range(first, first + count)), N)]


def assert_equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert wanted.norm() > 0


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("step", [0, 1], ids=["penalty due", "no penalty"])
def test_accumulated_gradients_equal_those_of_the_large_batch(count, step):
    accumulated, large = make_trainer(), make_trainer()
    reports = [
        accumulated.update(micro_batches(count, first=step * count), step),
        large.update(joint(large, count, first=step * count), step),
    ]
    assert ("r1" in reports[0]) == (step == 0)
    for name in reports[0]:
        torch.testing.assert_close(reports[0][name], reports[1][name], rtol=1e-5, atol=0)
    for name in ("discriminator", "generator"):
        assert_equal(gradients(getattr(accumulated, name)), gradients(getattr(large, name)))


def test_windows_cover_each_epoch_once_the_last_one_shorter():
    schedule = AccumulationSchedule(7, 3)
    assert schedule.updates_per_epoch == 3
    assert [list(schedule.micro_steps(step)) for step in range(4)] == [[0, 1, 2], [3, 4, 5], [6], [7, 8, 9]]
    assert [schedule.micro_done(step) for step in range(5)] == [0, 3, 6, 7, 10]


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


@pytest.mark.parametrize("stop", [2, 3], ids=["in the middle of an epoch", "behind a shorter window"])
def test_resumed_run_equals_unbroken_run(pictures, tmp_path, unbroken, stop):
    folder = tmp_path / "run"
    assert train(pictures, folder, "--max_steps", str(stop)) == 0
    assert load_torch(folder / "content.pth")["step"] == stop
    assert train(pictures, folder) == 0
    for name in ("generator", "discriminator"):
        first, second = (load_torch(path / "content.pth")[name] for path in (folder, unbroken))
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("bound", "steps"), [(16, 2), (17, 3), (21, 4)])
def test_max_images_ends_the_training_behind_the_window_that_reaches_it(pictures, tmp_path, bound, steps):
    assert train(pictures, tmp_path / "run", "--num_epoch", "0", "--max_images", str(bound)) == 0
    assert load_torch(tmp_path / "run" / "content.pth")["step"] == steps
