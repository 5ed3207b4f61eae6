"""The studies: plans, cells that are trained once, resuming, pages from study.json, claims that follow intervals."""

import argparse
import contextlib
import io
import json
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import study_cells
import study_claims
import study_runs
from comparison import studies
from comparison.data.images import load_images
from gan.options import parse
from study_cells import MODELS, STUDIES, Cell

GANS = Path(__file__).resolve().parents[1]
COUNT = 1280
SIZE = 16


def entry(value, half=0.01, n=64, **more):
    return {"value": value, "interval": [value - half, value + half], "n": n, **more}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return an .npz file of images; what is cached of them lies beside it."""
    path = tmp_path_factory.mktemp("data") / "photos.npz"
    np.savez(path, arr_0=load_images("shapes:10", SIZE, limit=COUNT).images.permute(0, 2, 3, 1).numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(path.parent))
        yield path


class FakeScripts:
    """Stands in for all scripts: writes what they would, with numbers in which the cure helps."""

    def __init__(self, photos):
        self.photos, self.commands, self.interrupt_at = photos, [], None

    def __call__(self, command, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if self.interrupt_at == len(self.commands):
            self.interrupt_at = None
            raise KeyboardInterrupt
        self.commands.append(command)
        value = dict(pairwise(command))
        if command[0] == "results/evaluate.py":
            self.evaluate(command, value)
        elif command[0] in studies.TRAIN.values():
            self.train(folder, value)
        else:
            self.draw(folder, value)

    def trainings(self):
        return [dict(pairwise(c)) for c in self.commands if c[0] in studies.TRAIN.values()]

    def train(self, folder, value):
        model = folder.parent.name
        plus = value.get("--preset") == "dcgan-plus"
        images = int(value.get("--max_images", 640))
        options = {"seed": int(value["--seed"]), "ngf": 32, "batch_size": 64}
        done = {"reason": "x", "steps": 2, "images_seen": images, "wall_seconds": 1.0}
        data = {"name": "photos", "images": int(value.get("--limit", COUNT)), "fingerprint": "0"}
        config = {"model": model, "options": options, "data": data, "finished": done, "device": "a CPU"}
        write(folder / "config.json", {**config, "precision": "float32", "versions": {"torch": "2"}})
        gap = 2.0 if value.get("--diffaugment") == "none" and "--limit" in value else 0.1
        rows = [f"{i},{64 * i},{i},{gap + 0.01 * (i % 2)}" for i in range(1, 21)]
        (folder / "progress.csv").write_text("\n".join(["step,images_seen,wall_seconds,gap", *rows]) + "\n")
        if model == "gans" and value["--score_every"] != "0":
            course = [(90, 0.2), (50, 0.4), (40, 0.5), (45, 0.4), (40, 0.5)] if plus else []
            course = course or [(90, 0.2), (50, 0.4), (150, 0.1), (60, 0.3), (200 + options["seed"], 0.1)]
            rows = [f"{i},{100 * i},{i},{d},{c}" for i, (d, c) in enumerate(course, 1)]
            head = "step,images_seen,wall_seconds,frechet_distance,coverage"
            (folder / "scores.csv").write_text("\n".join([head, *rows]) + "\n")
        (folder / studies.CHECKPOINTS[model].replace("*", "2")).write_bytes(b"")
        if plus and value.get("--keep_best") != "false":
            (folder / "best_1.pt").write_bytes(b"")

    def draw(self, folder, value):
        with np.load(self.photos) as archive:
            np.savez(folder / "samples.npz", arr_0=archive["arr_0"][:: COUNT // 64][: int(value["--num_samples"])])
        facts = {"file": "samples.npz", "nfe": 1.0, "seconds_per_image": 0.001, "sampler": "fake"}
        write(folder / "sampling.json", facts)

    def evaluate(self, command, value):
        count = int(value["--reference"].partition(":")[2]) if value["--reference"].startswith("shapes") else 0

        def scores(good, seed=0):
            found = {"frechet_distance": entry(20 - 15 * good + 0.1 * seed), "recall": entry(0.9 * good + 0.01 * seed)}
            found |= {"coverage": entry(0.9 * good), "memorised": entry(0.0)}
            if count:
                covered = good if count == 10 else good**2
                found |= {
                    "modes_covered": entry(covered * count, count / 100, total=count),
                    "modes_matched": entry(good),
                }
            return found

        for name in command[1 : command.index("--reference")]:
            cell = Path(name).parents[1].name.removeprefix("study-gan-")
            good = 0.9 if cell.startswith(("dcgan-plus", "dd")) else 0.3
            write(Path(name) / "metrics.json", {"metrics": scores(good, int(cell[-1]))})
        controls = {"reference": {"name": "photos", "fingerprint": "0"}, "extractor": {"name": "made up"}, "n": 64}
        write(Path(value["--anchors"]), {**controls, "anchors": {"floor": {"metrics": scores(1.0)}}})


@pytest.fixture
def fake(photos, monkeypatch):
    """Replace the models' scripts."""
    scripts = FakeScripts(photos)
    monkeypatch.setattr(studies, "run_command", scripts)
    return scripts


def run(photos, folder, *flags):
    """Run study.py as a user would; `flags` may override."""
    words = ["study.py", "--data", photos, "--out", folder / "out", "--runs_dir", folder / "runs"]
    words += ["--images", 128, "--image_size", SIZE, "--num_samples", 64, "--threads", 1, *flags]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(GANS / "study.py"), run_name="__main__")
    return subprocess.CompletedProcess(words, end.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """Return the folder of all four studies, and the fake scripts that ran there."""
    folder, scripts = tmp_path_factory.mktemp("studies"), FakeScripts(photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "run_command", scripts)
        result = run(photos, folder)
    assert result.returncode == 0, result.stderr
    return folder, scripts


def page(folder, name):
    return (folder / "out" / f"gan-{name}" / "README.md").read_text()


def test_plan_of_all_studies_ends_within_three_hours_and_runs_nothing(tmp_path):
    command = ["bash", str(GANS / "study.sh"), "--plan", "--data", "shapes", "--runs_dir", str(tmp_path / "runs")]
    code = tmp_path / "stub" / "torch.py"
    code.parent.mkdir()
    code.write_text("raise SystemExit('torch was imported')")
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PYTHONPATH": str(code.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells, minutes = (int(word) for word in done.stdout.splitlines()[-1].split() if word.isdigit() and int(word) > 2)
    assert cells == len(study_cells.all_cells(STUDIES, 3))
    assert cells * 5 < minutes <= 180
    assert [path.name for path in tmp_path.iterdir()] == ["stub"]


def test_every_cell_is_trained_once_though_several_studies_need_it(finished):
    folder, scripts = finished
    cells = study_cells.all_cells(STUDIES, 3)
    assert len(scripts.trainings()) == len(cells)
    assert len(cells) < sum(len(study_cells.cells_of(name, 3)) for name in STUDIES)
    shared = Cell("dcgan-plus", study_cells.PHOTOS)
    assert cells[shared] == ["stability", "collapse", "overfitting"]
    assert (folder / "runs" / "gans" / f"study-gan-{shared.name}" / "study-train.json").is_file()


def test_second_call_trains_and_draws_nothing_and_writes_the_same_pages(finished, photos, monkeypatch):
    folder = finished[0]
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*.*")}
    again = FakeScripts(photos)
    monkeypatch.setattr(studies, "run_command", again)
    assert run(photos, folder).returncode == 0
    assert {command[0] for command in again.commands} == {"results/evaluate.py"}
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*.*")} == before


def test_interrupted_studies_go_on_where_they_stopped(fake, photos, tmp_path):
    fake.interrupt_at = 3
    flags = ("modes", "--cells", "dcgan-shapes10-s0,ddgan-shapes10-s0")
    assert run(photos, tmp_path, *flags).returncode == 130
    assert run(photos, tmp_path, *flags).returncode == 0
    assert [c[0] for c in fake.commands if c[0] != "results/evaluate.py"] == [
        *("gans/cifar_gan.py", "gans/sample_gan.py"),
        *("denoising-diffusion-gan/train_ddgan.py", "denoising-diffusion-gan/test_ddgan.py"),
    ]
    assert "Left out: dcgan-plus-shapes10-s0, ddpm-shapes10-s0" in page(tmp_path, "modes")


def test_both_presets_differ_in_the_preset_alone_and_all_models_have_one_budget(finished):
    trained = {(v["--preset"], v["--seed"]): v for v in finished[1].trainings() if v.get("--data") == "shapes:200"}
    plain, plus = ({**trained[preset, "1"]} for preset in study_cells.PRESETS)
    differ = {flag for flag in {*plain, *plus} if flag.startswith("--") and plain.get(flag) != plus.get(flag)}
    assert differ == {"--preset", "--run_dir"}
    assert {value["--max_images"] for value in finished[1].trainings()} == {"128"}


def test_shares_of_the_data_are_taken_by_limit_with_and_without_diffaugment(finished):
    folder, scripts = finished
    found = {
        (v.get("--limit"), v.get("--diffaugment")) for v in scripts.trainings() if v.get("--preset") == "dcgan-plus"
    }
    total = COUNT - COUNT // 10  # a file has no test split: a tenth is held out
    limits = (None, str(total * 20 // 100), str(total * 10 // 100))
    assert found == {(limit, policy) for limit in limits for policy in (None, "none")}
    cells = json.loads((folder / "out" / "gan-overfitting" / "study.json").read_text())["cells"]
    counts = {cell["percent"]: cell["training_images"] for cell in cells}
    assert counts == {100: total, 20: int(limits[1]), 10: int(limits[2])}


@pytest.mark.parametrize("name", STUDIES)
def test_page_is_made_from_study_json_alone_and_names_no_path(finished, photos, tmp_path, name):
    made = {path.name: path.read_bytes() for path in (finished[0] / "out" / f"gan-{name}").iterdir()}
    (tmp_path / "out" / f"gan-{name}").mkdir(parents=True)
    (tmp_path / "out" / f"gan-{name}" / "study.json").write_bytes(made["study.json"])
    assert run(photos, tmp_path, name, "--page").returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / f"gan-{name}").iterdir()} == made
    assert set(made) == {"README.md", "study.json", f"{name}.png"}
    text = (made["study.json"] + made["README.md"]).decode()
    assert str(finished[0]) not in text
    assert str(photos) not in text


def test_pages_say_what_was_expected_and_found(finished):
    folder, _ = finished
    stability, collapse, modes, overfitting = (page(folder, name) for name in STUDIES)
    assert "**As expected.** Expected: DCGAN gets worse again after its best" in stability
    assert "coverage fell below half its best in 3 of 3 of DCGAN (first after 300 images) and 0 of 3" in stability
    assert "| DCGAN plus, best checkpoint |" in stability
    assert "on shapes DCGAN 18 of 200, as many real images 200 of 200" in collapse
    assert "over 3 trainings with different seeds (Student's t)" in collapse
    assert "**Contradicts, in one training each.** Expected: a model that removes noise step by step" in modes
    assert "One seed per row" in modes
    assert "**As expected, in one training each.** Expected: DiffAugment narrows that gap at 10%" in overfitting
    assert (
        "**Contradicts, in one training each.** Expected: even where the discriminator overfits, samples are not copies"
        in overfitting
    )


GAN_CELLS = [cell for cell in study_cells.all_cells(STUDIES, 1) if cell.model == "gans"]


@pytest.mark.parametrize("cell", GAN_CELLS, ids=lambda cell: cell.name)
def test_flags_of_every_gan_are_accepted_by_its_script(cell):
    args = argparse.Namespace(image_size=32, precision="auto", images=None, seconds=300, num_samples=2000)
    words = [*study_cells.training_flags(cell, args, 50_000), *study_cells.budget_flags(None, 300)]
    options = parse(None, words)
    assert options.max_seconds == 300
    assert options.limit == (0 if cell.percent == 100 else 500 * cell.percent)
    assert (options.diffaugment == "none") == (cell.variant == "dcgan" or not cell.augment)
    assert bool(options.score_every) == cell.scored


def test_claim_is_decided_only_by_intervals_that_are_apart():
    assert study_claims.below(entry(1, 0.1), entry(2, 0.1)) is True
    assert study_claims.below(entry(2, 0.1), entry(1, 0.1)) is False
    assert study_claims.below(entry(1, 1), entry(2, 1)) is None
    assert study_claims.below({"value": 1}, {"value": 2}) is None


def test_model_that_draws_no_figure_yet_is_not_judged_by_the_number_of_modes():
    seen = {"training": {"images_seen": 20_000}}
    rows = [
        {
            **seen,
            "variant": "ddgan",
            "source": f"shapes:{count}",
            "metrics": {"share": entry(0), "modes_matched": entry(0)},
        }
        for count in study_cells.MODE_COUNTS
    ]
    (said,) = study_claims.modes(rows)
    assert said.startswith(
        "DDGAN shows a mode in 0.0% of its images even where there are 10: after 20 k training images"
    )


def test_course_of_a_training_is_measured_from_its_scores():
    steady = study_runs.along([[1, 80, 0.1], [2, 40, 0.3], [3, 40, 0.3], [4, 40, 0.3]])
    assert (steady["worsened"]["value"], steady["swing"]["value"], steady["collapsed_at"]) == (1.0, 1.0, None)
    wild = study_runs.along([[1, 80, 0.1], [2, 20, 0.4], [3, 80, 0.1], [4, 40, 0.3], [5, 80, 0.3]])
    assert wild["worsened"]["value"] == pytest.approx(4)
    assert wild["swing"]["value"] == pytest.approx(2)
    assert wild["collapsed_at"] == 3
    assert study_runs.along([[1, 80, 0.1]]) == {}


def test_gap_is_of_the_last_half_of_a_training(tmp_path):
    rows = [f"{i},{i},{i},{5 if i <= 50 else 1 + 0.1 * (i % 2)}" for i in range(1, 101)]
    (tmp_path / "progress.csv").write_text("\n".join(["step,images_seen,wall_seconds,gap", *rows]) + "\n")
    found = study_runs.held_out_gap(tmp_path)
    assert found["value"] == pytest.approx(1.05)
    assert found["n"] == 50
    (tmp_path / "progress.csv").write_text("step,images_seen,wall_seconds,gap\n1,1,1,2\n")
    assert study_runs.held_out_gap(tmp_path) is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("stabilty",), "argument STUDY: stabilty is not among stability, collapse, modes, overfitting"),
        (("modes", "--cells", "dcgan-9"), "--cells dcgan-9: must be among dcgan-shapes10-s0"),
        (("--data", "nowhere"), "--data nowhere: neither"),
        (("--image_size", 24), "argument --image_size: must be a power of two of at least 16, not 24"),
        (("--num_samples", 9), "--num_samples 9: at least 64"),
        (("--images", 0), "argument --images: must be a whole number above 0"),
    ],
)
def test_mistakes_are_told_in_one_sentence(fake, photos, tmp_path, flags, sentence):
    result = run(photos, tmp_path, *flags)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not fake.commands


def test_too_few_images_for_the_smallest_share_are_refused_before_training(fake, tmp_path):
    np.savez(tmp_path / "few.npz", arr_0=np.zeros((200, SIZE, SIZE, 3), np.uint8))
    result = run(tmp_path / "few.npz", tmp_path, "stability")
    assert result.returncode == 2
    assert "--data: 180 images; 10% of them must be at least 64" in result.stderr
    assert not fake.commands


@pytest.mark.slow
def test_two_updates_of_real_networks_end_with_four_pages(photos, tmp_path):
    variants = [f"{variant}-shapes10-s0" for variant in MODELS]
    cells = [*variants, "dcgan-photos-s0", "dcgan-plus-photos-s0", "dcgan-plus-photos-10-noaug-s0"]
    result = run(photos, tmp_path, "--cells", ",".join(cells), "--seeds", 1)
    assert result.returncode == 0, result.stderr
    for name in STUDIES:
        study = json.loads((tmp_path / "out" / f"gan-{name}" / "study.json").read_text())
        assert all(cell["training"]["images_seen"] >= 128 for cell in study["cells"])
        assert page(tmp_path, name).startswith(f"# Study: {name}")
