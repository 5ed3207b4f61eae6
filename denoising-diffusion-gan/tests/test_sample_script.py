"""test_ddgan.py and loss_graph.py as a user runs them."""

import json
import pickle
from pathlib import Path

import loss_graph
import numpy as np
import pytest
import test_ddgan as sampling
import torch
import train_ddgan
from comparison import inception, shapes
from comparison.cli import UserError
from comparison.images import save_npz
from comparison.interpolation import WalkNoise
from comparison.metrics import frechet
from comparison.runs import save_checkpoint
from ddgan import fid
from ddgan.process import DenoisingProcess
from ddgan.sampling import sample, sample_from
from helpers_ddgan import TINY_NETWORK, TINY_TRAINING, archive, config_of, make_images, weights_by_recipe
from PIL import Image

CPU = ["--device", "cpu", "--precision", "float32", "--threads", "1"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling")
    pictures = make_images(folder / "pictures")
    flags = ["--dataset", str(pictures), "--exp", f"{folder}/run/", *TINY_NETWORK, *TINY_TRAINING, "--num_epoch", "2"]
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


def test_seeds_give_other_images(run_folder):
    first, second = (draw(run_folder, "--num_samples", "8", "--seed", seed) for seed in ("1", "2"))
    assert (first != second).any(axis=(1, 2, 3)).all()


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
        (["--epoch_id", "7"], "--epoch_id 7"),
        (["--real_img_dir", "/none", "--compute_fid"], "--real_img_dir /none"),
        (["--out", "samples.jpg"], "--out samples.jpg"),
    ],
)
def test_wrong_flags_are_named_and_nothing_is_drawn(run_folder, arguments, message):
    before = {path: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    with pytest.raises(UserError, match=message):
        draw(run_folder, *arguments)
    assert {path: path.stat().st_mtime_ns for path in run_folder.iterdir()} == before


def test_missing_truncated_and_foreign_checkpoints_are_refused(run_folder, tmp_path):
    whole = (run_folder / "netG_2.pth").read_bytes()
    (tmp_path / "netG_1.pth").write_bytes(whole[: len(whole) // 2])
    save_checkpoint(tmp_path / "netG_2.pth", {"step": 1}, model="gans")
    (tmp_path / "netG_3.pth").write_bytes((run_folder / "content.pth").read_bytes())
    for epoch, message in (("1", "truncated"), ("2", "of gans"), ("3", "state of a training"), ("4", "--epoch_id 4")):
        with pytest.raises(UserError, match=message):
            draw(tmp_path, "--epoch_id", epoch)
    with pytest.raises(UserError, match="no run in"):
        draw(tmp_path / "nowhere")


def test_published_weights_are_sampled_directly(tmp_path):
    arrays = archive("ddgan_generator.npz")
    config = config_of(arrays, "small_ddpm_block")
    torch.save(weights_by_recipe(arrays, "small_ddpm_block", "module."), tmp_path / "netG_1200.pth")
    flags = ["--num_channels_dae", "32", "--num_res_blocks", "1", "--resblock_type", "ddpm", "--resamp_with_conv"]
    flags += ["--progressive_input", "none", "--num_samples", "2"]
    assert config["progressive_input"] == "none"
    assert draw(tmp_path, "--epoch_id", "1200", *flags).shape == (2, 32, 32, 3)
    with pytest.raises(UserError, match="do not fit the flags"):
        draw(tmp_path, "--epoch_id", "1200", *flags, "--nz", "7")


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
    with pytest.raises(UserError, match=r"--inception_weights .*x: no such file"):
        draw(run_folder, "--num_samples", "4", "--compute_fid", "--inception_weights", str(tmp_path / "x"))


def test_fid_is_that_of_the_samples_and_the_real_images_or_statistics(run_folder, monkeypatch, tmp_path):
    def moments_of_pixels(images, library, *, weights, device):
        assert library == "pytorch-fid"
        assert weights == tmp_path / "weights.pth"
        x = images[:, :, ::8, ::8].flatten(1).double()
        x = torch.nn.functional.pad(x, (0, 2048 - x.shape[1]))
        return x.mean(0), torch.cov(x.T)

    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr(fid, "image_statistics", moments_of_pixels)
    monkeypatch.setattr(fid, "require", lambda library: None)
    size = draw(run_folder, "--num_samples", "1").shape[1]
    real = shapes.dataset(200, size, limit=30)[0]
    save_npz(tmp_path / "real.npz", real.permute(0, 2, 3, 1).numpy())
    mean, cov = moments_of_pixels(real, "pytorch-fid", weights=tmp_path / "weights.pth", device="cpu")
    np.savez(tmp_path / "stats.npz", mu=mean, sigma=cov)
    flags = ["--num_samples", "8", "--compute_fid", "--inception_weights", str(tmp_path / "weights.pth")]
    found = []
    for name in ("real.npz", "stats.npz"):
        draw(run_folder, *flags, "--real_img_dir", str(tmp_path / name))
        found.append(json.loads((run_folder / "sampling.json").read_text())["fid"])
    drawn = torch.from_numpy(np.load(run_folder / "samples.npz")["arr_0"]).permute(0, 3, 1, 2)
    one = moments_of_pixels(drawn, "pytorch-fid", weights=tmp_path / "weights.pth", device="cpu")
    assert found == pytest.approx([frechet(*one, mean, cov)] * 2, rel=1e-6)


def test_statistics_files_are_read_without_running_code(tmp_path):
    mu, sigma = np.arange(2048.0), np.eye(2048)
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma)
    np.save(tmp_path / "b.npy", {"mu": mu, "sigma": sigma}, allow_pickle=True)
    for name in ("a.npz", "b.npy"):
        found = fid.check_reference(str(tmp_path / name))
        np.testing.assert_array_equal(found.mu, mu)
        np.testing.assert_array_equal(found.sigma, sigma)

    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    np.save(tmp_path / "c.npy", np.array(Harmful(), dtype=object), allow_pickle=True)
    np.savez(tmp_path / "d.npz", mu=mu, sigma=np.eye(2))
    (tmp_path / "e.npy").write_bytes(pickle.dumps({"mu": mu}))
    for name in ("c.npy", "d.npz", "e.npy", "missing.npy"):
        with pytest.raises(UserError, match="--real_img_dir"):
            fid.check_reference(str(tmp_path / name))


def test_loss_graph_draws_both_losses(run_folder, tmp_path):
    arguments = [f"{run_folder}/", "--out", str(tmp_path / "out" / "loss.png")]
    assert loss_graph.main(loss_graph.parse_args(arguments)) == 0
    assert Image.open(tmp_path / "out" / "loss.png").size[0] > 300
    with pytest.raises(UserError, match="no progress"):
        loss_graph.main(loss_graph.parse_args([f"{tmp_path}/"]))


def test_benchmark_writes_timing_instead_of_samples(run_folder, tmp_path):
    flags = ["--exp", f"{run_folder}/", *CPU, "--benchmark", "--benchmark_seconds", "1e-4"]
    assert sampling.main(sampling.parse_args([*flags, "--out", str(tmp_path / "a" / "samples.npz")])) == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["timing.json"]
    timing = json.loads((tmp_path / "a" / "timing.json").read_text())
    assert timing.keys() >= {
        *("schema", "protocol", "model", "sampler", "checkpoint", "network", "precision", "device", "threads"),
        *("versions", "parameters", "nfe", "gflop_per_evaluation", "gflop_per_image", "batches", "best", "largest"),
        "skipped",
    }
    assert (timing["sampler"], timing["network"], timing["nfe"]) == ("posterior, 2 steps", "ema", 2)
    assert timing["gflop_per_image"] == pytest.approx(2 * timing["gflop_per_evaluation"], rel=1e-4)
    for flag in (["--compute_fid"], ["--png_dir", str(tmp_path / "png")]):
        with pytest.raises(UserError, match=f"{flag[0]}: --benchmark draws no images"):
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


def test_walks_hold_latents_and_posterior_noise_and_begin_at_samples():
    def predict(x, t, z):
        return torch.tanh(x + z.mean(dim=1)[:, None, None, None])

    process, shape = DenoisingProcess(3), (3, 4, 4)
    samples = sample(predict, process, range(4), seed=1, nz=5, shape=shape, device=torch.device("cpu"))
    walk = sample_from(WalkNoise(1, 1, "cpu", "x_T"), predict, process, 5, shape)
    assert torch.allclose(walk[0], samples[2], atol=1e-5)
    assert not torch.allclose(walk[-1], samples[3], atol=1e-2)  # its x_T, but not its other noise
    steps = (walk[1:] - walk[:-1]).abs().mean()
    assert steps < (walk[-1] - walk[0]).abs().mean() / 2


def test_documented_command_parses():
    line = (
        "--dataset cifar10 --exp ddgan_cifar10_exp1 --num_channels 3 --num_channels_dae 128 --num_timesteps 4 "
        "--num_res_blocks 2 --nz 100 --z_emb_dim 256 --n_mlp 4 --ch_mult 1 2 2 2 --epoch_id 50 --compute_fid "
        "--real_img_dir denoising-diffusion-gan/data/cifar-10-batches-py/"
    )
    args = sampling.parse_args(line.split())
    assert (args.epoch_id, args.ch_mult, args.compute_fid) == (50, [1, 2, 2, 2], True)
    assert not hasattr(args, "fir")
