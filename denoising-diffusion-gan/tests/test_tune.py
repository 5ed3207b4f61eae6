"""The search for training flags: the space, workers that share a study, trials that fail, the page."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import train_ddgan
import tune_ddgan
from comparison.cli import UserError
from comparison.files import write_json
from ddgan import tuning, tuning_page, tuning_trials
from ddgan.tuning import Knob, Search, make_space
from ddgan.tuning_trials import Bench, replace_flags, run_trial
from helpers_ddgan import FOLDER, make_images

SCRIPT = FOLDER / "tune_ddgan.py"
TINY = (
    "--image_size 8 --num_channels_dae 8 --ch_mult 1 2 --num_res_blocks 1 --attn_resolutions 4 --nz 4 --z_emb_dim 8 "
    "--n_mlp 1 --num_timesteps 2 --ngf 2 --t_emb_dim 8 --batch_size 4 --lazy_reg 2 --use_ema --ema_decay 0.9 "
    "--num_epoch 0"
)
BASE = {"lr_g": 1e-4, "lr_d": 2e-4, "r1_gamma": 0.1, "lazy_reg": 10, "ema_decay": 0.99, "num_timesteps": 4}
BASE |= {"accum_iter": 1, "use_ema": True}
SPACE = [Knob("lr_g", 1e-5, 1e-2), Knob("ema_decay", 0.9, 0.999, "decay")]
DEFAULT = {"lr_g": 1e-4, "ema_decay": 0.99}


@pytest.fixture(autouse=True)
def _quiet_optuna():
    tuning.require_optuna()


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


@pytest.fixture(scope="module")
def searched(pictures, tmp_path_factory):
    """A whole search of three trials by two joining processes."""
    folder = tmp_path_factory.mktemp("study") / "two"
    command = [sys.executable, str(SCRIPT), *flags(pictures, folder, "--workers", "2")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


# The whole command


def test_two_workers_share_the_trials_of_one_study(searched):
    assert [row["trial"] for row in rows(searched)] == ["0", "1", "2"]
    study = Search(searched, json.loads(json.dumps(settings_of(searched))), SPACE, DEFAULT, 0)
    workers = {trial.user_attrs["worker"] for trial in study.trials()}
    study.close()
    assert len(study.trials()) == 3
    assert len(workers) == 2


def settings_of(folder: Path) -> dict:
    import optuna

    return optuna.load_study(study_name="ddgan", storage=f"sqlite:///{folder / 'study.db'}").user_attrs["settings"]


def test_the_first_trial_is_the_base_flags_and_the_best_is_not_worse(searched):
    first, *_ = rows(searched)
    base = train_ddgan.parse_args(TINY.split())
    assert {name: float(first[name]) for name in tune_ddgan.NAMES} == {n: getattr(base, n) for n in tune_ddgan.NAMES}
    distances = [float(row["frechet_distance_at_16"]) for row in rows(searched) if row["state"] == "finished"]
    assert min(distances) <= float(first["frechet_distance_at_16"])


def test_the_flags_of_the_best_trial_paste_into_the_training_script(searched):
    best = min(rows(searched), key=lambda row: float(row["frechet_distance_at_16"] or "inf"))
    args = train_ddgan.parse_args((searched / "best_flags.txt").read_text().split())
    assert {name: getattr(args, name) for name in tune_ddgan.NAMES} == {n: float(best[n]) for n in tune_ddgan.NAMES}
    assert (args.ngf, args.max_images, args.use_ema) == (2, 16, True)


def test_large_files_of_trials_are_gone_and_small_ones_stay(searched):
    assert not [*searched.rglob("*.pth"), *searched.rglob("*.npz")]
    assert (searched / "trials" / "0000" / "progress.csv").is_file()
    assert {"README.md", "study.json", "history.png"} <= {path.name for path in searched.iterdir()}


def test_the_same_command_trains_nothing_anew_and_more_trials_go_on(searched, pictures, tmp_path, monkeypatch):
    folder = shutil.copytree(searched, tmp_path / "study")
    before = {name: (folder / name).read_bytes() for name in ("README.md", "trials.csv", "history.png")}
    with monkeypatch.context() as patch:
        patch.setattr(train_ddgan, "main", None)
        assert tune(pictures, folder) == 0
        (folder / "study.db").rename(folder / "hidden.db")
        assert tune(pictures, folder, "--page") == 0  # from study.json alone
        (folder / "hidden.db").rename(folder / "study.db")
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert tune(pictures, folder, "--trials", "4", "--confirm", "0") == 0
    assert len(rows(folder)) == 4


def test_a_study_refuses_other_settings_by_name(searched, pictures):
    with pytest.raises(UserError, match=r"holds another study: .*rungs \[8, 16\] there, \[10, 20\] here"):
        tune(pictures, searched, "--max_images", "20")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--max_steps 3", "--max_steps: the search sets it itself"),
        ("--fix lr=3", "--fix lr=3: must be NAME=VALUE"),
        ("--fix num_timesteps=half", "must be a whole number"),
        ("--range lr_g=1e-3:1e-4", "must be LOW:HIGH"),
        ("--r1_gamma 0", "add --fix r1_gamma=0"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
        ("--rungs 1.5", "--rungs"),
        ("--base '", "--base ': not readable as flags"),
        ("--study .", "must be the name of a study"),
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
    assert (tmp_path / "study.db").read_bytes() == b"no database" * 100
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["study"]


def test_a_missing_optuna_is_named_in_one_sentence(monkeypatch, pictures, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        tune(pictures, tmp_path / "study")


def test_flags_of_the_training_pass_through_and_the_last_one_counts(pictures, tmp_path):
    more = ["--ngf", "4", "--ch_mult", "1", "1", "--fix", "num_timesteps=3", "--fix", "accum_iter=2"]
    args = tune_ddgan.parse_args(flags(pictures, tmp_path, *more))
    trained = train_ddgan.parse_args(args.base)
    assert (trained.ngf, trained.ch_mult, trained.num_timesteps, trained.accum_iter) == (4, [1, 1], 3, 2)
    assert args.base.count("--ngf") == args.base.count("--ch_mult") == 1
    space, _ = tune_ddgan.judge(args, tmp_path)
    assert {knob.name for knob in space} == set(tune_ddgan.NAMES) - {"num_timesteps", "accum_iter"}


def test_the_default_base_flags_are_those_of_the_quick_preset():
    args = tune_ddgan.parse_args([])
    assert (args.training.num_channels_dae, args.training.ngf, args.training.batch_size) == (64, 32, 16)


# The space


def test_the_space_holds_the_base_flags_and_leaves_out_what_has_no_effect():
    wide = {knob.name: knob for knob in make_space({**BASE, "lr_g": 0.5, "num_timesteps": 1}, [], {})}
    assert (wide["lr_g"].high, wide["num_timesteps"].low) == (0.5, 1)
    assert "ema_decay" not in {knob.name for knob in make_space({**BASE, "use_ema": False}, [], {})}
    assert make_space(BASE, [], {"lr_d": (1e-5, 3e-4)})[1] == Knob("lr_d", 1e-5, 3e-4)
    with pytest.raises(UserError, match="nothing to search"):
        make_space(BASE, tune_ddgan.NAMES, {})


def test_suggestions_lie_in_their_ranges_and_survive_the_command_line():
    import optuna

    space = make_space(BASE, [], {})
    trained = ["--use_ema"]
    for number in range(20):
        study = optuna.create_study(sampler=tuning.make_sampler(0, number))
        trial = study.ask()
        values = {knob.name: knob.suggest(trial) for knob in space}
        assert all(knob.low <= values[knob.name] <= knob.high for knob in space)
        args = train_ddgan.parse_args([*trained, *tuning_trials.flag_words(values)])
        assert {name: getattr(args, name) for name in values} == values


def test_replaced_flags_stay_in_their_places():
    words = ["--dataset", "shapes", "--lr_g", "0.1", "--ch_mult", "1", "2", "2"]
    assert " ".join(replace_flags(words, {"lr_g": 2.5e-4, "accum_iter": 2})) == (
        "--dataset shapes --lr_g 0.00025 --ch_mult 1 2 2 --accum_iter 2"
    )


# Workers and trials, with trainings that cost nothing


class FakeBench(Bench):
    """Measures by a function of (values, images) instead of training; remembers what it was asked."""

    def __init__(self, distance):
        self.distance, self.asked = distance, []

    def measure(self, folder, values, seed, images):
        self.asked.append((folder.name, images))
        return {"value": self.distance(values, images), "interval": None, "n": 9, "images_seen": images, "seconds": 1.0}


def open_study(folder: Path) -> Search:
    return Search(folder, {"base": "x"}, SPACE, DEFAULT, 0)


def search(study: Search, bench: Bench, total: int, rungs=(5, 10)) -> list:
    while trial := study.next_trial(total):
        run_trial(study, trial, bench, 0, rungs)
    return [trial for trial in study.trials() if trial.state.is_finished() and not study.is_interrupted(trial)]


def test_workers_that_join_do_not_draw_alike(tmp_path):
    first, second = open_study(tmp_path), open_study(tmp_path)
    values = [study.next_trial(4).user_attrs["values"] for study in (first, second, first, second)]
    assert len({value["lr_g"] for value in values}) == 4
    assert first.next_trial(4) is second.next_trial(4) is None
    assert first.running() == second.running() == 4


def test_an_interrupted_trial_goes_on_with_its_values_in_its_folder(tmp_path):
    def stop(values, images):
        if images == 10 and values != DEFAULT:
            raise KeyboardInterrupt
        return 1.0

    study, bench = open_study(tmp_path), FakeBench(stop)
    with pytest.raises(KeyboardInterrupt):
        search(study, bench, 3)
    study.close()
    left = study.trials()[1].user_attrs["values"]
    again, bench = open_study(tmp_path), FakeBench(lambda values, images: 1.0)
    done = search(again, bench, 3)
    assert len(done) == 3
    assert done[1].user_attrs["values"] == left
    assert bench.asked[:2] == [("0001", 5), ("0001", 10)]


def test_a_killed_workers_trial_is_taken_over_and_a_living_ones_is_not(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from ddgan.tuning import Knob, Search, require_optuna
require_optuna()
study = Search(Path({str(tmp_path)!r}), {{"base": "x"}}, {SPACE!r}, {DEFAULT!r}, 0)
study.next_trial(2)
print("begun", flush=True)
time.sleep(60)
"""
    search_path = os.pathsep.join([str(FOLDER), str(FOLDER.parent / "results")])
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": search_path}
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "begun\n"
    study = open_study(tmp_path)
    assert study.running() == 1
    assert study.next_trial(1) is None
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    trial = study.wait_for_others(1)
    assert trial is not None
    assert trial.user_attrs["values"] == DEFAULT
    assert trial.user_attrs["default"]
    assert trial.user_attrs["folder"] == "0000"
    run_trial(study, trial, FakeBench(lambda values, images: 1.0), 0, [10])
    assert study.wait_for_others(1) is None
    study.close()


def test_a_diverged_or_broken_trial_is_recorded_and_the_search_goes_on(tmp_path):
    def distance(values, images):
        if len(bench.asked) == 3:
            raise tuning_trials.DivergedError("the training has diverged")
        if len(bench.asked) == 5:
            raise RuntimeError("out of memory\nat a place")
        return 1.0

    study, bench = open_study(tmp_path), FakeBench(distance)
    done = search(study, bench, 5)
    assert [trial.state.name for trial in done] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE", "COMPLETE"]
    assert done[1].user_attrs["diverged"]
    assert done[2].user_attrs["reason"] == "out of memory"


def test_a_mistake_of_the_user_ends_the_search_and_loses_no_trial(tmp_path):
    def refuse(values, images):
        raise UserError("the data are gone")

    study = open_study(tmp_path)
    with pytest.raises(UserError, match="data are gone"):
        search(study, FakeBench(refuse), 2)
    done = search(study, FakeBench(lambda values, images: 1.0), 2)
    assert [trial.user_attrs["values"] == DEFAULT for trial in done] == [True, False]


def test_trials_worse_than_the_median_end_at_a_rung_and_the_base_flags_never_do(tmp_path):
    study = open_study(tmp_path)
    bench = FakeBench(lambda values, images: 1.0 if len(bench.asked) <= 10 else 2.0)
    done = search(study, bench, 8)
    assert [trial.state.name for trial in done] == ["COMPLETE"] * 5 + ["PRUNED"] * 3
    assert bench.asked[-1] == ("0007", 5)
    study.study.enqueue_trial({"lr_g": 1e-4, "1-ema_decay": 0.01}, user_attrs={"default": True})
    assert search(study, bench, 9)[-1].state.name == "COMPLETE"


def test_a_measured_rung_is_not_trained_again_and_divergence_is_told_apart(tmp_path):
    calls = []

    class FixedScorer:
        count = 16

        def __call__(self, path):
            return {"value": 3.0, "interval": [2.0, 4.0], "n": 16}

    def train(words):
        calls.append(words)
        folder = Path(words[words.index("--exp") + 1])
        if words[words.index("--seed") + 1] == "9":
            raise UserError("the training has diverged by update 3")
        finished = {"reason": "x", "steps": 1, "wall_seconds": 2.0}
        seen = min(20, int(words[words.index("--max_images") + 1]))
        write_json(folder / "config.json", {"options": {}, "finished": {**finished, "images_seen": seen}})
        return 0

    bench = Bench(train, lambda words: 0, ["--ngf", "2"], [], FixedScorer)
    entry = bench.measure(tmp_path / "a", {"lr_g": 1e-3}, 0, 16)
    assert entry == bench.measure(tmp_path / "a", {"lr_g": 1e-3}, 0, 16)
    assert len(calls) == 1
    assert (entry["value"], entry["images_seen"], entry["seconds"]) == (3.0, 16, 2.0)
    with pytest.raises(UserError, match="left by another search"):
        bench.measure(tmp_path / "a", {"lr_g": 2e-3}, 0, 16)
    with pytest.raises(tuning_trials.DivergedError):
        bench.measure(tmp_path / "b", {}, 9, 16)
    with pytest.raises(UserError, match="ended at 20 images"):
        bench.measure(tmp_path / "a", {"lr_g": 1e-3}, 0, 32)
    bench.total = 64  # learning rates are planned for a full trial
    bench.measure(tmp_path / "c", {}, 0, 16)
    assert calls[-1][-4:] == ["--max_images", "64", "--stop_after", "16"]


def test_ctrl_c_ends_all_workers_and_leaves_no_trial_behind(pictures, tmp_path):
    folder = tmp_path / "study"
    command = [sys.executable, str(SCRIPT), *flags(pictures, folder, "--workers", "2", "--confirm", "0")]
    first = subprocess.Popen(
        [*command, "--max_images", "4000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    for _ in range(600):
        if any((folder / "trials").rglob("config.json")):  # a trial has begun, the base flags first
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert first.returncode == 130
    study = Search(folder, settings_of(folder), SPACE, DEFAULT, 0)
    assert study.running() == 0
    waiting = [trial for trial in study.trials() if trial.state.name == "WAITING"]
    assert sum(trial.user_attrs.get("default", False) for trial in waiting) == 1
    study.close()


# The page


def test_rank_correlation_is_one_for_the_same_order_and_minus_one_for_the_reverse():
    assert tuning_page.rank_correlation([1, 2, 5], [10, 20, 21]) == 1
    assert tuning_page.rank_correlation([1, 2, 5], [21, 20, 10]) == -1
    assert tuning_page.rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)


def made_study(confirm: list[dict]) -> dict:
    return {"confirm": confirm}


def entries(default: list[float | None], winner: list[float | None]) -> list[dict]:
    pairs = (("default", default), ("winner", winner))
    return [{"role": role, "seed": s, "value": v} for role, values in pairs for s, v in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("default", "winner", "verdict"),
    [
        ([10.0, 11.0, 12.0], [4.0, 5.0, 6.0], "**The winner helps**: winner minus base flags -6.0 ± 2.3"),
        (
            [10.0, 11.0, 12.0],
            [9.0, 10.0, 11.0],
            "**It is not shown that the winner helps**: winner minus base flags -1.0 ± 2.3",
        ),
        ([4.0, 5.0, 6.0], [10.0, 11.0, 12.0], "**The winner is worse than the base flags**"),
        ([10.0, None, 12.0], [4.0, 5.0, 6.0], "base flags 11.0 ± 1.4 over 2 seeds, 1 diverged"),
    ],
)
def test_the_page_says_whether_the_winner_helps(default, winner, verdict):
    assert verdict in " ".join(tuning_page._confirmation(made_study(entries(default, winner))))


def test_the_committed_page_is_that_of_its_study(tmp_path):
    source = FOLDER.parent / "results" / "studies" / "ddgan-tuning"
    shutil.copy(source / "study.json", tmp_path)
    tuning_page.rewrite_pages(tmp_path)
    for name in ("README.md", "trials.csv", "best_flags.txt"):
        assert (tmp_path / name).read_text() == (source / name).read_text(), name
