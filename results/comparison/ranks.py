"""Rank and number of processes, from the command line or the variables of torchrun, mpiexec or srun."""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from comparison.cli import UserError

LOOPBACK = "127.0.0.1"
# Variables of rank, number of processes, local rank and local number of processes.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
# Most processes that a script starts by itself on a machine, unless --oversubscribe is given
PER_CORE, PER_GPU = 4, 8
PROCESS_BYTES = 300 * 2**20  # of memory, which an idle process with torch takes
SHELLS = ("4294967290", "4294967291")  # SLURM_STEP_ID of batch scripts and shells, not started by srun


@dataclass(frozen=True)
class RankInfo:
    """The place of a process in a job.

    Attributes:
        rank: rank in [0, world_size).
        world_size: number of processes on all machines.
        local_rank: rank in [0, local_world_size) on this machine.
        local_world_size: number of processes on this machine, world_size if unknown.
        launcher: torchrun (or a launcher with its variables), mpi or slurm; '' for none.
        address, port: address of rank 0 for the connection; port 0 if it is chosen later.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = ""
    address: str = LOOPBACK
    port: int = 0

    @property
    def is_first(self) -> bool:
        """Return True on rank 0, which writes the files."""
        return self.rank == 0

    def rows(self, n: int) -> slice | None:
        """Return the slice of this rank's `n` rows in the global batch, None for all rows."""
        return None if self.world_size == 1 else slice(self.rank * n, (self.rank + 1) * n)


def get_rank_info(
    env: Mapping[str, str] = os.environ,
    *,
    processes: int = 1,
    nodes: int = 1,
    node_rank: int = 0,
    address: str = LOOPBACK,
    port: int = 0,
    oversubscribe: bool = False,
) -> RankInfo:
    """Return the launcher's place of this process, else the first place on this machine of the requested job.

    Args:
        env: environment variables.
        processes: processes on each machine.
        nodes: number of machines.
        node_rank: number of this machine.
        address, port: address of machine 0, for several machines.
        oversubscribe: whether more processes than `most_processes` may be started.

    Raises:
        UserError: the launcher's variables contradict each other or the arguments, or too many processes are asked for.
    """
    rank_info, requested = _launched(env), nodes * processes
    if rank_info.world_size == 1:
        if processes > 1 and not oversubscribe and processes > (most := most_processes()):
            rule = f"{PER_CORE} for each core or {PER_GPU} for each GPU, and what free memory allows"
            raise UserError(f"{processes} processes: this machine allows {most} ({rule}); --oversubscribe starts more")
        address, port = (address, port) if nodes > 1 else (LOOPBACK, 0)
        return RankInfo(node_rank * processes, requested, 0, processes, "", address, port)
    if requested not in (1, rank_info.world_size):
        raise UserError(
            f"{requested} processes are asked for, but {rank_info.launcher} has started {rank_info.world_size} "
            f"already; leave their number out, or start without {rank_info.launcher}"
        )
    return rank_info


def most_processes() -> int:
    """Return the number of processes that this machine's cores, GPUs and free memory allow, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    most = max(PER_CORE * cores, PER_GPU * gpus)
    with contextlib.suppress(OSError, IndexError, ValueError):  # only Linux has this file
        free = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]
        most = min(most, int(free) * 1024 // PROCESS_BYTES)
    return max(1, most)


def _launched(env: Mapping[str, str]) -> RankInfo:
    if "RANK" in env and "WORLD_SIZE" in env:
        rank_info = _read(env, TORCHRUN, "torchrun")
        if rank_info.world_size > 1 and not rank_info.port:
            raise UserError("RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT; start with torchrun")
        return rank_info
    slurm = _slurm_place(env)
    for names in MPI:
        if names[0] in env and names[1] in env:
            rank_info = _read(env, names, "mpi")
            # srun sets PMI's variables too; those of an mpiexec inside a Slurm job differ from srun's.
            return slurm if (slurm.rank, slurm.world_size) == (rank_info.rank, rank_info.world_size) else rank_info
    if "PMIX_RANK" in env and slurm.world_size == 1:
        raise UserError("PMIX_RANK is set, but not the number of processes; set RANK and WORLD_SIZE, or use torchrun")
    return slurm


def _slurm_place(env: Mapping[str, str]) -> RankInfo:
    step = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID"))
    if "SLURM_PROCID" not in env or step in SHELLS or (step is None and env.get("ENVIRONMENT") == "BATCH"):
        return RankInfo()
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    by_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")  # such as 3(x2),2
    counts = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", by_node) for _ in range(int(times or 1))]
    node = _number(env, "SLURM_NODEID", 0)
    local = counts[node] if node < len(counts) else _number(env, "SLURM_NTASKS_PER_NODE", _number(env, size, 1))
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or LOOPBACK
    if "1" in (env.get("SLURM_STEP_NUM_NODES"), env.get("SLURM_NNODES"), env.get("SLURM_JOB_NUM_NODES")):
        nodes = LOOPBACK
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])  # gpu03 of gpu[03-07],big1
    # Below the range of ephemeral ports.
    port = 15000 + (31 * _number(env, "SLURM_JOB_ID", 0) + _number(env, "SLURM_STEP_ID", 0)) % 15000
    return _read({**env, "": str(local)}, ("SLURM_PROCID", size, "SLURM_LOCALID", ""), "slurm", first, port)


def _read(
    env: Mapping[str, str], names: tuple[str, str, str, str], launcher: str, address: str = "", port: int = 0
) -> RankInfo:
    """Return the place in the variables; MASTER_ADDR and MASTER_PORT take precedence over `address` and `port`."""
    rank, size = _number(env, names[0], 0), _number(env, names[1], 1)
    local_size = _number(env, names[3], size)
    local_rank = _number(env, names[2], rank % max(1, local_size))
    if rank >= size or local_rank >= local_size:
        raise UserError(f"{names[0]} {rank} must be below {names[1]} {size}, and {names[2]} {local_rank} as well")
    if size == 1:
        return RankInfo()
    address = env.get("MASTER_ADDR") or address
    port = _number(env, "MASTER_PORT", port) if address else 0
    if port > 65535:
        raise UserError(f"MASTER_PORT must be from 1 to 65535, not {port}")
    return RankInfo(rank, size, local_rank, local_size, launcher, address, port)


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.strip().isdecimal() or len(text) > 18:
        raise UserError(f"{name} must be a whole number, not {text!r}")
    return int(text)
