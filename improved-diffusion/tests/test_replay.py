"""Recorded updates are the updates that they were recorded from; a CPU's stand-in for CUDA graphs shows it."""

import pytest
import torch
from comparison.gpu.cuda_graphs import GraphedFunction, by_cuda_graph
from improved_diffusion.training import Trainer
from test_training import tiny_batch, tiny_trainer


class GraphCapture:
    """Does recorded work again into the memory of its first results, as a CUDA graph does."""

    def __init__(self) -> None:
        self.parameters: list[torch.nn.Parameter] = []
        self.replayed = 0

    def __call__(self, work):
        with torch.random.fork_rng(devices=[]):  # recording draws nothing
            outputs = work()
        gradients = [parameter.grad for parameter in self.parameters]

        def replay() -> None:
            again = work()
            for name, value in outputs.items():
                value.copy_(again[name])
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = None  # the graph's own memory is what must be handed back
            self.replayed += 1

        return outputs, replay


def by(record):
    return lambda work, parameters: GraphedFunction(work, parameters, record)


def recorded_trainer(**options) -> tuple[Trainer, GraphCapture]:
    recorder = GraphCapture()
    trainer = tiny_trainer(replayed=by(recorder), **options)
    recorder.parameters = list(trainer.model.parameters())
    return trainer, recorder


def train(trainer: Trainer, updates: int, **extra) -> tuple[torch.Tensor, dict[str, float]]:
    for step in range(updates):
        x, t, noise = tiny_batch()
        torch.manual_seed(step)  # of dropout
        trainer.update(step, x.roll(step, 0), (t + step) % 100, noise.roll(step, 0), **extra)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), trainer.meter.read()


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"dropout": 0.1, "learn_sigma": True}, {}),
        ({"microbatch": 3}, {"factors": torch.linspace(0.5, 2, 8)}),
        ({"class_cond": True}, {"model_kwargs": {"y": torch.arange(8)}}),
    ],
)
def test_recorded_updates_are_the_plain_ones(options, extra):
    plain, means = train(tiny_trainer(**options), 6, **extra)
    trainer, recorder = recorded_trainer(**options)
    recorded, recorded_means = train(trainer, 6, **extra)
    assert recorder.replayed == 6 - GraphedFunction.WARM_UP
    torch.testing.assert_close(recorded, plain, rtol=0, atol=0)
    assert recorded_means == means


@pytest.mark.filterwarnings("error:not recorded")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graphs_compute_the_plain_gradients():
    trainer = tiny_trainer()
    trainer.model.cuda()
    x, t, noise = (value.cuda() for value in tiny_batch())
    replay = by_cuda_graph(trainer._gradient, trainer.model.parameters())
    for step in range(6):
        inputs = {"x_start": x.roll(step, 0), "t": t, "noise": noise}
        found = replay(inputs)["loss"].clone()
        gradients = [p.grad.clone() for p in trainer.model.parameters()]
        torch.testing.assert_close(found, trainer._gradient(inputs)["loss"])
        for gradient, parameter in zip(gradients, trainer.model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)
