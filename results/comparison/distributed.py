"""Jobs of several processes on torch.distributed, started here or by torchrun, mpiexec or srun.

`launch` starts the processes of a `RankInfo`, `group` connects them, and `run` exits with one error for all. Torch is
imported inside functions, since scripts validate their command line first.
"""

import contextlib
import datetime
import importlib
import io
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, SupportsFloat, TypeVar

from comparison import cli
from comparison.cli import INTERRUPTED, UserError
from comparison.ranks import LOOPBACK, RankInfo, get_rank_info

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

CONNECT_TIMEOUT = datetime.timedelta(minutes=5)
MESSAGE_TIMEOUT = datetime.timedelta(days=1)  # other ranks wait while rank 0 draws or saves
GRACE = 1.0  # seconds from a failure to the end of the other processes
PATIENCE = 7.0  # seconds that a rank waits to be ended before it reports an error that another's may have caused


def launch(worker: Callable[..., int], rank_info: RankInfo, *arguments: Any) -> int:
    """Run worker(rank_info, *arguments) in every process of the job, and return the exit status.

    A single process, or one that a launcher started, runs it here. Otherwise this starts all processes of this machine;
    the first failure ends the others, and Ctrl-C and SIGTERM are passed on to all.

    Args:
        worker: module-level function that returns an exit status.
        rank_info: result of `get_rank_info`.
        arguments: picklable arguments.
    """
    if rank_info.world_size == 1 or rank_info.launcher:
        return worker(rank_info, *arguments)
    import torch.multiprocessing as mp

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # no log lines on ended processes
    rank_info = rank_info if rank_info.port else replace(rank_info, port=_free_port())
    stops: list[int] = []
    team: list[Any] = []

    def forward(number: int, frame: Any) -> None:
        stops.append(number)
        for process in team:
            process.terminate()

    before = set(multiprocessing.active_children())
    with _handled(forward, signal.SIGINT, signal.SIGTERM):
        try:
            # A terminal sends Ctrl-C to all its processes: workers ignore it until they have left the terminal.
            with _handled(signal.SIG_IGN, signal.SIGINT):
                context = mp.start_processes(
                    _worker, (worker, rank_info, arguments), rank_info.local_world_size, join=False
                )
            team += context.processes
            for number in stops[:1]:
                forward(number, None)
            while not context.join(grace_period=GRACE):
                pass
        except mp.ProcessExitedException as error:
            if error.exit_code >= 0:  # the process has reported its error
                return error.exit_code
            if stops and error.exit_code == -signal.SIGTERM:  # before its loop began
                return INTERRUPTED
            rank = rank_info.rank + error.error_index
            text = f"process {rank} was killed ({error.signal_name}), perhaps for lack of memory"
            print(f"{Path(sys.argv[0]).name}: error: {text}", file=sys.stderr)
            return 1
        finally:
            for process in set(multiprocessing.active_children()) - before:
                process.kill()  # if one could not start; Python would wait for the others
    return 0


def _worker(local_rank: int, worker: Callable[..., int], rank_info: RankInfo, arguments: tuple[Any, ...]) -> NoReturn:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # torch sends it when the parent dies
    multiprocessing.set_start_method(None, force=True)  # else data workers would be spawned instead of forked
    rank_info = replace(rank_info, rank=rank_info.rank + local_rank, local_rank=local_rank)
    _report_once(rank_info, lambda: worker(rank_info, *arguments))


@contextlib.contextmanager
def _handled(handler: Any, *numbers: int) -> Iterator[None]:
    """Handle signals by `handler` inside the `with` block."""
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and exit as `comparison.cli.run` does; of a launcher's processes only one reports an error."""
    try:
        rank_info = get_rank_info()
    except UserError:
        rank_info = RankInfo()  # `main` raises it again
    if rank_info.world_size == 1:
        cli.run(main)
    if rank_info.launcher == "mpi":
        with contextlib.suppress(ImportError, RuntimeError):  # mpiexec ends a job at a failure only if it uses MPI
            importlib.import_module("mpi4py.MPI")
    _report_once(rank_info, main)


def _report_once(rank_info: RankInfo, main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as `comparison.cli.run` does, without output on ranks other than 0.

    An error on these ranks, or one that may be a lost connection, is printed only if the process is not ended within
    PATIENCE.
    """
    kept, text, follows = io.StringIO(), "", rank_info.rank > 0
    with contextlib.ExitStack() as quiet:
        if rank_info.rank:
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
            quiet.enter_context(contextlib.redirect_stderr(kept))
        try:
            cli.run(main)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            error.add_note(f"(in process {rank_info.rank} of {rank_info.world_size})")
            status, text = 1, traceback.format_exc()
            follows = follows or isinstance(error, RuntimeError)
    if status == 0:
        sys.exit()
    if status != INTERRUPTED:
        time.sleep(PATIENCE if follows else 0)
        print(kept.getvalue() + text, end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of the process group would wait for the other ranks


def device_of(rank_info: RankInfo, name: str) -> "torch.device":
    """Return the device of this process: with several ranks and no number in --device, the GPU of its local rank.

    More processes than GPUs share the GPUs in turn.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    from comparison.device import pick_device

    if rank_info.world_size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{rank_info.local_rank % torch.cuda.device_count()}"
    return pick_device(name)


@contextlib.contextmanager
def group(rank_info: RankInfo, device: "torch.device") -> Iterator[None]:
    """Connect the ranks of a job inside the `with` block, which all leave together; do nothing for a single process.

    NCCL moves GPU tensors if each rank has a GPU of its own, as it requires, else gloo does. CPU tensors always use
    gloo, so `agree` never waits for a GPU.

    Raises:
        UserError: the processes cannot connect.
    """
    if rank_info.world_size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    # Import it before the group exists: its functions keep the group of that time as a default argument, and the
    # group's threads would outlive it and abort the process if they free a tensor while the interpreter exits.
    import torch.distributed.nn.functional

    one_machine = rank_info.address == LOOPBACK or rank_info.local_world_size == rank_info.world_size
    if one_machine and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name may not resolve
    try:
        store = _make_store(rank_info)
        gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
        store.set(f"gpu/{rank_info.rank}", gpu)
        gpus = {store.get(f"gpu/{rank}") for rank in range(rank_info.world_size)}
        separate = len(gpus - {b""}) == rank_info.world_size and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if separate else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank_info.rank, world_size=rank_info.world_size, timeout=MESSAGE_TIMEOUT
        )
    except (RuntimeError, OSError) as error:
        reason = f"at {rank_info.address}:{rank_info.port} ({str(error).splitlines()[0]})"
        minutes = f"within {CONNECT_TIMEOUT.total_seconds() / 60:g} minutes"
        raise UserError(
            f"process {rank_info.rank} of {rank_info.world_size} did not find the others {minutes} {reason}"
        ) from None
    yield
    gather(None)
    dist.destroy_process_group()


def _make_store(rank_info: RankInfo) -> "torch.distributed.Store":
    import torch.distributed as dist

    if rank_info.launcher == "torchrun":
        return next(dist.rendezvous("env://", timeout=CONNECT_TIMEOUT))[0]
    address, port = (rank_info.address, rank_info.port) if rank_info.port else _address_by_mpi(rank_info)
    return dist.TCPStore(
        address, port, rank_info.world_size, rank_info.is_first, timeout=CONNECT_TIMEOUT, wait_for_workers=False
    )


def _address_by_mpi(rank_info: RankInfo) -> tuple[str, int]:
    """Return rank 0's address and port, broadcast by MPI."""
    try:
        mpi = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise UserError(f"processes of mpiexec need mpi4py, or MASTER_ADDR and MASTER_PORT ({error})") from None
    if mpi.COMM_WORLD.size != rank_info.world_size:
        raise UserError(f"mpiexec started {rank_info.world_size} processes; mpi4py, of another MPI, finds others")
    one_machine = len(set(mpi.COMM_WORLD.allgather(mpi.Get_processor_name()))) == 1
    return mpi.COMM_WORLD.bcast((LOOPBACK if one_machine else socket.getfqdn(), _free_port()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def world_size() -> int:
    """Return the number of connected processes; 1 outside `group`."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sync_stop(stop: bool, seconds: float) -> tuple[bool, float]:
    """Return True if any rank was asked to stop, and rank 0's clock, so that all ranks end at the same update."""
    if world_size() == 1:
        return stop, seconds
    import torch

    values = torch.tensor([stop, seconds if torch.distributed.get_rank() == 0 else 0.0], dtype=torch.float64)
    torch.distributed.all_reduce(values)
    return bool(values[0]), float(values[1])


def mean(values: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """Return the mean of each scalar over the ranks, which all have the same names."""
    by_rank = gather([float(value) for value in values.values()])
    return {name: sum(numbers) / len(by_rank) for name, *numbers in zip(values, *by_rank, strict=True)}


def gather(value: T) -> list[T]:
    """Return the picklable values of all ranks, in their order, without waiting for GPUs."""
    values = [value] * world_size()
    if len(values) > 1:
        import torch

        torch.distributed.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def first_on_machine(rank_info: RankInfo) -> Iterator[None]:
    """Run the `with` block in the first process of each machine before the others, which find its downloads."""
    if rank_info.local_rank:
        gather(None)
    yield
    if not rank_info.local_rank:
        gather(None)


def same(value: object, words: str) -> None:
    """Raise UserError if the ranks have different values, such as machines with different files.

    Args:
        value: picklable value.
        words: name of the value.
    """
    values = gather(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise UserError(f"{words}: {values[0]} for the first process, {other} for process {rank}")
