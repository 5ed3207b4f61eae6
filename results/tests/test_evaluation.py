"""results/evaluate.py as a user runs it: what it writes, reuses and refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from comparison import shapes
from comparison.images import save_npz

SCRIPT = Path(__file__).parents[1] / "evaluate.py"


def pictures(n, split="train"):
    return shapes.dataset(10, 16, split=split, limit=n)[0].permute(0, 2, 3, 1).numpy()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a reference of 200 images and a run with 80 samples."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    save_npz(tmp_path / "real.npz", pictures(200), np.arange(200) % 4)
    run = tmp_path / "runs" / "model" / "first"
    run.mkdir(parents=True)
    save_npz(run / "samples.npz", pictures(80, "test"))
    return tmp_path


@pytest.fixture
def evaluate(place, script):
    return lambda *args: script(place, "evaluate.py", *args, "--threads", 1)


STANDARD = ("--reference", "real.npz", "--image_size", 16, "--num_images", 60)


def test_run_folder_gets_metrics_with_intervals_and_provenance(place, evaluate):
    done = evaluate("runs/model/first", *STANDARD, "--anchors", "report/anchors.json", "--json", "all.json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((place / "runs/model/first/metrics.json").read_text())
    assert metrics["n"] == 60
    assert {"fingerprint", "training_fingerprint", "name"} <= set(metrics["reference"])
    assert metrics["extractor"]["fingerprint"]
    for name in ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "memorised"):
        entry = metrics["metrics"][name]
        assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]
        assert entry["n"] == 60
    anchors = json.loads((place / "report/anchors.json").read_text())
    assert list(anchors["anchors"]) == ["floor", "copies", "jpeg", "half", "blur", "noise"]
    assert {row["metrics"]["coverage"]["n"] for row in anchors["anchors"].values()} == {60}
    assert anchors["reference"] == metrics["reference"]
    assert (place / "report/anchors-real.png").is_file()
    assert (place / "report/anchors-controls.png").is_file()
    assert json.loads((place / "all.json").read_text())["samples"]["runs/model/first"] == metrics
    assert "real images (floor)" in done.stdout
    assert str(place) not in (place / "report/anchors.json").read_text()


def test_second_call_reuses_and_other_samples_are_scored_anew(place, evaluate):
    run = place / "runs/model/first"
    args = ("runs/model/first", *STANDARD, "--anchors", "anchors.json")
    evaluate(*args)
    files = [run / "metrics.json", place / "anchors.json"]
    before = [(f.stat().st_mtime_ns, f.read_text()) for f in files]
    evaluate(*args)
    assert [(f.stat().st_mtime_ns, f.read_text()) for f in files] == before
    save_npz(run / "samples.npz", pictures(80, "test")[::-1] // 2)
    evaluate(*args)
    assert files[0].read_text() != before[0][1]
    assert files[1].read_text() == before[1][1]
    evaluate(*args, "--seed", 1)
    assert files[1].read_text() != before[1][1]


def test_npz_and_folder_are_scored_without_writing_into_them(place, evaluate):
    from PIL import Image

    folder = place / "pngs"
    folder.mkdir()
    for i, picture in enumerate(pictures(60, "test")):
        Image.fromarray(picture).save(folder / f"{i:03}.png")
    save_npz(place / "mine.npz", pictures(60, "test"))
    done = evaluate("pngs", "mine.npz", *STANDARD, "--json", "all.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((place / "all.json").read_text())["samples"]
    assert scores["pngs"]["metrics"] == scores["mine.npz"]["metrics"]
    assert len(list(folder.iterdir())) == 60
    assert not (place / "metrics.json").exists()


def test_more_images_than_half_the_set_are_reduced_for_all_rows_and_said(place, evaluate):
    save_npz(place / "many.npz", pictures(120, "test"))
    args = ("many.npz", *STANDARD[:-1], 110, "--anchors", "a.json", "--json", "all.json")
    done = evaluate(*args)
    assert done.returncode == 0, done.stderr
    assert "100 images per row instead of 110" in done.stdout
    content = json.loads((place / "all.json").read_text())
    assert content["anchors"]["n"] == content["samples"]["many.npz"]["n"] == 100


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("absent", *STANDARD), "absent: no such run folder"),
        (("runs/model/first", "--reference", "nowhere"), "--reference nowhere"),
        (("runs/model/first", *STANDARD, "--num_image", 3), "--num_image"),
        (("runs/model/first", *STANDARD[:4], "--num_images", 0), "--num_images"),
        (("runs/model/first", *STANDARD[:4], "--num_images", 7), "--num_images 7: at least 8"),
        (("runs/model/empty", *STANDARD), "draw samples first"),
        (STANDARD, "name at least one RUN"),
        (("real.txt", *STANDARD), "real.txt"),
    ],
)
def test_wrong_paths_and_flags_are_one_sentence_before_torch(place, args, says):
    empty = place / "runs/model/empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    (place / "real.txt").write_text("no")
    code = f"import sys, runpy; sys.argv = {['evaluate.py', *map(str, args)]!r}\n"
    code += f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.stdout.strip() == "2 False"
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (lambda: pictures(30), "30 images, fewer than --num_images 60"),
        (lambda: np.zeros((80, 8, 8, 3), np.uint8), "images of 8 x 8 pixels, --image_size 16"),
    ],
)
def test_unfit_samples_are_one_sentence_and_nothing_is_written(place, evaluate, samples, says):
    save_npz(place / "runs/model/first/samples.npz", samples())
    done = evaluate("runs/model/first", *STANDARD)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "runs/model/first/metrics.json").exists()


def test_truncated_samples_are_one_sentence(place, evaluate):
    file = place / "runs/model/first/samples.npz"
    file.write_bytes(file.read_bytes()[:500])
    done = evaluate("runs/model/first", *STANDARD)
    assert done.returncode == 2
    assert "not readable as an .npz file" in done.stderr


def test_samples_in_class_order_are_drawn_from_at_random():
    import torch
    from comparison.evaluation import choose

    numbers = torch.arange(100)
    assert choose(numbers, 50, 0).max() > 60
    assert torch.equal(choose(numbers, 50, 0), choose(numbers, 50, 0))
    assert len(choose(numbers, 50, 0).unique()) == 50


def test_newest_samples_count_unless_sampling_json_names_others(tmp_path):
    import os

    from comparison.evaluation import find_samples

    for age, name in ((20, "samples_ddim.npz"), (10, "samples_full.npz")):
        save_npz(tmp_path / name, np.zeros((1, 8, 8, 3), np.uint8))
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    assert find_samples(tmp_path).name == "samples_full.npz"
    (tmp_path / "sampling.json").write_text('{"file": "samples_ddim.npz"}')
    assert find_samples(tmp_path).name == "samples_ddim.npz"


def test_the_smallest_number_of_images_works(place, evaluate):
    from comparison.metrics import MIN_IMAGES

    done = evaluate("runs/model/first", *STANDARD[:4], "--num_images", MIN_IMAGES, "--anchors", "a.json")
    assert done.returncode == 0, done.stderr
    assert MIN_IMAGES == 8
    assert "nan" not in (place / "a.json").read_text().lower()
