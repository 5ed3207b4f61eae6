"""The scripts as a user runs them, on tiny networks and a few images."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from comparison.checkpoints import load_checkpoint, save_checkpoint
from comparison.cli import UserError
from comparison.runs import read_progress
from gan.sampling import Sampler, load_generator
from helpers_gans import TINY, assert_continues_to_the_same_weights, call, interrupt, refused, train_here
from PIL import Image


def test_run_writes_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "progress.csv", "log.txt", "loss.png", "grid_000010.png", "grid_000100.png"} <= names
    assert {n for n in names if n.endswith((".pt", ".npz"))} == {f"checkpoint_{n:06d}.pt" for n in (80, 90, 100)}
    rows = read_progress(finished / "progress.csv")
    assert [row["step"] for row in rows] == list(range(2, 101, 2))
    assert all(row["images_seen"] == 8 * row["step"] for row in rows)
    columns = ["loss_d", "loss_g", "d_real", "d_fake", "d_fake_after", "grad_norm_d", "grad_norm_g"]
    assert list(rows[0])[3:] == [*columns, "d_held_out", "gap"]
    config = json.loads((finished / "config.json").read_text())
    assert config["finished"]["steps"] == 100
    assert config["parameters"]["generator"] > 0
    payload = load_checkpoint(finished / "checkpoint_000100.pt", model="gans")
    assert (payload["config"]["ngf"], payload["images_seen"]) == (4, 800)
    assert payload["wall_seconds"] > 0


def test_finished_run_says_so_without_torch(finished, images, no_torch):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    done = call("cifar_gan.py", "--data", images, "--run_dir", finished, *TINY, env=no_torch)
    assert "finished (max_steps 100)" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in finished.iterdir()}


def test_killed_run_continues_to_the_weights_of_an_unbroken_one(images, finished, tmp_path):
    assert interrupt(images, tmp_path / "run", signal.SIGKILL) == -signal.SIGKILL
    assert_continues_to_the_same_weights(images, tmp_path / "run", finished)


WRONG = [
    (["--image_size", "48"], "argument --image_size: must be a power of two of at least 16, not 48"),
    (["--image_siz", "32"], "unrecognized arguments: --image_siz 32"),
    (["--num_epochs", "0"], "argument --num_epochs: 0 needs one of --max_steps, --max_images and --max_seconds"),
    (["--batch_size", "9", "--ngpu", "2"], "argument --batch_size: 9 images do not divide among 2 processes"),
    (["--diffaugment", "color,noise"], "argument --diffaugment: must be none or a list of color, translation, cutout"),
    (["--keep_best", "true", "--score_every", "0"], "argument --keep_best: needs scores; set --score_every above 0"),
    (["--ngpu", "999", "--batch_size", "999"], "999 processes: this machine allows"),
    (["--run_dir", ""], "argument --run_dir: must be a path, not empty"),
    (["--ema_decay", "1"], "argument --ema_decay: must be a number of at least 0 and below 1, not 1"),
    (["--data", "shapes", "--num_samples", "1" + 12 * "0"], "run/samples.npz: needs 22,888,183.6 GiB on the disk"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_flags_and_paths_are_refused(arguments, sentence, tmp_path):
    assert sentence in refused("cifar_gan.py", "--run_dir", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def flip(path):
    """Change 256 bytes in the middle of a file, more than the gaps between its tensors."""
    content = bytearray(path.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 256)
    content[middle] = bytes(byte ^ 255 for byte in content[middle])
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_run_goes_on_from_the_newest_whole_checkpoint_and_says_so(damage, images, finished, tmp_path, capsys):
    arguments = ["--data", images, *TINY, "--max_steps", 104, "--run_dir"]
    ends = []
    for name in ("whole", "damaged"):
        folder = shutil.copytree(finished, tmp_path / name)
        if name == "damaged":
            damage(folder / "checkpoint_000100.pt")
        assert train_here(*arguments, folder) == 0
        ends.append(load_checkpoint(folder / "checkpoint_000104.pt", model="gans")["generator"])
    assert "checkpoint_000100.pt; going on from checkpoint_000090.pt" in capsys.readouterr().err
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    rows = [[row["step"] for row in read_progress(tmp_path / n / "progress.csv")] for n in ("whole", "damaged")]
    assert rows[0] == rows[1]


def test_damaged_checkpoint_is_not_sampled(images, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    flip(folder / "checkpoint_000100.pt")
    with pytest.raises(UserError, match=r"checkpoint_000100\.pt: (damaged|not readable)"):
        load_generator(folder / "checkpoint_000100.pt")
    for path in folder.glob("checkpoint_*.pt"):
        truncate(path)
    flags = ["--data", images, "--run_dir", folder, *TINY, "--max_steps", 104]
    assert "damaged, as is every older checkpoint" in refused("cifar_gan.py", *flags)


@pytest.mark.parametrize("damage", ["of another model", "of another shape", "of no step"])
def test_damaged_checkpoint_stops_the_run_and_nothing_is_overwritten(damage, images, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    checkpoint = folder / "checkpoint_000100.pt"
    if damage == "of another model":
        save_checkpoint(checkpoint, {"step": 100}, model="denoising-diffusion-gan")
    else:
        payload = load_checkpoint(checkpoint, model="gans")
        if damage == "of no step":
            payload["step"] = "x"
        else:
            payload["generator"]["layers.0.weight"] = torch.zeros(3)
        save_checkpoint(checkpoint, payload, model="gans")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    arguments = ["--data", images, "--run_dir", folder, *TINY, "--max_steps", 104]
    with pytest.raises(UserError, match=re.escape(str(checkpoint))):
        train_here(*arguments)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_changed_images_are_refused(images, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    data = shutil.copytree(images, tmp_path / "pictures")
    config = json.loads((folder / "config.json").read_text())
    config["options"]["data"], config["data"]["name"] = str(data), "pictures"
    (folder / "config.json").write_text(json.dumps(config))
    next(data.glob("*.png")).unlink()
    with pytest.raises(UserError, match="the run was trained on"):
        train_here("--data", data, "--run_dir", folder, *TINY, "--max_steps", 104)


def test_samples_do_not_depend_on_the_batch_size(finished, tmp_path):
    sets = []
    for batch_size in (7, 50):
        sampler = Sampler(finished / "checkpoint_000100.pt", 3, device="cpu", precision="float32", threads=1)
        sampler.write_samples(tmp_path / "samples.npz", 50, batch_size)
        sets.append(np.load(tmp_path / "samples.npz")["arr_0"].astype(int))
    assert sets[0].shape == (50, 16, 16, 3)
    assert np.mean(np.abs(sets[0] - sets[1]) <= 1) >= 0.999
    facts = json.loads((tmp_path / "sampling.json").read_text())
    assert (facts["nfe"], facts["images"], facts["network"]) == (1, 50, "ema")


def test_first_samples_are_the_last_grid(finished, tmp_path):
    sampler = Sampler(finished / "checkpoint_000100.pt", 0, device="cpu", precision="float32", threads=1)
    sampler.write_samples(tmp_path / "samples.npz", 64, 64)
    with Image.open(tmp_path / "samples.png") as samples, Image.open(finished / "grid_000100.png") as grid:
        assert np.mean(np.abs(np.asarray(samples, int) - np.asarray(grid, int)) <= 1) >= 0.999


def test_average_that_was_not_kept_is_refused(finished, tmp_path):
    payload = load_checkpoint(finished / "checkpoint_000100.pt", model="gans")
    save_checkpoint(tmp_path / "checkpoint_000100.pt", {**payload, "ema": None}, model="gans")
    with pytest.raises(UserError, match="has no EMA weights"):
        load_generator(tmp_path / "checkpoint_000100.pt", use_ema=True)


def test_one_png_per_image(finished, tmp_path):
    outputs = ["--out", tmp_path / "samples.npz", "--out_dir", tmp_path / "png"]
    call("sample_gan.py", "--checkpoint", finished, *outputs, "--num_samples", 5, "--threads", 1)
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == [f"{n:06d}.png" for n in range(5)]
    with Image.open(tmp_path / "png" / "000004.png") as image:
        assert np.array_equal(np.asarray(image), np.load(tmp_path / "samples.npz")["arr_0"][4])


def test_fewer_pngs_are_not_mixed_with_those_of_an_earlier_call(finished, tmp_path, no_torch):
    (tmp_path / "000005.png").touch()
    arguments = ["--checkpoint", finished, "--out_dir", tmp_path, "--num_samples", 5]
    assert "holds more than 5 images" in refused("sample_gan.py", *arguments, env=no_torch)


def test_samples_are_drawn_after_the_training_and_anew_only_where_something_changed(images, tmp_path, capsys):
    arguments = ["--data", images, "--run_dir", tmp_path, *TINY, "--max_steps", 2, "--num_samples"]
    for count, again in ((20, False), (20, True), (21, False)):
        train_here(*arguments, count)
        assert ("drawn already" in capsys.readouterr().out) == again
        assert np.load(tmp_path / "samples.npz")["arr_0"].shape == (count, 16, 16, 3)


def test_divergence_is_caught_in_its_step_and_not_saved(images, tmp_path):
    reckless = ["--g_lr", 1e38, "--d_lr", 1e38, "--save_minutes", 1e-9]
    with pytest.raises(UserError, match=r"step \d+: .* the training has diverged") as caught:
        train_here("--data", images, "--run_dir", tmp_path, *TINY, *reckless)
    step = int(str(caught.value).split(":")[0].removeprefix("step "))
    for path in tmp_path.glob("checkpoint_*.pt"):
        assert load_checkpoint(path, model="gans")["step"] < step
