"""The studies: plans, resuming, pages from study.json."""

import json
import os
import re
import runpy
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from comparison import jobs, models
from comparison.cli import UserError
from comparison.data import shapes
from comparison.data.held_out import load_data
from comparison.report import study_page
from fake_models import FakeModels

RESULTS = Path(__file__).parents[1]
NAMES = ("few_steps", "cost", "hybrid", "gan_losses", "gan_data", "parametrisation", "resolution")


def entry(value, half, n=500):
    return {"value": value, "interval": [value - half, value + half], "n": n}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return an .npz file of 1280 images of shapes; what is cached of them lies beside it."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, arr_0=shapes.dataset(10, 32, limit=1280)[0].permute(0, 2, 3, 1).numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(path.parent))
        yield path


@pytest.fixture
def fake(script, pictures, monkeypatch):
    """Replace the models' scripts."""
    scripts = FakeModels(script, pictures)
    monkeypatch.setattr(jobs, "run", scripts)
    return scripts


def run(script, folder, name, pictures, *flags):
    """Run a study in `folder` with few samples; `flags` may override."""
    paths = ("--data", pictures, "--out", folder / "out", "--runs_dir", folder / "runs")
    return script(folder, f"studies/{name}.py", *paths, *flags)


FEW = "--num_samples 64 --seconds 2"
SMALL = {
    "few_steps": f"{FEW} --tuning_seconds 1 --cells few-step,dcgan",
    "cost": "--rounds 2 --updates 2 --cells dcgan-w16-b128-bf16,dcgan-w16-b128-float32",
    "hybrid": f"{FEW} --seeds 2 --longer 3 --cells haar-x_t-decay,haar-x_0-decay,preset,denoiser,preset@3,denoiser@3",
    "gan_losses": f"{FEW} --seeds 2 --cells ns-none,relativistic-none,relativistic-r1r2",
    "parametrisation": f"{FEW} --seeds 2 --cells epsilon-cosine,x_start-cosine",
    "resolution": f"{FEW} --cells patches-32,patches-64,pixels-64,gan-64",
    "gan_data": "--num_samples 64 --seconds 4 --counts 200,500 --cells 200,200-augmented",
}
SMALL = {name: flags.split() for name, flags in SMALL.items()}


@pytest.mark.parametrize(("name", "most"), [*zip(NAMES, (24, 12, 28, 18, 24, 26, 60), strict=True)])
def test_plan_states_minutes_of_its_cells_and_runs_nothing(script, tmp_path, name, most):
    result = script(tmp_path, f"studies/{name}.py", "--plan", "--out", "out", "--runs_dir", "runs")
    assert result.returncode == 0, result.stderr
    minutes = [float(line.split()[-1]) for line in result.stdout.splitlines() if re.search(r"\d\.\d$", line)]
    count, total = map(int, re.search(r"(\d+) cells, about (\d+) minutes", result.stdout).groups())
    assert len(minutes) == count
    assert sum(minutes) == pytest.approx(total, abs=0.05 * count + 1.5)
    assert total <= most
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(script, pictures, tmp_path_factory):
    """Return study -> (folder, the fake models that ran there), each run once with few cells."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            scripts, folder = FakeModels(script, pictures), tmp_path_factory.mktemp(name)
            patch.setattr(jobs, "run", scripts)
            result = run(script, folder, name, pictures, *SMALL[name])
            assert result.returncode == 0, result.stderr
            found[name] = folder, scripts
    return found


def read_study(folder):
    return json.loads((folder / "out" / "study.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_second_call_reuses_every_finished_cell(script, finished, pictures, monkeypatch, name):
    folder, scripts = finished[name]
    before, page = len(scripts.done), (folder / "out" / "README.md").read_bytes()
    monkeypatch.setattr(jobs, "run", scripts)
    result = run(script, folder, name, pictures, *SMALL[name])
    assert result.returncode == 0, result.stderr
    assert len(scripts.done) == before
    assert (folder / "out" / "README.md").read_bytes() == page


def test_fresh_trains_and_samples_everything_again(script, fake, pictures, tmp_path):
    flags = ("--rounds", 1, "--cells", "dcgan-w16-b128-bf16")
    run(script, tmp_path, "cost", pictures, *flags)
    run(script, tmp_path, "cost", pictures, *flags, "--fresh")
    assert ["--fresh" in command for command in fake.done] == [False, False, True, False]
    assert ["--benchmark" in command for command in fake.done] == [False, True, False, True]


def test_interrupted_study_goes_on_where_it_stopped(script, fake, pictures, tmp_path):
    fake.interrupt_at = 3
    assert run(script, tmp_path, "few_steps", pictures, *SMALL["few_steps"]).returncode == 130
    assert run(script, tmp_path, "few_steps", pictures, *SMALL["few_steps"]).returncode == 0
    assert len(fake.done) == 7  # three trainings, four sample sets, none of them twice


def test_longer_budget_trains_and_samples_again_and_a_shorter_one_is_refused(script, fake, pictures, tmp_path):
    flags = ("--num_samples", 64, "--cells", "dcgan", "--tuning_seconds", 1)
    run(script, tmp_path, "few_steps", pictures, *flags, "--seconds", 1)
    run(script, tmp_path, "few_steps", pictures, *flags, "--seconds", 98)
    assert [command[0] for command in fake.done] == 2 * ["gans/cifar_gan.py", "gans/sample_gan.py"]
    assert [cell["training"]["seconds"] for cell in read_study(tmp_path)["cells"]] == [99]
    result = run(script, tmp_path, "few_steps", pictures, *flags, "--seconds", 1)
    assert "trained for 99 s, more than --seconds 2; --fresh starts over" in result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_page_is_made_from_study_json_alone(script, finished, tmp_path, name):
    folder, _ = finished[name]
    made = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    (tmp_path / "study.json").write_bytes(made["study.json"])
    result = script(tmp_path, f"studies/{name}.py", "--page", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    drawn = {name: file for name, file in made.items() if name != "samples.png"}  # that one shows samples
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == drawn
    text = made["README.md"].decode()
    assert str(folder) not in made["study.json"].decode() + text  # no path of this machine
    shown = re.findall(r"\]\((.*?\.png)\)", text)
    assert shown
    assert set(shown) <= set(made)


@pytest.mark.parametrize("path", sorted((RESULTS / "studies").glob("*/study.json")), ids=lambda path: path.parent.name)
def test_committed_page_is_what_its_study_json_gives(script, tmp_path, path):
    study = json.loads(path.read_text()).get("study", "")
    name = study.replace("-", "_")
    if not (RESULTS / "studies" / f"{name}.py").is_file():
        pytest.skip("not a study of results/")
    (tmp_path / "study.json").write_bytes(path.read_bytes())
    result = script(tmp_path, f"studies/{name}.py", "--page", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "README.md").read_text() == path.with_name("README.md").read_text()


def test_page_of_a_damaged_study_is_refused_and_the_old_one_kept(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"schema": study_page.SCHEMA, "study": "steps"}))
    (tmp_path / "README.md").write_text("old")
    with pytest.raises(UserError, match=r"study.json: damaged \(KeyError: 'cells'\)"):
        study_page.rewrite(tmp_path, "steps", lambda study: str(study["cells"]), lambda study, out: None)
    with pytest.raises(UserError, match=r"study.json: not a study.json of the study cost, schema 1"):
        study_page.rewrite(tmp_path, "cost", lambda study: "", lambda study, out: None)
    assert (tmp_path / "README.md").read_text() == "old"


def test_study_of_losses_compares_each_part_and_counts_divergences(finished):
    folder, scripts = finished["gan_losses"]
    found = [(c["--loss"], c["--penalty"], c["--seed"]) for c in scripts.commands(models.MODELS[models.GAN].train)]
    cells = [("ns", "none"), ("relativistic", "none"), ("relativistic", "r1r2")]
    assert found == [(*cell, seed) for cell in cells for seed in "01"]
    page = (folder / "out" / "README.md").read_text()
    assert "Relativistic pairs instead of the non-saturating loss: " in page
    assert "R1 and R2 instead of R1:" not in page
    assert "0 of 6 trainings diverged." in page
    study = read_study(folder)
    study["cells"][0]["training"]["diverged"] = True
    losses = runpy.run_path(str(RESULTS / "studies" / "gan_losses.py"))
    assert "1 of 6 trainings diverged." in losses["effects"](study)
    assert "| non-saturating, no penalty | 9 | 1 of 2 |" in losses["page"](study)


def test_study_of_few_images_samples_each_part_of_the_training_once(finished):
    folder, scripts = finished["gan_data"]
    trained = scripts.commands(models.MODELS[models.GAN].train)
    assert [c.get("--stop_after") for c in trained] == ["1", "2", None] * 2
    assert [c.get("--ada_target") for c in trained] == [None] * 3 + ["0.6"] * 3
    assert {c["--limit"] for c in trained} == {"200"}
    cells = read_study(folder)["cells"]
    assert [cell["name"] for cell in cells[:3]] == ["200@25", "200@50", "200"]
    assert {"memorised", "nearest_ratio"} <= set(cells[0]["metrics"])
    assert "| unseen real images, of 200 |" in (folder / "out" / "README.md").read_text()


def test_given_runs_of_the_two_scripts_are_not_mistaken_for_each_other(script, fake, pictures, tmp_path):
    for name, key, path in (("plain", "few-step", ""), ("tuned", "improved-diffusion", "plain")):
        (tmp_path / name).mkdir()
        value = {"--data": str(pictures), "--image_size": "32", "--seed": "0"}
        value |= {"--model_path": str(tmp_path / path / "ema_9.pt")} if path else {}
        fake.train(models.MODELS[models.DDPM], tmp_path / name, value)
        result = run(script, tmp_path, "few_steps", pictures, "--runs", f"{key}={tmp_path / name}")
        assert result.returncode == 2
        assert f"{name}: {'' if path else 'not '}a run of distill_train.py" in result.stderr


def test_copies_of_the_images_that_a_training_saw_are_found(finished, pictures):
    cell = next(cell for cell in read_study(finished["gan_data"][0])["cells"] if cell["name"] == "200")
    seen = {image.numpy().tobytes() for image in load_data(str(pictures), 32, 200, 1000)[0].images}
    with np.load(pictures) as archive:  # the fake gives every tenth image of the data, some of which are in the subset
        copies = [image.transpose(2, 0, 1).tobytes() in seen for image in archive["arr_0"][::10][:64]]
    assert 0 < sum(copies) < 64
    found = cell["metrics"]["memorised"]["value"]  # all copies, and few others that come as close
    assert np.mean(copies) <= found < np.mean(copies) + 0.1
    assert cell["held_out"]["memorised"]["value"] < 0.5


def test_given_run_is_sampled_but_not_trained(script, fake, pictures, tmp_path):
    (mine := tmp_path / "mine").mkdir()
    value = {"--data": str(pictures), "--image_size": "32", "--seed": "0", "--max_seconds": "9"}
    fake.train(models.MODELS[models.GAN], mine, value)
    result = run(script, tmp_path, "few_steps", pictures, *SMALL["few_steps"], "--runs", f"gans={mine}")
    assert result.returncode == 0, result.stderr
    assert "gans/cifar_gan.py" not in [command[0] for command in fake.done]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "Runs trained earlier: DCGAN. The tuning took 1 s" in page
    result = run(script, tmp_path, "few_steps", "shapes", "--runs", f"gans={mine}")
    assert result.returncode == 2
    assert "--data is shapes" in result.stderr


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        ("few_steps", ("--cells", "ddpm-9"), "--cells ddpm-9: must be among ddpm, few-step"),
        ("few_steps", ("--num_samples", 9), "--num_samples 9: a score needs at least 64"),
        ("few_steps", ("--data", "nowhere"), "--data nowhere: neither shapes"),
        ("few_steps", ("--runs", "gans"), "--runs gans: must be MODEL=RUN"),
        ("few_steps", ("--page",), "study.json: no such file"),
        *[("hybrid", ("--longer", words), "argument --longer: must be") for words in ("1,3", "x")],
    ],
)
def test_mistakes_are_told_in_one_sentence(script, fake, pictures, tmp_path, name, flags, sentence):
    result = run(script, tmp_path, name, pictures, *flags)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not fake.done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_reaches_the_running_script_whose_end_is_awaited(number, tmp_path):
    code = "import signal, sys, time\nfor n in (2, 15): signal.signal(n, lambda *_: sys.exit(130))\n"
    code += f"open({str(tmp_path / 'ready')!r}, 'w').close()\ntime.sleep(60)"
    before = signal.signal(number, signal.default_int_handler)  # ignored where the tests run in the background

    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            jobs.run(["-c", code], tmp_path / "console.txt")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_failing_script_is_quoted_and_ctrl_c_passed_on(tmp_path):
    with pytest.raises(UserError, match="error: no such thing"):
        jobs.run(["-c", "import sys; sys.exit('x.py: error: no such thing')"], tmp_path / "console.txt")
    with pytest.raises(UserError, match=r"^exit status 3 "):  # of this call alone
        jobs.run(["-c", "import sys; sys.exit(3)"], tmp_path / "console.txt")
    assert "no such thing" in (tmp_path / "console.txt").read_text()
    with pytest.raises(KeyboardInterrupt):
        jobs.run(["-c", "import sys; sys.exit(130)"], tmp_path / "console.txt")


def test_several_trainings_give_an_interval_of_student_in_which_shares_stay_shares():
    found = study_page.pool([entry(value, 0.1) for value in (1.0, 2.0, 3.0)])
    assert found["value"] == 2.0
    assert found["interval"] == pytest.approx([2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5])
    assert study_page.pool([entry(1.0, 0.1)]) == entry(1.0, 0.1)
    cells = [{"metrics": {name: entry(value, 0.1) for name in ("precision", "kl")}} for value in (0.2, 0.9)]
    pooled = study_page.pool_metrics(cells)
    assert pooled["precision"]["interval"] == [0, 1]
    assert pooled["kl"]["interval"][0] < 0


def test_tuned_network_costs_both_trainings_for_which_a_gan_trains(finished):
    folder, scripts = finished["few_steps"]
    ddpm, gan = (models.MODELS[name] for name in (models.DDPM, models.GAN))
    (teacher,), (tuned,), (other,) = map(scripts.commands, (ddpm.train, ddpm.distill, gan.train))
    assert [value["--max_seconds"] for value in (teacher, tuned, other)] == ["2", "1", "3"]
    assert Path(tuned["--model_path"]).parent == Path(teacher["--run_dir"])
    cells = {cell["name"]: cell for cell in read_study(folder)["cells"]}
    assert list(cells) == ["few-step-1", "few-step-2", "few-step-4", "dcgan-1"]
    assert [cells[name]["training"]["seconds"] for name in ("few-step-2", "dcgan-1")] == [3, 3]
    assert [value["--num_sampling_steps"] for value in scripts.commands(ddpm.sample)] == ["1", "2", "4"]


def test_cells_of_the_hybrid_differ_in_their_parts_alone_and_are_pooled_over_seeds(finished):
    folder, scripts = finished["hybrid"]
    trained = scripts.commands(models.MODELS[models.DDGAN].train)
    parts = [(v["--domain"], v["--discriminator_input"], v["--reconstruction"], v["--seed"]) for v in trained[:4]]
    assert parts == [("haar", judged, "decay", seed) for judged in ("x_t", "x_0") for seed in "01"]
    assert [value["--max_seconds"] for value in trained] == ["2"] * 8 + ["6"] * 2
    alone = [value["--denoiser_fraction"] == "1" for value in trained]
    assert alone == [False] * 6 + [True] * 2 + [False, True]
    page = (folder / "out" / "README.md").read_text()
    assert "| D sees x_0, denoiser first, Haar | 9 | 0.75 0.75 |" in page
    assert "| denoiser alone | 9 | - |" in page
    verdict = "(better|worse|not significantly different)"
    assert "- Not among --cells: pixel-x_t-none" in page
    assert (folder / "out" / "time.png").is_file()
    assert re.search(rf"- Frechet, hybrid against denoiser alone: {verdict} after 2 s and {verdict} after 6 s\.", page)
    assert page.count("| denoiser alone, 3 times as long | 9 | - |") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("hybrid", ("--num_samples", 64, "--seconds", 3, "--cells", "haar-x_0-decay,pixel-x_t-none,denoiser")),
        ("few_steps", ("--num_samples", 64, "--seconds", 2, "--tuning_seconds", 2, "--cells", "few-step,ddgan")),
        ("cost", ("--rounds", 1, "--updates", 2, "--benchmark_seconds", 0.05, "--cells", "ddpm-w16-b16-bf16")),
    ],
)
def test_study_of_real_models_ends_with_a_page_and_is_not_done_twice(script, pictures, tmp_path, name, flags):
    times = []
    for _ in range(2):
        result = run(script, tmp_path, name, pictures, *flags, "--threads", 1)
        assert result.returncode == 0, result.stderr
        kept = [path for ending in ("pt", "pth", "npz") for path in (tmp_path / "runs").glob(f"*/*/**/*.{ending}")]
        times.append({path: path.stat().st_mtime_ns for path in kept if path.parent.name != "enlarged"})
    assert times[0] == times[1]
    assert all(cell["training"]["images_seen"] > 0 for cell in read_study(tmp_path)["cells"])
    assert (tmp_path / "out" / "README.md").read_text().startswith("# Study: ")
