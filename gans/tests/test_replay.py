"""Recorded iterations are those that they were recorded from; a CPU's stand-in for CUDA graphs shows it."""

import copy

import pytest
import torch
from comparison import rng
from comparison.gpu.cuda_graphs import GraphedFunction, cuda_graph
from gan.build import build_gan
from gan.options import PRESETS
from gan.training import GAN

TINY = {"image_size": 16, "nz": 8, "ngf": 8, "ndf": 8, "seed": 0, "batch_size": 8}


class GraphCapture:
    """Does recorded work again into the memory of its first results, as a CUDA graph does."""

    def __init__(self) -> None:
        self.replayed = 0
        self.gan: GAN | None = None

    def __call__(self, work):
        assert self.gan is not None
        state = copy.deepcopy(self.gan.state_dict())
        outputs = work()
        self.gan.load_state_dict(state)

        def replay() -> None:
            for name, value in work().items():
                outputs[name].copy_(value)
            self.replayed += 1

        return outputs, replay


def make(preset: str = "dcgan", record=None, device="cpu", **changes) -> GAN:
    options = {**PRESETS[preset], **TINY, "g_lr": 1e-3, "d_lr": 1e-3, **changes}
    return build_gan(options, torch.device(device), None, capture=record)


def train(gan: GAN, iterations: int = 6, device="cpu") -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    reports = []
    for step in range(iterations):
        real = rng.normal((8, 3, 16, 16), "real", step).tanh().to(device)
        reports.append(gan.train_step(real, rng.normal((8, 8), "z", step).to(device), step))
    return torch.cat([value.flatten().float() for value in gan.sampling_generator.state_dict().values()]), reports


@pytest.mark.parametrize("changes", [{}, {"d_norm": "spectral", "loss": "hinge", "ema_decay": 0.9}])
def test_recorded_iterations_are_the_plain_ones(changes):
    plain, reports = train(make(**changes))
    recorder = GraphCapture()
    recorder.gan = make(record=recorder, **changes)
    recorded, recorded_reports = train(recorder.gan)
    assert recorder.replayed == 6 - GraphedFunction.WARM_UP
    torch.testing.assert_close(recorded, plain, rtol=0, atol=0)
    for found, expected in zip(recorded_reports, reports, strict=True):  # each call's own, not the last one's
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{"diffaugment": "color"}, {"r1_gamma": 1.0}, {"lr_decay": "linear"}])
def test_what_changes_from_step_to_step_is_not_recorded(changes):
    recorder = GraphCapture()
    recorder.gan = make(record=recorder, **changes)
    train(recorder.gan, 5)
    assert recorder.replayed == 0


@pytest.mark.filterwarnings("error:not recorded")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graphs_play_the_plain_iterations():
    _, plain = train(make(device="cuda"), device="cuda")
    _, recorded = train(make(device="cuda", record=cuda_graph), device="cuda")
    for found, expected in zip(recorded, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-3)
