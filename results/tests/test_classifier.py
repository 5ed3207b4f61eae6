"""The classifier: small enough, and the network that was trained."""

import json

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from comparison.data.images import CIFAR10_CLASSES
from comparison.scores import classifier
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = classifier.Classifier()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, -1, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def images(n):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8))


def test_folded_network_equals_the_trained_one(network):
    arrays = {name: torch.from_numpy(a).float() for name, a in classifier.fold(network).items()}
    x = images(8)
    expected = network(x.float().div(127.5).sub(1)).detach()
    found = classifier.Extractor(arrays)(x)[1]
    assert torch.allclose(found, expected, atol=0.02 * expected.abs().max().item())  # float16 weights


def test_an_image_costs_at_most_100_mflop_and_the_weights_3_mb(network):
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() <= 100e6
    assert classifier.WEIGHTS.stat().st_size <= 3e6


def test_weights_are_those_that_published_reports_used():
    assert classifier.facts()["fingerprint"] == "a7de052b58eff401"  # a change here makes older reports incomparable
    assert classifier.fingerprint_of(classifier.stored()) == classifier.facts()["fingerprint"]


def test_weights_that_do_not_match_their_facts_are_refused(tmp_path, monkeypatch):
    arrays = dict(classifier.stored())
    arrays["head.bias"] = arrays["head.bias"] + 1
    np.savez(tmp_path / "w.npz", **arrays)
    monkeypatch.setattr(classifier, "WEIGHTS", tmp_path / "w.npz")
    with pytest.raises(UserError, match="not the weights that"):
        classifier.stored.__wrapped__()
    monkeypatch.setattr(classifier, "WEIGHTS", tmp_path / "absent.npz")
    with pytest.raises(UserError, match=r"absent\.npz"):
        classifier.stored.__wrapped__()


@pytest.fixture
def ten_classes(tmp_path):
    """Train and test folders of the ten classes, told apart by colour."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for number, name in enumerate(CIFAR10_CLASSES):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(0, 60, (32, 32, 3)) + np.array([(number % 4) * 60, (number // 4) * 90, 40])
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path


ARGS = ("--data", "train", "--test", "test", "--run_dir", "run", "--out", "out", "--epochs", 6, "--batch_size", 20)
ARGS += ("--lr", 0.02, "--threads", 1, "--precision", "float32", "--device", "cpu")


def test_training_writes_weights_that_know_the_colours_and_says_what_they_are(ten_classes, script):
    done = script(ten_classes, "train_classifier.py", *ARGS)
    assert done.returncode == 0, done.stderr
    facts = json.loads((ten_classes / "out" / "cifar_classifier.json").read_text())
    assert facts["accuracy"] > 0.5
    assert (ten_classes / "out" / "cifar_classifier.npz").is_file()
    assert "test accuracy" in (ten_classes / "run" / "log.txt").read_text()
    rows = (ten_classes / "run" / "progress.csv").read_text().splitlines()
    assert rows[0] == "step,images_seen,wall_seconds,loss"
    assert len(rows) == 7
    again = script(ten_classes, "train_classifier.py", *ARGS)
    assert again.returncode == 0, again.stderr
    assert json.loads((ten_classes / "out" / "cifar_classifier.json").read_text())["accuracy"] == facts["accuracy"]


@pytest.mark.slow
def test_interrupted_training_goes_on_to_the_same_weights(ten_classes, script, monkeypatch):
    from comparison.scores import classifier_training

    script(ten_classes, "train_classifier.py", *ARGS)
    whole = (ten_classes / "out" / "cifar_classifier.npz").read_bytes()
    real, calls = classifier_training.learning_rate, []

    def stop_at_25(step, steps, highest):
        calls.append(step)
        if step == 25:
            raise KeyboardInterrupt
        return real(step, steps, highest)

    monkeypatch.setattr(classifier_training, "learning_rate", stop_at_25)
    cut = script(ten_classes, "train_classifier.py", *ARGS, "--fresh")
    assert cut.returncode == 130
    monkeypatch.setattr(classifier_training, "learning_rate", real)
    done = script(ten_classes, "train_classifier.py", *ARGS)
    assert done.returncode == 0, done.stderr
    assert (ten_classes / "out" / "cifar_classifier.npz").read_bytes() == whole


def test_other_classes_are_refused(ten_classes, script):
    (ten_classes / "train" / "truck").rename(ten_classes / "train" / "lorry")
    done = script(ten_classes, "train_classifier.py", *ARGS)
    assert done.returncode == 2
    assert "ten classes of CIFAR-10" in done.stderr
