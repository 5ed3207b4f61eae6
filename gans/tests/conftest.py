"""Let the tests import `gan`, which lies beside the scripts and needs no installation."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

GANS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(GANS), str(GANS / "tests")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def finished(images, tmp_path_factory):
    """A run of 100 updates (50 epochs) that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    from helpers_gans import TINY, call

    call("cifar_gan.py", "--data", images, "--run_dir", folder, *TINY)
    return folder


@pytest.fixture(scope="session")
def no_torch(tmp_path_factory):
    """An environment in which importing torch fails."""
    folder = tmp_path_factory.mktemp("stub")
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    return {"PYTHONPATH": str(folder)}
