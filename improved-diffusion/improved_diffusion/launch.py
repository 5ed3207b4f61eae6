"""Which of how many processes this one is, as mpiexec, torchrun or srun say it in environment variables; no torch."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Of a batch script and of an interactive shell: both have SLURM_PROCID 0 though srun did not start them.
_SHELL_STEPS = ("4294967290", "4294967291")


class LaunchError(ValueError):
    """The launcher's variables are not enough to connect the processes; told in one sentence."""


@dataclass(frozen=True)
class Place:
    """A process among those that work together.

    Attributes:
        rank: in [0, world_size).
        world_size: processes on all machines.
        local_rank: in [0, local_world_size), among those on this machine.
        local_world_size: processes on this machine; all of them where the launcher does not tell.
        launcher: torchrun (also any launcher that sets its variables), mpi, slurm; '' for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launcher: str = ""


def find_place(env: Mapping[str, str] = os.environ) -> Place:
    """Return this process's place; a process that no launcher started is the only one.

    Raises:
        LaunchError: the variables contradict each other.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        return _read(env, _TORCHRUN, "torchrun")
    slurm = _slurm_place(env)
    for names in _MPI:
        if names[0] in env and names[1] in env:
            found = _read(env, names, "mpi")
            # srun sets PMI's variables too; those of an mpiexec inside a job differ from srun's.
            same = slurm is not None and (slurm.rank, slurm.world_size) == (found.rank, found.world_size)
            return slurm if slurm and same else found
    if slurm:
        return slurm
    if "PMIX_RANK" in env:
        raise LaunchError("PMIX_RANK is set but not the number of processes: set RANK and WORLD_SIZE, or use torchrun")
    return Place()


def slurm_master(env: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Return the host and the port where the processes of a SLURM step meet: the first host, a port by job and step.

    MASTER_ADDR and MASTER_PORT decide where they are set.
    """
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or ""
    one_machine = "1" in (env.get("SLURM_STEP_NUM_NODES"), env.get("SLURM_NNODES"), env.get("SLURM_JOB_NUM_NODES"))
    host = "127.0.0.1" if one_machine or not nodes else first_host(nodes)
    job, step = _number(env, "SLURM_JOB_ID", 0), _number(env, "SLURM_STEP_ID", 0)
    port = 15000 + (31 * job + step) % 15000  # below the ports that systems give to clients
    return env.get("MASTER_ADDR") or host, _number(env, "MASTER_PORT", port)


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: `gpu03` of `gpu[03-07,12],big1`."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def machine_name() -> str:
    """Return what tells this machine from the others of a job: its name, and that of its boot where it has one."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.is_file() else ''}"


def _slurm_place(env: Mapping[str, str]) -> Place | None:
    step = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID"))
    in_shell = step in _SHELL_STEPS or (step is None and env.get("ENVIRONMENT") == "BATCH")
    if "SLURM_PROCID" not in env or in_shell:
        return None
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    if _number(env, size, 1) == 1:
        return None
    by_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")
    counts = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", by_node) for _ in range(int(times or 1))]
    node = _number(env, "SLURM_NODEID", 0)
    local = counts[node] if node < len(counts) else _number(env, "SLURM_NTASKS_PER_NODE", _number(env, size, 1))
    names = ("SLURM_PROCID", size, "SLURM_LOCALID", "")
    return _read({**env, "": str(local)}, names, "slurm")


def _read(env: Mapping[str, str], names: tuple[str, str, str, str], launcher: str) -> Place:
    rank, size = _number(env, names[0], 0), _number(env, names[1], 1)
    if not 0 <= rank < size:
        raise LaunchError(f"{names[0]} {rank} must be at least 0 and below {names[1]} {size}")
    if size == 1:
        return Place()
    local_size = _number(env, names[3], size)
    if local_size < 1:
        raise LaunchError(f"{names[3]} must be at least 1, not {local_size}")
    local_rank = _number(env, names[2], rank % local_size)
    if names[3] and local_rank >= local_size:
        raise LaunchError(f"{names[2]} {local_rank} must be below {names[3]} {local_size}")
    if not 1 <= (port := _number(env, "MASTER_PORT", 1)) <= 65535:
        raise LaunchError(f"MASTER_PORT must be from 1 to 65535, not {port}")
    return Place(rank, size, local_rank, local_size, launcher)


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.strip().isdecimal() or len(text) > 18:
        raise LaunchError(f"{name} must be a whole number, not {text!r}")
    return int(text)


def choose_device(name: str | None, place: Place) -> "torch.device":
    """Return the device of this process: a GPU by its local rank, unless a device is named."""
    import torch

    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return torch.device("cuda", place.local_rank % max(1, torch.cuda.device_count()))
    return torch.device(str(name))
