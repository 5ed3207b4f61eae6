"""Counted modes and their divergence from uniform; the digit classifier behind those of StackedMNIST."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from comparison.data import digits
from comparison.data.images import load_images, save_npz
from comparison.scores.modes import mode_counter, modes_estimates

mnist_files = runpy.run_path(str(Path(__file__).with_name("mnist_files.py")))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Make a data root with an MNIST of a font's digits."""
    folder = tmp_path_factory.mktemp("data")
    mnist_files["write_mnist"](folder, train=2500, test=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(folder))
        yield folder


@pytest.fixture(scope="module")
def counter(root):
    return digits.load_counter()


@pytest.mark.parametrize(
    ("found", "covered", "kl", "matched"),
    [
        ([0, 1, 2, 3] * 10, 4, 0.0, 1.0),
        ([1] * 40, 1, math.log(4), 1.0),
        ([0, 1, -1, -1] * 10, 2, math.log(2), 0.5),
        ([-1] * 40, 0, math.log(4), 0.0),
    ],
)
def test_modes_are_counted_and_compared_with_uniform(found, covered, kl, matched):
    estimates = modes_estimates(torch.tensor(found), 4)
    values = [estimates[name].value for name in ("modes_covered", "modes_kl", "modes_matched")]
    assert values == pytest.approx([covered, kl, matched], abs=1e-12)


def test_sharpness_is_the_median_residual():
    residuals = torch.linspace(0, 1, 41)[torch.randperm(41, generator=torch.Generator().manual_seed(0))]
    found = modes_estimates(torch.zeros(41).long(), 4, residuals)["sharpness"]
    assert found.value == pytest.approx(0.5)
    assert 0 < found.low < 0.5 < found.high
    assert "sharpness" not in modes_estimates(torch.zeros(41).long(), 4)


def test_data_without_known_modes_have_no_counter(tmp_path):
    assert mode_counter("cifar10") is None
    assert mode_counter(str(tmp_path)) is None
    shapes = mode_counter("shapes:100")
    assert (shapes.total, shapes.facts) == (100, {"acceptance": 0.1})


def test_classifier_reads_each_channel_of_unseen_pictures(counter):
    assert counter.facts["test_images"] == 300
    assert counter.facts["test_accuracy"] > 0.97
    data = load_images("stackmnist", 32, split="test")
    found = counter.modes(data.images)
    assert (found >= 0).float().mean() > 0.9
    assert (found == data.labels)[found >= 0].float().mean() > 0.97
    large = load_images("stackmnist", 64, split="test", limit=100)
    assert (counter.modes(large.images) == large.labels).float().mean() > 0.8


@pytest.mark.parametrize("kind", ["white", "normal", "black", "even", "inverted"])
def test_noise_and_surfaces_show_no_mode(counter, kind):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(300, 3, 32, 32, generator=generator)
    images = {
        "white": 255 * torch.rand(300, 3, 32, 32, generator=generator),
        "normal": 128 + 40 * normal,
        "black": torch.zeros(3, 3, 32, 32),
        "even": 20 * torch.arange(13).view(13, 1, 1, 1).expand(13, 3, 32, 32) + normal[:13],
        "inverted": 255 - load_images("stackmnist", 32, limit=100).images.float(),
    }[kind]
    assert (counter.modes(images.clamp(0, 255).to(torch.uint8)) == -1).all()


def test_classifier_is_trained_once_and_a_damaged_file_anew(root, counter, monkeypatch):
    (kept,) = (root / "cache").glob("digits-*.pt")
    with monkeypatch.context() as patch:
        patch.setattr(digits, "train", None)
        again = digits.load_counter()
    assert again.facts == counter.facts
    weights = counter.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.network.state_dict().items())
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    monkeypatch.setattr(digits, "train", lambda *args: None)
    assert digits.load_counter().facts["fingerprint"] != counter.facts["fingerprint"]
    kept.write_bytes(whole)


def test_evaluation_counts_the_modes_and_says_by_which_classifier(root, counter, script, tmp_path):
    data = load_images("stackmnist", 32, split="test", limit=400)
    (tmp_path / "run").mkdir()
    save_npz(tmp_path / "run" / "samples.npz", data.images.permute(0, 2, 3, 1).numpy())
    flags = ("--reference", "stackmnist", "--num_images", 400, "--anchors", "anchors.json")
    done = script(tmp_path, "evaluate.py", "run", *flags)
    assert done.returncode == 0, done.stderr
    scored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    modes = scored["metrics"]["modes_covered"]
    assert modes["total"] == 1000
    assert 0.85 * len(data.labels.unique()) < modes["value"] <= len(data.labels.unique())
    assert 0.5 < scored["metrics"]["modes_kl"]["value"] < 2
    assert scored["mode_counter"] == counter.facts
    anchors = json.loads((tmp_path / "anchors.json").read_text())["anchors"]
    assert anchors["noise"]["metrics"]["modes_covered"]["value"] == 0
    assert anchors["floor"]["metrics"]["modes_covered"]["value"] > 250
    assert "modes KL" in done.stdout
