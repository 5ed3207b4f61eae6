"""Averages over the ranks that train one GAN, each on its slice of the global batch.

Gradients are averaged explicitly rather than by DistributedDataParallel: an iteration runs the discriminator three
times and alternates two networks, which its hooks and its buffer broadcast do not support.
"""

import torch
from comparison.distributed import world_size
from torch import Tensor, distributed, nn


def average_gradients(network: nn.Module) -> None:
    """Replace every gradient by its mean over the ranks, in one all-reduce."""
    if world_size() > 1:
        _average([p.grad for p in network.parameters() if p.grad is not None])


def average_buffers(network: nn.Module) -> None:
    """Replace batch norm's running statistics by their mean over the ranks, in one all-reduce.

    The vectors of spectral norm stay: they depend on the weights alone, so all ranks have the same ones.
    """
    if world_size() > 1:
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
        _average([b for norm in norms for b in norm.buffers() if b.is_floating_point()])


def average(value: Tensor) -> Tensor:
    """Return the mean of () values over the ranks."""
    if world_size() > 1:
        _average([value])
    return value


@torch.no_grad()
def _average(tensors: list[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [p.view(t.shape) for p, t in zip(parts, tensors, strict=True)])
