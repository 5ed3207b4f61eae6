"""results/benchmark.py: both precisions in turn, medians and ratios; the README's line runs it on a real model."""

import json
import re
from pathlib import Path

import pytest
from comparison import cli, jobs


@pytest.fixture
def calls(monkeypatch):
    """Replace the models' scripts: float32 takes twice as long, and each round a little longer."""
    made = []

    def train(model, folder, data, words, console=None):
        precision = words[words.index("--precision") + 1]
        seconds = (2 if precision == "float32" else 1) * (1 + 0.1 * (len(made) // 2))
        made.append((precision, words))
        folder.mkdir(parents=True)
        rows = ["step,images_seen,wall_seconds", f"10,320,{5 + 10 * seconds}", f"30,960,{5 + 30 * seconds}"]
        (folder / "progress.csv").write_text("\n".join(rows) + "\n")
        return {"parameters": 7}

    def sample(model, run, folder, words, *, benchmark, console=None):
        slow = words[words.index("--precision") + 1] == "float32"
        return {
            "precision": "float32" if slow else "bfloat16",
            "device": "a machine",
            "batches": [{"seconds": 0.4 if slow else 0.1}],
            "best": {"images_per_second": 50 if slow else 100},
            "gflop_per_image": 0.5,
            "convolution_gflop_per_second": 100,
        }

    monkeypatch.setattr(jobs, "train", train)
    monkeypatch.setattr(jobs, "sample", sample)
    return made


def test_precisions_take_turns_and_the_ratio_is_that_of_each_round(script, tmp_path, calls):
    done = script(tmp_path, "benchmark.py", "gans", "--rounds", 3, "--out", "b.json")
    assert done.returncode == 0, done.stderr
    assert [precision for precision, _ in calls] == ["auto", "float32", "float32", "auto", "auto", "float32"]
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["ratios"]["latency_seconds"] == {"median": 4.0, "range": [4.0, 4.0]}
    assert found["ratios"]["seconds_per_image"]["median"] == 2.0
    assert found["ratios"]["update_seconds"]["median"] == pytest.approx(2.0)
    entry = found["rounds"]["auto"][0]
    assert entry["update_seconds"] == pytest.approx(1.0)  # the first ten updates warm up
    assert entry["images_per_update"] == 32
    assert entry["convolution_fraction"] == 0.5
    assert re.search(r"fraction of convolution speed +50% +25%", done.stdout)


def test_small_benchmark_writes_only_where_told(script, tmp_path, calls, monkeypatch):
    monkeypatch.setattr(cli, "repo_root", lambda: tmp_path)
    (tmp_path / "flags.sh").write_bytes((Path(__file__).parents[2] / "flags.sh").read_bytes())
    assert script(tmp_path, "benchmark.py", "improved-diffusion", "--small", "--rounds", 1).returncode == 0
    assert not (tmp_path / "results").exists()
    assert calls[0][1][-4:] == ["--max_steps", "5", "--log_interval", "1"]
