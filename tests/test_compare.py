"""The main job: options, the commands of each stage, a model that joins by one row, and one run from end to end."""

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from comparison import cli, jobs, models
from comparison.data.images import load_npz
from comparison.scores.evaluation import find_samples
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TINY = "--data shapes --preset quick --num_samples 64"


@pytest.fixture(scope="module")
def compare(run_here):
    """Return a function that calls compare.py in this process and returns its exit status, output and errors."""
    return lambda *words: run_here(["results/compare.py", *words])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--preset big", "--preset: invalid choice: 'big' (choose from"),
        ("--budget hours=3", "must be seconds=N, images=N, recipe or"),
        ("--budget recipe", "only the preset paper"),
        ("--budget seconds=0", "must be above 0"),
        ("--budget gans:images=5", "must name improved-diffusion once"),
        ("--models gans --budget gans:images=5,gans:images=6", "must name gans once"),
        ("--models gans,vae", "must be among"),
        ("--name a/b", "letters, digits"),
        ("--name ..", "letters, digits"),
        ("--models gans,gans", "must name each model once"),
        ("--sweep 10,many", "must be different numbers of steps"),
        ("--sweep 10,20", "--sweep 20: the default of the quick preset"),
        ("--preset cpu --sweep 2000", "the cpu preset has 1000 steps"),
        ("--history 100", "must be below 100"),
        ("--history 3 --budget images=3", "too small for as many parts"),
        ("--preset paper --history 2", "needs --budget seconds=N or images=N"),
        ("--preset paper --few_step true", "--few_step true: needs --budget seconds=N or images=N"),
        ("--preset paper --budget recipe --gan r3gan-tiny", "--gan r3gan-tiny: the preset paper has no R3GAN_FLAGS"),
        ("--models improved-diffusion --gan dcgan", "--gan dcgan: gans is not among --models"),
    ],
)
def test_wrong_options_are_one_sentence(options, message, compare, monkeypatch):
    monkeypatch.setattr(jobs, "run", lambda *_: pytest.fail("a script was started"))
    status, _, err = compare(*shlex.split(options))
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_shell_script_hands_its_options_over(shell):
    done = shell("bash results/compare.sh --seed")
    assert done.returncode == 2
    assert done.stderr == "compare.py: error: argument --seed: expected one argument\n"
    assert "usage: compare.py" in shell("bash results/compare.sh --help").stdout


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Replace the models' scripts in an empty repository: note the commands, leave the files that tell of an end."""
    monkeypatch.setattr(cli, "repo_root", lambda: tmp_path)
    (tmp_path / "flags.sh").write_bytes((ROOT / "flags.sh").read_bytes())
    noted = []

    def run(command, console=None):
        noted.append(command)
        value = dict(pairwise(command))
        model = next((m for m in models.MODELS.values() if command[0] in (m.train, m.sample, m.distill)), None)
        if model is None:
            if "--anchors" in value and command[0] == "results/evaluate.py":
                known = {"name": "made up", "fingerprint": "0"}
                controls = {"anchors": {"floor": {"label": "floor", "metrics": {}}}, "checks": [], "n": 1}
                controls |= {"reference": known, "extractor": known}
                (tmp_path / value["--anchors"]).write_text(json.dumps(controls))
        elif command[0] != model.sample:
            folder = tmp_path / value["--run_dir"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / model.checkpoints.replace("*", "0.9_000001")).touch()
            unit = next(unit for unit in ("max_seconds", "max_images") if f"--{unit}" in value)
            until = value.get("--stop_after", value[f"--{unit}"])
            done = {"reason": f"{unit} {until}", "steps": 1, "images_seen": 1, "wall_seconds": 1}
            (folder / "config.json").write_text(json.dumps({"options": {}, "finished": done}))
        else:
            folder = tmp_path / value["--out"]
            folder = folder.parent if model.samples else folder
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ("timing.json" if "--benchmark" in command else "sampling.json")).write_text("{}")

    monkeypatch.setattr(jobs, "run", run)
    return noted


@pytest.mark.parametrize(
    ("preset", "setting", "flags"),
    [("paper", "ddim7", "--use_ddim True --timestep_respacing ddim7"), ("gpu", "dpmpp-sde7", "--num_sampling_steps 7")],
)
def test_sweep_takes_the_sampler_of_the_preset(compare, calls, preset, setting, flags):
    options = "--models improved-diffusion --budget images=32 --history 0 --benchmark false --sweep 7 --few_step false"
    status, _, err = compare("--preset", preset, "--name", "sweep", *options.split())
    assert status == 0, err
    sampled = [call for call in calls if call[0].endswith("image_sample.py")]
    assert len(sampled) == 2
    assert f"results/runs/improved-diffusion/sweep/settings/{setting}" in sampled[1]
    assert sampled[1][-len(flags.split()) :] == flags.split()
    assert ("--sampler" in sampled[1]) == (preset == "gpu")


@pytest.mark.parametrize("preset", ["quick", "cpu", "gpu"])
@pytest.mark.parametrize("gan", ["dcgan", "dcgan-plus", "r3gan-tiny"])
def test_gan_is_trained_by_the_flags_of_its_preset(compare, calls, parse, preset, gan):
    options = f"--preset {preset} --name {gan} --models gans --gan {gan} --budget images=64 --history 0"
    status, _, err = compare(*options.split(), "--benchmark", "false")
    assert status == 0, err
    (trained,) = [call[1:] for call in calls if call[0] == "gans/cifar_gan.py"]
    args = parse("gans/cifar_gan.py", trained)
    assert args.preset == gan
    assert args.loss == {"dcgan": "bce", "dcgan-plus": "hinge", "r3gan-tiny": "relativistic"}[gan]


def test_history_pauses_a_training_that_is_planned_as_a_whole(compare, calls):
    options = "--models improved-diffusion --budget images=64 --history 1 --benchmark false"
    status, out, err = compare("--preset", "paper", "--name", "history", "--sweep", "", "--fresh", *options.split())
    assert status == 0, err
    trained = [" ".join(call) for call in calls if call[0].endswith("image_train.py")]
    assert [line.partition("--max_steps 0 ")[2] for line in trained] == [
        "--max_images 64 --stop_after 32 --fresh",
        "--max_images 64",
    ]
    assert "== improved-diffusion: sample at 50%" in out


def test_tuning_to_few_steps_takes_a_fifth_of_the_budget(compare, calls):
    options = "--preset cpu --models gans,improved-diffusion --budget seconds=100 --history 0 --benchmark false"
    status, _, err = compare("--name", "few", *options.split())
    assert status == 0, err
    scripts = ("gans/cifar_gan.py", *(f"improved-diffusion/scripts/{name}_train.py" for name in ("image", "distill")))
    trained = {call[0]: dict(pairwise(call)) for call in calls if call[0] in scripts}
    assert [trained[name]["--max_seconds"] for name in scripts] == ["100", "80", "20"]
    run = "results/runs/improved-diffusion/few"
    assert trained[scripts[2]]["--model_path"] == f"{run}/ema_0.9_000001.pt"
    assert trained[scripts[2]]["--batch_size"] == "12"
    sampled = [dict(pairwise(call)) for call in calls if call[0].endswith("image_sample.py")]
    found = {value["--out"]: (value["--checkpoint"], value.get("--sampler")) for value in sampled}
    for steps in (1, 2, 4):
        tuned = (f"{run}/few-step/ema_0.9_000001.pt", "few-step")
        assert found[f"{run}/settings/few-step-{steps}"] == tuned
    for setting in ("dpmpp2", "dpmpp4", "unipc2", "unipc4"):
        assert found[f"{run}/settings/{setting}"] == (f"{run}/ema_0.9_000001.pt", setting[:-1])
    assert len(found) == 1 + 1 + 7  # with the default sampler and --sweep


def test_training_that_diverges_is_used_up_to_its_last_checkpoint(tmp_path, monkeypatch):
    gan, config = models.MODELS[models.GAN], {"model": "gans", "options": {}}
    diverged = {"steps": 9, "images_seen": 90, "wall_seconds": 3.0, "value": "loss_d nan"}

    def fail(command, console):
        (tmp_path / "config.json").write_text(json.dumps({**config, "diverged": diverged}))
        raise SystemExit(2)

    monkeypatch.setattr(jobs, "run", fail)
    with pytest.raises(SystemExit):  # without a checkpoint
        jobs.train(gan, tmp_path, "shapes", [])
    (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoint_000005.pt").touch()
    assert jobs.train(gan, tmp_path, "shapes", [])["finished"]["reason"] == "diverged at step 9"
    with pytest.raises(SystemExit):  # nothing new: another failure
        jobs.train(gan, tmp_path, "shapes", [])


def test_each_model_may_have_its_own_budget(compare, calls):
    budget = "denoising-diffusion-gan:seconds=8,gans:images=32"
    options = f"--models gans,denoising-diffusion-gan --budget {budget} --benchmark_seconds 0.7 --compile true"
    status, _, err = compare("--name", "own", *options.split())
    assert status == 0, err
    trained = [call for call in calls if call[0] in ("gans/cifar_gan.py", "denoising-diffusion-gan/train_ddgan.py")]
    assert [call[-2:] for call in trained] == [["--max_images", "32"], ["--max_seconds", "8"]]
    assert ["--compile" in call for call in trained] == [False, True]
    assert sum("--benchmark_seconds 0.7" in " ".join(call) for call in calls) == 2
    assert calls[-1][calls[-1].index("--budget") + 1] == budget


def test_new_model_joins_by_a_row_and_two_scripts(compare, calls, monkeypatch):
    row = models.Model("noise", "white noise", "#CC79A7", "noise/train.py", "noise/sample.py", "toy_*.npy")
    monkeypatch.setitem(models.MODELS, "noise", row)
    options = "--preset quick --name toy --models noise --budget seconds=1 --history 0 --benchmark false"
    status, _, err = compare(*options.split())
    assert status == 0, err
    run = "results/runs/noise/toy"
    assert [call[0] for call in calls if call[0].startswith("noise/")] == [row.train, row.sample]
    assert values(calls[0])["--run_dir"] == run
    assert values(calls[1])["--checkpoint"] == f"{run}/toy_0.9_000001.npy"


@pytest.fixture(scope="module")
def finished(checkout, compare, jobs_here):
    """One comparison of tiny budgets from end to end, called twice."""
    options = f"{TINY} --image_size 16 --history 1 --sweep 2 --benchmark_seconds 0.01 --name end --few_step true"
    options += " --budget gans:images=128,improved-diffusion:images=160,denoising-diffusion-gan:images=128"
    preset = models.preset_flags("quick")
    preset["MODEL_FLAGS"] += ["--num_channels", "16"]
    preset["DDGAN_FLAGS"] += ["--num_channels_dae", "16"]
    preset["SAMPLE_FLAGS"] += ["--num_sampling_steps", "5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "preset_flags", lambda name: preset)
        patch.setattr(cli, "repo_root", lambda: checkout)
        patch.setattr(jobs, "run", jobs_here)
        status, out, err = compare(*options.split())
        assert status == 0, out + err
        before = stamps(checkout)
        report = (checkout / "results" / "reports" / "end" / "REPORT.md").read_bytes()
        status, again, err = compare(*options.split())
        assert status == 0, again + err
    return checkout, before, report


def stamps(checkout):
    """Return when each file of weights, samples and timings was written."""
    runs = (checkout / "results" / "runs").glob("*/end")
    files = (path for run in runs for path in run.rglob("*"))
    kept = (path for path in files if path.suffix in (".npz", ".pt", ".pth") or path.name == "timing.json")
    return {path: path.stat().st_mtime_ns for path in kept}


def read(path):
    return json.loads(path.read_text())


def test_second_call_reuses_what_is_finished(finished):
    checkout, before, report = finished
    assert len(before) >= 3 * 4  # checkpoints and samples of three models
    assert stamps(checkout) == before
    assert (checkout / "results" / "reports" / "end" / "REPORT.md").read_bytes() == report


def test_earlier_stages_of_a_training_are_sampled(finished):
    for model in models.MODELS:
        run = finished[0] / "results" / "runs" / model / "end"
        assert read(run / "history/50/sampling.json")["trained"]["images_seen"] == 64
        assert read(run / "sampling.json")["trained"]["images_seen"] == 128
        assert read(run / "timing.json")["convolution_gflop_per_second"] > 0


def test_diffusion_model_is_sampled_in_other_numbers_of_steps(finished):
    run = finished[0] / "results" / "runs" / "improved-diffusion" / "end"
    facts = read(run / "settings/dpmpp-sde2/sampling.json")
    assert (facts["sampler"], facts["nfe"]) == ("DPM-Solver++ 2M SDE, 2 steps, logsnr", 2)
    assert read(run / "settings/dpmpp-sde2/timing.json")["nfe"] == 2
    assert read(run / "sampling.json")["nfe"] == 5
    assert (run / "interpolation.png").is_file()


def test_network_is_tuned_to_few_steps_and_its_rows_cost_both_trainings(finished):
    run = finished[0] / "results" / "runs" / "improved-diffusion" / "end"
    tuned = read(run / "few-step" / "config.json")
    assert tuned["finished"]["images_seen"] == 36  # 32 in batches of 12
    report = read(finished[0] / "results" / "reports" / "end" / "report.json")
    rows = {row["label"]: row for row in report["models"]}
    for steps in (1, 2, 4):
        row = rows[f"improved DDPM, few-step-{steps}"]
        assert (row["nfe"], row["images_seen"]) == (steps, 128 + 36)
        assert row["training_seconds"] > rows["improved DDPM"]["training_seconds"]
        assert row["seconds_per_image"] > 0
    assert rows["improved DDPM, dpmpp2"]["images_seen"] == 128


def test_each_seed_has_its_run_and_one_report_reads_all(compare, calls, tmp_path):
    options = (
        "--models gans,denoising-diffusion-gan --budget images=32 --benchmark false --name many --seed 4 --seeds 2"
    )
    assert compare(*options.split())[0] == 0
    runs = ["results/runs/gans/many", "results/runs/denoising-diffusion-gan/many"]
    trained = [(value["--run_dir"], value["--seed"]) for value in map(values, calls) if "--run_dir" in value]
    assert trained == [(runs[0], "4"), (runs[1], "4"), (f"{runs[0]}-s1", "5"), (f"{runs[1]}-s1", "5")]
    assert calls[-1][-4:] == [runs[0], f"{runs[0]}-s1", runs[1], f"{runs[1]}-s1"]
    assert values(calls[-2])["--seed"] == "4"


def values(command):
    return dict(pairwise(command))


def test_weights_of_each_model_give_the_samples_of_its_checkpoint(finished, jobs_here, run_here, monkeypatch):
    checkout = finished[0]
    monkeypatch.setattr(cli, "repo_root", lambda: checkout)
    monkeypatch.setattr(jobs, "run", jobs_here)
    runs = [checkout / "results" / "runs" / name / "end" for name in models.MODELS]
    status, out, err = run_here(["results/export_weights.py", *map(str, runs)])
    assert status == 0, out + err
    flags = ["--name", "end", "--num_samples", "4", "--precision", "float32"]
    preset = models.preset_flags("cpu")
    preset["SAMPLE_FLAGS"] = ["--sampler", "dpmpp", "--num_sampling_steps", "3"]
    monkeypatch.setattr(models, "preset_flags", lambda name: preset)
    status, out, err = run_here(["results/sample_all.py", *flags, "--out", str(checkout / "all.png")])
    assert status == 0, out + err
    assert Image.open(checkout / "all.png").height > 3 * 16
    for run, model in zip(runs, models.MODELS.values(), strict=True):
        own = [word for name in model.sample_flags for word in preset[name]]
        out = run / "settings" / "whole"
        command = [model.sample, "--checkpoint", str(models.newest_checkpoint(model, run)), *own, "--seed", "0"]
        jobs_here([*command, "--out", str(out / model.samples), "--num_samples", "4", "--precision", "float32"])
        found, expected = (load_npz(find_samples(folder))[0].float() for folder in (run / "pretrained", out))
        assert len(found) == 4
        assert float((found - expected).abs().mean()) < 1, model.name
