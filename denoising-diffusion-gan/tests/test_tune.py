"""The search for training flags: the space, workers that share a study, trials that end early, the page."""

import argparse
import contextlib
import csv
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import train_ddgan
import tune_ddgan
from comparison.cli import UserError
from ddgan import tuning, tuning_page
from helpers_ddgan import FOLDER, make_images
from optuna.trial import TrialState

TINY = (
    "--image_size 8 --num_channels_dae 8 --ch_mult 1 2 --num_res_blocks 1 --attn_resolutions 4 --nz 4 --z_emb_dim 8 "
    "--n_mlp 1 --num_timesteps 2 --ngf 2 --t_emb_dim 8 --batch_size 4 --lazy_reg 2 --use_ema --ema_decay 0.9 "
    "--num_epoch 0"
)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
NAMES = list(tune_ddgan.SPACE)
BASE = {"lr_g": 1e-4, "lr_d": 2e-4, "r1_gamma": 0.1, "lazy_reg": 10, "ema_decay": 0.99, "num_timesteps": 4}
BASE |= {"accum_iter": 1, "use_ema": True}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "pictures", 40)


def flags(pictures: Path, folder: Path, *more: str) -> list[str]:
    budget = ["--max_images", "16", "--rungs", "0.5", "--num_samples", "16", "--trials", "3"]
    return [
        *("--dataset", str(pictures), "--study", f"{folder}/", "--base", TINY, *budget, "--confirm", "1"),
        *("--device", "cpu", "--precision", "float32", "--threads", "1", *more),
    ]


def tune(*arguments) -> int:
    return tune_ddgan.main(tune_ddgan.parse_args(flags(*arguments)))


def judged(*arguments) -> argparse.Namespace:
    args = tune_ddgan.parse_args(flags(*arguments))
    args.folder = arguments[1]
    tune_ddgan.validate(args)
    return args


@pytest.fixture(scope="module")
def searched(pictures, tmp_path_factory):
    """A whole search of three trials."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    assert tune(pictures, folder) == 0
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


# The whole command


@pytest.mark.slow
def test_two_workers_share_the_trials(pictures, tmp_path):
    command = [sys.executable, str(FOLDER / "tune_ddgan.py"), *flags(pictures, tmp_path / "two", "--workers", "2")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trials = rows(tmp_path / "two")
    assert len(trials) in (3, 4)  # a trial that runs while another worker ends the last one is finished
    assert len({row["lr_g"] for row in trials}) == len(trials)


def test_the_first_trial_has_the_base_flags(searched):
    first, *others = rows(searched)
    assert len(others) == 2
    assert len({row["lr_g"] for row in (first, *others)}) == 3
    base = train_ddgan.parse_args(TINY.split())
    assert {name: float(first[name]) for name in NAMES} == {name: getattr(base, name) for name in NAMES}


def test_the_flags_of_the_best_trial_paste_and_its_large_files_are_gone(searched):
    best = min(rows(searched), key=lambda row: float(row["frechet_distance_at_16"] or "inf"))
    args = train_ddgan.parse_args((searched / "best_flags.txt").read_text().split())
    assert {name: getattr(args, name) for name in NAMES} == {name: float(best[name]) for name in NAMES}
    assert (args.ngf, args.max_images, args.use_ema) == (2, 16, True)
    assert not [*searched.rglob("*.pth"), *searched.rglob("*.npz")]
    assert (searched / "trials" / "0000" / "progress.csv").is_file()


def test_the_same_command_trains_nothing_anew_and_more_trials_go_on(searched, pictures, tmp_path, monkeypatch):
    folder = shutil.copytree(searched, tmp_path / "study")
    before = {
        name: (folder / name).read_bytes() for name in ("README.md", "trials.csv", "history.png", "importance.png")
    }
    with monkeypatch.context() as patch:
        patch.setattr(train_ddgan, "main", None)
        assert tune(pictures, folder) == 0
        assert {name: (folder / name).read_bytes() for name in before} == before
        (folder / "study.db").rename(folder / "hidden.db")
        assert tune(pictures, folder, "--page") == 0  # from study.json alone
        (folder / "hidden.db").rename(folder / "study.db")
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert tune(pictures, folder, "--trials", "5", "--confirm", "0") == 0
    assert len(rows(folder)) == 5


def test_a_study_refuses_other_settings_by_name_and_takes_flags_in_another_order(searched, pictures):
    with pytest.raises(UserError, match=r"rungs \[8, 16\] in the study, \[10, 20\] on the command line"):
        tune(pictures, searched, "--max_images", "20")
    args = judged(pictures, searched)
    args.base = [*args.base[2:], *args.base[:2]]
    tuning.begin(args)


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_leaves_no_trial_behind(pictures, tmp_path):
    command = [sys.executable, str(FOLDER / "tune_ddgan.py"), *flags(pictures, tmp_path, "--workers", "2")]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # tests in the background ignore it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, "--max_images", "4000"], **pipes, **heard)
    deadline = time.monotonic() + 60
    while not any((tmp_path / "trials").rglob("config.json")) and time.monotonic() < deadline:
        time.sleep(0.1)  # until a trial has begun, the base flags first
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    trials = tuning.open_study(tmp_path).trials
    assert not [trial for trial in trials if trial.state is TrialState.RUNNING]
    waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
    assert sum(trial.user_attrs.get("default", False) for trial in waiting) == 1


# Bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--max_steps 3", "--max_steps: the search sets it"),
        ("--fix lr=3", "--fix lr=3: must be NAME=VALUE"),
        ("--r1_gamma 0", "add --fix r1_gamma=0"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
        ("--rungs 1.5", "--rungs"),
        ("--base '", "--base ': not readable as flags"),
        ("--study .", "must be the name of a study"),
        ("--study a?b", "must not contain '?'"),
    ],
)
def test_wrong_flags_are_answered_in_one_sentence(more, message, pictures, tmp_path, capsys):
    with pytest.raises((SystemExit, UserError)) as caught:
        tune(pictures, tmp_path / "study", *more.split())
    said = capsys.readouterr().err or str(caught.value)
    assert message in said
    assert not (tmp_path / "study").exists()


def test_a_damaged_study_is_named_and_kept(pictures, tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"study\.db: not readable as a study"):
        tune(pictures, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"study.db", "study.db.lock"}
    assert (tmp_path / "study.db").read_bytes() == b"no database" * 100


def test_a_missing_optuna_is_named_in_one_sentence(monkeypatch, pictures, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        tune(pictures, tmp_path / "study")


# Flags and the space


def test_flags_of_the_training_pass_through_and_the_last_one_counts(pictures, tmp_path):
    more = ["--ngf", "4", "--ch_mult", "1", "1", "--fix", "num_timesteps=3", "--fix", "accum_iter=2"]
    args = judged(pictures, tmp_path, *more)
    trained = train_ddgan.parse_args(args.base)
    assert (trained.ngf, trained.ch_mult, trained.num_timesteps, trained.accum_iter) == (4, [1, 1], 3, 2)
    assert args.base.count("--ngf") == args.base.count("--ch_mult") == args.base.count("--num_timesteps") == 1
    assert set(args.space) == set(NAMES) - {"num_timesteps", "accum_iter"}


def test_the_space_holds_the_base_flags_and_leaves_out_what_has_no_effect():
    wide = tune_ddgan.make_space({**BASE, "lr_g": 0.5, "num_timesteps": 1}, [])
    assert (wide["lr_g"], wide["num_timesteps"]) == ((5e-5, 0.5), (1, 8))
    assert "ema_decay" not in tune_ddgan.make_space({**BASE, "use_ema": False}, [])
    with pytest.raises(UserError, match="nothing to search"):
        tune_ddgan.make_space(BASE, NAMES)


# Trials, with trainings that cost nothing


@pytest.fixture
def search(pictures, tmp_path, monkeypatch):
    """Return a function that searches by a distance(images) that costs nothing, and returns the trials that ended."""

    def run(distance, total, worker=0):
        def measure(args, folder, values, seed, images):
            asked.append((folder.name, images))
            return {"value": distance(images), "interval": None, "n": 9, "images_seen": images, "seconds": 1.0}

        monkeypatch.setattr(tuning, "measure", measure)
        run.args = args = judged(pictures, tmp_path, "--trials", str(total))
        tuning.begin(args)
        tuning.search(args, worker)
        return [trial for trial in tuning.open_study(tmp_path).trials if trial.state in tuning.DONE]

    asked = run.asked = []
    return run


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_an_interrupted_trial_goes_on_with_its_values_in_its_folder(search, tmp_path, error):
    def stop(images):
        if len(search.asked) == 4:
            raise error("the data are gone")
        return 1.0

    with pytest.raises(error):
        search(stop, 3)
    left = tuning.open_study(tmp_path).trials[1].user_attrs["values"]
    search.asked.clear()
    done = search(lambda images: 1.0, 3)
    assert [trial.user_attrs["folder"] for trial in done] == ["0000", "0001", "0003"]
    assert done[1].user_attrs["values"] == left
    assert search.asked[0] == ("0001", 16)  # its first rung is known


def test_a_diverged_or_broken_trial_is_recorded_and_the_search_goes_on(search, tmp_path):
    def distance(images):
        if len(search.asked) == 3:
            raise UserError("the training has diverged")
        if len(search.asked) == 4:
            raise RuntimeError("out of memory\nat a place")
        return 1.0

    done = search(distance, 5)
    assert [trial.state.name for trial in done] == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE", "COMPLETE"]
    assert [trial.user_attrs.get("diverged") for trial in done] == [None, True, False, None, None]


def test_trials_worse_than_the_median_end_at_a_rung_and_the_base_flags_never_do(search, tmp_path):
    done = search(lambda images: 1.0 if len(search.asked) <= 10 else 2.0, 8)
    assert [trial.state.name for trial in done] == ["COMPLETE"] * 5 + ["PRUNED"] * 3
    assert search.asked[-1] == ("0007", 8)
    tuning.open_study(tmp_path).enqueue_trial({}, user_attrs={"default": True})
    assert search(lambda images: 2.0, 9)[-1].state is TrialState.COMPLETE


def test_workers_and_a_resumed_search_do_not_draw_alike(search):
    ends = [search(lambda images: 1.0, total, worker)[-1] for total, worker in ((1, 0), (2, 0), (3, 0), (4, 1))]
    assert len({trial.user_attrs["values"]["lr_g"] for trial in ends}) == 4


def test_a_winner_and_the_base_flags_are_confirmed_with_other_seeds_once(search, tmp_path):
    search(lambda images: 10.0, 1)
    assert tuning.queue_confirmation(search.args) == set()  # the base flags are the best
    search(lambda images: 9.0, 2)
    search.asked.clear()
    search.args.confirm = 2
    for _ in range(2):
        names = tuning.queue_confirmation(search.args)
        tuning.confirm(search.args, 0)
    assert names == {"default-seed1", "0001-seed1", "default-seed2", "0001-seed2"}
    assert sorted(search.asked) == sorted((name, 16) for name in names)


# The page


@pytest.mark.parametrize(
    ("default", "winner", "says"),
    [
        ([10.0, 11.0, 12.0], [4.0, 5.0, 6.0], "**The winner is better than the base flags**: winner minus base"),
        ([10.0, 11.0, 12.0], [9.0, 10.0, 11.0], "**Inconclusive**"),
        ([4.0, 5.0, 6.0], [10.0, 11.0, 12.0], "**The winner is worse than the base flags**"),
        ([10.0, None, 12.0], [4.0, 5.0, 6.0], "base flags 11.0 ± 1.4 (10, diverged, 12)"),
    ],
)
def test_the_page_says_whether_the_winner_helps(default, winner, says):
    entries = [{"role": role, "value": v} for role, mine in (("default", default), ("winner", winner)) for v in mine]
    assert says in " ".join(tuning_page.verdict({"confirm": entries}))


def test_workers_may_open_a_new_study_at_once(tmp_path):
    code = "import sys, pathlib; from ddgan import tuning; tuning.open_study(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "study")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(3)]
    assert [worker.communicate()[1] for worker in workers] == [b""] * 3
    assert [worker.returncode for worker in workers] == [0] * 3


def test_no_two_workers_take_the_same_queued_training(tmp_path):
    study = tuning.open_study(tmp_path, tuning.CONFIRMATION)
    for number in range(20):
        study.enqueue_trial({"run": number}, {"number": number})
    taken, start = [], threading.Barrier(4)

    def work():
        mine = tuning.open_study(tmp_path, tuning.CONFIRMATION)
        start.wait()
        mine.optimize(lambda trial: taken.append(trial.user_attrs.get("number")) or 1.0, n_trials=5)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(taken) == list(range(20))


def test_study_of_another_version_and_a_name_with_options_are_refused(tmp_path):
    tuning.open_study(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("update alembic_version set version_num = 'v9.9.9.a'")
    with pytest.raises(UserError, match=r"study\.db: not readable as a study"):
        tuning.open_study(tmp_path)
    args = tune_ddgan.parse_args(["--study", f"{tmp_path}/q?a/s", "--trials", "1"])
    with pytest.raises(UserError, match=r"must not contain '\?'"):
        tune_ddgan.main(args)
    assert not (tmp_path / "q").exists()
