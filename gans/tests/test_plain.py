"""The plain path that results/benchmark.py measures this folder's code against."""

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison.pairs import TOLERANCE, Settings, count_work
from gan.networks import Discriminator, Generator

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
    spec = importlib.util.spec_from_file_location("pairs_of_gans", FOLDER / "pairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["training", "sampling"])
def test_both_paths_give_the_same_gradients_and_images(hook, name):
    pair = next(pair for pair in hook.pairs(small=True) if pair.name == name)
    assert pair.check(torch.device("cpu")) < TOLERANCE


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_pair_can_be_called_again_and_again(hook, dtype):
    for pair in hook.pairs(small=True):
        sides = pair.build(Settings(torch.device("cpu"), dtype))
        for call in (sides.plain, sides.fast) * 2:
            call()


def test_goals_and_reference_times_belong_to_the_full_size_only(hook):
    assert hook.pairs(small=False)[0].reference_seconds == (2.09, 2.32)
    for pair in hook.pairs(small=True):
        assert not pair.goals
        assert pair.reference_seconds is None


def test_plain_game_computes_discriminator_gradients_that_ours_saves(hook):
    pair = hook.pairs(small=True)[0]
    sides = pair.build(Settings(torch.device("cpu"), None))
    plain, fast = count_work(sides.plain)["gflop"], count_work(sides.fast)["gflop"]
    assert 1.05 * fast < plain < 1.3 * fast


def test_plain_game_mixes_noise_into_every_image_the_discriminator_sees(plain):
    game = plain.PlainDCGAN(Generator(16, 4, 2), Discriminator(16, 2), noise=0.5)
    seen = []
    game.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    game.train_step(torch.zeros(4, 3, 16, 16), torch.randn(4, 4))
    assert len(seen) == 3
    assert seen[0].std() == pytest.approx(0.5, rel=0.1)


def test_pictures_are_enlarged_and_mapped_to_the_range_of_tanh(plain):
    images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 255)])
    dark, bright = (plain.Pictures(images, 64)[i] for i in range(2))
    assert dark.shape == (3, 64, 64)
    assert torch.equal(dark, -torch.ones(3, 64, 64))
    assert torch.equal(bright, torch.ones(3, 64, 64))
