"""Several processes: how they find each other, and that they do what one does."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import parallel_programs
import pytest
import torch
from comparison import ranks
from diffusion_testing import call_script, script_command, script_env, write_images
from improved_diffusion import launch
from improved_diffusion.launch import launched_ranks

PROGRAM = [sys.executable, parallel_programs.__file__]
TRAIN, SAMPLE = "scripts/image_train.py", "scripts/image_sample.py"
TINY = (
    "--image_size 16 --num_channels 16 --norm_groups 8 --num_res_blocks 1 --learn_sigma True --use_kl True "
    "--diffusion_steps 3 --noise_schedule cosine --schedule_sampler loss-second-moment --class_cond True "
    "--class_dropout 0.3 --batch_size 12 --microbatch 4 --log_interval 4 --save_interval 100 --grid_images 4 "
    "--grid_steps 2 --device cpu --precision float32 --threads 1"
)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def mpiexec() -> list[str]:
    """The command that starts two processes by MPI."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.is_file() else shutil.which("mpiexec")
    if not found:
        pytest.skip("no mpiexec")
    return [found, "-n", "2"]


def torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]


def finish(command, **env):
    """Run a command to its end; two processes where it begins with a launcher."""
    if not importlib.util.find_spec("mpi4py"):
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **env}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=script_env(**root, **env))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 24)


def assert_close_weights(one, two):
    """Equal to float32 tolerance: Adam turns rounding into steps of full length where the gradient is 0."""
    assert one.keys() == two.keys()
    difference = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert difference.mean() < 1e-6
    assert (difference > 1e-5).float().mean() < 1e-3


def test_package_reads_the_variables_of_the_launchers_that_the_scripts_read():
    assert (launch.TORCHRUN, launch.MPI) == (ranks.TORCHRUN, ranks.MPI)
    assert launched_ranks({}) == (0, 1, 0, 1)
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launched_ranks(torchrun) == (3, 4, 1, 2)
    assert launched_ranks({"PMI_RANK": "1", "PMI_SIZE": "2"}) == (1, 2, 1, 2)
    srun = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    with pytest.raises(ValueError, match="under srun set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"):
        launched_ranks(srun)
    assert launched_ranks({**srun, "SLURM_STEP_ID": "4294967290"}) == (0, 1, 0, 1)  # a batch script


def test_contradictory_variables_are_refused_by_the_script():
    done = finish(script_command(TRAIN, "--data_dir shapes"), RANK="2", WORLD_SIZE="2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "RANK 2 must be" in done.stderr


@pytest.mark.parametrize("names", [["recomputed"], pytest.param(["recomputed", "compiled"], marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does(names, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        parallel_programs.drawn(tmp_path / "samples.npz", stop_at=6)
    done = finish([*mpiexec(), *PROGRAM, "together", str(tmp_path), *names])
    assert done.returncode == 0, done.stdout + done.stderr
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    one = parallel_programs.trained(use_checkpoint=True)
    for name in names:
        two = results[name]
        for key in ("first gradient", "gradient"):
            assert (two[key] - one[key]).norm() < 1e-4 * one[key].norm(), (name, key)
        torch.testing.assert_close(two["means"], one["means"], rtol=1e-4, atol=1e-6)
        for key in ("weights", "average"):
            assert_close_weights({key: one[key]}, {key: two[key]})
    np.testing.assert_allclose(results["weights"], parallel_programs.resampled([13]), rtol=1e-12)
    parallel_programs.drawn(tmp_path / "alone" / "samples.npz")
    drawn = [np.load(tmp_path / name / "samples.npz")["arr_0"] for name in (".", "alone")]
    assert np.array_equal(*drawn)
    facts = json.loads((tmp_path / "sampling.json").read_text())
    assert (facts["processes"], facts["images"], facts["nfe"]) == (2, 21, 1)
    assert not list(tmp_path.glob("*.part*"))


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Run folders of 12 updates without a break, and of 6, by a process that has no mpi4py."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mpi4py", None)
        for name, steps in (("unbroken", 12), ("begun", 6)):
            flags = [TINY, "--data_dir", images, "--run_dir", folder / name]
            assert call_script(TRAIN, *flags, "--max_steps", steps) == 0
    return folder


def states(folder, step=12):
    names = (f"model{step:06d}.pt", f"ema_0.9999_{step:06d}.pt", f"opt{step:06d}.pt")
    return [torch.load(folder / name, weights_only=True) for name in names]


def test_run_by_losses_resumes_bit_for_bit(runs, images, tmp_path):
    shutil.copytree(runs / "begun", tmp_path / "run")
    assert call_script(TRAIN, TINY, "--data_dir", images, "--run_dir", tmp_path / "run", "--max_steps", 12) == 0
    unbroken, resumed = states(runs / "unbroken"), states(tmp_path / "run")
    for one, two in zip(unbroken[:2], resumed[:2], strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (state[2]["sampler"] for state in (unbroken, resumed))
    assert one["written"].min() >= 10  # so that the losses decide which timesteps are drawn
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_training_goes_on_with_another_number_of_processes(runs, images, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(runs / "begun", run_dir)
    flags = [TINY, "--data_dir", images, "--run_dir", run_dir]
    done = finish([*mpiexec(), *script_command(TRAIN, *flags, "--max_steps", 10)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.count("continue after step 6,") == done.stdout.count("finished (max_steps 10)") == 1
    assert json.loads((run_dir / "config.json").read_text())["processes"] == 2
    assert call_script(TRAIN, *flags, "--max_steps", 12) == 0
    unbroken, resumed = states(runs / "unbroken"), states(run_dir)
    for one, two in zip(unbroken[:2], resumed[:2], strict=True):
        assert_close_weights(one, two)
    assert torch.equal(*(state[2]["sampler"]["written"] for state in (unbroken, resumed)))
    assert resumed[2]["images_seen"] == 144


def test_rank_that_fails_ends_the_job_with_its_error(tmp_path):
    done = finish([*mpiexec(), *PROGRAM, "fail", str(tmp_path)])
    assert done.returncode != 0
    assert done.stderr.count("ValueError: the second process fails") == done.stderr.count("Traceback") == 1


def test_killed_rank_ends_the_job_without_a_launcher(tmp_path):
    env = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        subprocess.Popen(
            [*PROGRAM, "die", str(tmp_path)],
            env=script_env(**env, RANK=str(rank), LOCAL_RANK=str(rank)),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    _, stderr = started[0].communicate(timeout=300)
    assert started[0].returncode == 1
    assert started[1].wait(120) != 0
    assert stderr.count("Traceback") == 1
    assert "RuntimeError" in stderr  # of gloo, which names the lost connection
