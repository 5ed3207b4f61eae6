"""results/benchmark.py: turns, medians, counted work, and a made-up model folder measured as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from comparison import benchmarking, pairs
from comparison.cli import UserError

RESULTS = Path(__file__).parents[1]
HOOK = """
from comparison.pairs import Pair, Sides

def build(settings):
    return Sides(lambda: sum(range(20000)), lambda: None)

def fail(settings):
    raise RuntimeError("no memory left\\nsecond line")

def pairs(small):
    common = {"images": 4, "unit": "batch", "units": 2}
    return [
        Pair("adding", "some numbers", build, goals={"float32": 1.5}, reference_seconds=(2.0, 3.0), **common),
        Pair("agreeing", "checked", build, check=lambda device: 1e-6, **common),
        Pair("differing", "checked too", build, check=lambda device: 0.5, **common),
        Pair("failing", "nothing", fail, **common),
    ]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "pairs.py").write_text(HOOK)
    return tmp_path / "flow"


def benchmark(*arguments, cwd=None, **env):
    command = [sys.executable, str(RESULTS / "benchmark.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env})


def request(folder, *names, **changes):
    """Ask for a measurement in this process, which saves importing torch."""
    common = {"list": False, "rounds": 2, "small": False, "device": "cpu", "precision": "float32", "threads": 1}
    return {"folder": str(folder), "model": folder.name, "pairs": names, **common, "out": None, **changes}


def test_both_paths_take_turns_and_change_the_order():
    calls, now = [], iter(range(100))
    times = pairs.alternate(
        lambda: calls.append("plain"), lambda: calls.append("fast"), 3, clock=lambda: float(next(now))
    )
    assert calls == ["plain", "fast", "fast", "plain", "plain", "fast"]
    assert times == [(1.0, 1.0)] * 3


def test_the_device_is_waited_for_before_and_after_each_call():
    events = []
    pairs.alternate(lambda: events.append("p"), lambda: events.append("f"), 1, lambda: events.append("-"), lambda: 0.0)
    assert "".join(events) == "-p--f-"


def test_summary_holds_medians_per_unit_and_the_spread_of_the_ratios():
    summary = pairs.summarize([(2.0, 1.0), (4.0, 1.0), (6.0, 2.0)], units=2)
    assert summary["plain"] == {"seconds": 2.0, "interquartile_range": 1.0, "rounds": [1.0, 2.0, 3.0]}
    assert summary["fast"]["seconds"] == 0.5
    assert summary["ratio"] == 4.0
    assert summary["ratio_quartiles"] == (2.5, 3.5)


def test_a_single_round_has_no_spread():
    summary = pairs.summarize([(2.0, 1.0)])
    assert summary["ratio"] == 2.0
    assert summary["ratio_quartiles"] is None
    assert summary["plain"]["interquartile_range"] is None


def test_difference_is_relative_to_the_largest_value():
    a, b = torch.tensor([0.0, 100.0]), torch.tensor([1.0, 100.0])
    assert pairs.difference([a, torch.zeros(2)], [b, torch.zeros(2)]) == pytest.approx(0.01)
    assert pairs.difference([torch.zeros(2)], [torch.zeros(2)]) == 0
    with pytest.raises(ValueError, match="not finite"):
        pairs.difference([a], [a * float("nan")])
    with pytest.raises(ValueError, match="shapes differ"):
        pairs.difference([a], [torch.zeros(3)])
    with pytest.raises(ValueError, match="shorter"):
        pairs.difference([a, a], [a])


def test_stirred_weights_are_the_same_every_time_and_never_zero():
    networks = [torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8)) for _ in range(2)]
    for network in networks:
        torch.nn.init.zeros_(network[0].weight)
        torch.nn.init.zeros_(network[0].bias)
        pairs.stir(network)
    for a, b in zip(*(n.parameters() for n in networks), strict=True):
        assert torch.equal(a, b)
        assert a.count_nonzero() == a.numel()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_arithmetic_of_a_convolution_and_a_linear_layer_is_counted(mode):
    conv, linear, x = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(16, 4), torch.zeros(2, 3, 16, 16)

    def call():
        with mode():
            linear(conv(x))

    wanted = 2 * (2 * 8 * 16 * 16) * (3 * 9) + 2 * (2 * 8 * 16) * 16 * 4
    assert pairs.count_work(call)["gflop"] == pytest.approx(wanted / 1e9)
    assert pairs.count_work(call)["operations"] >= 2


def test_a_training_step_counts_three_times_its_forward_pass():
    layer, x = torch.nn.Linear(8, 8), torch.zeros(4, 8, requires_grad=True)
    forward = pairs.count_work(lambda: layer(x))["gflop"]
    assert pairs.count_work(lambda: layer(x).sum().backward())["gflop"] == pytest.approx(3 * forward)


def test_fused_attention_counts_as_its_two_products():
    q = torch.zeros(2, 1, 16, 8)
    fused = pairs.count_work(lambda: F.scaled_dot_product_attention(q, q, q))["gflop"]
    assert fused == pytest.approx(2 * (2 * 2 * 16 * 16 * 8) / 1e9)


def test_a_folder_is_measured_and_the_file_says_all(folder, capsys):
    out = folder / "new" / "benchmark.json"
    assert benchmarking.measure_folder(request(folder, "adding", "agreeing", out=str(out))) == 0
    found = json.loads(out.read_text())
    assert {"schema", "protocol", "model", "device", "precision", "threads", "versions", "small"} < set(found)
    assert (found["model"], found["precision"], found["threads"]) == ("flow", "float32", 1)
    adding, agreeing = found["pairs"]
    assert adding["images"] == 4
    assert len(adding["plain"]["rounds"]) == 2
    assert adding["ratio"] > 1
    assert adding["goal"] == 1.5
    assert adding["goal_reached"] == (adding["ratio"] >= 1.5)
    assert adding["reference"] == {"seconds": [2.0, 3.0], "gflop": None}
    assert adding["agrees"] is None
    assert (agreeing["difference"], agreeing["agrees"]) == (1e-6, True)
    shown = capsys.readouterr().out
    assert "adding, per batch" in shown
    assert "2 s to 3 s" in shown


def test_a_goal_counts_only_for_its_precision(folder):
    out = folder / "benchmark.json"
    benchmarking.measure_folder(request(folder, "adding", out=str(out), precision="bf16"))
    entry = json.loads(out.read_text())["pairs"][0]
    assert (entry["goal"], entry["goal_reached"]) == (None, None)


def test_paths_that_disagree_are_named_and_fail(folder, capsys):
    assert benchmarking.measure_folder(request(folder, "differing")) == 1
    assert "warning: differing: the paths differ by 5.0e-01" in capsys.readouterr().out


def test_pairs_not_measured_again_stay_in_the_file(folder):
    out = folder / "benchmark.json"
    benchmarking.measure_folder(request(folder, "agreeing", out=str(out)))
    before = json.loads(out.read_text())["pairs"]
    benchmarking.measure_folder(request(folder, "adding", out=str(out)))
    after = json.loads(out.read_text())["pairs"]
    assert [entry["name"] for entry in after] == ["adding", "agreeing"]
    assert after[1] == before[0]


def test_pairs_of_other_circumstances_are_never_mixed(folder):
    out = folder / "benchmark.json"
    benchmarking.measure_folder(request(folder, "agreeing", out=str(out)))
    before = out.read_text()
    with pytest.raises(UserError, match=r"another precision \(float32\); name another file"):
        benchmarking.measure_folder(request(folder, "adding", out=str(out), precision="bf16"))
    assert out.read_text() == before
    benchmarking.measure_folder(request(folder, "agreeing", out=str(out), precision="bf16"))
    assert json.loads(out.read_text())["precision"] == "bfloat16"


def test_a_foreign_file_is_not_overwritten(folder):
    out = folder / "metrics.json"
    out.write_text("{}")
    with pytest.raises(UserError, match=r"not a benchmark\.json"):
        benchmarking.measure_folder(request(folder, "adding", out=str(out)))
    assert out.read_text() == "{}"


def test_a_failing_pair_is_told_in_one_sentence(folder):
    with pytest.raises(UserError, match=r"^pair failing: no memory left$"):
        benchmarking.measure_folder(request(folder, "failing"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae"], "MODEL vae: must be"),
        (["{folder}", "--pairs", "adding", "flying"], "--pairs flying: must be among adding, agreeing"),
        (["{folder}", "--out", "{folder}"], "a folder; name a file"),
        (["{folder}", "--rounds", "0"], "must be a whole number above 0"),
        (["{broken}"], "pairs.py: ZeroDivisionError"),
    ],
)
def test_mistakes_are_told_in_one_sentence_before_torch_is_imported(arguments, message, folder, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pairs.py").write_text("1 / 0")
    words = [word.format(folder=folder, broken=tmp_path / "broken") for word in arguments]
    done = benchmark(*words, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("benchmark.py: error:")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("model", ["gans", "improved-diffusion", "denoising-diffusion-gan"])
def test_every_model_lists_its_pairs_without_torch(model, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = benchmark(model, "--list", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0] for line in done.stdout.splitlines()[2:]}
    assert {"training", "sampling"} <= rows


def test_small_networks_are_measured_in_a_process_of_the_models_folder(tmp_path):
    out = tmp_path / "small.json"
    command = ["--small", "--pairs", "training", "--rounds", 1, "--threads", 1, "--out", "small.json"]
    done = benchmark("gans", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    entry = json.loads(out.read_text())["pairs"][0]
    assert entry["agrees"]
    assert entry["plain"]["gflop"] > entry["fast"]["gflop"] > 0
    assert json.loads(out.read_text())["small"]


def test_checks_multiply_float32_in_full_and_leave_the_setting_as_it_was():
    before = torch.backends.cudnn.allow_tf32
    with pairs.without_tf32():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
