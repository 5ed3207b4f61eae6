"""test_ddgan.py as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import test_ddgan as sampling
import torch
import train_ddgan
from comparison import files
from comparison.checkpoints import save_checkpoint
from comparison.cli import UserError
from comparison.data import shapes
from comparison.data.images import load_images, save_npz
from comparison.scores import inception, statistics
from comparison.scores.metrics import frechet
from ddgan import fid
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING, make_images
from PIL import Image

CPU = ["--device", "cpu", "--precision", "float32", "--threads", "1"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling")
    pictures = make_images(folder / "pictures")
    flags = ["--dataset", str(pictures), "--exp", f"{folder}/run/", *TINY_NETWORK, *TINY_TRAINING, "--num_epoch", "2"]
    flags += ["--lr_g", "0.01"]  # so that a few updates move the images
    assert train_ddgan.main(train_ddgan.parse_args(flags)) == 0
    return folder / "run"


def draw(run_folder: Path, *arguments: str) -> np.ndarray:
    out = run_folder / "samples.npz"
    command = ["--exp", f"{run_folder}/", *CPU, *arguments]
    if "--out" in arguments:
        out = Path(arguments[arguments.index("--out") + 1])
    assert sampling.main(sampling.parse_args(command)) == 0
    return np.load(out)["arr_0"]


def test_exactly_n_images_with_time_and_evaluations(run_folder, capsys):
    images = draw(run_folder, "--num_samples", "11", "--batch_size", "4")
    assert images.shape == (11, 16, 16, 3)
    assert images.dtype == np.uint8
    report = json.loads((run_folder / "sampling.json").read_text())
    assert (report["images"], report["nfe"], report["network"]) == (11, 2, "ema")
    assert report["seconds"] > 0
    assert "sampling time" in capsys.readouterr().out


def test_images_do_not_depend_on_the_batch_size(run_folder):
    first = draw(run_folder, "--num_samples", "20", "--batch_size", "20").astype(int)
    for size in ("1", "7"):
        again = draw(run_folder, "--num_samples", "20", "--batch_size", size).astype(int)
        assert (abs(first - again) <= 1).mean() >= 0.999


def test_grid_of_the_training_shows_what_the_script_draws_from_the_average(run_folder):
    draw(run_folder, "--num_samples", "64", "--seed", "0", "--epoch_id", "2")  # the seed of the training
    drawn, grid = (np.asarray(Image.open(run_folder / name)).astype(int) for name in ("samples.png", "grid.png"))
    assert (abs(drawn - grid) <= 1).mean() >= 0.999


def test_pngs_equal_the_archive(run_folder, tmp_path):
    images = draw(run_folder, "--num_samples", "3", "--png_dir", str(tmp_path / "png"))
    found = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "png").iterdir())]
    np.testing.assert_array_equal(np.stack(found), images)
    with pytest.raises(UserError, match="--png_dir"):
        draw(run_folder, "--num_samples", "3", "--png_dir", str(tmp_path / "png"))


def test_repeated_flags_may_agree(run_folder):
    assert len(draw(run_folder, "--num_samples", "2", *TINY_NETWORK, "--t_emb_dim", "256")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_timesteps", "4"], "--num_timesteps 4 given, 2 in the checkpoint"),
        (["--ch_mult", "1", "2", "2"], "--ch_mult 1 2 2 given, 1 2 in the checkpoint"),
        (["--skip_rescale"], "--skip_rescale False given, True in the checkpoint"),
        (["--dataset", "cifar10"], "--dataset cifar10 given"),
        (["--real_img_dir", "/none", "--compute_fid"], "--real_img_dir /none"),
        (["--out", "samples.jpg"], "--out samples.jpg"),
        (["--class_label", "3"], "--class_label 3: the network is unconditional"),
        (["--class_cond"], "--class_cond True given, False in the checkpoint"),
        (["--benchmark", "--num_process_per_node", "2"], "--benchmark: measures a single process"),
        (["--num_samples", "1", "--compute_fid"], "--num_samples 1: FID needs at least 2 images"),
        (["--exp", "/no/run"], "--exp /no/run: no run in /no/run"),
        (["--epoch_id", "7"], "--epoch_id 7"),
        (["--epoch_id", "2", "--checkpoint", "netG_2.pth"], "--checkpoint: not allowed with"),
        (["--out", "gs://bucket/samples.npz"], "--out: must be a path on this machine"),
        (["--inception_weights", "/none"], "--inception_weights /none: no such file"),
    ],
)
def test_wrong_flags_are_named_and_nothing_is_drawn(run_folder, arguments, message, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    with pytest.raises((SystemExit, UserError)) as caught:
        draw(run_folder, *arguments)
    assert message in (capsys.readouterr().err or str(caught.value))
    assert {path: path.stat().st_mtime_ns for path in run_folder.iterdir()} == before


def test_missing_truncated_and_foreign_checkpoints_are_refused(run_folder, tmp_path):
    whole = (run_folder / "netG_2.pth").read_bytes()
    (tmp_path / "netG_1.pth").write_bytes(whole[: len(whole) // 2])
    save_checkpoint(tmp_path / "netG_2.pth", {"step": 1}, model="gans")
    (tmp_path / "netG_3.pth").write_bytes((run_folder / "content.pth").read_bytes())
    for epoch, message in (("1", "truncated"), ("2", "of gans"), ("3", "state of a training")):
        with pytest.raises(UserError, match=message):
            draw(tmp_path, "--epoch_id", epoch)


def test_without_inception_weights_fid_says_which_file_goes_where(run_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "WEIGHTS_URL", "file:///no/such/file")
    with pytest.raises(UserError, match=f"put {inception.WEIGHTS} from .* into {tmp_path}"):
        draw(run_folder, "--num_samples", "4", "--compute_fid")
    assert len(np.load(run_folder / "samples.npz")["arr_0"]) == 4
    target = tmp_path / "hub" / "checkpoints" / inception.WEIGHTS_ELSEWHERE
    target.write_bytes(b"something else")
    for flags in ((), ("--inception_weights", str(target))):
        with pytest.raises(UserError, match="damaged"):
            draw(run_folder, "--num_samples", "4", "--compute_fid", *flags)


def moments_of_pixels(images, library, *, weights, device):
    """Stand in for the Inception network, whose weights are missing: mean and covariance of some pixels."""
    assert (library, weights.name) == ("pytorch-fid", "weights.pth")
    x = images[:, :, ::8, ::8].flatten(1).double()
    return x.mean(0), torch.cov(x.T)


def test_weights_are_exported_under_the_names_of_nvlabs_and_sample_the_same(run_folder, tmp_path):
    out = tmp_path / "netG_2.pth"
    assert sampling.main(sampling.parse_args(["--exp", f"{run_folder}/", "--export_nvlabs", str(out)])) == 0
    state = torch.load(out, weights_only=True)
    assert {name.split(".")[1] for name in state} == {"all_modules", "z_transform"}
    assert all(name.startswith("module.") for name in state)
    common = ["--num_samples", "4", *CPU, "--out"]
    for name, words in (("ours", ["--exp", f"{run_folder}/"]), ("theirs", ["--checkpoint", str(out), *TINY_NETWORK])):
        assert sampling.main(sampling.parse_args([*words, *common, str(tmp_path / f"{name}.npz")])) == 0
    ours, theirs = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("ours", "theirs"))
    assert np.array_equal(ours, theirs)


@pytest.fixture
def pixels_for_inception(monkeypatch, tmp_path):
    """Let 12 pixels stand for 2048 Inception features, and return the flags that go with it."""
    monkeypatch.setattr(statistics, "DIMENSIONS", 12)
    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr(fid, "image_statistics", moments_of_pixels)
    monkeypatch.setattr(fid, "embed", lambda images, *_: [images[:, :, ::8, ::8].flatten(1).float()])
    monkeypatch.setattr(fid, "check_weights", lambda path: "0" * 64)
    monkeypatch.setattr(fid, "require", lambda library: None)
    return ["--compute_fid", "--inception_weights", str(tmp_path / "weights.pth")]


def distance_to(run_folder: Path, images: torch.Tensor) -> float:
    drawn = torch.from_numpy(np.load(run_folder / "samples.npz")["arr_0"]).permute(0, 3, 1, 2)
    common = {"weights": Path("weights.pth"), "device": None}
    return frechet(*(part for x in (drawn, images) for part in moments_of_pixels(x, "pytorch-fid", **common)))


@pytest.mark.parametrize("kind", ["images", "statistics"])
def test_fid_is_that_of_the_samples_and_the_real_images_or_statistics(
    run_folder, pixels_for_inception, tmp_path, kind, capsys
):
    real, reference = shapes.dataset(200, 16, limit=30)[0], tmp_path / "real.npz"
    if kind == "images":
        save_npz(reference, real.permute(0, 2, 3, 1).numpy())
    else:
        mu, sigma = moments_of_pixels(real, "pytorch-fid", weights=Path("weights.pth"), device=None)
        np.savez(reference, mu=mu.numpy(), sigma=sigma.numpy())
    draw(run_folder, "--num_samples", "8", *pixels_for_inception, "--real_img_dir", str(reference))
    facts = json.loads((run_folder / "sampling.json").read_text())
    assert facts["fid"] == pytest.approx(distance_to(run_folder, real), rel=1e-6)
    assert facts["fid_reference"] == str(reference)
    said = capsys.readouterr().out
    assert said.index("sampling time") < said.index(f"FID {facts['fid']:.3f} (8 images")


def test_fid_is_against_the_training_data_unless_told(run_folder, pixels_for_inception):
    draw(run_folder, "--num_samples", "8", *pixels_for_inception)
    facts = json.loads((run_folder / "sampling.json").read_text())
    real = load_images(facts["fid_reference"], 16).images
    assert len(real) == 20
    assert facts["fid"] == pytest.approx(distance_to(run_folder, real), rel=1e-6)


def test_benchmark_writes_timing_instead_of_samples(run_folder, tmp_path):
    flags = ["--exp", f"{run_folder}/", *CPU, "--benchmark", "--benchmark_seconds", "1e-4"]
    assert sampling.main(sampling.parse_args([*flags, "--out", str(tmp_path / "a" / "samples.npz")])) == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["timing.json"]
    timing = json.loads((tmp_path / "a" / "timing.json").read_text())
    assert (timing["sampler"], timing["network"], timing["nfe"]) == ("posterior, 2 steps", "ema", 2)
    assert timing["gflop_per_image"] == pytest.approx(2 * timing["gflop_per_evaluation"], rel=1e-4)
    for flag in (["--compute_fid"], ["--png_dir", str(tmp_path / "png")]):
        with pytest.raises(UserError, match=f"{flag[0]}: --benchmark writes no images"):
            sampling.main(sampling.parse_args([*flags, *flag]))


def test_settings_folder_gets_samples_walks_and_the_training_behind_them(run_folder, capsys):
    out = run_folder / "settings" / "seed5" / "samples.npz"
    for _ in range(2):
        images = draw(run_folder, "--num_samples", "8", "--seed", "5", "--interpolation", "--out", str(out)).astype(int)
    assert capsys.readouterr().out.count("drawn already") == 2
    names = {"samples.npz", "samples.png", "sampling.json", "interpolation.png"}
    assert {path.name for path in out.parent.iterdir()} == names
    facts = json.loads((out.parent / "sampling.json").read_text())
    finished = json.loads((run_folder / "config.json").read_text())["finished"]
    assert facts["trained"] == {
        "step": finished["steps"], "images_seen": finished["images_seen"], "wall_seconds": finished["wall_seconds"]
    }  # fmt: skip
    assert Image.open(out.parent / "interpolation.png").size == (2 + 8 * 18, 2 + 4 * 18)
    assert len(images) == 8


def test_export_that_does_not_fit_on_the_disk_names_the_file(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(UserError, match=r"netG_2\.pth: needs .* on the disk"):
        sampling.main(sampling.parse_args(["--exp", f"{run_folder}/", "--export_nvlabs", str(tmp_path / "netG_2.pth")]))
    assert list(tmp_path.glob("netG*")) == []
