"""--compile computes what the plain network computes, in training and in sampling; without a compiler's wait."""

import functools
import json

import numpy as np
import pytest
import torch
from comparison.sampling.timing import count_flop
from diffusion_testing import call_script, tiny_flags
from improved_diffusion.script_util import create_model_and_diffusion

TRAIN, SAMPLE = "scripts/image_train.py", "scripts/image_sample.py"
TINY = (
    "--data_dir shapes --image_size 16 --num_channels 32 --num_res_blocks 1 --learn_sigma True --diffusion_steps 50 "
    "--batch_size 4 --microbatch 2 --max_steps 2 --grid_images 0 --threads 1"
)


@pytest.fixture
def compiled(monkeypatch):
    """Trace networks whole but hand the traces on to no compiler; return what was traced, and how."""
    calls = []
    real = torch.compile

    def trace(network, **options):
        calls.append(options)
        return real(network, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", functools.wraps(real)(trace))
    return calls


@pytest.mark.slow
def test_compiled_training_and_sampling_give_the_same(compiled, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_LOGDIR", raising=False)
    for name in ("False", "True"):
        run_dir = tmp_path / name
        assert call_script(TRAIN, TINY, "--run_dir", run_dir, "--compile", name) == 0
        flags = f"--num_samples 4 --sampler dpmpp --num_sampling_steps 3 --compile {name} --threads 1"
        assert call_script(SAMPLE, flags, "--model_path", run_dir / "model000002.pt", "--out_dir", run_dir / "out") == 0
    assert len(compiled) == 2
    plain, traced = (torch.load(tmp_path / name / "model000002.pt", weights_only=True) for name in ("False", "True"))
    assert all(torch.equal(plain[key], traced[key]) for key in plain)
    images = [np.load(tmp_path / name / "out/samples_4x16x16x3.npz")["arr_0"] for name in ("False", "True")]
    assert np.array_equal(*images)
    facts = [json.loads((tmp_path / name / "out/sampling.json").read_text()) for name in ("False", "True")]
    assert [fact.get("compiled") for fact in facts] == [None, True]
    assert [fact["nfe"] for fact in facts] == [3, 3]


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_arithmetic_is_counted_of_compiled_networks_too(compiled):
    from model_loading import Compiled

    network, _ = create_model_and_diffusion(**tiny_flags())
    x, t = torch.zeros(1, 3, 16, 16), torch.zeros(1)
    traced = Compiled(network.eval(), torch.device("cpu"))
    assert count_flop(lambda: traced(x, t)) == count_flop(lambda: network(x, t)) > 0
