"""distill_train.py and `image_sample.py --sampler few-step`: predictions, resumption, two ranks, wrong uses."""

import json

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from comparison.runs import read_progress
from diffusion_testing import call_script, script_command, tiny_flags, write_images, write_run
from improved_diffusion.script_util import create_model_and_diffusion
from test_parallel import assert_close_weights, finish, torchrun

DISTILL, SAMPLE = "scripts/distill_train.py", "scripts/image_sample.py"
CPU = "--device cpu --precision float32 --threads 1"
SMALL = f"{CPU} --batch_size 6 --teacher_steps 4 --grid_images 0 --log_interval 1 --lr_warmup 0 --lr_decay none"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with images of two classes in `data` and a teacher in `teacher` for each prediction."""
    path = tmp_path_factory.mktemp("few_steps")
    (path / "data").mkdir()
    write_images(path / "data", 12)
    for name, changes in {
        "x_start": {"class_cond": True},
        "velocity": {"noise_schedule": "cosine", "image_size": 32, "patch_size": 2},
        "epsilon": {"learn_sigma": True, "dropout": 0.1},
    }.items():
        flags = tiny_flags(prediction=name, **changes)
        model, _ = create_model_and_diffusion(**flags, num_classes=2)
        write_run(path / name, model, {**flags, "data_dir": str(path / "data")})
    return path


def distil(folder, teacher, run, *flags):
    return call_script(
        DISTILL, SMALL, "--model_path", folder / teacher / "ema_0.99_000020.pt", "--run_dir", run, *flags
    )


def sample(run, step, *flags):
    path = run / f"ema_0.9999_{step:06d}.pt"
    return call_script(SAMPLE, CPU, "--sampler few-step --num_samples 4 --model_path", path, *flags)


@pytest.fixture(scope="module")
def runs(folder):
    """Return the folder with four updates, in the runs `classes` (of x_start) and `patches` (of velocity)."""
    assert distil(folder, "x_start", folder / "classes", "--max_steps 4 --grid_images 4") == 0
    assert distil(folder, "velocity", folder / "patches", "--max_steps 4") == 0
    return folder


def weights(run, name):
    return torch.load(run / name, weights_only=True)


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_training_moves_the_teachers_weights_and_names_it(runs):
    before, after = weights(runs / "x_start", "ema_0.99_000020.pt"), weights(runs / "classes", "model000004.pt")
    assert not equal(before, after)
    assert all((before[name] - after[name]).abs().max() < 0.01 for name in before)
    config = json.loads((runs / "classes" / "config.json").read_text())
    assert config["model"] == "improved-diffusion"
    assert config["options"]["few_step"]["levels"]["2"] == [40, 1]
    teacher = config["options"]["teacher"]
    assert (teacher["checkpoint"], teacher["images_seen"], teacher["wall_seconds"]) == ("ema_0.99_000020.pt", 80, 2.0)
    assert (runs / "classes" / "grid_000004.png").is_file()


def test_resumed_training_equals_an_unbroken_one(runs, tmp_path):
    assert distil(runs, "x_start", tmp_path / "run", "--max_steps 4 --stop_after 2") == 0
    assert distil(runs, "x_start", tmp_path / "run", "--max_steps 4") == 0
    for name in ("model000004.pt", "ema_0.9999_000004.pt"):
        assert equal(weights(runs / "classes", name), weights(tmp_path / "run", name))


def test_two_processes_make_the_updates_of_one(runs, tmp_path):
    model = runs / "x_start" / "ema_0.99_000020.pt"
    flags = [SMALL, "--max_steps 4 --model_path", model, "--run_dir", tmp_path / "run"]
    done = finish([*torchrun(), *script_command(DISTILL, *flags)[1:]])
    assert done.returncode == 0, done.stdout + done.stderr
    assert_close_weights(weights(runs / "classes", "model000004.pt"), weights(tmp_path / "run", "model000004.pt"))
    one, two = (read_progress(run / "progress.csv") for run in (runs / "classes", tmp_path / "run"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-4)


def test_teacher_of_noise_with_learned_variances_and_dropout_can_be_distilled(runs, tmp_path):
    assert distil(runs, "epsilon", tmp_path / "run", "--max_steps 1 --evaluations 3") == 0
    assert sample(tmp_path / "run", 1, "--num_sampling_steps 3") == 0


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("run", ["classes", "patches"])
def test_images_take_the_asked_evaluations_and_do_not_depend_on_the_batch(run, count, runs, tmp_path):
    found = []
    for size in (1, 4):
        out = tmp_path / str(size)
        assert sample(runs / run, 4, f"--num_sampling_steps {count} --batch_size {size} --out_dir", out) == 0
        found.append(np.load(next(out.glob("samples*.npz")))["arr_0"].astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1
    record = json.loads((out / "sampling.json").read_text())
    assert record["nfe"] == count
    assert record["sampler"].startswith("few-step, levels ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--num_sampling_steps 3", "the model was distilled for 1, 2, 4 evaluations"),
        ("--timestep_respacing 50", "--timestep_respacing 50: not with --sampler few-step"),
        ("--spacing karras", "--spacing karras: not with --sampler few-step"),
        ("--sampler dpmpp", "was distilled, so it needs --sampler few-step"),
    ],
)
def test_wrong_use_of_a_distilled_model_is_refused(flags, words, runs):
    with pytest.raises(UserError, match=words):
        sample(runs / "classes", 4, flags)


def test_model_that_was_not_distilled_is_refused(runs):
    with pytest.raises(UserError, match="was not distilled"):
        call_script(SAMPLE, "--sampler few-step --model_path", runs / "x_start" / "ema_0.99_000020.pt")


@pytest.mark.parametrize(
    ("teacher", "flags", "words"),
    [
        ("x_start", "--schedule_sampler stratified", "samples its own noise levels"),
        ("x_start", "--num_channels 64", "the model was trained with 32"),
        ("nowhere", "", "no such file"),
    ],
)
def test_wrong_distillation_is_refused(teacher, flags, words, folder, tmp_path):
    with pytest.raises(UserError, match=words):
        distil(folder, teacher, tmp_path / "run", flags)


def test_distilled_model_is_not_distilled_again(runs, tmp_path):
    model = runs / "classes" / "ema_0.9999_000004.pt"
    with pytest.raises(UserError, match="already distilled; give its teacher"):
        call_script(DISTILL, SMALL, "--model_path", model, "--run_dir", tmp_path)
