"""Two processes are one: the step that they take together."""

import pytest
import torch
from comparison.distributed import group, launch
from comparison.ranks import RankInfo
from gan.distributed import average_buffers, average_gradients
from gan.networks import Discriminator, normalize_spectrally


def average(place, folder):
    """Average gradients, running statistics and spectral norms, each process of its own images."""
    torch.set_num_threads(1)
    with group(place, torch.device("cpu")):
        layer = torch.nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1.0)
        x = torch.arange(12.0).reshape(4, 3)[2 * place.rank : 2 * place.rank + 2]
        layer(x).square().mean().backward()
        average_gradients(layer)
        norm = torch.nn.BatchNorm1d(1, momentum=1.0)
        norm(torch.full((2, 1), float(place.rank)) + torch.tensor([[-1.0], [1.0]]))
        average_buffers(norm)
        discriminator = Discriminator(16, ndf=2, d_norm="spectral")
        with torch.no_grad():
            for parameter in discriminator.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        normalize_spectrally(discriminator, 0)
        start = discriminator.state_dict()["layers.0.parametrizations.weight.0._u"].clone()
        for _ in range(3):
            discriminator(torch.full((2, 3, 16, 16), float(place.rank)))  # other images, the same weights
            average_buffers(discriminator)
        vectors = list(discriminator.buffers())
        moved = not torch.equal(vectors[0], start)
    found = {"vectors": vectors, "gradient": layer.weight.grad, "running_mean": norm.running_mean, "moved": moved}
    torch.save(found, folder / f"{place.rank}.pt")
    return 0


def test_two_processes_compute_the_gradient_of_the_whole_batch_and_share_their_spectral_norms(tmp_path):
    assert launch(average, RankInfo(world_size=2, local_world_size=2), tmp_path) == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    x = torch.arange(12.0).reshape(4, 3)
    whole = (2 * x.sum(1, keepdim=True) * x).mean(0)
    assert first["gradient"].flatten().tolist() == pytest.approx(whole.tolist())
    assert first["running_mean"].tolist() == [0.5]
    assert first["moved"]
    assert all(torch.equal(a, b) for a, b in zip(first["vectors"], second["vectors"], strict=True))
    assert torch.equal(first["gradient"], second["gradient"])
    assert torch.equal(first["running_mean"], second["running_mean"])
