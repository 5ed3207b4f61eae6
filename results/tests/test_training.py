"""The shared training loop: bounds, files, checkpoints that are due and kept."""

import math
import os
import signal

import pytest
from comparison.cli import UserError
from comparison.files import read_json
from comparison.runs import Run, read_progress
from comparison.training import Budget, Loop, StopSignal, prune


@pytest.fixture
def run(tmp_path):
    return Run.open(tmp_path / "run", {"lr": 0.1}, model="gans")


FIVE = Budget(max_steps=5)


def make_loop(run, budget=FIVE, **options) -> Loop:
    loop = Loop(run, budget, lambda updates: 4 * updates, log_interval=2, **options)
    loop.begin("a test")
    return loop


def train(loop: Loop) -> list[int]:
    """Make updates whose loss is their number; return the numbers."""
    made = []
    for step in loop:
        made.append(step)
        if loop.row_due:
            loop.row({"loss": float(step)}, {"lr": 0.5})
    return made


def rows(run):
    return read_progress(run.folder / "progress.csv")


def test_first_interrupt_is_a_request_the_second_raises():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_finished_loop_leaves_its_rows_and_says_why_it_ended(run):
    loop = make_loop(run)
    assert train(loop) == [0, 1, 2, 3, 4]
    loop.row({"loss": 7.0})
    loop.row({"loss": 8.0})  # a step has one row
    assert loop.finish(peak=9) == 0
    assert [(row["step"], row["images_seen"], row["loss"]) for row in rows(run)] == [(2, 8, 1), (4, 16, 3), (5, 20, 7)]
    assert [row.get("lr") for row in rows(run)] == [0.5, 0.5, None]
    finished = read_json(run.folder / "config.json")["finished"]
    assert {**finished, "reason": "max_steps 5", "steps": 5, "images_seen": 20, "peak": 9} == finished
    assert (run.folder / "loss.png").is_file()
    assert "finished (max_steps 5): 5 steps, 20 images" in (run.folder / "log.txt").read_text()


def test_interrupted_loop_returns_130_and_is_not_finished(run):
    before = signal.getsignal(signal.SIGINT)
    loop = make_loop(run)
    for step in loop:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
    assert (loop.step, loop.reason, loop.finish()) == (3, None, 130)
    assert "finished" not in read_json(run.folder / "config.json")
    assert signal.getsignal(signal.SIGINT) is before
    assert train(make_loop(run, step=3)) == [3, 4]


@pytest.mark.parametrize(
    ("budget", "options", "reason", "steps"),
    [
        (Budget(max_images=9), {}, "max_images 9", 3),
        (Budget(max_steps=9), {"epochs": (4, "num_epoch 2")}, "num_epoch 2", 4),
        (Budget(max_steps=3), {"epochs": (4, "num_epoch 2")}, "max_steps 3", 3),
        (Budget(max_images=40), {"stop_after": 8}, "max_images 8", 2),
        (Budget(max_seconds=5), {"seconds": 6.0}, "max_seconds 5", 0),
    ],
)
def test_the_nearest_bound_ends_the_loop(run, budget, options, reason, steps):
    loop = make_loop(run, budget, **options)
    assert train(loop) == list(range(steps))
    assert loop.reason == reason
    if not budget.max_seconds:
        assert loop.bar.total == steps


@pytest.mark.parametrize(("micro", "accum"), [(7, 3), (6, 3), (5, 1), (2, 8)])
def test_progress_bar_ends_where_uneven_updates_have_seen_the_images(micro, accum):
    epoch = -(-micro // accum)  # updates; the last one of an epoch is shorter
    for images in range(1, 30):
        loop = Loop(None, Budget(max_images=images), lambda n: n // epoch * micro + n % epoch * accum, log_interval=1)
        assert len(list(loop)) == loop.bar.total


def test_divergence_is_refused_and_leaves_no_row(run):
    loop = make_loop(run, advice="lower --lr")
    next(iter(loop))
    with pytest.raises(UserError, match=r"^step 1: loss is nan, the training has diverged; .* lower --lr$"):
        loop.row({"loss": math.nan})
    assert not (run.folder / "progress.csv").exists()
    with pytest.raises(UserError, match="step 7: loss is inf"):
        loop.check({"loss": math.inf}, 7)


def test_divergence_is_recorded_until_the_training_goes_on(run):
    loop = make_loop(run)
    next(iter(loop))
    with pytest.raises(UserError):
        loop.check({"loss": math.inf})
    found = read_json(run.folder / "config.json")["diverged"]
    assert (found["steps"], found["images_seen"], found["value"]) == (1, 4, "loss inf")
    make_loop(run)
    assert "diverged" not in read_json(run.folder / "config.json")


def test_checkpoints_are_due_when_planned_or_after_the_minutes(run):
    assert [make_loop(run, save_minutes=1e-9).save_due(planned) for planned in (False, True)] == [False, True]
    assert all(loop.save_due(False) for loop in [make_loop(run, save_minutes=1e-9)] for _ in loop)
    assert not any(loop.save_due(False) for loop in [make_loop(run, save_minutes=5.0)] for _ in loop)


def test_processes_other_than_the_first_write_nothing(run, capsys):
    loop = make_loop(None)
    assert train(loop) == [0, 1, 2, 3, 4]
    assert loop.finish() == 0
    assert capsys.readouterr().out == ""


def test_retention_goes_by_number_and_touches_nothing_else(tmp_path):
    for name in ("model9.pt", "model10.pt", "model100.pt", "model20.pt", "model_best.pt"):
        (tmp_path / name).touch()
    prune(tmp_path, "model*.pt", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model100.pt", "model20.pt", "model_best.pt"]


def test_checkpoints_due_by_time_do_not_displace_planned_ones(tmp_path):
    def left(keep, every):
        prune(tmp_path, "netG_*.pth", keep, lambda epoch: epoch % every == 0)
        return sorted(path.name for path in tmp_path.iterdir())

    for epoch in (2, 4, 6, 7, 8, 9):
        (tmp_path / f"netG_{epoch}.pth").touch()
    assert left(keep=2, every=2) == ["netG_6.pth", "netG_8.pth", "netG_9.pth"]
    assert left(keep=0, every=4) == ["netG_8.pth", "netG_9.pth"]
