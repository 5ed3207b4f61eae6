"""The plain path that results/benchmark.py measures this folder's code against."""

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison.pairs import TOLERANCE, Settings, count_work
from improved_diffusion.script_util import create_model_and_diffusion
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1]


@pytest.fixture
def plain(monkeypatch):
    """The module plain.py of this folder; every model folder has one."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "plain", raising=False)
    yield importlib.import_module("plain")
    sys.modules.pop("plain", None)


@pytest.fixture
def hook(plain):
    """The module pairs.py of this folder."""
    spec = importlib.util.spec_from_file_location("pairs_of_improved_diffusion", FOLDER / "pairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["training", "sampling", "reading"])
def test_both_paths_give_the_same_gradients_images_and_pixels(hook, name):
    pair = next(pair for pair in hook.pairs(small=True) if pair.name == name)
    assert pair.check(torch.device("cpu")) < TOLERANCE


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_pair_can_be_called_again_and_again(hook, dtype):
    for pair in hook.pairs(small=True):
        sides = pair.build(Settings(torch.device("cpu"), dtype))
        for call in (sides.plain, sides.fast) * 2:
            call()


def test_goals_and_reference_times_belong_to_the_full_size_only(hook):
    assert hook.pairs(small=False)[0].reference_seconds == (2.79, 2.79)
    for pair in hook.pairs(small=True):
        assert not pair.goals
        assert pair.reference_seconds is None


def test_the_network_measured_is_the_papers_and_costs_what_the_published_one_does(plain, hook):
    with torch.device("meta"):
        model, _ = create_model_and_diffusion(**hook.PAPER)
        x, t = torch.zeros(1, 3, 32, 32), torch.zeros(1)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(52.55e6, rel=1e-3)
    assert count_work(lambda: plain.PlainUNet(model)(x, t))["gflop"] == pytest.approx(16.8, rel=0.01)


def test_one_step_of_sampling_evaluates_the_network_once(plain, hook):
    sides = hook.samplers(hook.TINY, hook.SMALL, Settings(torch.device("cpu"), None))
    model, _ = create_model_and_diffusion(**hook.TINY)
    x = torch.zeros(hook.SMALL["drawn"], 3, 16, 16)
    once = count_work(lambda: plain.PlainUNet(model)(x, torch.zeros(len(x))))["gflop"]
    for call in (sides.plain, sides.fast):
        assert count_work(call)["gflop"] == pytest.approx(hook.SMALL["steps"] * once, rel=1e-6)


def test_plain_update_logs_every_image_by_its_quartile(hook):
    trainer, _ = hook.trainers(hook.TINY, Settings(torch.device("cpu"), None))
    trainer.update(torch.zeros(4, 3, 16, 16), torch.tensor([0, 24, 25, 99]))
    counts = {name: len(values) for name, values in trainer.logged.items() if name.startswith("mse_q")}
    assert counts == {"mse_q0": 2, "mse_q1": 1, "mse_q3": 1}
    assert trainer.logged["grad_norm"][0] > 0


def test_files_are_halved_by_area_and_cropped_to_the_centre(plain, tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = 255
    Image.fromarray(picture).save(tmp_path / "wide.png")
    found = plain.Files([tmp_path / "wide.png"], 16)[0]
    assert found.shape == (3, 16, 16)
    assert (found[:, :, 2:-2] == 1).all()
    assert found.dtype == np.float32
