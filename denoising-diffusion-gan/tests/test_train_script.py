"""train_ddgan.py as a user runs it: resuming, refusing, finishing."""

import json
import socket
from pathlib import Path

import pytest
import torch
import train_ddgan
from comparison.checkpoints import load_torch, save_checkpoint
from comparison.cli import UserError
from comparison.runs import read_progress
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING


def flags(pictures: Path, folder: Path, *more: str) -> list[str]:
    return ["--dataset", str(pictures), "--exp", f"{folder}/", *TINY_NETWORK, *TINY_TRAINING, *more]


def train(*arguments) -> int:
    return train_ddgan.main(train_ddgan.parse_args(flags(*arguments)))


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def assert_same_state(first: Path, second: Path) -> None:
    for name in ("content.pth", "netG_6.pth"):
        a, b = (tensors(load_torch(folder / name)) for folder in (first, second))
        assert len(a) == len(b) > 10
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def unbroken(pictures, tmp_path_factory):
    """Six epochs of two updates."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert train(pictures, folder, "--num_epoch", "6", "--save_ckpt_every", "2") == 0
    return folder


def test_training_ends_after_exactly_num_epoch_epochs(unbroken):
    config = json.loads((unbroken / "config.json").read_text())
    assert config["finished"]["reason"] == "num_epoch 6"
    assert (config["finished"]["steps"], config["finished"]["images_seen"]) == (12, 96)
    assert sorted(p.name for p in unbroken.glob("netG_*.pth")) == ["netG_2.pth", "netG_4.pth", "netG_6.pth"]
    assert {"loss.png", "grid.png", "grid_4.png", "content.pth", "log.txt"} <= {p.name for p in unbroken.iterdir()}


def test_progress_counts_images_and_holds_both_losses(unbroken):
    rows = read_progress(unbroken / "progress.csv")
    assert [(row["step"], row["images_seen"]) for row in rows] == [(n, 8 * n) for n in range(2, 13, 2)]
    assert {"loss_d", "loss_g", "loss_d_real", "loss_d_fake", "r1", "lr", "grad_norm_g"} <= set(rows[0])
    assert rows[0]["lr"] > rows[-1]["lr"]


def test_generator_file_holds_the_average_and_its_configuration(unbroken):
    payload, content = load_torch(unbroken / "netG_6.pth"), load_torch(unbroken / "content.pth")
    assert payload["config"]["num_channels_dae"] == 8
    assert payload["config"]["use_ema"] is True
    average, raw = content["ema"]["weights"], content["generator"]
    assert all(torch.equal(value, average[name]) for name, value in payload["generator"].items())
    assert any(not torch.equal(value, raw[name]) for name, value in payload["generator"].items())


def test_finished_run_says_so_and_changes_nothing(pictures, unbroken, capsys):
    before = (unbroken / "content.pth").stat().st_mtime_ns
    assert train(pictures, unbroken, "--num_epoch", "6", "--save_ckpt_every", "2") == 0
    assert "finished" in capsys.readouterr().out
    assert (unbroken / "content.pth").stat().st_mtime_ns == before


def test_resumed_run_equals_unbroken_run(pictures, tmp_path, unbroken):
    folder, common = tmp_path / "run", ("--num_epoch", "6", "--save_ckpt_every", "2")
    for bound in ("--max_steps=5", "--max_steps=0"):
        assert train(pictures, folder, *common, bound, "--save_minutes", "1e-9") == 0  # a checkpoint in every update
    assert_same_state(folder, unbroken)


def test_run_cut_short_goes_on_with_its_schedules_as_if_it_had_not_been(pictures, tmp_path):
    schedules = ("--lr_warmup", "0.2", "--lr_decay", "linear", "--lr_decay_from", "0.4", "--ema_horizon", "0.5")
    bound = ("--num_epoch", "0", "--max_images", "80", "--log_interval", "1")
    for name, parts in (("whole", ("0",)), ("cut", ("24", "56", "0"))):
        for part in parts:
            assert train(pictures, tmp_path / name, *bound, *schedules, "--stop_after", part) == 0
    first, second = (tensors(load_torch(tmp_path / name / "content.pth")) for name in ("whole", "cut"))
    assert len(first) == len(second) > 10
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    rates = [row["lr"] / 1.5e-4 for row in read_progress(tmp_path / "cut" / "progress.csv")]
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], rel=1e-5)


def test_diverged_training_is_named_and_leaves_the_earlier_state(pictures, tmp_path):
    folder = tmp_path / "run"
    assert train(pictures, folder, "--max_steps", "2") == 0
    content = load_torch(folder / "content.pth")
    content["generator"]["conv_in.weight"].fill_(float("nan"))
    save_checkpoint(folder / "content.pth", content, model=content["model"])
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    with pytest.raises(UserError, match=r"step 4: .* the training has diverged; .*lower --lr_g and --lr_d"):
        train(pictures, folder, "--max_steps", "6")
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before


def test_documented_names_of_resuming_are_kept(pictures, tmp_path, unbroken):
    with pytest.raises(UserError, match="--resume"):
        train(pictures, tmp_path / "new", "--resume")
    assert train(pictures, unbroken, "--num_epoch", "6", "--save_ckpt_every", "2", "--resume", "--save_content") == 0


def test_port_in_use_is_named_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        flags = ["--dataset", "shapes", "--exp", f"{tmp_path}/run", "--num_proc_node", "2", "--master_port", port]
        with pytest.raises(UserError, match=f"--master_port {port}: not usable .*name another port"):
            train_ddgan.main(train_ddgan.parse_args(flags))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beta1", "1"], "--beta1"),
        (["--numepoch", "5"], "--numepoch"),
        (["--dataset", "/no/such/folder"], "--dataset /no/such/folder"),
        (["--num_proc_node", "2", "--node_rank", "2"], "--node_rank 2: must be below --num_proc_node 2"),
        (["--master_port", "1"], "--master_port: must be a whole number from 1024"),
        (["--num_process_per_node", "999"], "999 processes: this machine allows"),
        (["--image_size", "30"], "--image_size 30"),
        (["--num_epoch", "0"], "--num_epoch 0"),
        (["--attn_resolutions", "big"], "--attn_resolutions"),
        (["--master_address", ""], "--master_address"),
    ],
)
def test_wrong_flags_are_named_and_nothing_is_written(tmp_path, arguments, message, capsys):
    command = ["--dataset", "shapes", "--exp", f"{tmp_path}/run/", *arguments]
    with pytest.raises((SystemExit, UserError)) as caught:
        train_ddgan.main(train_ddgan.parse_args(command))
    assert message in (capsys.readouterr().err or str(caught.value))
    assert not (tmp_path / "run").exists()
