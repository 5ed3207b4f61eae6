"""Makes `diffusion_testing` and the scripts importable for the tests of this folder, and keeps them on one core."""

import sys
from pathlib import Path

import pytest
import torch
from improved_diffusion import dist_util

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "scripts")]
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def alone_again():
    """Destroy the process group that a test has initialized: the tests of other folders expect none."""
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
