"""Two processes are one: what they agree on, and the step they take together."""

import socket
import weakref

import pytest
import torch
from comparison.distributed import agree, init_process_group, mean
from gan.distributed import average_buffers, average_gradients, in_group
from gan.networks import Discriminator, normalise_spectrally


def test_alone_nothing_is_exchanged():
    network = Discriminator(16, ndf=2)
    network(torch.randn(4, 3, 16, 16)).sum().backward()
    before = [p.grad.clone() for p in network.parameters()] + [b.clone() for b in network.buffers()]
    average_gradients(network)
    average_buffers(network)
    after = [p.grad for p in network.parameters()] + list(network.buffers())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not in_group()
    assert agree(True, 1.0) == (True, 1.0)
    assert mean({"a": torch.tensor(2.0)}) == {"a": 2.0}


def _pair(rank, port, results):
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    layer = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = torch.arange(12.0).reshape(4, 3)[2 * rank : 2 * rank + 2]
    layer(x).square().mean().backward()
    average_gradients(layer)
    norm = torch.nn.BatchNorm1d(1, momentum=1.0)
    norm(torch.full((2, 1), float(rank)) + torch.tensor([[-1.0], [1.0]]))
    average_buffers(norm)
    discriminator = Discriminator(16, ndf=2, d_norm="spectral")
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    normalise_spectrally(discriminator, 0)
    start = discriminator.state_dict()["layers.0.parametrizations.weight.0._u"].clone()
    for _ in range(3):
        discriminator(torch.full((2, 3, 16, 16), float(rank)))  # other images, the same weights
        average_buffers(discriminator)
    vectors = [b.tolist() for b in discriminator.buffers()]
    results[rank] = {
        "vectors": vectors,
        "moved": vectors[0] != start.tolist(),
        "gradient": layer.weight.grad.flatten().tolist(),
        "running_mean": norm.running_mean.tolist(),
        "agreed": agree(rank == 1, 5.0 - rank),
        "mean": mean({"loss": torch.tensor(float(rank))}),
    }
    torch.optim.Adam(layer.parameters())  # torch imports much for it, which must not keep the group
    group = weakref.ref(torch.distributed.group.WORLD)
    assert group()
    torch.distributed.destroy_process_group()
    assert group() is None  # or a thread of it may abort the process at the end of the interpreter


def test_two_processes_compute_the_gradient_of_the_whole_batch_and_share_their_spectral_norms():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_pair, args=(port, results), nprocs=2)
        first, second = results[0], results[1]
    x = torch.arange(12.0).reshape(4, 3)
    whole = (2 * x.sum(1, keepdim=True) * x).mean(0)
    assert first == second
    assert first["gradient"] == pytest.approx(whole.tolist())
    assert first["running_mean"] == [0.5]
    assert first["moved"]
    assert first["agreed"] == (True, 5.0)
    assert first["mean"] == {"loss": 0.5}
