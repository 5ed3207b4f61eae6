"""Bad input to the scripts: one sentence that names what is wrong, and nothing on disk lost."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparison.cli import UserError
from diffusion_testing import call_script
from improved_diffusion.checkpoints import check_counters, fill_network
from improved_diffusion.gaussian_diffusion import GaussianDiffusion, LossType, ModelMeanType, ModelVarType
from PIL import Image

TRAIN, SAMPLE, NLL = "scripts/image_train.py", "scripts/image_sample.py", "scripts/image_nll.py"
TO_FOLDER = "scripts/npztodir.py"
SR_TRAIN, SR_SAMPLE = "scripts/super_res_train.py", "scripts/super_res_sample.py"
LSUN, CIFAR = "datasets/lsun_bedroom.py", "datasets/cifar10.py"
NETWORK = "--image_size 16 --num_channels 32 --num_res_blocks 1 --diffusion_steps 100"


def write_npz(path, colour=0, labels=None, count=4):
    np.savez(path, np.full((count, 8, 8, 3), colour, np.uint8), *([] if labels is None else [np.array(labels)]))
    return path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(message, script, *flags):
    """Assert that a script's main, or its parser, refuses with a sentence that matches."""
    with pytest.raises(UserError, match=message) as error:
        call_script(script, *flags)
    assert "\n" not in str(error.value)


def refused_by_parser(capsys, words, script, *flags):
    with pytest.raises(SystemExit) as end:
        call_script(script, *flags)
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (2, 1), said
    assert words in said


def test_flags_that_mean_nothing_are_refused(capsys, tmp_path):
    common = ("--data_dir shapes", NETWORK, "--run_dir", tmp_path / "run")
    refused_by_parser(capsys, "--microbatch: must be a whole number above 0, not -2", TRAIN, *common, "--microbatch -2")
    refused("--ema_rate 0.9,0.99,0.9: names a rate twice", TRAIN, *common, "--ema_rate 0.9,0.99,0.9")
    refused("--grid_steps 999: the process has 100 steps", TRAIN, *common, "--grid_steps 999")
    assert not (tmp_path / "run").exists()


def test_images_that_were_begun_are_continued_by_the_same_call_alone(tmp_path, monkeypatch):
    from comparison import png

    calls = []

    def fail(pixels):
        calls.append(pixels)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return Image.fromarray(pixels)

    red, blue = write_npz(tmp_path / "red.npz", 200), write_npz(tmp_path / "blue.npz", 9)
    labelled = write_npz(tmp_path / "labelled.npz", 200, [0, 1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(png, "Image", SimpleNamespace(fromarray=fail))
        patch.setattr(png.os, "cpu_count", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            call_script(TO_FOLDER, red, tmp_path / "out")
    partial = tmp_path / "out.partial"
    before = contents(partial)
    assert len(before) == 3  # two images and the key
    for other in (blue, labelled):
        refused("out.partial.*of other images", TO_FOLDER, other, tmp_path / "out")
    (partial / "mine.txt").write_text("notes")
    refused("mine.txt is no part", TO_FOLDER, red, tmp_path / "out")
    (partial / "mine.txt").unlink()
    assert contents(partial) == before
    assert call_script(TO_FOLDER, red, tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{i:05d}.png" for i in range(4)]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (TO_FOLDER, "in.npz gs://bucket/out"),
        (TO_FOLDER, "https://host/in.npz out"),
        (LSUN, "lmdb gs://bucket/out"),
        (CIFAR, "--out_dir az://account/out"),
    ],
)
def test_remote_path_is_refused_where_only_local_ones_are_taken(script, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused_by_parser(capsys, "must be a path on this machine", script, flags)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (50 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_run_inside_its_data_is_refused(images, monkeypatch):
    before = contents(images)
    refused("--run_dir .* inside --data_dir", TRAIN, "--data_dir", images, "--run_dir", images)
    refused("--run_dir .* inside", SR_TRAIN, "--data_dir", images, "--run_dir", images / "a" / "b")
    monkeypatch.setenv("OPENAI_LOGDIR", str(images / "run"))
    refused("OPENAI_LOGDIR .* inside --data_dir", TRAIN, "--data_dir", images)
    assert contents(images) == before


def test_fresh_run_does_not_delete_the_checkpoint_to_start_from(images, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"model": "improved-diffusion", "options": {}}))
    torch.save({}, run / "model000005.pt")
    before = contents(run)
    flags = ["--data_dir", images, "--run_dir", images / ".." / "run", "--fresh"]
    refused("--resume_checkpoint .*--fresh", TRAIN, *flags, "--resume_checkpoint", run / "model000005.pt")
    assert contents(run) == before


@pytest.fixture
def no_torch(monkeypatch):
    """Whatever imports torch from here on fails."""
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        (TRAIN, "--num_channel 32", "--num_channel"),
        (TRAIN, "--lr_decay linear --max_steps 0", "need a bound"),
        (TRAIN, "--lr_warmup 0.5 --lr_decay cosine --lr_decay_from 0.4", "--lr_warmup 0.5 ends after"),
        (TRAIN, "--stop_after 5 --max_images 3 --max_steps 9", "not --max_steps 9 and --max_images 3"),
        (TRAIN, "--beta2 1", "--beta2 must be below 1"),
        (TRAIN, "--image_size 33", "--image_size"),
        (TRAIN, "--learn_sigma maybe", "--learn_sigma"),
        (TRAIN, "--use_fp16 True --precision float32", "--use_fp16"),
        (TRAIN, "", "datasets/cifar10.py"),
        (TRAIN, "--data_dir shapes --resume_checkpoint {tmp}/model000001.pt", "--resume_checkpoint"),
        (SAMPLE, "--model_path {tmp}/absent.pt", "--model_path"),
        (TO_FOLDER, "{tmp}/absent.npz {tmp}/out", "absent.npz"),
        (CIFAR, "--source {tmp}/empty", "--source"),
        (TRAIN, "--data_dir shapes --fp16_scale_growth 1e300", "--fp16_scale_growth 1e+300"),
        (TRAIN, "--data_dir shapes:5", "--data_dir shapes:5: shapes comes with 10"),
        (SR_TRAIN, "--small_size 100 --data_dir shapes", "small_size must divide large_size 256"),
        (SR_SAMPLE, "--base_samples {tmp}/absent.npz --model_path x.pt", "--base_samples"),
        (SR_SAMPLE, "--model_path x.pt", "--base_samples"),
        (NLL, "--data_dir {tmp}/absent --model_path x.pt", "--data_dir"),
        (NLL, "--data_dir shapes --model_path x.pt --num_samples -1", "--num_samples"),
    ],
)
def test_wrong_flags_are_refused_before_torch_is_imported(script, flags, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    with pytest.raises((UserError, SystemExit)) as end:
        call_script(script, flags.format(tmp=tmp_path))
    text = capsys.readouterr().err.rstrip("\n") or str(end.value)
    assert words in text
    assert "\n" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.fixture
def unread(tmp_path):
    """The file of a network that is judged by its name alone."""
    (tmp_path / "net.pt").touch()
    return tmp_path / "net.pt"


@pytest.mark.parametrize(
    "damage",
    [lambda value: 3, lambda value: None, lambda value: value.to_sparse(), lambda value: value.to(torch.int8)],
    ids=["number", "nothing", "sparse", "whole numbers"],
)
def test_network_of_other_things_than_dense_tensors_is_refused(damage):
    network = torch.nn.Linear(2, 2)
    state = {**network.state_dict(), "weight": damage(network.weight.detach())}
    with pytest.raises(ValueError, match=r"net\.pt: weight (is not a dense tensor|has the dtype torch.int8)"):
        fill_network(network, state, "net.pt")


@pytest.mark.parametrize("value", ["soon", -1])
def test_counters_of_a_checkpoint_are_numbers(value):
    check_counters({"wall_seconds": 7.5, "images_seen": None}, "opt.pt")
    with pytest.raises(ValueError, match=f"opt.pt: wall_seconds is {value!r}"):
        check_counters({"wall_seconds": value}, "opt.pt")


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("content", ["[]", "{}", '{"model": "improved-diffusion", "options": []}'])
def test_config_that_is_none_is_refused(content, unread, images, tmp_path):
    (tmp_path / "config.json").write_text(content)
    words = "config.json: (holds no JSON object|not what config.json holds: )"
    refused(words, SAMPLE, NETWORK, "--model_path", unread)
    refused(words, TRAIN, NETWORK, "--data_dir", images, "--run_dir", tmp_path)
    assert (tmp_path / "config.json").read_text() == content


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("name", "value"),
    [("num_channels", "abc"), ("diffusion_steps", None), ("attention_resolutions", [[1]]), ("learn_sigma", 1)],
)
def test_option_of_another_type_in_a_config_is_refused(name, value, unread, tmp_path):
    config = {"model": "improved-diffusion", "options": {name: value}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    kind = {"num_channels": "int", "diffusion_steps": "int", "learn_sigma": "bool"}.get(name, "str")
    refused(f"config.json: options.{name}: .* is not of the type {kind}", SAMPLE, "--model_path", unread)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("name", ["set.zip", "set.npz"])
def test_damaged_archive_is_named_with_its_flag(name, unread, tmp_path):
    (tmp_path / name).write_bytes(b"PK\x03\x04 no archive")
    refused(f"--data_dir .*{name}: not readable as an?", TRAIN, NETWORK, "--data_dir", tmp_path / name)
    refused(f"--data_dir .*{name}: not", NLL, NETWORK, "--model_path", unread, "--data_dir", tmp_path / name)
    np.savez(tmp_path / "set.npz", mu=np.zeros(3))
    refused("--data_dir .*holds no arr_0", TRAIN, NETWORK, "--data_dir", tmp_path / "set.npz")


@pytest.mark.parametrize("betas", [[], 0.1, [[0.1]], [0.1, 0.0], [0.1, 1.5], [np.nan]])
def test_process_without_variances_is_refused(betas):
    kinds = {"model_mean_type": ModelMeanType.EPSILON, "model_var_type": ModelVarType.FIXED_SMALL}
    with pytest.raises(ValueError, match="betas must be one-dimensional and not empty"):
        GaussianDiffusion(betas=betas, loss_type=LossType.MSE, **kinds)
