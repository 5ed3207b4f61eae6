"""The studies of the limits: plans, resuming, pages from study.json, sentences that follow the intervals."""

import json
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from comparison import studies
from comparison.cli import UserError
from comparison.data import shapes
from comparison.report import study_page

RESULTS = Path(__file__).parents[1]
NAMES = ("steps", "cost", "data", "hybrid")


def entry(value, half, n=500):
    return {"value": value, "interval": [value - half, value + half], "n": n}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return an .npz file of 1280 images of shapes; what is cached of them lies beside it."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    images = shapes.dataset(10, 32, limit=1280)[0].permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(path.parent))
        yield path


class FakeModels:
    """Stands in for the models' scripts: writes what they would write, and remembers the commands."""

    def __init__(self, script, data):
        self.script, self.data, self.commands, self.interrupt_at = script, data, [], None

    def __call__(self, command, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if command[0] == "results/evaluate.py":
            result = self.script(folder, "evaluate.py", *command[1:], "--threads", "1")
            assert result.returncode == 0, result.stderr
            return
        if self.interrupt_at == len(self.commands):
            self.interrupt_at = None
            raise KeyboardInterrupt
        self.commands.append(command)
        value = dict(pairwise(command))
        names = (studies.SUPER_RESOLUTION, *studies.MODELS)
        model = next(name for name in names if command[0] in (studies.TRAIN[name], studies.DRAW[name]))
        if command[0] == studies.TRAIN[model]:
            self.train(model, folder, value)
        elif "--benchmark" in command:
            batch = {"batch_size": 1, "seconds": 0.1, "images_per_second": 10.0, "peak_memory_bytes": 5 * 10**8}
            cost = {"nfe": 2.0, "gflop_per_evaluation": 0.1, "gflop_per_image": 0.2, "parameters": 1000}
            best = {"best": {"batch_size": 1, "images_per_second": 10.0}, "batches": [batch]}
            write(folder / "timing.json", {"sampler": "fake", "protocol": "made up", **cost, **best})
        else:
            self.draw(model, folder, value)

    def train(self, model, folder, value):
        from comparison.data.images import load_images

        source = value.get("--data") or value.get("--data_dir") or value.get("--dataset")
        size = int(value.get("--large_size") or value["--image_size"])
        data = load_images(source, size).describe()
        seconds = float(value.get("--max_seconds", 3))
        done = {"reason": "max_seconds", "steps": 9, "images_seen": 900, "wall_seconds": seconds}
        kept = ("seed", "num_timesteps", "num_channels_dae", "batch_size")
        options = {name: int(value[f"--{name}"]) for name in kept if f"--{name}" in value} | {"data": source}
        config = {"model": model, "options": options, "data": data, "parameters": {"generator": 1234}}
        config |= {"finished": {**done, "peak_memory_bytes": 10**9}, "device": "a CPU", "precision": "bfloat16"}
        write(folder / "config.json", {**config, "versions": {"torch": "2"}, "git_commit": "abc"})
        slow = 2.0 if value.get("--precision") == "float32" else 1.0
        adversarial = model == "denoising-diffusion-gan" and value.get("--denoiser_fraction") != "1"
        judged = [f"accuracy_{side}_t{t}" for t in (0, 1) for side in ("real", "fake")] if adversarial else []
        header = ",".join(["step,images_seen,wall_seconds", *(["loss_g", *judged] if judged else [])])
        rows = [",".join([f"{i},{16 * i},{slow * i}", *(["1", *4 * ["0.75"]] if judged else [])]) for i in (1, 2, 3)]
        (folder / "progress.csv").write_text("\n".join([header, *rows]) + "\n")
        name = {"gans": "checkpoint_9.pt", "denoising-diffusion-gan": "netG_9.pth"}.get(model, "ema_0.9_9.pt")
        (folder / name).write_bytes(b"")

    def draw(self, model, folder, value):
        count = int(value["--num_samples"])
        with np.load(
            self.data
        ) as archive:  # the first images: they are in every subset of evenly spread ones only once
            images = archive["arr_0"][:: 1280 // 128][:count]
        config = json.loads(
            (Path(value.get("--model_path") or value["--checkpoint"]).parent / "config.json").read_text()
        )
        size = config["data"]["image_size"]
        if size != images.shape[1]:
            images = images.repeat(size // images.shape[1], 1).repeat(size // images.shape[2], 2)
        np.savez(folder / "samples.npz", arr_0=images)
        steps = value.get("--num_sampling_steps") or value.get("--timestep_respacing", "ddim4").removeprefix("ddim")
        trained = config["options"].get("num_timesteps")
        nfe = 1.0 if model == "gans" else float(trained or steps)
        facts = {"file": "samples.npz", "nfe": nfe, "seconds_per_image": 0.001 * nfe, "batch_size": 100}
        write(folder / "sampling.json", {**facts, "sampler": f"{nfe:g} steps", "images": count})


@pytest.fixture
def fake(script, pictures, monkeypatch):
    """Replace the models' scripts."""
    models = FakeModels(script, pictures)
    monkeypatch.setattr(studies, "run_command", models)
    return models


def run(script, folder, name, pictures, *flags):
    """Run a study in `folder` with few samples; `flags` may override."""
    paths = ("--data", pictures, "--out", folder / "out", "--runs_dir", folder / "runs")
    return script(folder, f"studies/{name}.py", *paths, *flags)


SUPER_RESOLUTION = "64-from-32-super-resolution"
SMALL = {
    "steps": ("--num_samples", 64, "--seconds", 2, "--cells", "dcgan,ddgan-T2"),
    "cost": ("--rounds", 2, "--updates", 2, "--cells", "dcgan-w16-b128-bf16,dcgan-w16-b128-float32"),
    "data": ("--num_samples", 64, "--seconds", 2, "--cells", f"dcgan-10,dcgan-100,dcgan-64px,{SUPER_RESOLUTION}"),
    "hybrid": (
        *("--num_samples", 64, "--seconds", 2, "--seeds", 2, "--longer", "3"),
        *("--cells", "haar-x_t-decay,haar-x_0-decay,preset,denoiser,preset@3,denoiser@3"),
    ),
}


@pytest.mark.parametrize(("name", "most"), [("steps", 16), ("cost", 12), ("data", 22), ("hybrid", 28)])
def test_plan_states_minutes_of_its_cells_and_runs_nothing(script, tmp_path, name, most):
    result = script(
        tmp_path, f"studies/{name}.py", "--plan", "--out", tmp_path / "out", "--runs_dir", tmp_path / "runs"
    )
    assert result.returncode == 0, result.stderr
    minutes = [float(line.split()[-1]) for line in result.stdout.splitlines() if re.search(r"\d\.\d$", line)]
    count, total = map(int, re.search(r"(\d+) cells, about (\d+) minutes", result.stdout).groups())
    assert len(minutes) == count
    assert sum(minutes) == pytest.approx(total, abs=0.05 * count + 1.5)
    assert total <= most
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_plan_needs_no_torch(tmp_path, name):
    code = "import runpy, sys; sys.modules['torch'] = sys.modules['matplotlib'] = None; "
    code += f"sys.argv = ['{name}.py', '--plan']; runpy.run_path({str(RESULTS / 'studies' / f'{name}.py')!r}, "
    code += "run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def finished(script, pictures, tmp_path_factory):
    """Return study -> (folder, the fake models that ran there), each run once with few cells."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            models, folder = FakeModels(script, pictures), tmp_path_factory.mktemp(name)
            patch.setattr(studies, "run_command", models)
            result = run(script, folder, name, pictures, *SMALL[name])
            assert result.returncode == 0, result.stderr
            found[name] = folder, models
    return found


@pytest.mark.parametrize("preset", ["quick", "cpu", "gpu"])
@pytest.mark.parametrize(("name", "cell"), [("steps", "ddpm"), ("cost", "ddpm-w16-b16-bf16"), ("data", "ddpm-100")])
def test_cells_and_presets_name_one_sampler(script, pictures, tmp_path, monkeypatch, name, cell, preset):
    commands = []

    def stop(command, folder):
        commands.append(command)
        if command[0] in studies.DRAW.values():
            raise UserError("seen")
        FakeModels(script, pictures)(command, folder)

    monkeypatch.setattr(studies, "run_command", stop)
    result = run(script, tmp_path, name, pictures, "--cells", cell, "--preset", preset)
    assert "seen" in result.stderr
    value = dict(pairwise(commands[-1]))
    older = value.get("--use_ddim") == "True" or value.get("--timestep_respacing")
    assert bool(older) != ("--sampler" in value)


def read_study(folder):
    return json.loads((folder / "out" / "study.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_second_call_reuses_every_finished_cell(script, finished, pictures, monkeypatch, name):
    folder, models = finished[name]
    before = len(models.commands)
    page = (folder / "out" / "README.md").read_bytes()
    monkeypatch.setattr(studies, "run_command", models)
    result = run(script, folder, name, pictures, *SMALL[name])
    assert result.returncode == 0, result.stderr
    assert len(models.commands) == before
    assert (folder / "out" / "README.md").read_bytes() == page


def test_fresh_trains_and_draws_everything_again(script, fake, pictures, tmp_path):
    flags = ("--rounds", 1, "--cells", "dcgan-w16-b128-bf16")
    run(script, tmp_path, "cost", pictures, *flags)
    run(script, tmp_path, "cost", pictures, *flags, "--fresh")
    assert ["--fresh" in command for command in fake.commands] == [False, False, True, False]
    assert ["--benchmark" in command for command in fake.commands] == [False, True, False, True]


def test_interrupted_study_goes_on_where_it_stopped(script, fake, pictures, tmp_path):
    fake.interrupt_at = 3
    assert run(script, tmp_path, "steps", pictures, *SMALL["steps"]).returncode == 130
    assert run(script, tmp_path, "steps", pictures, *SMALL["steps"]).returncode == 0
    assert len(fake.commands) == 4  # two trainings, two sample sets, none of them twice


def test_longer_budget_trains_and_draws_again(script, fake, pictures, tmp_path):
    flags = ("--num_samples", 64, "--cells", "dcgan")
    run(script, tmp_path, "steps", pictures, *flags, "--seconds", 2)
    run(script, tmp_path, "steps", pictures, *flags, "--seconds", 4)
    assert [command[0] for command in fake.commands].count("gans/cifar_gan.py") == 2
    assert [cell["training"]["seconds"] for cell in read_study(tmp_path)["cells"]] == [4]


@pytest.mark.parametrize("name", NAMES)
def test_page_is_made_from_study_json_alone(script, finished, tmp_path, name):
    folder, _ = finished[name]
    made = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    (tmp_path / "study.json").write_bytes(made["study.json"])
    result = script(tmp_path, f"studies/{name}.py", "--page", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made
    text = made["README.md"].decode()
    assert str(folder) not in made["study.json"].decode() + text  # no path of this machine
    shown = re.findall(r"\]\((.*?\.png)\)", text)
    assert shown
    assert set(shown) <= set(made)


def test_page_of_a_damaged_study_is_refused_and_the_old_one_kept(tmp_path, capsys):
    (tmp_path / "study.json").write_text(json.dumps({"schema": studies.SCHEMA, "study": "steps"}))
    (tmp_path / "README.md").write_text("old")
    with pytest.raises(UserError, match=r"study.json: damaged \(KeyError: 'cells'\)"):
        study_page.rewrite(tmp_path, "steps", lambda study: str(study["cells"]), lambda study, out: None)
    assert (tmp_path / "README.md").read_text() == "old"


def test_pooled_shares_stay_shares():
    cells = [
        {"metrics": {name: entry(value, 0.1) for name in ("precision", "sliced_wasserstein")}} for value in (0.2, 0.9)
    ]
    pooled = studies.pool_metrics(cells)
    assert pooled["precision"]["interval"] == [0, 1]
    assert pooled["sliced_wasserstein"]["interval"][0] < 0


def test_left_out_cells_are_named(finished):
    steps, data = ((finished[name][0] / "out" / "README.md").read_text() for name in ("steps", "data"))
    assert "- ddgan-T8: not among --cells." in steps
    assert "- ddpm-64px: not among --cells." in data


def test_super_resolution_enlarges_the_samples_of_the_small_network_and_counts_both(finished):
    folder, models = finished["data"]
    train, draw = (
        next(dict(pairwise(c)) for c in models.commands if c[0] == scripts[studies.SUPER_RESOLUTION])
        for scripts in (studies.TRAIN, studies.DRAW)
    )
    assert (train["--small_size"], train["--large_size"], train["--max_seconds"]) == ("32", "64", "2")
    assert "--image_size" not in train
    assert Path(draw["--base_samples"]).parts[-4:-1] == ("study-data-ddpm-100-s0", "settings", "default")
    cell = next(cell for cell in read_study(folder)["cells"] if cell["name"] == SUPER_RESOLUTION)
    assert (cell["size"], cell["training"]["seconds"], cell["nfe"]) == (64, 4, 40)
    page = (folder / "out" / "README.md").read_text()
    assert "improved DDPM, 32 by super-resolution" in page.split("## 64 pixels")[1]


def test_copies_of_the_images_that_a_training_saw_are_found(finished):
    folder, _ = finished["data"]
    cells = {cell["name"]: cell for cell in read_study(folder)["cells"]}
    assert cells["dcgan-100"]["metrics"]["memorised"]["value"] == 1.0  # the fake draws training images
    assert cells["dcgan-10"]["metrics"]["memorised"]["value"] < 1.0  # of which few are in the subset
    assert cells["dcgan-100"]["held_out"]["value"] < 0.5
    assert "DCGAN, 100%: more samples close to training images" in (folder / "out" / "README.md").read_text()


def test_given_run_is_drawn_but_not_trained(script, fake, pictures, tmp_path):
    data = str(pictures)
    fake.train("gans", tmp_path / "mine", {"--data": data, "--image_size": "32", "--seed": "0", "--max_seconds": "9"})
    result = run(script, tmp_path, "steps", pictures, *SMALL["steps"], "--runs", f"gans={tmp_path / 'mine'}")
    assert result.returncode == 0, result.stderr
    assert "gans/cifar_gan.py" not in [command[0] for command in fake.commands]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "taken from earlier runs: dcgan; settings of" in page
    assert "Unequal training times" in page
    result = run(script, tmp_path, "steps", "shapes", "--runs", f"gans={tmp_path / 'mine'}")
    assert result.returncode == 2
    assert "--data is shapes" in result.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--cells", "ddpm-9"), "--cells ddpm-9: must be among ddpm, ddgan-T1"),
        (("--num_samples", 9), "--num_samples 9: at least 64"),
        (("--data", "nowhere"), "--data nowhere: neither shapes"),
        (("--runs", "gans"), "--runs gans: must be MODEL=RUN"),
    ],
)
def test_mistakes_are_told_in_one_sentence(script, fake, pictures, tmp_path, flags, sentence):
    result = run(script, tmp_path, "steps", pictures, *flags)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not fake.commands


def test_failing_script_is_quoted_and_ctrl_c_passed_on(tmp_path):
    with pytest.raises(UserError, match="error: no such thing"):
        studies.run_command(["-c", "import sys; sys.exit('x.py: error: no such thing')"], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        studies.run_command(["-c", "import sys; sys.exit(130)"], tmp_path)


def test_several_trainings_give_an_interval_of_student():
    found = studies.pool([entry(value, 0.1) for value in (1.0, 2.0, 3.0)])
    assert found["value"] == 2.0
    assert found["interval"] == pytest.approx([2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5])
    assert studies.pool([entry(1.0, 0.1)]) == entry(1.0, 0.1)


def test_sentences_follow_the_intervals():
    clear = [(5, entry(90, 2)), (10, entry(50, 2)), (20, entry(30, 2))]
    assert "significantly less than at 5 and 10" in study_page.enough("DDIM", clear, "{} evaluations")
    blurred = [(5, entry(90, 2)), (10, entry(32, 5)), (20, entry(30, 5))]
    assert study_page.enough("DDIM", blurred, "{} evaluations").endswith("no significant difference from 10 (32 ± 5).")
    assert study_page.against("A", entry(9, 1), "B", entry(5, 1)).startswith("B is better than A (5.0 ± 1.0 and 9.0")
    assert study_page.against("A", entry(9, 5), "B", entry(5, 1)).startswith("no significant difference")


def test_precision_is_judged_by_the_range_of_the_rounds():
    cost = runpy.run_path(str(RESULTS / "studies" / "cost.py"))

    def cell(precision, seconds):
        rounds = [{"seconds_per_image": value} for value in seconds]
        return {"model": "gans", "label": "DCGAN", "width": 16, "batch": 8, "precision": precision, "rounds": rounds}

    def said(fast, slow):
        return cost["sentences"]([cell("bf16", fast), cell("float32", slow)])[0]

    assert "is faster than in float32, 2 (1.5 to 3) times" in said([1, 1, 2], [2, 3, 3])
    assert "slower than" in said([2, 2], [1, 1])
    assert "not clearly different from" in said([1, 2], [2, 1])
    assert "too few for a claim" in said([1], [2])


def test_cells_of_the_hybrid_differ_in_their_parts_alone_and_are_pooled_over_seeds(finished):
    folder, models = finished["hybrid"]
    trained = [dict(pairwise(c)) for c in models.commands if c[0] == studies.TRAIN["denoising-diffusion-gan"]]
    parts = [(v["--domain"], v["--discriminator_input"], v["--reconstruction"], v["--seed"]) for v in trained[:4]]
    assert parts == [("haar", judged, "decay", seed) for judged in ("x_t", "x_0") for seed in "01"]
    assert [value["--max_seconds"] for value in trained] == ["2"] * 8 + ["6"] * 2
    alone = [value["--denoiser_fraction"] == "1" for value in trained]
    assert alone == [False] * 6 + [True] * 2 + [False, True]
    page = (folder / "out" / "README.md").read_text()
    assert "| D sees x_0, denoiser first, haar | 9 | 0.75 0.75 |" in page
    assert "| its denoiser alone | 9 | - |" in page
    assert re.search(r"input x_0 in place of x_t: of 1 comparisons with all else equal, (better|worse|not)", page)
    assert "Against the denoiser: " in page
    assert "over 2 trainings with different seeds (Student's t)" in page
    assert "- pixel-x_t-none: not among --cells." in page
    assert "(time.png)" in page
    assert (folder / "out" / "time.png").is_file()
    verdict = "(better|worse|not distinguishable)"
    assert re.search(rf"- Frechet: the hybrid is {verdict} after 2 s and {verdict} after 6 s\.", page)
    assert page.count("| its denoiser alone, 3 times as long | 9 | - |") == 1


@pytest.mark.parametrize("words", ["1", "1,3", "0", "x", "3,"])
def test_longer_trainings_of_the_hybrid_are_multiples_from_two(script, tmp_path, words):
    result = script(tmp_path, "studies/hybrid.py", "--longer", words, "--plan")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("hybrid", ("--num_samples", 64, "--seconds", 3, "--cells", "haar-x_0-decay,pixel-x_t-none,denoiser")),
        ("steps", ("--num_samples", 64, "--seconds", 2, "--cells", "ddpm,ddgan-T1,dcgan")),
        ("cost", ("--rounds", 1, "--updates", 2, "--benchmark_seconds", 0.05, "--cells", "ddpm-w16-b16-bf16")),
        ("data", ("--num_samples", 64, "--seconds", 2, "--cells", "dcgan-10,dcgan-100,dcgan-64px")),
    ],
)
def test_study_of_real_models_ends_with_a_page(pictures, tmp_path, name, flags):
    command = [sys.executable, str(RESULTS / "studies" / f"{name}.py"), "--data", str(pictures), *map(str, flags)]
    command += ["--out", str(tmp_path / "out"), "--runs_dir", str(tmp_path / "runs"), "--threads", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert all(cell["training"]["images_seen"] > 0 for cell in study["cells"])
    assert (tmp_path / "out" / "README.md").read_text().startswith("# Study: ")
