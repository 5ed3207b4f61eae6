"""Processes that train or sample together: started here, one per GPU or several on one, or by torchrun.

`find_place` says which of how many this one is, `launch` starts the others, `group` connects them. One process alone
is no group, and imports nothing for it. Imports torch only inside functions; see `launching` for how a job ends.
"""

import argparse
import datetime
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import UserError

from ddgan.options import PROCESS_OPTIONS

if TYPE_CHECKING:
    import torch

MEETING_TIMEOUT = datetime.timedelta(minutes=5)
MESSAGE_TIMEOUT = datetime.timedelta(days=1)  # the others wait while the first one draws or saves
LOOPBACK = "127.0.0.1"
# What each machine of a job may be told otherwise: who it is, what it computes with, where its files lie.
OWN_FLAGS = frozenset(
    {
        *PROCESS_OPTIONS,
        *("device", "threads", "num_workers"),
        *("dataset", "exp", "checkpoint", "out", "png_dir", "contact_sheet", "real_img_dir", "inception_weights"),
    }
)

_store: "torch.distributed.Store | None" = None  # in which the processes of the job have met


@dataclass(frozen=True)
class Place:
    """A process among those that work together.

    Attributes:
        rank: in [0, world_size).
        world_size: processes on all machines.
        local_rank: in [0, local_world_size), among those on this machine.
        local_world_size: processes on this machine.
        by_torchrun: whether torchrun started them.
        address, port: where the first process waits for the others.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    by_torchrun: bool = False
    address: str = LOOPBACK
    port: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def rows(self, n: int) -> slice | None:
        """Return which rows of the joint batch are this process's `n`; None for all of them."""
        return None if self.world_size == 1 else slice(self.rank * n, (self.rank + 1) * n)


def find_place(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> Place:
    """Return this process's place: torchrun's if it has one, else the first of those that the flags ask for.

    Args:
        args: num_proc_node, num_process_per_node, node_rank, master_address and master_port.
        env: of this process.

    Raises:
        UserError: flags and variables contradict each other.
    """
    nodes, local = args.num_proc_node, args.num_process_per_node
    if "RANK" in env and "WORLD_SIZE" in env:
        for name, alone in (("num_proc_node", 1), ("num_process_per_node", 1), ("node_rank", 0)):
            if (value := getattr(args, name)) != alone:
                raise UserError(
                    f"--{name} {value}: torchrun has started the processes already (WORLD_SIZE {env['WORLD_SIZE']}); "
                    "leave the flag out, or start without torchrun"
                )
        return _torchrun_place(env)
    if args.node_rank >= nodes:
        raise UserError(f"--node_rank {args.node_rank}: must be below --num_proc_node {nodes}")
    place = Place(args.node_rank * local, nodes * local, 0, local, False, args.master_address, args.master_port)
    return place if nodes > 1 else replace(place, address=LOOPBACK, port=0)


def _torchrun_place(env: Mapping[str, str]) -> Place:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    for name in (*names, "MASTER_ADDR"):
        if not env.get(name) or (name in names and not env[name].isdecimal()):
            value = repr(env[name]) if name in env else "not set"
            raise UserError(f"RANK and WORLD_SIZE are set, but {name} is {value}; start with torchrun, or unset them")
    rank, size, local_rank, local_size, port = (int(env[name]) for name in names)
    if rank >= size or local_rank >= local_size:
        raise UserError(f"RANK {rank} and LOCAL_RANK {local_rank}: must be below WORLD_SIZE and LOCAL_WORLD_SIZE")
    if size == 1:
        return Place()
    return Place(rank, size, local_rank, local_size, True, env["MASTER_ADDR"], port)


def worker_device(name: str, place: Place) -> "torch.device":
    """Return the device of this process: with several of them and no number in --device, the GPU of its local rank.

    More processes than GPUs share these in turn.

    Raises:
        UserError: no such device on this machine.
    """
    import torch
    from comparison.device import pick_device

    if place.world_size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{place.local_rank % torch.cuda.device_count()}"
    device = pick_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


@contextmanager
def group(place: Place, device: "torch.device") -> Iterator[None]:
    """Connect the processes of a job inside the `with` block, which all leave together; nothing for one alone.

    NCCL moves tensors between GPUs where each process has one of its own, which it demands; else gloo does. What is
    agreed on the hosts never waits for a GPU.

    Raises:
        UserError: the processes do not find each other.
    """
    global _store
    if place.world_size == 1:
        yield
        return
    import torch.distributed as dist
    from comparison.distributed import init_process_group

    try:
        _store = _make_store(place)
        backend = _meet(_store, place, device)
        init_process_group(backend, store=_store, rank=place.rank, world_size=place.world_size, timeout=MESSAGE_TIMEOUT)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {place.rank} of {place.world_size} did not find the others at {place.address}:{place.port} "
            f"({reason}); see --master_address and --master_port"
        ) from None
    yield
    barrier()
    dist.destroy_process_group()
    _store = None


def _make_store(place: Place) -> "torch.distributed.Store":
    import torch.distributed as dist

    if place.by_torchrun:
        return next(dist.rendezvous("env://", timeout=MEETING_TIMEOUT))[0]
    return dist.TCPStore(
        place.address, place.port, place.world_size, place.is_first, timeout=MEETING_TIMEOUT, wait_for_workers=False
    )


def _meet(store: "torch.distributed.Store", place: Place, device: "torch.device") -> str:
    """Tell the others this process's machine and GPU; return the backend, the same for all.

    Raises:
        UserError: the first process expects another number of them.
    """
    import torch

    if place.is_first:
        store.set("world_size", str(place.world_size))
    if (expected := int(store.get("world_size"))) != place.world_size:
        raise UserError(
            f"--num_proc_node and --num_process_per_node: {place.world_size} processes in all here, {expected} for the "
            "first process"
        )
    machine, gpu = _machine_name(), ""
    if device.type == "cuda":
        gpu = str(torch.cuda.get_device_properties(device).uuid)
    store.set(f"process/{place.rank}", f"{machine}\n{gpu}")
    found = [store.get(f"process/{rank}").decode() for rank in range(place.world_size)]
    if all(other.startswith(f"{machine}\n") for other in found) and "lo" in (n for _, n in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name may not resolve
    own = len(set(found)) == len(found) and not any(other.endswith("\n") for other in found)
    return "cpu:gloo,cuda:nccl" if own and torch.distributed.is_nccl_available() else "gloo"


def _machine_name() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.is_file() else ''}"


def in_group() -> bool:
    """Tell whether this process works together with others."""
    return _store is not None


def fails_first() -> bool:
    """Tell whether this process is the first of the connected ones to ask: its error is the one to be told."""
    try:
        return _store is None or _store.add("failed", 1) == 1
    except RuntimeError:
        return False


def barrier() -> None:
    """Wait for the other processes; the GPUs are not waited for."""
    if in_group():
        import torch

        torch.distributed.all_reduce(torch.zeros(1))


@contextmanager
def first_on_machine(place: Place) -> Iterator[None]:
    """Let the first process of each machine run the `with` block before the others, which find what it downloaded."""
    if place.local_rank:
        barrier()
    yield
    if not place.local_rank:
        barrier()


def check_same(value: Any, words: str) -> None:
    """Refuse a job whose processes disagree, such as machines with different files.

    Args:
        value: picklable.
        words: what it is.

    Raises:
        UserError: naming both values.
    """
    values = _values_of_all(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise UserError(f"{words}: {values[0]} for the first process, {other} for process {rank}")


def check_same_flags(args: argparse.Namespace) -> None:
    """Refuse a job whose machines were given different commands, but for OWN_FLAGS.

    Raises:
        UserError: naming a flag and both values.
    """
    values = _values_of_all({name: value for name, value in vars(args).items() if name not in OWN_FLAGS})
    for rank, other in enumerate(values):
        for name, value in values[0].items():
            if other[name] != value:
                raise UserError(f"--{name}: {value} for the first process, {other[name]} for process {rank}")


def _values_of_all(value: Any) -> list[Any]:
    if not in_group():
        return [value]
    import torch

    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share_gradients(network: "torch.nn.Module", device: "torch.device") -> "torch.nn.Module":
    """Return what to call in place of a network so that a backward pass leaves gradients averaged over the processes.

    The average is taken while the backward pass goes on, but not inside `local_gradients`.
    """
    if not in_group():
        return network
    import inspect

    from torch.nn.parallel import DistributedDataParallel

    # Its buffers are constants, so nothing is to be sent in the forward pass; torch 2.14 renamed the argument.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True, **options
    )


@contextmanager
def local_gradients(network: "torch.nn.Module", active: bool) -> Iterator[None]:
    """While `active`, let the backward passes of what `share_gradients` returned add up without any message."""
    with network.no_sync() if active and in_group() else nullcontext():  # type: ignore[operator]
        yield
