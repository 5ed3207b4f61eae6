"""Recorded updates are the updates that they were recorded from; a CPU's stand-in for CUDA graphs shows it."""

import pytest
import torch
from comparison.gpu.cuda_graphs import GraphedFunction, cuda_graph
from ddgan.draws import Batch
from ddgan.objective import Objective, Phase
from ddgan.training import Trainer, gradient_norm
from joint_batches import images, make_trainer


class GraphCapture:
    """Does recorded work again into the memory of its first results, as a CUDA graph does."""

    def __init__(self) -> None:
        self.replayed = 0
        self.trainer: Trainer | None = None

    def __call__(self, work):
        assert self.trainer is not None
        optimizers = (self.trainer.optimizer_d, self.trainer.optimizer_g)
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        before = [p.grad for p in parameters]
        with torch.random.fork_rng(devices=[]):  # recording draws nothing
            outputs = work()
        gradients = [(p, p.grad) for p, old in zip(parameters, before, strict=True) if p.grad is not old]
        assert gradients

        def replay() -> None:
            again = work()
            for name, value in outputs.items():
                value.copy_(again[name])
            for parameter, gradient in gradients:
                gradient.copy_(parameter.grad)
                parameter.grad = None  # the graph's own memory is what must be handed back
            self.replayed += 1

        return outputs, replay


def recorded_trainer(**changes) -> tuple[Trainer, GraphCapture]:
    recorder = GraphCapture()
    recorder.trainer = make_trainer(capture=recorder, **changes)
    return recorder.trainer, recorder


def train(trainer: Trainer, updates: int, parts: int = 1) -> tuple[torch.Tensor, list[dict[str, float]]]:
    reports = []
    for step in range(updates):
        batches = [Batch(images(parts * step + part), None, parts * step + part) for part in range(parts)]
        reports.append({name: value.tolist() for name, value in trainer.update(batches, step).items()})
    assert trainer.ema is not None
    return torch.cat([value.flatten() for value in trainer.ema.weights.values()]), reports


@pytest.mark.parametrize("lazy_reg", [1, 3, 100])
def test_recorded_updates_are_the_plain_ones(lazy_reg):
    plain, reports = train(make_trainer(lazy_reg=lazy_reg), 9)
    trainer, recorder = recorded_trainer(lazy_reg=lazy_reg)
    recorded, recorded_reports = train(trainer, 9)
    due = len(range(0, 9, lazy_reg))
    assert recorder.replayed == 9 - GraphedFunction.WARM_UP + max(0, 9 - due - GraphedFunction.WARM_UP)
    torch.testing.assert_close(recorded, plain, rtol=0, atol=0)
    assert recorded_reports == reports


def test_updates_with_finite_penalties_and_a_falling_weight_are_recorded():
    objective = Objective(penalty_estimate="finite", reconstruction="decay")
    plain = make_trainer(lazy_reg=2, objective=objective)
    trainer, recorder = recorded_trainer(lazy_reg=2, objective=objective)
    for step in range(12):
        batch, phase = [Batch(images(step), None, step)], Phase(False, 1 - step / 12)
        expected, found = plain.update(batch, step, phase), trainer.update(batch, step, phase)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert recorder.replayed == 12 - 3 + 2 * (6 - 3)  # of the generator; of the discriminator with and without penalty


def test_several_micro_batches_are_not_recorded():
    plain, reports = train(make_trainer(lazy_reg=3), 5, parts=2)
    trainer, recorder = recorded_trainer(lazy_reg=3)
    found, found_reports = train(trainer, 5, parts=2)
    assert recorder.replayed == 0
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    assert found_reports == reports


def test_failing_to_record_costs_a_warning_only():
    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.warns(UserWarning, match="costs speed only: operation not permitted when stream is capturing$"):
        found, _ = train(make_trainer(capture=refuse), 5)
    torch.testing.assert_close(found, train(make_trainer(), 5)[0], rtol=0, atol=0)


@pytest.mark.filterwarnings("error:not recorded")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graphs_give_the_plain_losses_and_gradients():
    trainers = [make_trainer(lazy_reg=3, **recorder) for recorder in ({}, {"capture": cuda_graph})]
    for trainer in trainers:
        for network in (trainer.generator, trainer.discriminator, trainer.process):
            network.cuda()
    for step in range(9):
        batch = [Batch(images(step).cuda(), None, step)]
        plain, recorded = (trainer.update(batch, step) for trainer in trainers)
        # Read after both halves, as the log does: neither graph may write into the other's memory.
        assert recorded.keys() == plain.keys()
        for name, value in plain.items():
            torch.testing.assert_close(recorded[name], value, rtol=2e-2, atol=1e-3)
        norms = [[gradient_norm(network) for network in (t.generator, t.discriminator)] for t in trainers]
        torch.testing.assert_close(norms[1], norms[0], rtol=5e-2, atol=1e-3)
