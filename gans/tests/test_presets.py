"""Presets, their switches in a whole run, and diagnosis beside it."""

import shutil

import cifar_gan
import pytest
import sample_gan
import torch
from comparison.checkpoints import load_checkpoint
from comparison.runs import read_progress
from helpers_gans import TINY, call, train_here


def test_diagnosis_changes_no_weight(tmp_path):
    shapes = ["--data", "shapes", *TINY, "--max_steps", 12, "--score_images", 8]
    for name, diagnosis in (("with", [50, 40]), ("without", [0, 0])):
        flags = ["--held_out", diagnosis[0], "--score_every", diagnosis[1]]
        train_here("--run_dir", tmp_path / name, *shapes, *flags)
    ours, theirs = (load_checkpoint(tmp_path / n / "checkpoint_000012.pt", model="gans") for n in ("with", "without"))
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(value, theirs[part][name]) for name, value in ours[part].items()), part
    rows = [read_progress(tmp_path / name / "progress.csv") for name in ("with", "without")]
    assert rows[0][-1]["loss_d"] == rows[1][-1]["loss_d"]
    assert "gap" in rows[0][-1]
    assert "gap" not in rows[1][-1]
    assert [row["step"] for row in read_progress(tmp_path / "with" / "scores.csv")] == [5, 10, 12]
    assert not (tmp_path / "without" / "scores.csv").exists()


def test_preset_sets_defaults_that_any_flag_overrides():
    plus = cifar_gan.parse_args(["--preset", "dcgan-plus", "--ema_decay", "0", "--diffaugment", "cutout,color"])
    assert (plus.loss, plus.d_norm, plus.beta1, plus.beta2, plus.flip) == ("hinge", "spectral", 0.0, 0.9, True)
    assert (plus.ema_decay, plus.diffaugment) == (0.0, "color,cutout")
    plain = cifar_gan.parse_args([])
    assert (plain.g_lr, plain.d_lr, plain.loss, plain.image_size, plain.flip) == (1.6e-4, 1.25e-4, "bce", 64, False)


def test_best_checkpoint_is_the_one_that_is_sampled(finished, tmp_path):
    shutil.copy(finished / "checkpoint_000080.pt", tmp_path / "best_000080.pt")
    shutil.copy(finished / "checkpoint_000100.pt", tmp_path / "checkpoint_000100.pt")
    assert sample_gan.find_checkpoint(tmp_path).name == "best_000080.pt"


def test_run_cut_short_goes_on_as_if_it_had_not_been(images, tmp_path):
    flags = [*TINY, "--lr_warmup", 0.25, "--lr_decay", "cosine", "--lr_decay_from", 0.25, "--lr_floor", 0.1]
    flags += ["--ema_decay", 0.9, "--ema_horizon", 0.5, "--max_steps", 0, "--max_images", 48]
    for folder, parts in (("whole", [0]), ("cut", [16, 32, 0])):
        for part in parts:
            train_here("--data", images, "--run_dir", tmp_path / folder, *flags, "--stop_after", part)
    whole, cut = (load_checkpoint(max((tmp_path / name).glob("*.pt")), model="gans") for name in ("whole", "cut"))
    for network in ("generator", "discriminator", "ema"):
        assert all(torch.equal(value, cut[network][name]) for name, value in whole[network].items())
    assert 0 < whole["optimizer_g"]["param_groups"][0]["lr"] < 1.6e-4


@pytest.mark.slow
def test_two_processes_train_together_and_resume(images, tmp_path):
    arguments = ["--data", images, "--run_dir", tmp_path, *TINY, "--ngpu", 2]
    arguments += ["--preset", "dcgan-plus", "--lr_decay", "none", "--score_every", 16, "--score_images", 10]
    call("cifar_gan.py", *arguments, "--max_steps", 4)
    call("cifar_gan.py", *arguments, "--max_steps", 6)
    payload = load_checkpoint(tmp_path / "checkpoint_000006.pt", model="gans")
    assert (payload["step"], payload["images_seen"]) == (6, 48)
    assert [row["step"] for row in read_progress(tmp_path / "scores.csv")] == [2, 4, 6]
    assert "gap" in read_progress(tmp_path / "progress.csv")[-1]
    assert len(list(tmp_path.glob("best_*.pt"))) == 1
