"""Several processes that train one GAN, each on its slice of the global batch.

Gradients are averaged by hand rather than by DistributedDataParallel: the discriminator runs three times per
iteration and the two players alternate, which its hooks and its buffer broadcast do not expect.
"""

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from comparison.cli import UserError
from comparison.device import pick_device
from comparison.distributed import init_process_group
from torch import Tensor, nn


def launch(worker: Callable[..., int], world_size: int, *arguments: Any) -> int:
    """Run worker(rank, *arguments) in world_size new processes that form a group, and wait for them.

    Ctrl-C reaches all of them by the terminal; each worker decides what to do about it.

    Args:
        worker: a function of a module, so that the new processes find it; returns an exit status.
        world_size: number of processes.
        arguments: picklable.

    Returns:
        The exit status of the process that ended first with one other than 0, else 0.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        torch.multiprocessing.spawn(_enter, args=(worker, world_size, port, *arguments), nprocs=world_size)
    except torch.multiprocessing.ProcessExitedException as error:
        return error.exit_code
    finally:
        signal.signal(signal.SIGINT, previous)
    return 0


def _enter(rank: int, worker: Callable[..., int], world_size: int, port: int, *arguments: Any) -> None:
    # Each backend serves its device's tensors, so that what is agreed on the CPU never waits for a GPU.
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() and torch.cuda.is_available() else "gloo"
    init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    try:
        status = worker(rank, *arguments)
    except UserError as error:
        if rank == 0:
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        status = 2
    dist.barrier() if status == 0 else None
    dist.destroy_process_group()
    sys.exit(status)


def local_device(name: str, rank: int, world_size: int) -> torch.device:
    """Return the device of this process: with several of them, GPU number `rank`, or the CPU for all.

    Raises:
        UserError: the device is not there, or there are fewer GPUs than processes.
    """
    device = pick_device(name)
    if world_size == 1 or name == "cpu":
        return device
    if torch.cuda.device_count() < world_size:
        raise UserError(
            f"--ngpu {world_size}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "--device cpu trains in that many processes on the CPU"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def in_group() -> bool:
    """Say whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized()


def average_gradients(network: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if in_group():
        _average([p.grad for p in network.parameters() if p.grad is not None])


def average_buffers(network: nn.Module) -> None:
    """Replace batch norm's running statistics by their mean over the processes, in one message.

    The vectors of spectral norm stay as they are: they follow from the weights alone, so that every process has the
    same ones, and a mean would only round them.
    """
    if in_group():
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
        _average([b for norm in norms for b in norm.buffers() if b.is_floating_point()])


@torch.no_grad()
def _average(tensors: list[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [p.view(t.shape) for p, t in zip(parts, tensors, strict=True)])
