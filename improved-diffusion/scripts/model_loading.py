"""A trained network, ready for evaluation: its weights on the device, the precision, and what files say about it."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comparison.checkpoints import load_torch
from comparison.cli import UserError
from comparison.device import autocast_dtype, computes_bf16, precision_name, set_threads
from comparison.distributed import device_of, group
from comparison.files import digest
from comparison.gpu.cuda_graphs import for_sampling
from comparison.gpu.group_norm import group_norm, is_fused
from comparison.ranks import get_rank_info
from comparison.weights import is_weights
from improved_diffusion.checkpoints import fill_network, read_network
from improved_diffusion.nn import NormKernel, use_norm_kernel
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.unet import UNetModel
from torch import nn


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode.

    Attributes:
        network: the network, on `device`.
        diffusion: its process, with the steps of --timestep_respacing.
        num_classes: 0 for an unconditional network.
        device: device of the network.
        dtype: type of autocast; None computes in float32.
        metadata: entries about checkpoint, network and precision for files about its output.
    """

    network: nn.Module
    diffusion: SpacedDiffusion
    num_classes: int
    device: torch.device
    dtype: torch.dtype | None
    metadata: dict[str, Any]

    def autocast(self) -> torch.autocast:
        """Return the context in which the network is evaluated."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def check_labels(self, labels: torch.Tensor | None, source: str) -> None:
        """Raise UserError, naming the source, for images without the classes that the network needs."""
        if not self.num_classes:
            return
        if labels is None:
            raise UserError(f"{source}: the model is class-conditional, and these images have no labels")
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise UserError(f"{source}: labels up to {labels.max()}; the model has {self.num_classes} classes")


@contextmanager
def connected_device(args: argparse.Namespace) -> Iterator[torch.device]:
    """Connect the ranks of the job inside the block, and yield this one's device; sets its CPU threads.

    Raises:
        UserError: no such device, or the ranks do not find each other.
    """
    rank_info = get_rank_info()
    device = device_of(rank_info, args.device)
    set_threads(args.threads, rank_info.local_world_size)
    with group(rank_info, device):
        yield device


def choose_dtype(precision: str, use_fp16: bool | None, device: torch.device) -> torch.dtype | None:
    """Return the type of the network's passes, None for float32.

    --use_fp16 means bf16 where the device computes in it, else float16 on CUDA, else float32 with a warning.
    """
    if not use_fp16:
        return autocast_dtype("float32" if use_fp16 is False and precision == "auto" else precision, device)
    if precision == "bf16" or computes_bf16(device):
        return torch.bfloat16
    if device.type == "cuda":
        return torch.float16
    print("warning: --use_fp16: this device has no fast bf16, so float32 is used", flush=True)
    return None


def prepare_model(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Move a network to its device, in the memory format and with the kernels that are fastest there."""
    # Convolutions prefer channels_last everywhere; a CPU's bf16 GroupNorm loses more in it than they gain.
    slow = device.type == "cpu" and dtype == torch.bfloat16
    model.to(device).to(memory_format=torch.contiguous_format if slow else torch.channels_last)
    use_norm_kernel(model, NormKernel(is_fused, group_norm) if device.type == "cuda" else None)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read the state dict of a network from a checkpoint or from weights in 16 bits; raises as `read_network`."""
    return load_torch(path)["ema"] if is_weights(path) else read_network(str(path))


def load_model(
    args: argparse.Namespace,
    flags: dict[str, Any],
    create: Callable[..., tuple[UNetModel, SpacedDiffusion]],
    device: torch.device,
) -> LoadedModel:
    """Rebuild a network from its flags and its file.

    Args:
        args: command line: model_path, precision, use_fp16, compile, cuda_graph.
        flags: flags of the network and the process.
        create: makes both from the flags and `num_classes`.
        device: device of the network.

    Raises:
        UserError: the file is damaged or does not fit the flags.
    """
    dtype = choose_dtype(args.precision, args.use_fp16, device)
    try:
        state = read_state(args.model_path)
        num_classes = state["label_emb.weight"].shape[:1].numel() if "label_emb.weight" in state else 0
        network, diffusion = create(**flags, num_classes=num_classes)
        fill_network(network, state, str(args.model_path))
    except ValueError as error:
        raise UserError(str(error)) from None
    prepare_model(network, device, dtype)
    network.eval()
    metadata = {
        "checkpoint": args.model_path.name,
        "checkpoint_sha256": digest(args.model_path),
        "network": "ema" if args.model_path.name.startswith("ema_") or is_weights(args.model_path) else "raw",
        "precision": precision_name(dtype),
        **({"compiled": True} if args.compile else {}),
    }
    fast = Compiled(network, device) if args.compile else for_sampling(network, device, args.cuda_graph)
    return LoadedModel(fast, diffusion, num_classes, device, dtype, metadata)


class Compiled(nn.Module):
    """A network compiled by torch.compile, on CUDA as CUDA graphs; the first call compiles."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self._call = torch.compile(network, mode="reduce-overhead" if device.type == "cuda" else None)

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """Evaluate the network."""
        torch.compiler.cudagraph_mark_step_begin()
        return self._call(*args, **kwargs).clone()  # the next replay of a graph overwrites its output
