"""results/report.py: tables, sentences and pictures from files alone."""

import json
import shutil

import numpy as np
import pytest
from comparison import formatting
from comparison.data import shapes
from comparison.data.images import save_npz
from comparison.png import save_grid


def write_run(folder, model, images, seconds_per_image, nfe):
    folder.mkdir(parents=True)
    save_npz(folder / "samples.npz", images.permute(0, 2, 3, 1).numpy())
    save_grid(images[:64], folder / "samples.png")
    config = {"model": model, "parameters": {"generator": 1000, "critic": 500}, "git_commit": "abc", "versions": {}}
    config["finished"] = {"reason": "max_seconds 9", "steps": 90, "images_seen": 900, "wall_seconds": 9.1}
    sampling = {"file": "samples.npz", "nfe": nfe, "seconds_per_image": seconds_per_image, "batch_size": 8}
    sampling |= {"parameters": 1000, "device": "a CPU", "precision": "float32", "protocol": "after warm-up"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sampling.json").write_text(json.dumps(sampling))
    lines = [f"{10 * i},{100 * i},{i},{1 / i},{2 / i}" for i in range(1, 10)]
    (folder / "progress.csv").write_text("\n".join(["step,images_seen,wall_seconds,loss_d,loss_g", *lines]) + "\n")


@pytest.fixture(scope="module")
def scored(tmp_path_factory, script):
    """Two runs that keep the whole contract, and a third that has samples alone."""
    place = tmp_path_factory.mktemp("report")
    patch = pytest.MonkeyPatch()
    patch.setenv("DATA_ROOT", str(place / "data"))
    images = shapes.dataset(10, 16, split="test", limit=80)[0]
    save_npz(place / "real.npz", shapes.dataset(10, 16, limit=200)[0].permute(0, 2, 3, 1).numpy())
    write_run(place / "runs/gans/one", "gans", images // 2, 0.001, 1)
    write_run(place / "runs/improved-diffusion/one", "improved-diffusion", images, 0.5, 50)
    (place / "runs/flow/one").mkdir(parents=True)
    save_npz(place / "runs/flow/one/samples.npz", images.permute(0, 2, 3, 1).numpy())
    done = script(
        *(place, "evaluate.py", *RUNS, "--reference", "real.npz", "--image_size", 16, "--num_images", 60),
        *("--anchors", "report/anchors.json"),
    )
    assert done.returncode == 0, done.stderr
    patch.undo()
    return place


RUNS = ("runs/gans/one", "runs/improved-diffusion/one", "runs/flow/one")


@pytest.fixture
def place(scored, tmp_path):
    shutil.copytree(scored, tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def report(place, script):
    def call(*runs, **options):
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        standard = ("--name", "test", "--out", "report", "--anchors", "report/anchors.json")
        return script(place, "report.py", *standard, *flags, *runs)

    return call


@pytest.fixture
def no_pictures(monkeypatch):

    monkeypatch.setattr(report, "_draw", lambda *_: [])


def test_report_has_sentences_tables_pictures_and_provenance(place, report):
    done = report(*RUNS[:2], budget="seconds=9", data_note="These are test pictures.")
    assert done.returncode == 0, done.stderr
    text = (place / "report/REPORT.md").read_text()
    assert text.index("Quality (random-embedding") < text.index("samples.png") < text.index("| real images (floor)")
    for words in ("These are test pictures.", "relative within this report", "Equal training time, 9 s each", "`abc`"):
        assert words in text
    assert "DCGAN" in done.stdout
    assert "REPORT.md" in done.stdout
    content = json.loads((place / "report/report.json").read_text())
    assert [row["label"] for row in content["models"]] == ["DCGAN", "improved DDPM"]
    for name in content["pictures"]:
        assert f"]({name})" in text
        assert (place / "report" / name).stat().st_size < 300_000
    strips = {"neighbours.png"}  # evaluate.py drew them
    charts = {"bars.png", "speed.png", "trilemma.png", "total_cost.png", "loss.png"}
    assert set(content["pictures"]) == {"samples.png", "controls.png"} | charts | strips


def test_provenance_says_what_scored_the_models_where_it_is_not_what_scored_the_controls(place, report, no_pictures):
    path = place / "report/anchors.json"
    anchors = {**json.loads(path.read_text()), "versions": {"torch": "1.0"}}
    path.write_text(json.dumps(anchors))
    for run, version in zip(RUNS[:2], ("1.0", "2.0"), strict=True):
        metrics = place / run / "metrics.json"
        metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "versions": {"torch": version}}))
    for runs, controls in ((RUNS[:1], "Scored"), (RUNS[:2], "Controls scored")):
        assert report(*runs).returncode == 0
        text = (place / "report/REPORT.md").read_text()
        assert f"- {controls} with torch 1.0" in text
        assert text.count("scored with torch 2.0") == len(runs) - 1


def test_reports_never_use_the_name_of_the_standard_score(place, report, no_pictures):
    done = report(*RUNS)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, (place / "report/REPORT.md").read_text(), (place / "report/report.json").read_text()):
        assert "FID" not in text


def test_paths_of_this_machine_do_not_show(place, report, no_pictures):
    report(*(place / run for run in RUNS))
    for name in ("REPORT.md", "report.json"):
        assert str(place) not in (place / "report" / name).read_text()


def test_report_from_committed_files_alone_shows_the_same_samples(place, report):
    report(*RUNS[:2])
    before = (place / "report/samples.png").read_bytes()
    for run in RUNS[:2]:
        (place / run / "samples.npz").unlink()
    report(*RUNS[:2])
    assert (place / "report/samples.png").read_bytes() == before


def test_a_fourth_model_joins_by_its_files_and_missing_ones_show_as_dashes(place, report, no_pictures):
    done = report(*RUNS)
    assert done.returncode == 0, done.stderr
    text = (place / "report/REPORT.md").read_text()
    (quality, cost) = (line for line in text.splitlines() if line.startswith("| flow"))
    assert "-" not in quality.split("|")[2]
    assert {cell.strip() for cell in cost.split("|")[2:-1]} == {"-"}


def test_a_run_that_is_not_scored_yet_is_said_to_be_so(place, report, no_pictures):
    (place / "runs/flow/one/metrics.json").unlink()
    done = report(*RUNS)
    assert done.returncode == 0, done.stderr
    assert "flow has no metrics.json" in (place / "report/REPORT.md").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(n=50), "n 50 there, 60 in the controls"),
        (lambda m: m["reference"].update(fingerprint="0" * 16), "reference"),
        (lambda m: m["extractor"].update(fingerprint="0" * 16), "extractor"),
        (lambda m: m.update(seed=3), "seed 3 there"),
        (lambda m: m["samples"].update(fingerprint="0" * 16), "other samples than"),
        (lambda m: m["samples"].update(file="samples_old.npz"), "scores samples_old.npz, not samples.npz"),
    ],
)
def test_metrics_that_do_not_belong_here_are_refused(place, report, change, says):
    path = place / RUNS[0] / "metrics.json"
    metrics = json.loads(path.read_text())
    change(metrics)
    path.write_text(json.dumps(metrics))
    done = report(*RUNS)
    assert done.returncode == 2
    assert says in done.stderr
    assert "run evaluate.py again" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "report/REPORT.md").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("absent",), "absent: no such run folder"),
        (("data",), "not a run folder"),
        (("runs/gans/one", "--budget", "hours=3"), "--budget hours=3"),
        (("runs/gans/one", "--anchors", "none.json"), "--anchors none.json: no such file"),
        (("runs/gans/one", "runs/gans/one"), "give each once"),
        (("runs/gans/one", "--anchors", "runs/gans/one/config.json"), "not a file that evaluate.py"),
    ],
)
def test_wrong_arguments_are_one_sentence(place, report, args, says):
    (place / "data").mkdir(exist_ok=True)
    done = report(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [(12.34, 0.4, "12.3 ± 0.4"), (0.93, 0.0047, "0.930 ± 0.005"), (6380, 13, "6,380 ± 13"), (-0.2, 3, "0 ± 3")],
)
def test_numbers_are_rounded_to_their_error(value, half, text):
    assert formatting.with_error(value, half) == text


def test_quantities_carry_their_units():
    assert [formatting.seconds(s) for s in (2e-4, 0.016, 12, 1200, 8000)] == [
        "200 us",
        "16 ms",
        "12 s",
        "20 min",
        "2.22 h",
    ]
    assert [formatting.count(c) for c in (900, 62300, 3.58e6, None)] == ["900", "62.3 k", "3.58 M", "-"]
    assert formatting.memory(3 * 2**30) == "3.00 GiB"


def test_grid_is_cut_as_it_was_pasted(tmp_path):
    from comparison.report.rows import read_grid

    images = shapes.dataset(10, 16, limit=13)[0]
    save_grid(images, tmp_path / "grid.png")
    assert np.array_equal(read_grid(tmp_path / "grid.png", 64), images.permute(0, 2, 3, 1).numpy())


def test_the_fourth_model_of_the_readme_is_a_run_folder(tmp_path, monkeypatch):
    from pathlib import Path

    from comparison.data.images import load_npz
    from comparison.report.rows import check_runs
    from comparison.scores.evaluation import find_samples

    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    run = Path("results/runs/flow/mine")
    check_runs([run])
    assert load_npz(find_samples(run))[0].shape == (1000, 3, 32, 32)


def test_examples_of_the_readme_are_valid_json():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "README.md").read_text()
    examples = [json.loads(part.split("```")[0]) for part in text.split("```json\n")[1:]]
    assert len(examples) == 4
