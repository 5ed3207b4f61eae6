"""The two published DDGAN lines, redirections included, in tmux on a made-up CIFAR-10, with small overrides."""

import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

# As published, word for word.
TRAIN = (
    "python3 -u denoising-diffusion-gan/train_ddgan.py --dataset cifar10 --exp ddgan_cifar10_exp1 --num_channels 3 "
    "--num_channels_dae 128 --num_timesteps 4 --num_res_blocks 2 --batch_size 128 --num_epoch 50 --ngf 64 --nz 100 "
    "--z_emb_dim 256 --n_mlp 4 --embedding_type positional --use_ema --ema_decay 0.9999 --r1_gamma 0.02 --lr_d 1.25e-4 "
    "--lr_g 1.6e-4 --lazy_reg 15 --num_process_per_node 1 --ch_mult 1 2 2 2 --save_content "
    "> denoising-diffusion-gan/out/ddgan_cifar.log"
)
SAMPLE = (
    "python3 -u denoising-diffusion-gan/test_ddgan.py --dataset cifar10 --exp ddgan_cifar10_exp1 --num_channels 3 "
    "--num_channels_dae 128 --num_timesteps 4 --num_res_blocks 2 --nz 100 --z_emb_dim 256 --n_mlp 4 --ch_mult 1 2 2 2 "
    "--epoch_id 50 --compute_fid --real_img_dir denoising-diffusion-gan/data/cifar-10-batches-py/ "
    "> denoising-diffusion-gan/out/test_ddgan_cifar50.log"
)
# A shell takes arguments behind a redirection too, so the lines stay whole.
SMALL = "--num_channels_dae 8 --num_res_blocks 1 --z_emb_dim 8 --n_mlp 1 --ch_mult 1 1 --attn_resolutions 16"
SMALL_TRAIN = f"{SMALL} --ngf 2 --t_emb_dim 8 --batch_size 8 --device cpu --threads 1"
SMALL_SAMPLE = f"{SMALL} --num_samples 8 --batch_size 8 --device cpu --threads 1"
RUN = "results/runs/denoising-diffusion-gan/ddgan_cifar10_exp1"
OUT = "denoising-diffusion-gan/out"

# Python reads this file first: torchvision takes the made-up images for whole, and pixels stand for Inception features.
STAND_IN = """
import os
import comparison.scores.inception as inception
import torchvision.datasets.cifar as cifar
from comparison.scores.metrics import moments
cifar.check_integrity = lambda path, md5=None: os.path.isfile(path)
inception.require = lambda *_: None
inception.find_weights = inception.check_weights = lambda path: path
inception.image_statistics = lambda images, *_, **__: moments(images[:, :, ::8, ::8].flatten(1).float())
"""


def write_cifar10(folder, per_batch=4):
    """Write random images as torchvision keeps CIFAR-10."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": [i % 10 for i in range(per_batch)]}
        # Python 2's strings, in which the real batches are written, are read as text or as bytes.
        (folder / name).write_bytes(pickle.dumps(content | {key.encode(): value for key, value in content.items()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))


@pytest.fixture(scope="module")
def machine(tmp_path_factory, environment):
    """Environment of a machine with a small CIFAR-10 in its data root and nothing to be downloaded from."""
    folder = tmp_path_factory.mktemp("machine")
    write_cifar10(folder / "data" / "cifar-10-batches-py")
    (folder / "python").mkdir()
    (folder / "python" / "sitecustomize.py").write_text(STAND_IN)
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    path = f"{folder / 'python'}:{environment['PYTHONPATH']}"
    return {"DATA_ROOT": str(folder / "data"), "PYTHONPATH": path, "TMUX_TMPDIR": str(folder), "TMUX": "", **nowhere}


def in_tmux(line, shell, machine, checkout):
    """Start a line as published, in a tmux session of its own server, and wait for its end."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    ended = checkout / "ended"
    ended.unlink(missing_ok=True)
    # The session's shell may start with a PATH of its own.
    keys = f"export PATH={Path(sys.executable).parent}:\\$PATH; {line}; echo \\$? > ended"
    started = shell(f'tmux new-session -d -s my_session_1 \\; send-keys "{keys}" Enter', **machine)
    assert started.returncode == 0, started.stderr
    try:
        for _ in range(1200):
            if ended.is_file() and ended.read_text().strip():
                break
            time.sleep(0.1)
        shown = shell("tmux capture-pane -p -J", **machine).stdout
    finally:
        shell("tmux kill-server", **machine)
    assert ended.is_file(), shown
    assert ended.read_text().strip() == "0", shown


@pytest.fixture(scope="module")
def trained(checkout, machine, module_shell):
    """The run that the training line leaves; the copy of the repository is left as it was for other tests."""
    shutil.rmtree(checkout / "results" / "runs", ignore_errors=True)  # of other test files
    in_tmux(f"{TRAIN} {SMALL_TRAIN}", module_shell, machine, checkout)
    yield checkout / RUN
    shutil.rmtree(checkout / RUN)
    (checkout / "denoising-diffusion-gan" / "data").unlink()


@pytest.fixture(scope="module")
def module_shell(checkout, environment):
    """`shell` for a whole module."""

    def run(line, **extra):
        command = ["bash", "-c", line]
        settings = {"cwd": checkout, "env": environment | extra, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)

    return run


def test_training_line_leaves_netg_50_and_its_console_in_the_folder_out(trained, checkout):
    assert (trained / "netG_50.pth").is_file()
    assert (trained / "content.pth").is_file()
    config = json.loads((trained / "config.json").read_text())
    assert config["finished"]["reason"] == "num_epoch 50"
    assert config["finished"]["steps"] == 100
    assert "cifar10, 20 images, 2 updates per epoch" in (checkout / OUT / "ddgan_cifar.log").read_text()


def test_folder_data_leads_to_the_data_root_after_a_cifar10_run(trained, checkout, machine):
    link = checkout / "denoising-diffusion-gan" / "data"
    assert link.is_symlink()
    assert str(link.resolve()) == machine["DATA_ROOT"]
    assert (link / "cifar-10-batches-py" / "data_batch_1").is_file()


def test_sampling_line_scores_the_samples_of_epoch_50_against_the_batches(trained, checkout, machine, module_shell):
    in_tmux(f"{SAMPLE} {SMALL_SAMPLE}", module_shell, machine, checkout)
    with np.load(trained / "samples.npz") as archive:
        assert archive["arr_0"].shape == (8, 32, 32, 3)
    facts = json.loads((trained / "sampling.json").read_text())
    assert (facts["checkpoint"], facts["nfe"]) == ("netG_50.pth", 4)
    assert facts["fid_reference"] == "denoising-diffusion-gan/data/cifar-10-batches-py/"
    assert facts["fid"] > 0
    assert f"FID {facts['fid']:.3f} (8 images" in (checkout / OUT / "test_ddgan_cifar50.log").read_text()


def test_losses_of_the_run_are_drawn_by_its_name(trained, module_shell, checkout):
    done = module_shell("python3 denoising-diffusion-gan/loss_graph.py ddgan_cifar10_exp1")
    assert done.returncode == 0, done.stderr
    assert (checkout / OUT / "loss_ddgan_cifar10_exp1.png").is_file()
