"""Several processes: how they find their places, that they do what one does, and how a job ends."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.context import SpawnProcess

import pytest
import torch
import train_ddgan
import worker_programs
from comparison import rng
from comparison.checkpoints import load_torch
from comparison.cli import UserError
from comparison.runs import read_progress
from ddgan.distributed import Place, find_place
from ddgan.draws import Batch
from ddgan.launching import launch
from ddgan.objective import Objective, Phase
from helpers_ddgan import FOLDER, TINY_NETWORK, TINY_TRAINING, make_images
from joint_batches import N, draws, gradients, images, joint_batch, let_draw, make_trainer

SCRIPT = FOLDER / "train_ddgan.py"
TWO = Place(world_size=2, local_world_size=2)
TORCHRUN = {
    **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "there", "MASTER_PORT": "77"},
}


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def process_flags(**changes) -> argparse.Namespace:
    words = [f"--{name}={value}" for name, value in changes.items()]
    return train_ddgan.parse_args(["--dataset", "shapes", *words])


@pytest.mark.parametrize(
    ("flags", "env", "place"),
    [
        ({}, {}, Place()),
        ({"num_process_per_node": 3}, {}, Place(0, 3, 0, 3)),
        ({"local_rank": 1}, {}, Place()),
        (
            {"num_process_per_node": 2, "num_proc_node": 3, "node_rank": 2, "master_address": "there"},
            {},
            Place(4, 6, 0, 2, False, "there", 6020),
        ),
        ({"num_proc_node": 2, "master_port": 9}, {}, Place(0, 2, 0, 1, False, "127.0.0.1", 9)),
        ({}, TORCHRUN, Place(3, 4, 1, 2, True, "there", 77)),
        ({}, {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, Place()),
    ],
)
def test_place_is_what_flags_or_torchrun_say(flags, env, place):
    assert find_place(process_flags(**flags), env) == place


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        ({"num_process_per_node": 2}, TORCHRUN, "--num_process_per_node 2: torchrun has started the processes already"),
        ({"num_proc_node": 2}, TORCHRUN, "--num_proc_node 2: torchrun"),
        ({"num_proc_node": 2, "node_rank": 2}, {}, "--node_rank 2: must be below --num_proc_node 2"),
        ({}, {**TORCHRUN, "RANK": "4"}, "RANK 4"),
        ({}, {**TORCHRUN, "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        ({}, {"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set"),
    ],
)
def test_contradictions_are_refused(flags, env, words):
    with pytest.raises(UserError, match=words):
        find_place(process_flags(**flags), env)


def test_processes_draw_their_rows_of_the_joint_noise():
    alone = draws([5], 2 * N, "d")
    for rank in range(2):
        trainer = make_trainer(Place(rank, 2, rank, 2))
        noise, _, _ = trainer._draw(Batch(joint_batch(5).chunk(2)[rank], None, 5), "d")
        for name in vars(noise):
            assert torch.equal(getattr(noise, name), getattr(alone, name)[rank * N : (rank + 1) * N])


def test_dropout_differs_from_process_to_process_and_not_from_start_to_start(monkeypatch):
    drawn = []
    for place in (Place(), Place(0, 2), Place(1, 2), Place(1, 2)):
        trainer = make_trainer(place)
        monkeypatch.setattr(trainer, "_update_discriminator", lambda *_: drawn.append(torch.rand(8)) or {})
        monkeypatch.setattr(trainer, "_update_generator", lambda *_: {})
        rng.seed_default("anything")
        trainer.update(images(0), 0)
    assert torch.equal(drawn[2], drawn[3])
    assert not any(torch.equal(drawn[a], drawn[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_two_processes_make_the_updates_of_one_with_the_joint_batch(tmp_path):
    assert launch(worker_programs.update, TWO, tmp_path) == 0
    reports = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    assert reports[0]["messages"][0] > 0
    assert len(set(reports[0]["messages"])) == 1  # as many for two micro-batches as for one: none before the last

    alone = make_trainer()
    for step, window in enumerate(([0, 1], [2, 3], [4])):
        alone.update([let_draw(alone, window, 2 * N)], step)
    for name in ("generator", "discriminator"):
        first, second = (report["state"][name] for report in reports)
        assert all(torch.equal(first[key], second[key]) for key in first)
        found, wanted = (
            torch.cat([value.flatten() for value in x.values()]) for x in (first, alone.state_dict()[name])
        )
        assert (found - wanted).norm() < 1e-5 * wanted.norm()
    averages = [report["state"]["ema"]["weights"] for report in reports]
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])


@pytest.mark.parametrize("phase", [None, Phase(True), Phase(False, 2.0)])
def test_joint_gradients_are_the_mean_of_the_parts(phase):
    """What the comparison above stands on, without any process; of the denoiser and the reconstruction as well."""
    options = {"lr_d": 0.0}
    if phase:
        options["objective"] = Objective(discriminator_input="x_0", denoiser_fraction=0.5, reconstruction="constant")
    phase = phase or Phase()
    alone = make_trainer(**options)
    alone.update([let_draw(alone, [0], 2 * N)], 0, phase)
    parts = []
    for rank in range(2):
        trainer = make_trainer(Place(rank, 2), **options)
        trainer.update([Batch(joint_batch(0).chunk(2)[rank], None, 0)], 0, phase)
        parts.append(trainer)
    for name in ("generator",) if phase.denoiser else ("generator", "discriminator"):
        mean = sum(gradients(getattr(trainer, name)) for trainer in parts) / 2
        wanted = gradients(getattr(alone, name))
        assert (mean - wanted).norm() < 1e-5 * wanted.norm()


def test_error_of_one_process_ends_all_and_is_told_once(capfd):
    with pytest.raises(UserError, match=r"^--flag: wrong$"):
        launch(worker_programs.fail, TWO, "user")
    with pytest.raises(UserError, match=r"^images: No such file or directory$"):
        launch(worker_programs.fail, TWO, "file")
    with pytest.raises(UserError, match=r"^x{15000}$"):  # longer than what fits into the pipe
        launch(worker_programs.fail, TWO, "long")
    assert launch(worker_programs.fail, TWO, "bug") == 1
    told = capfd.readouterr().err
    assert told.count("ZeroDivisionError: a bug") == 1
    assert "error: in process 1\n" in told
    assert launch(worker_programs.fail, TWO, "kill") == 1
    told = capfd.readouterr().err
    assert told.endswith("error: process 1 was killed (SIGKILL), perhaps for lack of memory\n")
    assert told.count("\n") == 1


def test_killed_process_is_named_and_not_the_lost_connections_of_the_others(capfd):
    assert launch(worker_programs.die_in_the_group, TWO) == 1
    assert "error: process 1 was killed (SIGKILL)" in capfd.readouterr().err


def test_processes_do_not_outlive_a_failure_to_start_one_more(monkeypatch):
    real, started = SpawnProcess.start, []

    def start_first_only(process):
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(process)
        real(process)

    monkeypatch.setattr(SpawnProcess, "start", start_first_only)
    with pytest.raises(BlockingIOError):
        launch(worker_programs.fail, TWO, "user")
    assert started[0].exitcode == -signal.SIGKILL


def test_one_stop_reaches_all_processes(tmp_path):
    def stop():
        while not all((tmp_path / f"ready{rank}").is_file() for rank in range(2)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    assert launch(worker_programs.stop_together, TWO, tmp_path) == 130


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "pictures", count=24)


def flags(pictures, folder, *more) -> list[str]:
    """Three micro-batches of 2 x 4 images make an epoch, windows of two make two updates of it."""
    words = ["--dataset", str(pictures), "--exp", f"{folder}/", *TINY_NETWORK, *TINY_TRAINING]
    return [*words, "--batch_size", "4", "--accum_iter", "2", "--log_interval", "1", "--num_epoch", "3", *more]


def start(command, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, **options)


@pytest.fixture(scope="module")
def unbroken(pictures, tmp_path_factory):
    """Six updates by two processes."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    assert train_ddgan.main(train_ddgan.parse_args(flags(pictures, folder, "--num_process_per_node", "2"))) == 0
    return folder


def assert_same_networks(first, second) -> None:
    for name in ("generator", "discriminator"):
        a, b = (load_torch(folder / "content.pth")[name] for folder in (first, second))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_first_process_writes_the_files_of_one(unbroken):
    rows = read_progress(unbroken / "progress.csv")
    assert [(row["step"], row["images_seen"]) for row in rows] == [
        *((1, 16), (2, 24), (3, 40), (4, 48), (5, 64), (6, 72)),
    ]
    assert "each of 4 images x 2 processes x 2 micro-batches" in (unbroken / "log.txt").read_text()
    payload = load_torch(unbroken / "netG_3.pth")
    assert payload["config"]["processes"] == 2
    assert payload["images_seen"] == 72
    assert not any(name.startswith("module.") for name in payload["generator"])


def test_other_number_of_processes_is_another_run(pictures, unbroken):
    with pytest.raises(UserError, match="processes 2 there, 1 here"):
        train_ddgan.main(train_ddgan.parse_args(flags(pictures, unbroken)))


def test_ctrl_c_stops_all_at_one_update_and_the_same_command_continues(pictures, tmp_path, unbroken):
    folder = tmp_path / "run"
    command = [SCRIPT, *flags(pictures, folder, "--num_process_per_node", "2")]
    process = start(command, start_new_session=True)
    while not (folder / "progress.csv").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert load_torch(folder / "content.pth")["step"] < 6
    assert "interrupted after step" in output
    assert train_ddgan.main(train_ddgan.parse_args(flags(pictures, folder, "--num_process_per_node", "2"))) == 0
    assert_same_networks(folder, unbroken)


def on_two_machines(pictures, folder, port, changes) -> list[tuple[int, str]]:
    """Run a job of one process on each of two machines, the second with `changes`; return statuses and errors."""
    common = [SCRIPT, *flags(pictures, folder, "--num_proc_node", "2", "--master_port", port)]
    commands = [[*common, "--node_rank", str(node), *(changes if node else ())] for node in range(2)]
    processes = [start(command, stderr=subprocess.PIPE) for command in commands]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_two_machines_make_the_run_of_one_with_two_processes(pictures, tmp_path, unbroken):
    endings = on_two_machines(pictures, tmp_path / "run", free_port(), [])
    assert endings == [(0, ""), (0, "")]
    assert_same_networks(tmp_path / "run", unbroken)


def test_machines_with_other_flags_are_refused(pictures, tmp_path):
    endings = on_two_machines(pictures, tmp_path / "run", free_port(), ["--lr_g", "1"])
    told = "train_ddgan.py: error: --lr_g: 0.00015 for the first process, 1.0 for process 1\n"
    assert endings == [(2, told), (2, told)]
    assert not (tmp_path / "run").exists()


def test_torchrun_leads_to_the_same_result(pictures, tmp_path, unbroken):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "127.0.0.1:0"]
    process = start([*torchrun, SCRIPT, *flags(pictures, tmp_path / "run")])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.count("finished (num_epoch 3)") == 1
    assert_same_networks(tmp_path / "run", unbroken)
