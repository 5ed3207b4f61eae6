"""Several processes: how they find their places and each other, what they agree on, and how a job ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
import torch
from comparison.cli import UserError
from comparison.distributed import launch
from comparison.ranks import RankInfo, get_rank_info

PROGRAM = [sys.executable, str(Path(__file__).with_name("distributed_programs.py"))]
TORCHRUN = {
    **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "there", "MASTER_PORT": "77"},
}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}


def slurm(rank, size, local_rank, local_size, address="127.0.0.1", port=15218):
    return RankInfo(rank, size, local_rank, local_size, "slurm", address, port)


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, RankInfo()),
        (TORCHRUN, RankInfo(3, 4, 1, 2, "torchrun", "there", 77)),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, RankInfo()),
        (OPEN_MPI, RankInfo(2, 4, 0, 2, "mpi", "")),
        ({**OPEN_MPI, "MASTER_ADDR": "there", "MASTER_PORT": "9"}, RankInfo(2, 4, 0, 2, "mpi", "there", 9)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, RankInfo(1, 2, 1, 2, "mpi", "")),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"},
            RankInfo(1, 2, 0, 1, "mpi", ""),
        ),
        ({**SRUN, "SLURM_NTASKS_PER_NODE": "4"}, slurm(5, 8, 1, 4)),
        ({**SRUN, "SLURM_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2"}, slurm(5, 8, 1, 2)),
        ({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"}, slurm(5, 8, 1, 8)),
        ({**SRUN, "SLURM_JOB_NODELIST": "gpu[03-07,12],big1"}, slurm(5, 8, 1, 8, "gpu03")),
        ({**SRUN, "SLURM_JOB_NODELIST": "r[1-2]n[5,7]", "SLURM_STEP_ID": "2"}, slurm(5, 8, 1, 8, "r1n5", 15219)),
        ({**SRUN, "MASTER_ADDR": "there", "MASTER_PORT": "99"}, slurm(5, 8, 1, 8, "there", 99)),
        ({**SRUN, **HYDRA, "SLURM_PROCID": "0"}, RankInfo(1, 2, 1, 2, "mpi", "")),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}, slurm(1, 2, 1, 2, port=15000)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, RankInfo()),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "ENVIRONMENT": "BATCH"}, RankInfo()),
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"}, RankInfo()),
    ],
)
def test_place_is_what_the_launcher_says(env, place):
    assert get_rank_info(env) == place
    assert get_rank_info(env, processes=place.world_size).world_size == place.world_size


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"processes": 3}, RankInfo(0, 3, 0, 3)),
        (
            {"processes": 2, "nodes": 3, "node_rank": 2, "address": "there", "port": 6},
            RankInfo(4, 6, 0, 2, "", "there", 6),
        ),
        ({"processes": 2, "address": "there", "port": 9}, RankInfo(0, 2, 0, 2)),  # one machine finds a port by itself
    ],
)
def test_without_a_launcher_the_place_is_what_is_asked_for(asked, place):
    assert get_rank_info({}, **asked) == place


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (TORCHRUN, "2 processes are asked for, but torchrun has started 4 already"),
        ({**TORCHRUN, "RANK": "4"}, "RANK 4 must be below WORLD_SIZE 4"),
        ({**TORCHRUN, "LOCAL_RANK": "x"}, "LOCAL_RANK must be a whole number, not 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not MASTER_ADDR and MASTER_PORT"),
        ({"PMIX_RANK": "0"}, "PMIX_RANK is set, but not the number"),
    ],
)
def test_contradictions_are_refused(env, words):
    with pytest.raises(UserError, match=words):
        get_rank_info(env, processes=2)


def environment() -> dict[str, str]:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**os.environ, **root, "PATH": beside, "OMP_NUM_THREADS": "1"}


def command(launcher: str, name: str, folder: Path) -> list[str]:
    """The command that lets two processes run a program."""
    if launcher == "spawn":
        return [*PROGRAM, name, str(folder), "2"]
    if launcher == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        return [sys.executable, *torchrun, *PROGRAM[1:], name, str(folder)]
    if not shutil.which("mpiexec", path=environment()["PATH"]):
        pytest.skip("no mpiexec")
    return ["mpiexec", "-n", "2", *PROGRAM, name, str(folder)]


def start(words: list[str], **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment(), **pipes, **options)


def finish(launcher: str, name: str, folder: Path) -> tuple[int, str, str]:
    """Return status, stdout and stderr."""
    process = start(command(launcher, name, folder))
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def assert_agreed(folder):
    for rank in range(2):
        found = torch.load(folder / f"{rank}.pt", weights_only=True)
        assert str(found["mean"].pop("c")) == "nan"  # what diverges in one process is seen by all
        assert found.pop("device") == ("cuda" if torch.cuda.is_available() else "cpu")
        assert found == {
            "seen": rank > 0,
            "stop": (True, 10.0),
            "go on": (False, 10.0),
            "mean": {"a": 0.5, "b": 3.0},
            "gathered": [0, 1],
            "refused": "values: 0 for the first process, 1 for process 1",
            "forked": [0, 1],
        }


@pytest.mark.parametrize("launcher", ["spawn", pytest.param("torchrun", marks=pytest.mark.slow), "mpiexec"])
def test_two_processes_agree_and_the_first_one_speaks(launcher, tmp_path):
    status, out, err = finish(launcher, "together", tmp_path)
    assert status == 0, out + err
    assert out.count("printed once") == 1
    assert_agreed(tmp_path)


@pytest.mark.slow
def test_two_machines_work_together(tmp_path):
    port = str(free_port())
    machines = [start([*PROGRAM, "together", str(tmp_path), "1", "2", port, str(rank)]) for rank in range(2)]
    endings = [machine.communicate(timeout=120) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], endings
    (tmp_path / "downloaded").unlink()
    for rank in range(2):  # each is the first of its machine
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["gathered"] == [0, 1]


@pytest.mark.parametrize(
    ("launcher", "name", "sentence"),
    [
        ("spawn", "last", "error: --flag: wrong"),
        pytest.param("spawn", "both", "error: --flag: wrong", marks=pytest.mark.slow),
        ("torchrun", "last", "error: --flag: wrong"),
        ("mpiexec", "both", "error: --flag: wrong"),
        ("spawn", "bug", "ZeroDivisionError: a bug\n(in process 1 of 2)"),
    ],
)
def test_failure_ends_all_and_is_told_once(launcher, name, sentence, tmp_path):
    status, out, err = finish(launcher, name, tmp_path)
    assert status == (2 if "flag" in sentence and launcher != "torchrun" else 1), out + err
    assert (out + err).count(sentence) == 1
    if launcher != "torchrun":  # which has a report of its own
        assert (out + err).count("rror: ") == 1
        assert (out + err).count("Traceback") == (name == "bug")


@pytest.mark.parametrize("launcher", ["spawn", pytest.param("mpiexec", marks=pytest.mark.slow)])
def test_killed_process_ends_the_job_within_seconds_and_is_named(launcher, tmp_path):
    process = start(command(launcher, "train", tmp_path))
    pids = wait_for_training(process, tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    err = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert time.monotonic() - begin < 10
    assert not any(map(is_alive, pids))
    if launcher == "spawn":  # and not the lost connections of the others
        named = "distributed_programs.py: error: process 1 was killed (SIGKILL), perhaps for lack of memory\n"
        assert err.endswith(named), err
        assert err.count("rror: ") == 1


def wait_for_training(process, folder) -> list[int]:
    """Return the processes' numbers once all train."""
    paths = [folder / f"pid{rank}" for rank in range(2)]
    while not all(path.is_file() and path.read_text() for path in paths):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return [int(path.read_text()) for path in paths]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_stop_reaches_all_at_the_same_step(tmp_path):
    process = start(command("spawn", "train", tmp_path))
    wait_for_training(process, tmp_path)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert (out.count("interrupted after step"), err) == (1, "")
    assert len({(tmp_path / f"steps{rank}").read_text() for rank in range(2)}) == 1
    assert "finished" not in json.loads((tmp_path / "run" / "config.json").read_text())


def test_processes_do_not_outlive_the_one_that_started_them(tmp_path):
    process = start(command("spawn", "train", tmp_path))
    pids = wait_for_training(process, tmp_path)
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while any(map(is_alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_processes_do_not_outlive_a_failure_to_start_one_more(monkeypatch):
    real, started = SpawnProcess.start, []

    def start_first_only(process):
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(process)
        real(process)

    monkeypatch.setattr(SpawnProcess, "start", start_first_only)
    with pytest.raises(BlockingIOError):
        launch(max, RankInfo(world_size=2, local_world_size=2))
    started[0].join()
    assert started[0].exitcode == -signal.SIGKILL
