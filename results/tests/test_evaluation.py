"""results/evaluate.py as a user runs it: what it writes, reuses and refuses."""

import hashlib
import json
import os
import time
import zipfile

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from comparison.data import shapes
from comparison.data.images import CIFAR10_CLASSES, fingerprint, save_npz
from comparison.scores.evaluation import Evaluator
from comparison.scores.reference import Reference, shuffled
from PIL import Image


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


def run_folder(place):
    return place / "runs" / "model" / "first"


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
    assert metrics["metrics"]["sliced_wasserstein"]["value"] > 0
    assert metrics["extractor"]["key"] == "random"
    with Image.open(run_folder(place) / "neighbours.png") as picture:
        assert picture.size == (2 + 12 * 18, 2 + 2 * 18)
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


def test_npz_zip_and_folder_are_scored_without_writing_into_them(place, evaluate):
    folder = place / "pngs"
    folder.mkdir()
    for i, picture in enumerate(pictures(60, "test")):
        Image.fromarray(picture).save(folder / f"{i:03}.png")
    save_npz(place / "mine.npz", pictures(60, "test"))
    with zipfile.ZipFile(place / "mine.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"deep/{path.name}")
    done = evaluate("pngs", "mine.npz", "mine.zip", *STANDARD, "--json", "all.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((place / "all.json").read_text())["samples"]
    assert scores["pngs"]["metrics"] == scores["mine.npz"]["metrics"] == scores["mine.zip"]["metrics"]
    assert len(list(folder.iterdir())) == 60
    assert not (place / "metrics.json").exists()


@pytest.mark.parametrize(("controls", "asked", "most"), [(("--anchors", "a.json"), 110, 100), ((), 240, 200)])
def test_more_images_than_the_reference_has_beside_controls_are_reduced_and_said(
    place, evaluate, controls, asked, most
):
    save_npz(place / "many.npz", pictures(250, "test"))
    done = evaluate("many.npz", *STANDARD[:-1], asked, *controls, "--json", "all.json")
    assert done.returncode == 0, done.stderr
    assert f"{most} images per row instead of {asked}" in done.stdout
    content = json.loads((place / "all.json").read_text())
    assert content["samples"]["many.npz"]["n"] == most
    assert not controls or content["anchors"]["n"] == most


def test_settings_and_history_of_a_run_are_scored_with_it(place, evaluate):
    run = run_folder(place)
    for name in ("settings/ddim10", "history/50"):
        (run / name).mkdir(parents=True)
        save_npz(run / name / "samples.npz", pictures(80, "test"))
    (run / "settings" / "empty").mkdir()
    done = evaluate("runs/model/first", *STANDARD)
    assert done.returncode == 0, done.stderr
    main = json.loads((run / "metrics.json").read_text())
    for name in ("settings/ddim10", "history/50"):
        assert json.loads((run / name / "metrics.json").read_text())["metrics"] == main["metrics"]
    assert "settings/ddim10" in done.stdout


def test_classes_are_counted_for_images_of_the_ten_classes_only(place, evaluate):
    done = evaluate("runs/model/first", *STANDARD, "--features", "cifar")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run_folder(place) / "metrics.json").read_text())
    assert metrics["extractor"]["accuracy"] > 0.8
    assert "class_entropy" not in metrics["metrics"]
    for i, picture in enumerate(pictures(100)):
        folder = place / "ten" / CIFAR10_CLASSES[i % 10]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i}.png")
    done = evaluate("runs/model/first", "--reference", "ten", "--image_size", 16, "--num_images", 60)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run_folder(place) / "metrics.json").read_text())
    assert metrics["extractor"]["key"] == "cifar"
    assert 0 <= metrics["metrics"]["class_entropy"]["value"] <= np.log2(10)


def test_measures_of_pairs_use_a_stated_number_and_moments_all(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setattr("comparison.scores.reference.PAIRWISE", 40)
    monkeypatch.setattr("comparison.scores.evaluation.PAIRWISE", 40)
    save_npz(tmp_path / "real.npz", pictures(200))
    reference = Reference.load(str(tmp_path / "real.npz"), 16, 100, 0)
    assert reference.describe()["pairwise_images"] == 40
    images = torch.from_numpy(pictures(100, "test").transpose(0, 3, 1, 2).copy())
    found = Evaluator(reference)(images)
    assert found["frechet_distance"]["n"] == 100
    assert {found[name]["n"] for name in ("kernel_distance", "coverage", "memorised", "sliced_wasserstein")} == {40}


def test_standard_scores_join_the_others_and_are_taken_once(place, evaluate, monkeypatch):
    calls = []

    def score(images, reference, *, weights, expected, device, seed):
        calls.append((images, reference, weights, seed))
        against = fingerprint(reference) if isinstance(reference, torch.Tensor) else reference.fingerprint
        entry = {"value": 40.0, "interval": [39.0, 41.0], "n": len(images)}
        return {"weights": {"sha256": expected}, "reference": {"fingerprint": against}, "metrics": {"fid": entry}}

    (place / "weights.pth").write_bytes(b"standard")
    digest = hashlib.sha256(b"standard").hexdigest()
    monkeypatch.setattr("comparison.scores.inception.SHA256_PREFIX", digest[:8])
    monkeypatch.setattr("comparison.scores.inception.require", lambda: None)
    monkeypatch.setattr("comparison.scores.standard.score", score)
    args = ("runs/model/first", *STANDARD, "--inception_weights", "weights.pth")
    evaluate("runs/model/first", *STANDARD)
    metrics = run_folder(place) / "metrics.json"
    before = json.loads(metrics.read_text())
    done = evaluate(*args)
    assert done.returncode == 0, done.stderr
    assert "fid 40 (N = 60)" in done.stdout
    after = json.loads(metrics.read_text())
    assert after.pop("standard")["weights"]["sha256"] == digest
    assert after == before
    images, reference, weights, seed = calls[0]
    assert (len(images), len(reference), weights.name, seed) == (60, 200, "weights.pth", 0)
    drawn = torch.from_numpy(pictures(80, "test").transpose(0, 3, 1, 2).copy())
    assert torch.equal(images, shuffled(drawn, 0, 60))
    evaluate(*args)
    evaluate("runs/model/first", *STANDARD)
    assert len(calls) == 1
    np.savez(place / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert evaluate(*args, "--fid_stats", "stats.npz").returncode == 0
    assert calls[1][1].name == "stats"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("absent", *STANDARD), "absent: no such run folder"),
        (("runs/model/first", *STANDARD, "--fid_stats", "no.npz"), "--fid_stats no.npz: no such file"),
        (("empty.zip", *STANDARD), "no image found in this .zip"),
        (("broken.zip", *STANDARD), "not readable as a .zip file"),
        (("runs/model/first", "--reference", "nowhere"), "--reference nowhere"),
        (("runs/model/first", *STANDARD, "--inception_weights", "real.txt"), "not the standard Inception weights"),
        (("runs/model/first", *STANDARD[:4], "--num_images", 7), "--num_images 7: five nearest"),
        (("runs/model/empty", *STANDARD), "generate samples first"),
        (STANDARD, "name at least one RUN"),
        (("real.txt", *STANDARD), "real.txt"),
    ],
)
def test_wrong_paths_and_flags_are_one_sentence(place, evaluate, args, says):
    empty = place / "runs/model/empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    (place / "real.txt").write_text("no")
    (place / "broken.zip").write_text("no")
    zipfile.ZipFile(place / "empty.zip", "w").close()
    done = evaluate(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (run_folder(place) / "metrics.json").exists()


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: save_npz(path, pictures(30)), "30 images, fewer than --num_images 60"),
        (lambda path: save_npz(path, np.zeros((80, 8, 8, 3), np.uint8)), "images of 8 x 8 pixels, --image_size 16"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "not readable as an .npz file"),
    ],
)
def test_unfit_samples_are_one_sentence_and_nothing_is_written(place, evaluate, write, says):
    write(place / "runs/model/first/samples.npz")
    done = evaluate("runs/model/first", *STANDARD)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "runs/model/first/metrics.json").exists()


def test_samples_in_class_order_are_drawn_from_at_random():
    drawn = shuffled(torch.arange(100), 0, 50)
    assert drawn.max() >= 60
    assert len(drawn.unique()) == 50
    assert torch.equal(drawn, shuffled(torch.arange(100), 0, 50))
    assert not torch.equal(drawn, shuffled(torch.arange(100), 1, 50))
    assert torch.equal(shuffled(torch.arange(100), 0).sort().values, torch.arange(100))


def test_newest_samples_count_unless_sampling_json_names_others(tmp_path):
    from comparison.scores.evaluation import find_samples

    for age, name in ((20, "samples_ddim.npz"), (10, "samples_full.npz")):
        save_npz(tmp_path / name, np.zeros((1, 8, 8, 3), np.uint8))
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    assert find_samples(tmp_path).name == "samples_full.npz"
    (tmp_path / "sampling.json").write_text('{"file": "samples_ddim.npz"}')
    assert find_samples(tmp_path).name == "samples_ddim.npz"
    missing = "names the samples 'gone.npz', which are not there"
    for name, says in (("gone.npz", missing), (7, "file: 7 is not of type")):
        (tmp_path / "sampling.json").write_text(json.dumps({"file": name}))
        with pytest.raises(UserError, match=rf"sampling\.json: .*{says}"):
            find_samples(tmp_path)


def test_the_smallest_number_of_images_works(place, evaluate):
    from comparison.scores.metrics import MIN_IMAGES

    done = evaluate("runs/model/first", *STANDARD[:4], "--num_images", MIN_IMAGES, "--anchors", "a.json")
    assert done.returncode == 0, done.stderr
    assert MIN_IMAGES == 8
    assert "nan" not in (place / "a.json").read_text().lower()
