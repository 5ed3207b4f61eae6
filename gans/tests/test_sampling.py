"""sample_gan.py's benchmark, interpolation and notes on the training, on a network that was never trained."""

import json

import numpy as np
import pytest
import sample_gan
from comparison.checkpoints import save_checkpoint
from gan.build import build_gan
from PIL import Image

OPTIONS = {
    **{"image_size": 16, "nz": 8, "ngf": 4, "ndf": 4, "seed": 0, "ema_decay": 0.9},
    **{"g_lr": 1e-4, "d_lr": 1e-4, "beta1": 0.5},
}


@pytest.fixture
def checkpoint(tmp_path):
    gan = build_gan(OPTIONS, "cpu", None)
    for parameter in gan.sampling_generator.parameters():  # pictures with contrast
        parameter.data *= 5
    path = tmp_path / "run" / "checkpoint_000007.pt"
    path.parent.mkdir()
    counters = {"step": 7, "images_seen": 56, "wall_seconds": 1.25, "config": OPTIONS}
    save_checkpoint(path, {**gan.state_dict(), **counters}, model="gans")
    return path


def sample(checkpoint, *flags):
    cpu = ["--device", "cpu", "--precision", "float32", "--threads", "1"]
    arguments = ["--checkpoint", str(checkpoint), *cpu, *map(str, flags)]
    sample_gan.main(sample_gan.parse_args(arguments))


def test_benchmark_writes_timing_instead_of_samples(checkpoint):
    sample(checkpoint, "--benchmark", "--benchmark_seconds", 1e-4)
    assert {path.name for path in checkpoint.parent.iterdir()} == {checkpoint.name, "timing.json"}
    timing = json.loads((checkpoint.parent / "timing.json").read_text())
    assert (timing["model"], timing["network"], timing["nfe"]) == ("gans", "ema", 1)
    assert timing["gflop_per_evaluation"] > 0
    assert timing["batches"][0]["batch_size"] == 1


def test_samples_of_another_setting_lie_in_a_folder_of_their_own(checkpoint, capsys):
    out = checkpoint.parent / "settings" / "raw" / "samples.npz"
    for _ in range(2):
        sample(checkpoint, "--out", out, "--num_samples", 9, "--use_ema", "false", "--interpolation")
    assert "already" in capsys.readouterr().out
    assert {path.name for path in out.parent.iterdir()} == {
        *("samples.npz", "samples.png", "sampling.json", "interpolation.png")
    }
    facts = json.loads((out.parent / "sampling.json").read_text())
    assert (facts["network"], facts["interpolation"]["latent"]) == ("raw", "z")
    assert facts["trained"] == {"step": 7, "images_seen": 56, "wall_seconds": 1.25}


def test_walks_end_at_the_samples(checkpoint):
    sample(checkpoint, "--num_samples", 8)
    sample(checkpoint, "--num_samples", 8, "--interpolation")  # of samples that are there already
    images = np.load(checkpoint.parent / "samples.npz")["arr_0"].astype(int)
    grid = np.asarray(Image.open(checkpoint.parent / "interpolation.png"), int)
    cells = [[grid[2 + 18 * row :, 2 + 18 * column :][:16, :16] for column in range(8)] for row in range(4)]
    for row in range(4):
        assert np.abs(cells[row][0] - images[2 * row]).max() <= 1
        assert np.abs(cells[row][7] - images[2 * row + 1]).max() <= 1
        assert np.abs(cells[row][3] - images[2 * row]).max() > 1


def test_benchmark_draws_nothing_for_a_folder_of_pngs(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        sample(checkpoint, "--benchmark", "--out_dir", tmp_path / "png")
    assert "--out_dir" in capsys.readouterr().err
