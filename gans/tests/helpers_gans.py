"""The scripts as a user runs them, on tiny networks."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import cifar_gan
import torch
from comparison.checkpoints import load_checkpoint, newest
from comparison.runs import read_progress
from gan.build import build_gan

GANS = Path(__file__).resolve().parents[1]

NETWORKS = ["--image_size", 16, "--ngf", 4, "--ndf", 4, "--nz", 8, "--ema_decay", 0.9, "--flip", "true"]
TINY = [*NETWORKS, "--batch_size", 8, "--device", "cpu", "--precision", "float32", "--threads", 1, "--log_interval", 2]
TINY += ["--num_samples", 0, "--max_steps", 100]


def command(script, *arguments):
    return [sys.executable, "-u", str(GANS / script), *map(str, arguments)]


def call(script, *arguments, env=None, ok=0):
    """Run a script: in this process, which has torch already, or in its own where it gets an environment."""
    words = command(script, *arguments)
    if env:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, **env})
    else:
        out, err, status = io.StringIO(), io.StringIO(), 0
        argv = mock.patch.object(sys, "argv", words[2:])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), argv:
            try:
                runpy.run_path(words[2], run_name="__main__")
            except SystemExit as end:
                status = end.code or 0
        done = subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
    assert done.returncode == ok, done.stdout + done.stderr
    return done


def refused(script, *arguments, **options):
    """Return the one sentence of a refusal."""
    done = call(script, *arguments, ok=2, **options)
    assert done.stderr.startswith(f"{script}: error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def train_here(*arguments):
    """Run cifar_gan.py in this process, which has torch already."""
    return cifar_gan.main(cifar_gan.parse_args([str(argument) for argument in arguments]))


def newest_step(folder):
    return max(int(path.stem.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_*.pt"))


def interrupt(images, folder, number, *more):
    """Start the run, saving after every update, and send it a signal once a checkpoint is there; return its status."""
    process = subprocess.Popen(
        command("cifar_gan.py", "--data", images, "--run_dir", folder, *TINY, *more, "--save_minutes", 1e-9),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(folder.glob("checkpoint_*.pt")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    status = process.wait(timeout=60)
    assert newest_step(folder) < 100
    return status


def assert_continues_to_the_same_weights(images, folder, finished, *more):
    call("cifar_gan.py", "--data", images, "--run_dir", folder, *TINY, *more)
    ours, theirs = (load_checkpoint(newest(f, "checkpoint_*.pt"), model="gans") for f in (folder, finished))
    assert ours["step"] == theirs["step"]
    for part in ("generator", "discriminator", "ema"):
        assert ours[part].keys() == theirs[part].keys()
        for name, value in ours[part].items():
            assert torch.equal(value, theirs[part][name]), f"{part} {name}"
    for name in ("progress.csv", "scores.csv"):
        rows = [[{**row, "wall_seconds": 0} for row in read_progress(f / name)] for f in (folder, finished)]
        assert rows[0] == rows[1]


def make_gan(options, dtype=None, **more):
    return build_gan({**options, **more}, "cpu", dtype)


def play(gan, first, last):
    """Let the game go on from update `first` to `last`, on random images; return what each update reports."""
    rows = []
    for step in range(first, last):
        seeds = torch.Generator().manual_seed(100 + step)
        real = torch.rand(16, 3, 16, 16, generator=seeds) * 2 - 1
        rows.append(gan.train_step(real, torch.randn(16, 8, generator=seeds), step))
    return rows
