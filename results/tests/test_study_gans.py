"""The studies of GANs: plans, cells that are trained once, pages from study.json, what is measured along a training."""

import argparse
import json
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from comparison import jobs, models
from comparison.data.images import load_images
from comparison.files import write_json
from fake_models import FakeModels

RESULTS = Path(__file__).parents[1]
COUNT, SIZE = 1280, 16
DATA_HELP = ("stability", "collapse", "modes", "overfitting")


@pytest.fixture(scope="module")
def gans():
    """Return the names of the script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RESULTS / "studies")
        yield argparse.Namespace(**runpy.run_path(str(RESULTS / "studies" / "gans.py")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return an .npz file of images; what is cached of them lies beside it."""
    path = tmp_path_factory.mktemp("data") / "photos.npz"
    np.savez(path, arr_0=load_images("shapes:10", SIZE, limit=COUNT).images.permute(0, 2, 3, 1).numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(path.parent))
        yield path


def entry(value, half=0.01, **more):
    return {"value": value, "interval": [value - half, value + half], "n": 64, **more}


class FakeScripts(FakeModels):
    """Also writes what is watched along a GAN's training, and scores in which the preset dcgan-plus helps."""

    def train(self, model, folder, value, fresh=False):
        if not super().train(model, folder, value, fresh):
            return False
        plus = value.get("--preset") == "dcgan-plus"
        rows = [f"{i},{64 * i},{i},{0.1 + 0.01 * (i % 2)}" for i in range(1, 21)]
        (folder / "progress.csv").write_text("\n".join(["step,images_seen,wall_seconds,gap", *rows]) + "\n")
        if value.get("--score_every", "0") != "0":
            course = [(90, 0.2), (50, 0.4), (40, 0.5), (45, 0.4), (40, 0.5)]
            course = course if plus else [(90, 0.2), (50, 0.4), (150, 0.1), (60, 0.3), (200, 0.1)]
            rows = [f"{i},{100 * i},{i},{d},{c}" for i, (d, c) in enumerate(course, 1)]
            head = "step,images_seen,wall_seconds,frechet_distance,coverage"
            (folder / "scores.csv").write_text("\n".join([head, *rows]) + "\n")
        if plus and value.get("--keep_best") != "false":
            (folder / "best_1.pt").write_text("best")
        return True

    def evaluate(self, command, value):
        count = int(value["--reference"].partition(":")[2]) if value["--reference"].startswith("shapes") else 0

        def scores(good):
            found = {"frechet_distance": entry(20 - 15 * good), "coverage": entry(0.9 * good), "recall": entry(good)}
            shown = {"modes_covered": entry(good * count, count / 100, total=count), "modes_matched": entry(good)}
            return {**found, "memorised": entry(0.0), **(shown if count else {})}

        for name in map(Path, command[1 : command.index("--reference")]):
            write_json(name / "metrics.json", {"metrics": scores(0.9 if "plus" in name.parents[1].name else 0.3)})
        controls = {"reference": {"name": "photos", "fingerprint": "0"}, "extractor": {"name": "made up"}, "n": 64}
        write_json(Path(value["--anchors"]), {**controls, "anchors": {"floor": {"metrics": scores(1.0)}}})


def run(script, photos, folder, *flags):
    """Run the script; `flags` may override."""
    common = ("--data", photos, "--out", folder / "out", "--runs_dir", folder / "runs", "--threads", 1)
    return script(
        folder, "studies/gans.py", *common, "--images", 128, "--image_size", SIZE, "--num_samples", 64, *flags
    )


@pytest.fixture(scope="module")
def finished(script, photos, tmp_path_factory):
    """Return the folder of all four kinds, and the fake scripts that ran there."""
    folder, scripts = tmp_path_factory.mktemp("studies"), FakeScripts(script, photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "run", scripts)
        result = run(script, photos, folder)
    assert result.returncode == 0, result.stderr
    return folder, scripts


def trainings(scripts):
    return [dict(pairwise(command)) for command in scripts.done if "--run_dir" in command]


def page(folder, name):
    return (folder / "out" / f"gan-{name}" / "README.md").read_text()


def test_documented_plan_of_all_kinds_ends_within_three_hours_and_runs_nothing(gans, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    command = ["bash", str(RESULTS.parent / "gans" / "study.sh"), "--plan", "--data", "shapes", "--runs_dir", "runs"]
    path = f"{tmp_path}:{RESULTS}"
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells, minutes = (int(word) for word in done.stdout.splitlines()[-1].split() if word.isdigit() and int(word) > 2)
    assert cells == len({cell for kind in DATA_HELP for cell in gans.CELLS[kind]})
    assert cells * 5 < minutes <= 180
    assert [path.name for path in tmp_path.iterdir()] == ["torch.py"]


def test_training_that_several_kinds_need_is_done_once(finished):
    folder, scripts = finished
    places = [value["--run_dir"] for value in trainings(scripts)]
    assert len(places) == len(set(places)) == 4 * 3 + 12 + 5
    assert str(folder / "runs" / "gans" / "study-gan-dcgan-plus-photos-s0") in places


def test_second_call_trains_and_samples_nothing_and_writes_the_same_pages(script, finished, photos, monkeypatch):
    folder, scripts = finished
    files = [path for path in (folder / "out").rglob("*.*") if path.is_file()]
    before, count = [path.read_bytes() for path in files], len(scripts.done)
    monkeypatch.setattr(jobs, "run", scripts)
    assert run(script, photos, folder).returncode == 0
    assert len(scripts.done) == count
    assert [path.read_bytes() for path in files] == before


def test_interrupted_study_goes_on_where_it_stopped_and_names_what_is_left_out(script, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "run", scripts := FakeScripts(script, photos))
    scripts.interrupt_at = 3
    flags = ("modes", "--cells", "dcgan-shapes10,ddgan-shapes10")
    assert run(script, photos, tmp_path, *flags).returncode == 130
    assert run(script, photos, tmp_path, *flags).returncode == 0
    used = [models.MODELS[name] for name in (models.GAN, models.DDGAN)]
    assert [command[0] for command in scripts.done] == [name for model in used for name in (model.train, model.sample)]
    assert "- Not among --cells: dcgan-plus-shapes10, ddpm-shapes10" in page(tmp_path, "modes")


def test_both_presets_differ_in_the_preset_alone_and_all_models_have_one_budget(finished):
    every = trainings(finished[1])
    pair = {value["--preset"]: value for value in every if (value["--data"], value["--seed"]) == ("shapes:200", "1")}
    plain, plus = pair["dcgan"], pair["dcgan-plus"]
    assert {flag for flag in {*plain, *plus} if plain.get(flag) != plus.get(flag)} >= {"--preset", "--run_dir"}
    differ = {flag for flag in {*plain, *plus} if flag.startswith("--") and plain.get(flag) != plus.get(flag)}
    assert differ == {"--preset", "--run_dir"}
    assert {value["--max_images"] for value in every} == {"128"}


def test_shares_of_the_data_are_taken_by_limit_with_and_without_diffaugment(finished):
    folder, scripts = finished
    plus = [value for value in trainings(scripts) if value.get("--preset") == "dcgan-plus"]
    total = COUNT - COUNT // 10  # a file has no test split: a tenth is held out
    limits = {100: None, 20: str(total * 20 // 100), 10: str(total * 10 // 100)}
    found = {(value.get("--limit"), value.get("--diffaugment")) for value in plus}
    assert found == {(limit, policy) for limit in limits.values() for policy in (None, "none")}
    cells = json.loads((folder / "out" / "gan-overfitting" / "study.json").read_text())["cells"]
    assert {c["percent"]: c["training_images"] for c in cells} == {p: int(n or total) for p, n in limits.items()}


@pytest.mark.parametrize("kind", DATA_HELP)
def test_page_is_made_from_study_json_alone_and_names_no_path(script, finished, photos, tmp_path, kind):
    made = {path.name: path.read_bytes() for path in (finished[0] / "out" / f"gan-{kind}").iterdir()}
    (place := tmp_path / f"gan-{kind}").mkdir()
    (place / "study.json").write_bytes(made["study.json"])
    assert script(tmp_path, "studies/gans.py", kind, "--page", "--out", tmp_path).returncode == 0
    assert {path.name: path.read_bytes() for path in place.iterdir()} == made
    assert set(made) == {"README.md", "study.json", f"{kind}.png"}
    assert not {str(finished[0]), str(photos)} & set((made["study.json"] + made["README.md"]).decode().split('"'))


def test_pages_show_what_is_measured_along_a_training_and_against_the_floor(finished):
    folder, _ = finished
    stability, collapse, modes, overfitting = (page(folder, name) for name in DATA_HELP)
    assert "| DCGAN | 128 | 4 | " in stability  # 200 at the end, 50 at best
    assert "| 3 of 3 |" in stability
    assert "| DCGAN plus, best checkpoint |" in stability
    assert "60 of 200" in collapse
    assert "cover 3 trainings with different seeds (Student's t)" in collapse
    assert "One seed per row, so seed-to-seed variance is not estimated" in modes
    assert "| improved DDPM | 128 | 20 | 30.0 ± 1.0% |" in modes
    assert "| 10% without DiffAugment | 128 | 115 |" in overfitting


def test_flags_of_every_gan_are_accepted_by_its_script(gans):
    args = argparse.Namespace(image_size=32, images=9, seconds=300, num_samples=2000)
    code = "import json, sys; from gan.options import parse; "
    code += "print(json.dumps([vars(parse(None, words)) for words in json.loads(sys.argv[1])], default=str))"
    cells = [cell for kind in DATA_HELP for cell in gans.CELLS[kind] if cell.model.name == models.GAN]
    words = json.dumps([gans.training_flags(cell, args, 50_000) for cell in cells])
    environment = {"PYTHONPATH": f"{RESULTS}:{RESULTS.parent / 'gans'}"}
    done = subprocess.run([sys.executable, "-c", code, words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for cell, options in zip(cells, json.loads(done.stdout), strict=True):
        assert options["max_images"] == 9
        assert options["limit"] == (0 if cell.percent == 100 else 500 * cell.percent)
        assert (options["diffaugment"] == "none") == (cell.variant == "dcgan" or not cell.augment)
        assert bool(options["score_every"]) == cell.scored


def test_course_of_a_training_is_measured_from_its_scores(gans):
    steady = gans.along([[1, 80, 0.1], [2, 40, 0.3], [3, 40, 0.3], [4, 40, 0.3]])
    assert (steady["worsened"]["value"], steady["swing"]["value"], steady["collapsed_at"]) == (1.0, 1.0, None)
    wild = gans.along([[1, 80, 0.1], [2, 20, 0.4], [3, 80, 0.1], [4, 40, 0.3], [5, 80, 0.3]])
    assert wild["worsened"]["value"] == pytest.approx(4)
    assert wild["swing"]["value"] == pytest.approx(2)
    assert wild["collapsed_at"] == 3
    assert gans.along([[1, 80, 0.1]]) == {}


def test_gap_is_of_the_last_half_of_a_training(gans, tmp_path):
    rows = [f"{i},{i},{i},{5 if i <= 50 else 1 + 0.1 * (i % 2)}" for i in range(1, 101)]
    (tmp_path / "progress.csv").write_text("\n".join(["step,images_seen,wall_seconds,gap", *rows]) + "\n")
    found = gans.held_out_gap(tmp_path)
    assert (found["value"], found["n"]) == (pytest.approx(1.05), 50)
    (tmp_path / "progress.csv").write_text("step,images_seen,wall_seconds,gap\n1,1,1,2\n")
    assert gans.held_out_gap(tmp_path) is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("stabilty",), "argument KIND: must be among stability, collapse, modes, overfitting, not stabilty"),
        (("modes", "--cells", "dcgan-9"), "--cells dcgan-9: must be among dcgan-shapes10"),
        (("--data", "nowhere"), "--data nowhere: neither"),
        (("--image_size", 24), "argument --image_size: must be a power of two of at least 16, not 24"),
        (("--images", 0), "argument --images: must be a whole number above 0"),
        (("stability", "--data", "few.npz"), "--data: 180 images; 10% of them must be at least 64"),
    ],
)
def test_mistakes_are_told_in_one_sentence_before_training(script, photos, tmp_path, monkeypatch, flags, sentence):
    monkeypatch.setattr(jobs, "run", scripts := FakeScripts(script, photos))
    np.savez(tmp_path / "few.npz", arr_0=np.zeros((200, SIZE, SIZE, 3), np.uint8))
    result = run(script, photos, tmp_path, *flags)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not scripts.done


@pytest.mark.slow
def test_two_updates_of_real_networks_end_with_four_pages(script, photos, tmp_path):
    cells = [f"{variant}-shapes10" for variant in ("dcgan", "dcgan-plus", "ddpm", "ddgan")]
    cells += ["dcgan-photos", "dcgan-plus-photos", "dcgan-plus-photos-10-noaug"]
    result = run(script, photos, tmp_path, "--cells", ",".join(cells), "--seeds", 1)
    assert result.returncode == 0, result.stderr
    for kind in DATA_HELP:
        study = json.loads((tmp_path / "out" / f"gan-{kind}" / "study.json").read_text())
        assert all(cell["training"]["images_seen"] >= 128 for cell in study["cells"])
        assert page(tmp_path, kind).startswith(f"# Study: GANs, {kind}")
