"""Scripts written for OpenAI's package, as openai_style/ holds them, run on this one; and its training loop."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_testing import run_script, script_env, tiny_flags, words, write_images
from improved_diffusion import logger, train_util
from improved_diffusion.resample import LossSecondMomentResampler
from improved_diffusion.script_util import create_model_and_diffusion

SCRIPTS = Path(__file__).parent / "openai_style"
NETWORK = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --diffusion_steps 8 --noise_schedule cosine "
    "--learn_sigma True"
)
SR_NETWORK = NETWORK.replace("--image_size 16", "--large_size 16 --small_size 8")


def run_openai_style(script, *flags, launcher=(), **env):
    if launcher:
        command = [*launcher, sys.executable, str(SCRIPTS / f"{script}.py"), *words(*flags)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=script_env(**env))
    else:
        done = run_script(f"tests/openai_style/{script}.py", *flags, **env)
        logger.reset()
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(folder):
    with open(folder / "progress.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 12 images of 16 x 16 pixels in two classes."""
    return write_images(tmp_path_factory.mktemp("images"), 12)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The folder of a run of 4 updates by the script, class-conditional."""
    folder = tmp_path_factory.mktemp("run")
    flags = "--class_cond True --batch_size 4 --microbatch 2 --lr_anneal_steps 4 --save_interval 2 --log_interval 2"
    flags += " --schedule_sampler loss-second-moment --ema_rate 0.9,0.99"
    run_openai_style("image_train", NETWORK, flags, "--data_dir", images, OPENAI_LOGDIR=str(folder))
    return folder


def test_training_script_stops_and_writes_the_documented_files(trained):
    names = {path.name for path in trained.iterdir()}
    weights = {
        f"{kind}{step}.pt" for kind in ("model", "opt", "ema_0.9_", "ema_0.99_") for step in ("000002", "000004")
    }
    assert names == weights | {"log.txt", "progress.csv", "progress.json"}
    assert [row["step"] for row in rows_of(trained)] == ["2", "4"]
    assert [row["samples"] for row in rows_of(trained)] == ["8", "16"]
    assert {"loss", "mse", "vb", "grad_norm"} <= rows_of(trained)[0].keys()
    quartiles = {name for row in rows_of(trained) for name, value in row.items() if value and "_q" in name}
    assert quartiles & {"loss_q0", "loss_q1", "loss_q2", "loss_q3"}
    assert torch.load(trained / "model000004.pt", weights_only=True)["label_emb.weight"].shape[0] == 1000


def test_sampling_script_draws_with_labels(trained):
    flags = "--class_cond True --num_samples 3 --batch_size 2 --use_ddim True --timestep_respacing ddim2"
    run_openai_style(
        "image_sample", NETWORK, flags, "--model_path", trained / "ema_0.9_000004.pt", OPENAI_LOGDIR=str(trained / "s")
    )
    archive = np.load(trained / "s" / "samples_3x16x16x3.npz")
    assert archive["arr_0"].dtype == np.uint8
    assert archive["arr_0"].shape == (3, 16, 16, 3)
    assert archive["arr_1"].shape == (3,)


def test_likelihood_script_measures(trained, images):
    flags = "--class_cond True --num_samples 4 --batch_size 2"
    out = run_openai_style(
        "image_nll",
        NETWORK,
        flags,
        "--data_dir",
        images,
        "--model_path",
        trained / "model000004.pt",
        OPENAI_LOGDIR=str(trained / "nll"),
    )
    assert re.search(r"4 images: bpd=\d+\.\d+", out)
    for name in ("vb", "mse", "xstart_mse"):
        assert np.load(trained / "nll" / f"{name}_terms.npz")["arr_0"].shape == (8,)


def test_super_resolution_scripts_train_and_sample(images, tmp_path):
    flags = "--class_cond True --batch_size 4 --lr_anneal_steps 1"
    run_openai_style("super_res_train", SR_NETWORK, flags, "--data_dir", images, OPENAI_LOGDIR=str(tmp_path))
    base = tmp_path / "base.npz"
    np.savez(base, np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), np.arange(3))
    flags = "--class_cond True --num_samples 3 --batch_size 3 --timestep_respacing 2"
    run_openai_style(
        "super_res_sample",
        SR_NETWORK,
        flags,
        "--base_samples",
        base,
        "--model_path",
        tmp_path / "model000001.pt",
        OPENAI_LOGDIR=str(tmp_path),
    )
    assert np.load(tmp_path / "samples_3x16x16x3.npz")["arr_0"].shape == (3, 16, 16, 3)


def test_training_script_continues_under_mpiexec(images, tmp_path):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        pytest.skip("no mpiexec beside this Python")
    flags = "--batch_size 4 --save_interval 2 --log_interval 2"
    common = (NETWORK, flags, "--data_dir", images)
    run_openai_style("image_train", *common, "--lr_anneal_steps 2", OPENAI_LOGDIR=str(tmp_path))
    out = run_openai_style(
        "image_train",
        *common,
        "--lr_anneal_steps 4",
        launcher=(str(mpiexec), "-n", "2"),
        OPENAI_LOGDIR=str(tmp_path),
    )
    assert f"resuming from {tmp_path}/model000002.pt after 2 updates" in out
    assert [row["samples"] for row in rows_of(tmp_path)] == ["8", "24"]  # 2 x 4, then 2 x 4 x 2 more
    assert (tmp_path / "log-rank001.txt").is_file()
    assert (tmp_path / "model000004.pt").is_file()


# The training loop


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """A function that makes a training loop which logs to the folder given, by default <tmp_path>/run."""
    monkeypatch.delenv("DIFFUSION_BLOB_LOGDIR", raising=False)

    def make(folder=tmp_path / "run", ema_rate="0.9", sampler=None, **changes):
        logger.configure(folder, ["log", "csv", "json"])
        torch.manual_seed(0)
        model, diffusion = create_model_and_diffusion(**tiny_flags(diffusion_steps=8, noise_schedule="cosine"))
        options = {"batch_size": 2, "microbatch": -1, "lr": 1e-3, "log_interval": 1, "save_interval": 100}
        return train_util.TrainLoop(
            model=model,
            diffusion=diffusion,
            ema_rate=ema_rate,
            schedule_sampler=sampler(diffusion) if sampler else None,
            **{**options, "data": endless(), "resume_checkpoint": "", **changes},
        )

    yield make
    logger.reset()


def endless():
    """Batches of which no two are alike."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1, {}


def state_of(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("bounds", "steps"),
    [({"max_steps": 3}, 3), ({"lr_anneal_steps": 2}, 2), ({"max_steps": 3, "lr_anneal_steps": 2}, 2)],
)
def test_training_ends_at_the_first_bound_and_no_file_holds_more(bounds, steps, loop, tmp_path):
    loop(**bounds).run_loop()
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pt"))
    assert names == [f"ema_0.9_{steps:06d}.pt", f"model{steps:06d}.pt", f"opt{steps:06d}.pt"]
    assert int(state_of(tmp_path / "run" / f"opt{steps:06d}.pt")["state"][0]["step"]) == steps
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [str(step + 1) for step in range(steps)]


def test_interrupted_training_continues_as_if_it_had_not_stopped(loop, tmp_path):
    loop(tmp_path / "whole", sampler=LossSecondMomentResampler, max_steps=4).run_loop()
    data = endless()
    loop(sampler=LossSecondMomentResampler, data=data, max_steps=2).run_loop()
    again = loop(sampler=LossSecondMomentResampler, data=data, max_steps=4)
    assert (again.resume_step, again.step) == (2, 0)
    again.run_loop()
    for name in ("model000004.pt", "ema_0.9_000004.pt"):
        assert same(state_of(tmp_path / "run" / name), state_of(tmp_path / "whole" / name)), name
    ours, theirs = (state_of(tmp_path / run / "opt000004.pt")["sampler"] for run in ("run", "whole"))
    assert same(ours, theirs)


def test_rows_after_the_checkpoint_are_dropped_when_it_is_continued(loop, tmp_path):
    killed = loop(max_steps=4, save_interval=2)
    killed.save = lambda: train_util.TrainLoop.save(killed) if killed.updates == 2 else None
    killed.run_loop()
    assert len(rows_of(tmp_path / "run")) == 4
    loop(max_steps=3).run_loop()
    assert [row["step"] for row in rows_of(tmp_path / "run")] == ["1", "2", "3"]
    assert len((tmp_path / "run" / "progress.json").read_text().splitlines()) == 3


def test_learning_rate_of_the_command_wins_over_the_checkpoint(loop, tmp_path):
    loop(max_steps=1).run_loop()
    changed = loop(lr=5e-4, weight_decay=0.1, max_steps=2)
    assert changed.opt.param_groups[0]["lr"] == 5e-4
    assert changed.opt.param_groups[0]["weight_decay"] == 0.1


def test_resuming_from_another_folder_says_what_is_missing(loop, tmp_path):
    loop(tmp_path / "old", max_steps=2).run_loop()
    os.remove(tmp_path / "old" / "opt000002.pt")
    resumed = loop(ema_rate="0.9,0.99", resume_checkpoint=str(tmp_path / "old" / "model000002.pt"), max_steps=3)
    assert resumed.resume_step == 2
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "ema_0.99_000002.pt (the average starts from the network)" in log
    assert "opt000002.pt (the optimizer starts afresh)" in log
    averages = [ema.state_dict() for ema in resumed.trainer.ema.values()]
    assert same(averages[0], state_of(tmp_path / "old" / "ema_0.9_000002.pt"))
    assert same(averages[1], state_of(tmp_path / "old" / "model000002.pt"))


def test_checkpoints_that_cannot_be_continued_are_refused(loop, tmp_path):
    loop(tmp_path / "old", max_steps=1).run_loop()
    with pytest.raises(ValueError, match=r"ema_0\.9_000001\.pt: give the model<step>\.pt beside it"):
        loop(resume_checkpoint=str(tmp_path / "old" / "ema_0.9_000001.pt"))
    state = state_of(tmp_path / "old" / "model000001.pt")
    torch.save({**state, "surplus": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: (unexpected key surplus|surplus)"):
        loop(resume_checkpoint=str(tmp_path / "other.pt"))
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"torn\.pt: not readable as a checkpoint"):
        loop(resume_checkpoint=str(tmp_path / "torn.pt"))


def test_checkpoint_without_its_last_file_does_not_count(loop, tmp_path):
    loop(max_steps=2, save_interval=1).run_loop()
    assert train_util.find_resume_checkpoint() == str(tmp_path / "run" / "model000002.pt")
    os.remove(tmp_path / "run" / "opt000002.pt")
    assert train_util.find_resume_checkpoint() == str(tmp_path / "run" / "model000001.pt")


def test_checkpoints_go_to_the_cloud_folder_and_come_back(loop, tmp_path, monkeypatch):
    from cloud_stand_in import install

    (tmp_path / "cloud" / "bucket").mkdir(parents=True)
    install(tmp_path / "cloud", monkeypatch.setattr)
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", "gs://bucket/run")
    loop(max_steps=1).run_loop()
    assert not list((tmp_path / "run").glob("*.pt"))
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", "gs://bucket/run")
    assert train_util.find_resume_checkpoint() == "gs://bucket/run/model000001.pt"
    assert (
        train_util.find_ema_checkpoint("gs://bucket/run/model000001.pt", 1, 0.9) == "gs://bucket/run/ema_0.9_000001.pt"
    )
    assert train_util.find_ema_checkpoint("gs://bucket/run/model000001.pt", 1, 0.99) is None
    assert loop(max_steps=2).resume_step == 1


def test_loss_that_is_not_finite_ends_training(loop):
    broken = loop(max_steps=2)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan near update 1: lower lr"):
        broken.run_loop()
