"""Processes that train together, by the names of OpenAI's package: under torchrun or mpiexec, or one process alone.

Tensors on GPUs travel by NCCL, those on CPUs by gloo. A process group that the caller has initialized is adopted.
"""

import atexit
import datetime
import importlib
import io
import os
import socket
import sys
import time
import traceback
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Imported before a group exists: default arguments of its functions would keep the group, and its threads, alive.
import torch.distributed.nn.functional

from . import archive, blob
from .launch import launched_ranks

GPUS_PER_NODE, SETUP_RETRY_COUNT = 8, 3  # of OpenAI's package; here each process takes the GPU of its local rank
TIMEOUT = datetime.timedelta(days=1)  # the other ranks wait while rank 0 samples or saves
PATIENCE = 7.0  # seconds in which the rank that failed first ends the job, before another prints a lost connection

_device: torch.device | None = None
_members: "weakref.WeakSet[Any]" = weakref.WeakSet()


def setup_dist(device: str | None = None) -> None:
    """Initialize the process group on `device` or the GPU of the local rank; ValueError if the ranks cannot meet."""
    global _device
    rank, world_size, local_rank, local_size = launched_ranks()
    if dist.is_initialized():
        if dist.get_world_size() > 1 and dist.get_backend() == "nccl":
            raise ValueError("torch.distributed is initialized for GPUs alone; give it the backend cpu:gloo,cuda:nccl")
        return
    _device = torch.device(device) if device else _local_device(local_rank)
    if _device.type == "cuda":
        torch.cuda.set_device(_device)
    store: dist.Store = dist.HashStore() if world_size == 1 else _connect(rank, world_size)
    store.set(f"gpu/{rank}", str(torch.cuda.get_device_properties(_device).uuid) if _device.type == "cuda" else "")
    gpus = {store.get(f"gpu/{other}") for other in range(world_size)} - {b""}  # NCCL demands one for each rank
    backend = "cpu:gloo,cuda:nccl" if len(gpus) == world_size and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    atexit.register(shutdown)
    if world_size > 1:
        sys.excepthook = _end_job
        if not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(max(1, torch.get_num_threads() // local_size))


def _local_device(local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    return torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")


def _connect(rank: int, world_size: int) -> dist.Store:
    """Connect to the store of rank 0: at MASTER_ADDR and MASTER_PORT, or at an address that MPI broadcasts."""
    if not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        if "RANK" in os.environ:
            raise ValueError("RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT; start with torchrun")
        try:
            comm = importlib.import_module("mpi4py.MPI").COMM_WORLD
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"{world_size} ranks need mpi4py, or MASTER_ADDR and MASTER_PORT ({error})") from None
        if comm.size != world_size:
            raise ValueError(f"mpiexec started {world_size} ranks, but mpi4py, built for another MPI, sees {comm.size}")
        one_machine = len(set(comm.allgather(socket.gethostname()))) == 1
        with socket.create_server(("", 0)) as probe:
            address = ("127.0.0.1" if one_machine else socket.getfqdn(), str(probe.getsockname()[1]))
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = comm.bcast(address)
    if os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name may not resolve
    return next(dist.rendezvous("env://", rank=rank, world_size=world_size))[0]


def _end_job(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print an uncaught error and end the ranks of all machines."""
    if isinstance(error, RuntimeError):  # it may be a connection that another rank's failure has closed
        time.sleep(PATIENCE)
    traceback.print_exception(kind, error, trace)
    if "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(1)
    os._exit(1)  # a normal exit would wait for the other ranks


def shutdown() -> None:
    """Destroy the process group; nothing where there is none."""
    for member in list(_members):
        member.leave_group()
    if dist.is_initialized():
        dist.destroy_process_group()


def add_member(member: Any) -> None:
    """Call `member.leave_group()` before the group is destroyed: what holds it would keep its threads alive."""
    if get_world_size() > 1:
        _members.add(member)


def dev() -> torch.device:
    """Return the device of this rank: its GPU, or the CPU where there is none."""
    return _device or _local_device(launched_ranks()[2])


def get_rank() -> int:
    """Return the rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until all ranks are here; the GPUs are not waited for."""
    if get_world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def broadcast_object(value: Any) -> Any:
    """Return rank 0's picklable value in every rank."""
    values = [value]
    if get_world_size() > 1:
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def load_state_dict(path: str | Path, **kwargs: Any) -> Any:
    """Load a local or remote file of plain types and tensors, in each rank by itself; arguments of `torch.load`."""
    with blob.open_file(path, "rb") as file:
        return archive.load(io.BytesIO(file.read()), str(path), **kwargs)


def sync_params(params: Iterable[torch.Tensor]) -> None:
    """Set tensors, in place, to the values of rank 0."""
    for param in params if get_world_size() > 1 else ():
        tensor = param.detach().contiguous()
        dist.broadcast(tensor, src=0)
        param.detach().copy_(tensor)
