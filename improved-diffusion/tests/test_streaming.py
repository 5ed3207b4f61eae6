"""Training on images that memory does not hold: the same weights as from memory."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from diffusion_testing import call_script, run_script, same_weights, script_command, script_env, write_images

TINY = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --learn_sigma True --dropout 0.1 --diffusion_steps 50 "
    "--class_cond True --batch_size 4 --grid_images 4 --grid_steps 2 --threads 1 --lr 1e-3 --keep 0"
)
ON_DISK = {"DATA_MEMORY": "0"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 18 images in two classes: an epoch is four updates."""
    return write_images(tmp_path_factory.mktemp("images"), 18, 20)


@pytest.fixture(scope="module")
def from_memory(images, tmp_path_factory):
    """The run folder of 12 unbroken updates."""
    folder = tmp_path_factory.mktemp("runs") / "memory"
    assert call_script("scripts/image_train.py", *train_flags(images, folder, 12)) == 0
    return folder


def train_flags(images, folder, steps):
    return [TINY, "--data_dir", images, "--run_dir", folder, "--max_steps", steps, "--save_interval", 6]


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.is_file() else []


def test_interrupted_run_from_disk_equals_unbroken_run_from_memory(from_memory, images, tmp_path):
    run_dir = tmp_path / "run"
    flags = [*train_flags(images, run_dir, 2000), "--num_workers", 2]
    command = script_command("scripts/image_train.py", *flags)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=script_env(**ON_DISK), process_group=0
    )
    deadline = time.monotonic() + 60
    while not (run_dir / "opt000006.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = children(process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == ""
    assert "the same command continues" in out
    assert len(workers) == 2 or not Path("/proc").is_dir()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").is_dir()]
    for path in run_dir.glob("*.pt"):  # what was saved after the sixth update is not wanted
        if "000006" not in path.name:
            path.unlink()
    done = run_script("scripts/image_train.py", *train_flags(images, run_dir, 12), **ON_DISK)
    assert done.returncode == 0, done.stderr
    assert "continue after step 6, 18 images" in done.stdout
    assert same_weights(run_dir, from_memory, 12)
