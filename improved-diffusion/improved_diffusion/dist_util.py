"""Processes that train or sample together, on torch.distributed: started by torchrun, mpiexec or srun, or alone.

NCCL moves tensors between GPUs, gloo those on CPUs. The first process is the main one, which writes the files.
Importing this module does not import torch.
"""

import atexit
import contextlib
import datetime
import io
import os
import socket
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .launch import LaunchError, Place, choose_device, find_place, machine_name, slurm_master
from .watch import GRACE, PATIENCE, Hub, Watch, connect, fails_first, leave, local_names

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

GPUS_PER_NODE = 8  # of OpenAI's package; here each process takes the GPU of its local rank
SETUP_RETRY_COUNT = 3
RENDEZVOUS_TIMEOUT = datetime.timedelta(minutes=5)
COLLECTIVE_TIMEOUT = datetime.timedelta(days=1)  # the others wait while one draws or saves; the watch knows the dead

_place: Place | None = None  # once connected
_watch: Watch | None = None
_device: "torch.device | None" = None
_claimed = False
_members: "weakref.WeakSet[Member]" = weakref.WeakSet()


class Member(Protocol):
    """What holds the group of processes, and lets go of it at the group's end; see `add_member`."""

    def leave_group(self) -> None:
        """Hold the group no more."""


def setup_dist(device: str | None = None) -> None:
    """Connect the processes of this job, once; a single process becomes a world of its own, without MPI or network.

    Args:
        device: 'cpu' to leave the GPUs alone, 'cuda:N' for one of them; by default the GPU of the local rank.

    Raises:
        LaunchError: the processes do not find each other, or the launcher does not tell where they meet.
    """
    global _place, _device
    import torch
    import torch.distributed as dist

    if _place is not None:
        return
    place = find_place()
    if dist.is_initialized():  # by the caller, who also parts from the others
        if dist.get_world_size() > 1 and dist.get_backend() == "nccl":
            raise LaunchError("torch.distributed is initialized for GPUs alone: give it the backend cpu:gloo,cuda:nccl")
        _place = Place(dist.get_rank(), dist.get_world_size(), place.local_rank, place.local_world_size, place.launcher)
        return
    _device = choose_device(device, place)
    if _device.type == "cuda":
        torch.cuda.set_device(_device)
    try:
        store = _make_store(place)
        machines, backend = _meet(store, place)
        one_machine = len(set(machines)) == 1
        if one_machine and "lo" in (name for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name may not resolve
        # Functions there keep the group of their import as a default argument, and torch imports them by itself: its
        # threads would outlive it, and one that lets go of a tensor at the interpreter's end aborts the process.
        import torch.distributed.nn.functional

        dist.init_process_group(
            backend, store=store, rank=place.rank, world_size=place.world_size, timeout=COLLECTIVE_TIMEOUT
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise LaunchError(f"process {place.rank} of {place.world_size} could not connect ({reason})") from error
    _place = place
    atexit.register(_close)
    if place.world_size > 1:
        if not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(max(1, torch.get_num_threads() // machines.count(machines[place.rank])))
        _start_watch(store, place, one_machine)


def dev() -> "torch.device":
    """Return this process's GPU, or the CPU where there is none."""
    return _device or choose_device(None, _place or find_place())


def get_rank() -> int:
    """Return this process's number; 0 before `setup_dist`."""
    return _place.rank if _place else 0


def get_world_size() -> int:
    """Return the number of processes; 1 before `setup_dist`."""
    return _place.world_size if _place else 1


def is_main() -> bool:
    """Tell whether this is the process that writes."""
    return get_rank() == 0


def barrier() -> None:
    """Wait for the other processes; the GPUs are not waited for."""
    if get_world_size() > 1:
        import torch

        torch.distributed.all_reduce(torch.zeros(1))


def broadcast_object(value: T) -> T:
    """Return the main process's value, of plain picklable types, in every process."""
    if get_world_size() == 1:
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def load_state_dict(path: str | Path, **kwargs: Any) -> Any:
    """Load a file of plain types and tensors, a remote one too; every process reads for itself.

    Args:
        path: of the file.
        kwargs: of `torch.load`.
    """
    import torch

    from . import blob

    with blob.open_file(str(path), "rb") as file:
        content = io.BytesIO(file.read())
    return torch.load(content, **{"weights_only": True, **kwargs})


def add_member(member: Member) -> None:
    """Have a holder of the group leave it before it ends, however long the holder itself is kept."""
    if get_world_size() > 1:
        _members.add(member)


def sync_params(params: "Iterable[torch.Tensor]") -> None:
    """Give tensors, in place, the values of the main process."""
    if get_world_size() == 1:
        return
    import torch

    tensors = [p.detach() for p in params]
    with torch.no_grad():
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            same = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.flatten() for t in same])
            torch.distributed.broadcast(flat, src=0)
            for tensor, values in zip(same, flat.split([t.numel() for t in same]), strict=True):
                tensor.copy_(values.view(tensor.shape))


def shutdown() -> None:
    """Wait for the other processes, then part from them."""
    if _place is not None:
        barrier()
        _close()


def run_guarded(main: Callable[[], int | None]) -> int:
    """Call `main` and return its status; an exception in one process ends all of them, and only one tells it.

    Processes other than the first print nothing, unless theirs is the error that ends the job.
    """
    try:
        place = find_place()
    except LaunchError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        return 2
    if place.world_size == 1:
        return main() or 0
    kept = io.StringIO()
    with contextlib.ExitStack() as quiet:
        if place.rank > 0:
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
            quiet.enter_context(contextlib.redirect_stderr(kept))
        try:
            status = main() or 0
            shutdown()
            return status
        except BaseException as error:
            status = _exit_status(error)
            if status:
                if place.rank > 0 and isinstance(error, SystemExit):
                    time.sleep(GRACE / 2)  # its error is printed already; the first process's would be too
                _claim(status, isinstance(error, RuntimeError))
                error.add_note(f"(in process {place.rank} of {place.world_size})")
                print(kept.getvalue(), file=sys.__stderr__, end="", flush=True)
            raise


def _exit_status(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, ValueError | OSError) else 1


def _claim(status: int, may_follow: bool) -> None:
    """Return when this process shall tell its error; where another one does, never.

    Args:
        status: to exit with.
        may_follow: the error may be another process's failure seen from here, which that one tells better.
    """
    global _claimed
    if _claimed:
        return
    if _watch is not None and may_follow:
        time.sleep(GRACE)
    if not (_watch.claim(status) if _watch else fails_first()):
        time.sleep(PATIENCE + 2 * GRACE if _watch else GRACE)
        leave(status)
    _claimed = True
    atexit.register(_leave_last, status)  # runs before what would wait for the others


def _leave_last(status: int) -> None:
    if _watch is None:
        time.sleep(GRACE)  # in which the others fail too, and see that this one has told it
    leave(status)


def _hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Tell an error that nobody caught, unless another process tells its own."""
    _claim(1, isinstance(error, RuntimeError))
    traceback.print_exception(kind, error, trace)


def _make_store(place: Place) -> "torch.distributed.Store":
    """Make the store in which the processes find each other's addresses."""
    import torch.distributed as dist

    if place.world_size == 1:
        return dist.HashStore()
    given = bool(os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT"))
    if place.launcher == "torchrun":
        if not given:
            raise LaunchError("RANK and WORLD_SIZE are set but not MASTER_ADDR and MASTER_PORT: use torchrun")
        return next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))[0]
    if place.launcher == "mpi" and not given:
        return _mpi_store(place)
    host, port = slurm_master()
    return _tcp_store(host, port, place)


def _tcp_store(host: str, port: int, place: Place) -> "torch.distributed.TCPStore":
    import torch.distributed as dist

    return dist.TCPStore(
        host, port, place.world_size, place.rank == 0, timeout=RENDEZVOUS_TIMEOUT, wait_for_workers=False
    )


def _mpi_store(place: Place) -> "torch.distributed.TCPStore":
    """Let MPI tell all processes where the first one listens."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"several processes under mpiexec need mpi4py, or MASTER_ADDR and MASTER_PORT ({error})"
        ) from None
    world = MPI.COMM_WORLD
    if world.size != place.world_size:
        raise LaunchError(
            f"mpiexec has started {place.world_size} processes but mpi4py sees {world.size}: it belongs to another "
            "MPI; set MASTER_ADDR and MASTER_PORT, or use torchrun"
        )
    one_machine = len(set(world.allgather(machine_name()))) == 1
    names = ["127.0.0.1"] if one_machine else local_names()
    if place.rank == 0:
        store = _tcp_store(names[0], 0, place)
        world.bcast((names, store.port))
        return store
    names, port = world.bcast(None)
    for attempt in range(SETUP_RETRY_COUNT * len(names)):
        host = names[attempt % len(names)]
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            continue
        return _tcp_store(host, port, place)
    raise LaunchError(f"the first process does not answer at {' or '.join(names)}, port {port}: set MASTER_ADDR")


def _meet(store: "torch.distributed.Store", place: Place) -> tuple[list[str], str]:
    """Return the machine of each process, and the backend: NCCL where each has a GPU of its own, which it demands."""
    import torch

    gpu = ""
    if _device is not None and _device.type == "cuda":
        gpu = str(getattr(torch.cuda.get_device_properties(_device), "uuid", _device))
    store.set(f"process/{place.rank}", f"{machine_name()}\n{gpu}")
    found = [store.get(f"process/{rank}").decode() for rank in range(place.world_size)]
    own = len(set(found)) == len(found) and not any(name.endswith("\n") for name in found)
    nccl = own and torch.distributed.is_nccl_available()
    return [name.partition("\n")[0] for name in found], "cpu:gloo,cuda:nccl" if nccl else "gloo"


def _start_watch(store: "torch.distributed.Store", place: Place, one_machine: bool) -> None:
    global _watch
    if place.rank == 0:
        hub = Hub("127.0.0.1" if one_machine else "")
        names = ["127.0.0.1"] if one_machine else [*local_names(), os.environ.get("MASTER_ADDR", "")]
        store.set("watch", " ".join([str(hub.port), *filter(None, names)]))
        _watch = hub
    else:
        port, *names = store.get("watch").decode().split()
        _watch = connect(names, int(port), place.rank)
        if _watch is None:
            print(f"warning: process {place.rank} is not watched: the first does not answer", file=sys.__stderr__)
    sys.excepthook = _hook


def _close() -> None:
    global _place, _watch
    if _place is None:
        return
    import torch.distributed as dist

    if _watch is not None:
        _watch.goodbye()
    for member in list(_members):
        member.leave_group()
    if dist.is_initialized():
        dist.destroy_process_group()
    _place, _watch = None, None
