"""Let the tests import `gan`, which lies beside the scripts and needs no installation."""

import sys
from pathlib import Path

import pytest
import torch

GANS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(GANS))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
