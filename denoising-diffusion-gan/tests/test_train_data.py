"""train_ddgan.py on images in memory and on disk, and compiled."""

import functools

import numpy as np
import pytest
import torch
import train_ddgan
from comparison.checkpoints import load_torch
from comparison.cli import UserError
from comparison.data.images import open_images
from comparison.ranks import RankInfo
from ddgan.training_setup import check_compiler, open_batches
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING, make_images
from joint_batches import images, make_trainer


def train(pictures, folder, *more) -> int:
    flags = ["--dataset", str(pictures), "--exp", f"{folder}/", *TINY_NETWORK, *TINY_TRAINING, "--num_epoch", "2"]
    return train_ddgan.main(train_ddgan.parse_args([*flags, *more]))


def assert_same_networks(first, second) -> None:
    for name in ("generator", "discriminator"):
        a, b = (load_torch(folder / "content.pth")[name] for folder in (first, second))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def from_memory(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "run"
    assert train(pictures, folder) == 0
    return folder


@pytest.mark.parametrize("workers", ["0", "1"])
def test_training_from_disk_equals_training_from_memory(pictures, tmp_path, from_memory, monkeypatch, workers):
    monkeypatch.setenv("DATA_MEMORY", "0")
    assert train(pictures, tmp_path / "run", "--num_workers", workers) == 0
    assert "names_and_sizes" in load_torch(tmp_path / "run" / "content.pth")["data"]
    assert_same_networks(tmp_path / "run", from_memory)


def test_run_from_memory_continues_from_disk_and_back(pictures, tmp_path, from_memory, monkeypatch):
    for memory, steps in (("8", "1"), ("0", "2"), ("8", "4")):
        monkeypatch.setenv("DATA_MEMORY", memory)
        assert train(pictures, tmp_path / "run", "--max_steps", steps, "--num_workers", "0") == 0
    assert_same_networks(tmp_path / "run", from_memory)


@pytest.mark.parametrize("memory", ["0", "8"])
def test_other_images_are_refused_where_they_can_be_told(tmp_path, monkeypatch, memory):
    data = make_images(tmp_path / "data")
    assert train(data, tmp_path / "run", "--max_steps", "1") == 0
    (data / "000.png").unlink()
    monkeypatch.setenv("DATA_MEMORY", memory)
    with pytest.raises(UserError, match="--dataset: the images have changed"):
        train(data, tmp_path / "run", "--max_steps", "2")


def test_run_folder_among_the_images_is_refused(tmp_path):
    data = make_images(tmp_path / "data")
    with pytest.raises(UserError, match=r"--exp .*data/run: inside --dataset"):
        train(data, data / "run")
    assert len(list(data.iterdir())) == 20


def test_fewer_images_than_a_batch_of_all_processes_is_one_sentence(pictures, tmp_path):
    with pytest.raises(UserError, match="--batch_size 32: pictures holds only 20 images"):
        train(pictures, tmp_path / "run", "--batch_size", "32")
    assert not (tmp_path / "run").exists()


def test_compiled_networks_train_as_plain_ones(monkeypatch):
    """Traced whole, but by no compiler."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(real, fullgraph=True))
    plain, compiled = make_trainer(), make_trainer(compile_backend="eager")
    first, second = (trainer.update(images(0), 1) for trainer in (plain, compiled))
    assert {name: value.tolist() for name, value in first.items()} == {
        name: value.tolist() for name, value in second.items()
    }
    for name in ("generator", "discriminator"):
        first, second = (trainer.state_dict()[name] for trainer in (plain, compiled))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"--compile: needs a C\+\+ compiler, g\+\+ or clang\+\+"):
        check_compiler("cpu")


@pytest.mark.parametrize("flag", [[], ["--no_flip"]])
def test_no_flip_leaves_the_images_as_they_are(tmp_path, flag):
    """Each image darkens to the right, so its mirror image is none of them."""
    ramp = np.linspace(200, 50, 16).astype(np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=np.broadcast_to(ramp[None, None, :, None], (64, 16, 16, 3)))
    args = train_ddgan.parse_args(["--dataset", str(tmp_path / "images.npz"), *TINY_NETWORK, *TINY_TRAINING, *flag])
    with open_batches(open_images(args.dataset, 16), args, torch.device("cpu"), RankInfo()) as stream:
        batches = torch.cat([stream.batch(step)[0] for step in range(8)])
    darkening = (batches[:, :, :, 0] > batches[:, :, :, -1]).float().mean()
    assert darkening == 1 if flag else 0.2 < darkening < 0.8
