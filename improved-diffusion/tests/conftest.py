"""Makes `diffusion_testing` importable for the tests of this folder, and keeps them on one core."""

import sys
from pathlib import Path

import pytest
import torch
from improved_diffusion import dist_util

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def alone_again():
    """Part from the process group that a script called in this process has joined: other folders' tests expect none."""
    yield
    dist_util.shutdown()


@pytest.fixture
def process_case(request):
    """Return (case, network, process) of one configuration of improved_diffusion_process.npz."""
    from diffusion_testing import Case, fill_from_names
    from improved_diffusion.script_util import create_model_and_diffusion

    case = Case("improved_diffusion_process", request.param)
    model, diffusion = create_model_and_diffusion(**case.config)
    return case, fill_from_names(model), diffusion
