"""Wrong flags and damaged checkpoints: one sentence, and nothing is drawn, trained or lost."""

import shutil

import pytest
import test_ddgan
import torch
import train_ddgan
from comparison.checkpoints import load_torch, save_checkpoint
from comparison.cli import UserError
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING, make_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--dataset", str(make_images(folder / "pictures")), *TINY_NETWORK, *TINY_TRAINING, "--num_epoch", "0"]
    train(folder / "run", flags, 1)
    return folder / "run", flags


@pytest.fixture
def run_folder(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def train(folder, flags, steps):
    return train_ddgan.main(train_ddgan.parse_args([*flags, "--exp", f"{folder}/", "--max_steps", str(steps)]))


def change(path, name, value):
    payload = torch.load(path, weights_only=True)
    payload[name] = value
    torch.save(payload, path)
    return path.read_bytes()


@pytest.mark.parametrize("value", [None, "x", [], -1])
@pytest.mark.parametrize(
    "name", ["step", "wall_seconds", "data", "generator", "discriminator", "optimizer_g", "optimizer_d", "ema"]
)
def test_a_state_with_a_part_of_another_kind_is_refused_and_kept(name, value, trained, run_folder):
    path = run_folder / "content.pth"
    damaged = change(path, name, value)
    with pytest.raises(UserError, match=r"content\.pth: (damaged|does not fit)"):
        train(run_folder, trained[1], 2)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("damage", ["truncated", "foreign", "shape"])
def test_damaged_state_is_refused_and_nothing_overwritten(trained, run_folder, damage):
    content = run_folder / "content.pth"
    if damage == "truncated":
        content.write_bytes(content.read_bytes()[:2000])
    elif damage == "foreign":
        save_checkpoint(content, {"step": 1}, model="gans")
    else:
        payload = load_torch(content)
        payload["generator"]["conv_in.weight"] = torch.zeros(3)
        save_checkpoint(content, payload, model=payload["model"])
    before = {path: path.read_bytes() for path in run_folder.iterdir()}
    with pytest.raises(UserError, match=r"content\.pth"):
        train(run_folder, trained[1], 2)
    assert {path: path.read_bytes() for path in run_folder.iterdir()} == before


@pytest.mark.parametrize("value", [None, "x", [], -1])
@pytest.mark.parametrize("name", ["config", "generator", "step", "images_seen"])
def test_a_generator_with_a_part_of_another_kind_is_refused(name, value, run_folder):
    change(run_folder / "netG_1.pth", name, value)
    with pytest.raises(UserError, match=r"netG_1\.pth: (damaged|weights that do not fit)"):
        test_ddgan.main(test_ddgan.parse_args(["--exp", f"{run_folder}/", "--device", "cpu"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_timesteps", value) for value in ("x", 0, None, 2.5, True)),
        *(("ch_mult", value) for value in (3, [], ["a"], [0])),
        *(("beta_min", value) for value in ("x", None, float("nan"))),
        *(("image_size", value) for value in (17, -16, 10**6)),
        *(("resblock_type", "zzz"), ("embedding_type", None), ("not_use_tanh", "yes"), ("dropout", 5)),
        *(("num_classes", -1), ("num_classes", "x"), ("num_channels_dae", 10**9)),
    ],
)
def test_a_generator_with_impossible_flags_is_refused(name, value, run_folder):
    path = run_folder / "netG_1.pth"
    change(path, "config", {**torch.load(path, weights_only=True)["config"], name: value})
    with pytest.raises(UserError, match=r"netG_1\.pth"):
        test_ddgan.main(test_ddgan.parse_args(["--exp", f"{run_folder}/", "--device", "cpu"]))


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_means_the_folder_of_all_runs_is_refused(name):
    with pytest.raises(UserError, match="must be the name of a run"):
        train_ddgan.main(train_ddgan.parse_args(["--dataset", "shapes", "--exp", name]))


def test_networks_larger_than_memory_are_one_sentence(trained, tmp_path, capsys):
    flags = [*trained[1], "--num_channels_dae", "1000000000"]
    with pytest.raises(SystemExit) as leaving:
        train_ddgan.run(lambda: train(tmp_path / "run", flags, 1))
    assert leaving.value.code == 2
    assert "out of memory" in capsys.readouterr().err
