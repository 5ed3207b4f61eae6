"""A network whose evaluations are recorded gives what it gives plainly; a CPU's stand-in for CUDA graphs shows it."""

import pytest
import torch
from comparison.gpu.cuda_graphs import GraphedFunction, GraphedModule, for_sampling
from comparison.sampling.draw import EvaluationCounter
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, *, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        out = self.conv(x) + t[:, None, None, None]
        return out if y is None else out * y[:, None, None, None]


class GraphCapture:
    """Does recorded work again into the memory of its first results, as a CUDA graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work):
        outputs = work()
        self.recorded += 1

        def replay() -> None:
            for name, value in work().items():
                outputs[name].copy_(value)
            self.replayed += 1

        return outputs, replay


def batch(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return (torch.randn(size, 3, 4, 4, generator=numbers), *torch.randn(2, size, generator=numbers))


def replayed() -> tuple[GraphedModule, GraphCapture]:
    torch.manual_seed(0)
    recorder = GraphCapture()
    return GraphedModule(Network().eval(), recorder), recorder


def test_networks_are_recorded_on_cuda_unless_told_not_to_be():
    network = Network().eval()
    assert isinstance(for_sampling(network, torch.device("cuda")), GraphedModule)
    assert for_sampling(network, torch.device("cuda"), record=False) is network
    assert for_sampling(network, torch.device("cpu")) is network


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("labels", [False, True])
def test_replayed_evaluations_are_the_plain_ones(labels, autocast):
    network, recorder = replayed()
    counter = EvaluationCounter([network])
    results = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for seed in range(6):
            x, t, y = batch(4, seed)
            extra = {"y": y} if labels else {}
            found, expected = network(x, t, **extra), network.network(x, t, **extra)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            results.append((found, expected))
    for found, expected in results:  # no replay wrote into an earlier result
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert recorder.recorded == 1
    assert recorder.replayed == 6 - GraphedFunction.WARM_UP
    assert counter.images == 6 * 4


def test_each_shape_type_and_mode_has_its_own_recording():
    network, recorder = replayed()
    with torch.no_grad():
        for size in (2, 3, 2, 3, 2, 3, 2, 3):
            network(*batch(size, 0)[:2])
        assert recorder.recorded == 2
        with torch.autocast("cpu", torch.bfloat16):
            found = [network(*batch(2, 0)[:2]) for _ in range(5)][-1]
            assert found.dtype == network.network(*batch(2, 0)[:2]).dtype
    with torch.inference_mode():
        for _ in range(4):
            network(*batch(2, 0)[:2])
    assert recorder.recorded == 4


def test_what_needs_gradients_or_is_large_is_computed_plainly(monkeypatch):
    network, recorder = replayed()
    for _ in range(6):
        network(*batch(2, 0)[:2]).sum().backward()
    assert network.network.conv.weight.grad is not None
    monkeypatch.setattr(GraphedModule, "LARGEST", 4)
    with torch.no_grad():
        for _ in range(6):
            network(*batch(5, 0)[:2])
    assert recorder.recorded == 0
    assert network.network.calls == 12


def test_old_recordings_are_let_go(monkeypatch):
    monkeypatch.setattr(GraphedModule, "SHAPES", 2)
    network, recorder = replayed()
    with torch.no_grad():
        for size in (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3):
            x, t, _ = batch(size, size)
            torch.testing.assert_close(network(x, t), network.network(x, t), rtol=0, atol=0)
    assert recorder.recorded == 3
    assert len(network._recorded) == 2


@pytest.mark.filterwarnings("error:not recorded")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("autocast", [False, True])
def test_cuda_graphs_evaluate_as_the_network_does(autocast):
    torch.manual_seed(0)
    network = GraphedModule(Network().eval().cuda())
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for seed in range(12):
            with torch.inference_mode():
                x, t, y = (part.cuda() for part in batch(2 + seed % 2, seed))
                found, expected = network(x, t, y=y), network.network(x, t, y=y)
                torch.testing.assert_close(found, expected)
