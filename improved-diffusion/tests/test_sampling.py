"""image_sample.py's benchmark, interpolation and notes on the training, on a network that was never trained."""

import json

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from diffusion_testing import call_script, fill_from_names, run_script, tiny_flags
from improved_diffusion.script_util import create_model_and_diffusion
from PIL import Image

SAMPLE = "scripts/image_sample.py"
CPU = "--device cpu --precision float32 --threads 1 --batch_size 8"
TIMING_KEYS = {
    *("schema", "protocol", "model", "sampler", "checkpoint", "network", "precision", "device", "threads", "versions"),
    *("parameters", "nfe", "gflop_per_evaluation", "gflop_per_image", "batches", "best", "largest", "skipped"),
}


@pytest.fixture(scope="module")
def weights():
    model, _ = create_model_and_diffusion(**tiny_flags(class_cond=True), num_classes=5)
    return fill_from_names(model).state_dict()


@pytest.fixture
def run_dir(weights, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(weights, folder / "ema_0.99_000020.pt")
    finished = {"reason": "max_steps 30", "steps": 30, "images_seen": 120, "wall_seconds": 3.0}
    config = {"model": "improved-diffusion", "options": tiny_flags(class_cond=True), "finished": finished}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "progress.csv").write_text("step,images_seen,wall_seconds,loss\n20,80,2.0,1\n30,120,3.0,1\n")
    return folder


def sample(run_dir, *flags):
    return call_script(SAMPLE, CPU, *flags, "--model_path", run_dir / "ema_0.99_000020.pt")


def cells(path):
    """Cut a grid of 4 x 8 pictures of 16 pixels apart."""
    grid = np.asarray(Image.open(path), int)
    return [[grid[2 + 18 * row :, 2 + 18 * column :][:16, :16] for column in range(8)] for row in range(4)]


def test_benchmark_writes_timing_instead_of_samples(run_dir):
    out = run_dir / "settings" / "ddim3"
    flags = "--use_ddim True --timestep_respacing ddim3 --benchmark --benchmark_seconds 1e-4"
    assert sample(run_dir, flags, "--out_dir", out) == 0
    assert [path.name for path in out.iterdir()] == ["timing.json"]
    timing = json.loads((out / "timing.json").read_text())
    assert timing.keys() >= TIMING_KEYS
    assert (timing["sampler"], timing["network"], timing["nfe"]) == ("DDIM, 3 steps, eta 0", "ema", 3)
    assert timing["gflop_per_image"] == pytest.approx(3 * timing["gflop_per_evaluation"], rel=1e-4)


def test_samples_of_another_setting_lie_in_a_folder_of_their_own(run_dir, capsys):
    out = run_dir / "settings" / "ddim2"
    flags = "--use_ddim True --timestep_respacing ddim2 --num_samples 8 --interpolation"
    for _ in range(2):
        assert sample(run_dir, flags, "--out_dir", out) == 0
    assert capsys.readouterr().out.count("drawn already") == 2
    names = {"samples_8x16x16x3.npz", "samples.png", "sampling.json", "interpolation.png"}
    assert {path.name for path in out.iterdir()} == names
    facts = json.loads((out / "sampling.json").read_text())
    assert facts["trained"] == {"step": 20, "images_seen": 80, "wall_seconds": 2.0}
    images = np.load(out / "samples_8x16x16x3.npz")["arr_0"].astype(int)
    for row, walk in enumerate(cells(out / "interpolation.png")):
        assert np.abs(walk[0] - images[2 * row]).max() <= 1


def test_walks_of_ancestral_steps_share_their_noise(run_dir):
    assert sample(run_dir, "--timestep_respacing 2 --num_samples 8 --interpolation") == 0
    images = np.load(run_dir / "samples_8x16x16x3.npz")["arr_0"].astype(int)
    for row, walk in enumerate(cells(run_dir / "interpolation.png")):
        assert np.abs(walk[0] - images[2 * row]).max() <= 1
        assert np.abs(walk[7] - images[2 * row]).max() > 1


def test_training_of_a_checkpoint_is_read_from_its_optimizer_where_nothing_else_tells(run_dir):
    (run_dir / "progress.csv").unlink()
    torch.save({"step": 20, "images_seen": 79, "wall_seconds": 2.5}, run_dir / "opt000020.pt")
    assert sample(run_dir, "--timestep_respacing 1 --num_samples 1") == 0
    facts = json.loads((run_dir / "sampling.json").read_text())
    assert facts["trained"] == {"step": 20, "images_seen": 79, "wall_seconds": 2.5}


def test_training_of_a_foreign_file_is_unknown(run_dir):
    foreign = (run_dir / "ema_0.99_000020.pt").rename(run_dir / "cifar10_uncond_50M_500K.pt")
    assert call_script(SAMPLE, CPU, "--timestep_respacing 1 --num_samples 1 --model_path", foreign) == 0
    facts = json.loads((run_dir / "sampling.json").read_text())
    assert facts["trained"] == {"step": None, "images_seen": None, "wall_seconds": None}


def test_benchmark_and_interpolation_exclude_each_other_before_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    flags = "--benchmark --interpolation --model_path x.pt"
    done = run_script(SAMPLE, flags, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "not allowed with argument --benchmark" in done.stderr
    with pytest.raises(UserError, match="--eta needs"):
        call_script(SAMPLE, "--benchmark --eta 1 --model_path", __file__)
