"""The scripts, run as a user runs them."""

import csv
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from comparison.runs import read_progress
from diffusion_testing import call_script, run_script, same_weights, script_command, script_env, write_images
from improved_diffusion import dist_util
from improved_diffusion.checkpoints import read_checkpoint
from PIL import Image

TINY = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --learn_sigma True --dropout 0.1 --diffusion_steps 50 "
    "--noise_schedule cosine --batch_size 4 --microbatch 3 --log_interval 3 --grid_images 4 --grid_steps 2 --keep 0 "
    "--threads 1"
)
TRAIN, SAMPLE = "scripts/image_train.py", "scripts/image_sample.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 24 images in two classes."""
    return write_images(tmp_path_factory.mktemp("images"), 24)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The run folder of 20 unbroken updates."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    done = run_script(TRAIN, TINY, "--data_dir", images, "--run_dir", folder, "--max_steps", 20, "--save_interval", 10)
    assert done.returncode == 0, done.stderr
    return folder


def refused(done, *words):
    """Assert exit status 2 and one sentence with these words."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert str(word) in done.stderr


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_training_stops_exactly_at_max_steps_and_writes_what_it_documents(trained):
    names = {path.name for path in trained.iterdir()}
    for step in ("000010", "000020"):
        assert {f"model{step}.pt", f"ema_0.9999_{step}.pt", f"opt{step}.pt", f"grid_{step}.png"} <= names
    assert {"config.json", "log.txt", "progress.csv", "progress.json", "loss.png"} <= names
    assert not [name for name in names if name.startswith(".")]
    optimizer = torch.load(trained / "opt000020.pt", weights_only=True)
    assert (optimizer["step"], optimizer["images_seen"]) == (20, 80)
    assert {int(state["step"]) for state in optimizer["state"].values()} == {20}
    config = json.loads((trained / "config.json").read_text())
    assert config["finished"]["steps"] == 20
    assert config["parameters"] > 1e6
    with open(trained / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12, 15, 18, 20]
    columns = "step images_seen wall_seconds loss mse vb loss_q0 loss_q3 grad_norm images_per_second"
    assert set(columns.split()) <= set(rows[0])
    lines = (trained / "progress.json").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20]


def test_files_are_plain_state_dicts_that_other_scripts_load(trained):
    model = torch.load(trained / "model000020.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in model.values())
    assert model["input_blocks.0.0.weight"].shape == (32, 3, 3, 3)
    parameters = [torch.nn.Parameter(value.clone()) for value in model.values()]
    optimizer = torch.optim.AdamW(parameters)
    optimizer.load_state_dict(torch.load(trained / "opt000020.pt", weights_only=True))


def test_finished_run_says_so_and_changes_nothing(trained, images):
    before = contents(trained)
    done = run_script(TRAIN, TINY, "--data_dir", images, "--run_dir", trained, "--max_steps", 20)
    assert done.returncode == 0
    assert "finished" in done.stdout
    assert contents(trained) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_resumed_run_equals_unbroken_run(number, trained, images, tmp_path):
    run_dir = tmp_path / "run"
    flags = [TINY, "--data_dir", images, "--run_dir", run_dir, "--max_steps", 20, "--save_interval", 2]
    process = subprocess.Popen(script_command(TRAIN, *flags), stdout=subprocess.DEVNULL, env=script_env())
    deadline = time.monotonic() + 60
    while not (run_dir / "opt000002.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert not (run_dir / "opt000020.pt").exists()
    done = run_script(TRAIN, *flags)
    assert done.returncode == 0, done.stderr
    assert re.search(r"continue after step \d+", done.stdout)
    assert same_weights(run_dir, trained, 20)
    resumed, unbroken = (read_progress(folder / "progress.csv") for folder in (run_dir, trained))
    for row, other in zip(resumed, unbroken, strict=True):  # also the row of the updates before and after the kill
        timed = ("wall_seconds", "images_per_second")
        assert {n: v for n, v in row.items() if n not in timed} == {n: v for n, v in other.items() if n not in timed}


SCHEDULES = (
    "--prediction velocity --loss_weighting min-snr --schedule_sampler stratified --beta2 0.99 --ema_horizon 0.5 "
    "--ema_every 2 --lr_warmup 0.2 --lr_decay cosine --lr_decay_from 0.3 --lr_floor 0.1"
)


@pytest.mark.parametrize(("bound", "unit"), [("--max_steps 10", 1), ("--max_steps 0 --max_images 40", 4)])
def test_run_cut_short_goes_on_with_its_schedules_as_if_it_had_not_been(bound, unit, images, tmp_path):
    for name, parts in (("whole", (0,)), ("cut", (3 * unit, 7 * unit, 0))):
        for part in parts:
            flags = (TINY, SCHEDULES, bound, "--log_interval 1", "--data_dir", images, "--run_dir", tmp_path / name)
            assert call_script(TRAIN, *flags, "--stop_after", part) == 0
    assert same_weights(tmp_path / "cut", tmp_path / "whole", 10)
    rates = [float(row["lr"]) for row in csv.DictReader((tmp_path / "cut" / "progress.csv").open())]
    assert rates[:3] == pytest.approx([0.0, 0.5e-4, 1e-4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0.1e-4 < rates[-1] < 0.2e-4


def test_resume_checkpoint_continues_a_copy_elsewhere(trained, images, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in trained.glob("*000010.pt"):
        shutil.copy(path, source)
    flags = [TINY, "--data_dir", images, "--run_dir", tmp_path / "run", "--max_steps", 20]
    assert call_script(TRAIN, *flags, "--resume_checkpoint", source / "model000010.pt") == 0
    assert same_weights(tmp_path / "run", trained, 20)


def test_other_options_in_the_same_folder_are_refused_by_name(trained, images):
    before = contents(trained)
    done = run_script(TRAIN, TINY, "--data_dir", images, "--run_dir", trained, "--max_steps", 30, "--lr", 0.5)
    refused(done, "lr 0.0001 there, 0.5 here")
    assert contents(trained) == before


def damage(path, flip):
    """Truncate a file, or change 64 bytes in its middle."""
    content = bytearray(path.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 64)
    content[middle] = bytes(byte ^ 255 for byte in content[middle])
    path.write_bytes(content if flip else content[:5000])


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("name", ["model", "opt", "ema_0.9999_"])
def test_run_goes_on_from_the_newest_whole_checkpoint_and_says_so(name, flip, trained, images, tmp_path, capsys):
    ends = []
    for run_dir in (tmp_path / "whole", tmp_path / "damaged"):
        shutil.copytree(trained, run_dir)
        if run_dir.name == "damaged":
            damage(run_dir / f"{name}000020.pt", flip)
        assert call_script(TRAIN, TINY, "--data_dir", images, "--run_dir", run_dir, "--max_steps", 21) == 0
        ends.append(torch.load(run_dir / "model000021.pt", weights_only=True))
    assert f"{name}000020.pt; going on from model000010.pt" in capsys.readouterr().err
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    for path in run_dir.glob(f"{name}*.pt"):
        damage(path, flip)
    before = contents(run_dir)
    with pytest.raises(UserError, match=f"{name}000021.pt: damaged, as is every older checkpoint"):
        call_script(TRAIN, TINY, "--data_dir", images, "--run_dir", run_dir, "--max_steps", 30)
    assert contents(run_dir) == before


def test_damaged_weights_are_not_read(trained, tmp_path):
    path = shutil.copy(trained / "ema_0.9999_000020.pt", tmp_path)
    damage(Path(path), flip=True)
    for read in (read_checkpoint, dist_util.load_state_dict):
        with pytest.raises(ValueError, match=r"ema_0\.9999_000020\.pt: damaged; the check sum of .* is wrong"):
            read(path)


def test_missing_network_of_the_newest_step_is_refused(trained, images, tmp_path):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    (run_dir / "model000020.pt").unlink()
    before = contents(run_dir)
    with pytest.raises(UserError, match=r"model000020\.pt: no such checkpoint"):
        call_script(TRAIN, TINY, "--data_dir", images, "--run_dir", run_dir, "--max_steps", 21)
    assert contents(run_dir) == before


def test_checkpoints_that_do_not_fit_are_refused(trained, images, tmp_path):
    torch.save({"model": "gans", "step": 3}, tmp_path / "gan.pt")
    torch.save({"time_embed.0.weight": torch.zeros(2, 2)}, tmp_path / "model000005.pt")
    refused(run_script(SAMPLE, "--model_path", tmp_path / "absent.pt"), "--model_path", "absent.pt")
    refused(run_script(SAMPLE, "--model_path", tmp_path / "gan.pt"), "checkpoint of gans")
    for path, sentence in (
        (trained / "opt000020.pt", "an optimizer's file"),
        (tmp_path / "model000005.pt", "time_embed.0.weight is"),
    ):
        with pytest.raises(UserError, match=sentence):
            call_script(SAMPLE, "--model_path", path)
    wider = [TINY, "--data_dir", images, "--run_dir", tmp_path / "run", "--num_channels 64"]
    with pytest.raises(UserError, match=r"model000020.pt: .* in the file, .* by the flags"):
        call_script(TRAIN, *wider, "--resume_checkpoint", trained / "model000020.pt")
    assert not (tmp_path / "run").exists()


def test_flags_that_disagree_with_the_run_are_refused(trained, tmp_path):
    flags = ["--model_path", trained / "model000020.pt", "--out_dir", tmp_path / "out"]
    refused(run_script(SAMPLE, *flags, "--noise_schedule", "linear"), "--noise_schedule linear", "cosine")
    refused(run_script(SAMPLE, *flags, "--eta", 1), "--eta", "--use_ddim")
    assert not (tmp_path / "out").exists()


def test_class_conditional_model_trains_and_samples_the_classes_of_the_data(images, tmp_path):
    run_dir = tmp_path / "run"
    flags = [TINY, "--data_dir", images, "--class_cond True --use_kl True --ema_rate 0.5,0.9999"]
    done = run_script(TRAIN, *flags, "--max_steps", 2, OPENAI_LOGDIR=str(run_dir))
    assert done.returncode == 0, done.stderr
    assert (run_dir / "ema_0.5_000002.pt").is_file()
    sampling = "--num_samples 20 --batch_size 20 --use_ddim True --eta 1 --timestep_respacing ddim2 --threads 1"
    assert call_script(SAMPLE, sampling, "--model_path", run_dir / "ema_0.9999_000002.pt") == 0
    samples = np.load(run_dir / "samples_20x16x16x3.npz")
    assert set(samples["arr_1"]) == {0, 1}
    assert call_script("scripts/npztodir.py", run_dir / "samples_20x16x16x3.npz", tmp_path / "png") == 0
    first = f"{samples['arr_1'][0]}_00000.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / first)), samples["arr_0"][0])
    assert len(list((tmp_path / "png").iterdir())) == 20
    with pytest.raises(UserError, match="not an empty folder"):
        call_script("scripts/npztodir.py", run_dir / "samples_20x16x16x3.npz", tmp_path / "png")


def test_old_checkpoints_are_pruned_and_planned_ones_kept(images, tmp_path):
    flags = [TINY, "--data_dir", images, "--run_dir", tmp_path / "run", "--max_steps", 7, "--save_interval", 2]
    assert call_script(TRAIN, *flags, "--keep", 2, "--grid_images", 0, "--save_minutes", 1e-6) == 0
    assert sorted(p.name for p in (tmp_path / "run").glob("opt*")) == ["opt000004.pt", "opt000006.pt", "opt000007.pt"]
    assert len(list((tmp_path / "run").glob("*.pt"))) == 9
    assert not list((tmp_path / "run").glob("grid*"))


def test_cifar10_folders_are_converted_once(tmp_path):
    source = tmp_path / "jpeg"
    for split, count in (("train", 4), ("test", 2)):
        for label in ("airplane", "cat"):
            (source / split / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (i, 9, 9)).save(source / split / label / f"{i}.jpg")
    for sentence in ("8 images", "exist already"):
        done = run_script("datasets/cifar10.py", "--source", source, DATA_ROOT=str(tmp_path / "data"))
        assert done.returncode == 0, done.stderr
        assert sentence in done.stdout
    names = sorted(path.name for path in (tmp_path / "data" / "cifar_train").iterdir())
    assert names == [f"cat_{i:05d}.png" for i in range(4, 8)] + [f"plane_{i:05d}.png" for i in range(4)]
    assert len(list((tmp_path / "data" / "cifar_test").iterdir())) == 4
    (tmp_path / "data" / "cifar_train" / names[0]).unlink()
    refused(run_script("datasets/cifar10.py", "--source", source, DATA_ROOT=str(tmp_path / "data")), "holds 7 images")


def test_any_folder_of_classes_becomes_the_training_folder(images, tmp_path):
    command = ["--source", images, "--num_images", 6, "--out_dir", tmp_path]
    assert call_script("datasets/cifar10.py", *command) == 0
    names = [path.name for path in (tmp_path / "cifar_train").iterdir()]
    assert len(names) == 6
    assert {name.split("_")[0] for name in names} == {"cat", "dog"}
    assert not (tmp_path / "cifar_test").exists()


def test_rows_of_a_damaged_progress_json_are_those_of_progress_csv(trained, images, tmp_path):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    (run_dir / "progress.json").write_text('{"step": 3}\n{"step": garbage\n')
    assert call_script(TRAIN, TINY, "--data_dir", images, "--run_dir", run_dir, "--max_steps", 21) == 0
    lines = [json.loads(line) for line in (run_dir / "progress.json").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20, 21]
    assert lines[0]["loss"] > 0


@pytest.mark.parametrize("meter", ["text", {"sums": 3}, [1]])
def test_sums_of_another_kind_are_refused_in_one_sentence(trained, images, tmp_path, meter):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    payload = torch.load(run_dir / "opt000020.pt", weights_only=True)
    torch.save({**payload, "meter": meter}, run_dir / "opt000020.pt")
    with pytest.raises(UserError, match="the sums of the next row beside it do not fit"):
        call_script(TRAIN, TINY, "--data_dir", images, "--run_dir", run_dir, "--max_steps", 21)
