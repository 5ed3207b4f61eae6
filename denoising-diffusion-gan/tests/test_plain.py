"""The plain path that results/benchmark.py measures this folder's code against."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from comparison.pairs import TOLERANCE, Settings, count_work
from ddgan.checkpoints import make_generator
from ddgan.discriminator import Discriminator
from ddgan.layers import Attention, FirDown, FirUp

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
    spec = importlib.util.spec_from_file_location("pairs_of_ddgan", FOLDER / "pairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    assert hook.pairs(small=False)[0].reference_seconds == (9.27, 9.27)
    for pair in hook.pairs(small=True):
        assert not pair.goals
        assert pair.reference_seconds is None


def test_zeros_are_inserted_behind_every_pixel(plain):
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    found = plain.upfirdn2d(x, torch.ones(1, 1), up=2, down=1, padding=(0, 0))
    wanted = [[1.0, 0.0, 2.0, 0.0], [0.0] * 4, [3.0, 0.0, 4.0, 0.0], [0.0] * 4]
    assert found[0, 0].tolist() == wanted
    assert torch.equal(plain.upfirdn2d(found, torch.ones(1, 1), up=1, down=2, padding=(0, 0)), x)


@pytest.mark.parametrize(
    "layer",
    [FirDown(3), FirUp(3), FirDown(3, stride=1, padding=2), FirUp(3, (1, 2, 3, 3, 2, 1)), FirDown(3, (1, 2, 2, 1))],
)
def test_plain_filters_equal_the_strided_convolutions(plain, layer):
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(plain.PlainFir(layer)(x), layer(x))


def test_plain_networks_filter_as_often_and_cost_what_the_published_ones_do(plain, hook):
    generator = plain.plain_copy(make_generator(hook.FULL))
    discriminator = plain.plain_copy(Discriminator("small"))
    x, t, z = torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 100)
    for network, inputs, filters, gflop in ((generator, (x, t, z), 15, 14.08), (discriminator, (x, t, x), 6, 2.95)):
        assert not set(plain._PLAIN) & {type(module) for module in network.modules()}
        calls = []
        for module in network.modules():
            if isinstance(module, plain.PlainFir):
                module.register_forward_hook(lambda *arguments, calls=calls: calls.append(1))
        with torch.no_grad():
            assert count_work(lambda n=network, i=inputs: n(*i))["gflop"] == pytest.approx(gflop, rel=0.01)
        assert len(calls) == filters


def test_plain_update_carries_gradients_through_the_generator_twice(hook):
    pair = hook.pairs(small=True)[0]
    sides = pair.build(Settings(torch.device("cpu"), None))
    plain, fast = count_work(sides.plain)["gflop"], count_work(sides.fast)["gflop"]
    assert 1.3 * fast < plain < 1.6 * fast  # 108 against 80 GFLOP per image at the full size, filters apart


def test_average_starts_at_the_weights_after_the_first_update(hook):
    trainer, _ = hook.trainers(hook.SMALL, Settings(torch.device("cpu"), None))
    x_0 = hook.real_images(hook.SMALL, torch.device("cpu"))
    trainer.update(x_0, 1)
    first = [parameter.detach().clone() for parameter in trainer.generator.parameters()]
    torch.testing.assert_close(trainer.ema, first)
    trainer.update(x_0, 2)
    for average, old, new in zip(trainer.ema, first, trainer.generator.parameters(), strict=True):
        torch.testing.assert_close(average, 0.9999 * old + 0.0001 * new.detach())


@pytest.mark.parametrize("size", [4, 40])
def test_attention_in_bfloat16_agrees_with_float32(size: int):
    torch.manual_seed(0)
    attention = Attention(16)
    torch.nn.init.normal_(attention.qkv.weight, std=0.4)  # far from equal weights
    torch.nn.init.normal_(attention.out.weight, std=0.3)
    x = torch.randn(2, 16, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(x.bfloat16())
    torch.testing.assert_close(half.float(), attention(x), atol=0.1, rtol=0)
    assert (attention(x) - x * attention.gain).abs().max() > 1  # there is something to agree on
