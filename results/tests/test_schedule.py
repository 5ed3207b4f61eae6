"""Learning rates and averages over the share of the budget that is used."""

import math

import pytest
from comparison.cli import UserError, make_parser
from comparison.schedule import Schedule, add_schedule_options, ema_rate
from comparison.training import Budget


def test_progress_is_the_same_in_seconds_images_and_updates():
    budgets = (Budget(max_steps=10), Budget(max_images=320), Budget(max_seconds=150))
    used = [(step, 32 * step, 15.0 * step) for step in range(12)]
    shares = [[budget.progress(*each) for each in used] for budget in budgets]
    assert shares[0] == shares[1] == shares[2]
    assert (shares[0][0], shares[0][5], shares[0][10], shares[0][11]) == (0.0, 0.5, 1.0, 1.0)


def test_progress_is_that_of_the_nearest_bound():
    assert Budget(max_steps=10, max_images=50).progress(5, 40, 0.0) == pytest.approx(0.8)
    assert Budget(max_steps=10, max_seconds=4).progress(5, 0, 3.0) == pytest.approx(0.75)
    assert Budget().progress(10**9, 10**9, 1e9) == 0


def test_factor_rises_stays_and_falls_to_the_floor():
    schedule = Schedule(warmup=0.1, decay="linear", decay_from=0.5, floor=0.2)
    found = [schedule.factor(p) for p in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.6, 0.2])
    cosine = Schedule(decay="cosine", decay_from=0.2)
    found = [cosine.factor(p) for p in (0.1, 0.2, 0.4, 0.6, 1.0)]
    assert found == pytest.approx([1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.0])
    assert Schedule().is_constant()
    assert [Schedule().factor(p) for p in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]


def test_warm_up_that_reaches_into_the_decay_is_refused():
    parser = make_parser("")
    add_schedule_options(parser)
    flags = ["--lr_warmup", "0.3", "--lr_decay", "linear", "--lr_decay_from"]
    assert Schedule.of(parser.parse_args([*flags, "0.3"])) == Schedule(0.3, "linear", 0.3)
    with pytest.raises(UserError, match=r"--lr_warmup 0\.3 ends after --lr_decay_from 0\.2"):
        Schedule.of(parser.parse_args([*flags, "0.2"]))
    assert Schedule.of(parser.parse_args(flags[:-1])) == Schedule(0.3, "linear", 0.3)


@pytest.mark.parametrize("name", ["lr_decay_from", "lr_floor"])
def test_flag_of_a_decay_without_a_decay_is_refused(name):
    parser = make_parser("")
    add_schedule_options(parser)
    with pytest.raises(UserError, match=rf"--{name} 0\.5 needs --lr_decay linear or cosine"):
        Schedule.of(parser.parse_args([f"--{name}", "0.5"]))


def test_average_reaches_back_over_a_share_of_the_updates():
    assert ema_rate(0.9999, 10**6, 0.08) == 0.9999
    assert ema_rate(0.9999, 1000, 0.08) == pytest.approx(1 - 1 / 80)
    assert [ema_rate(0.9999, n, 0.08) for n in (0, 1, 12)] == [0.0, 0.0, 0.0]
    assert ema_rate(0.9, 1000, 0.08) == 0.9
    assert ema_rate(0.9999, 1) == 2 / 11

    # the mean age of what is averaged is about the horizon's share of the run
    age, total = 0.0, 2000
    for n in range(1, total + 1):
        age = ema_rate(0.9999, n, 0.08) * (age + 1)
    assert age / total == pytest.approx(0.08, rel=0.15)


def test_budget_is_cut_in_its_own_unit():
    assert Budget(max_seconds=2160).cut(540) == Budget(max_seconds=540)
    assert Budget(max_images=1000).cut(250.0) == Budget(max_images=250)
    assert Budget(max_steps=10).cut(0) == Budget(max_steps=10)
    assert Budget(max_steps=10).cut(20) == Budget(max_steps=10)
    assert Budget(max_seconds=10).cut(0.5) == Budget(max_seconds=0.5)
    for budget, found in ((Budget(), "none"), (Budget(max_steps=1, max_images=2), "--max_steps 1 and --max_images 2")):
        with pytest.raises(UserError, match=f"--stop_after 5 needs exactly one of .*, not {found}"):
            budget.cut(5)
    for part in (0.5, 24.7):
        with pytest.raises(UserError, match="must be a whole number, as --max_images is"):
            Budget(max_images=100).cut(part)
