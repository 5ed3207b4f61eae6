"""The variational bound against a closed form, and image_nll.py as a user runs it."""

import errno
import json
import math

import measure_nll
import numpy as np
import pytest
import torch
from comparison.cli import UserError
from diffusion_testing import call_script, script_command, tiny_flags, write_run
from improved_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
)
from improved_diffusion.script_util import create_model_and_diffusion
from test_parallel import finish, mpiexec

NLL = "scripts/image_nll.py"
MEAN, STD, LEVEL = 0.05, 0.25, 2 / 255
ARRAYS = ("vb", "mse", "xstart_mse")


def exact_reverse(betas):
    """Return the network that knows p(x_{t-1} | x_t) of pixels from N(MEAN, STD^2), by Bayes's rule."""
    alpha_bar = np.append(1.0, np.cumprod(1 - betas))  # of x_0, x_1, ...
    prior_variance = alpha_bar[:-1] * STD**2 + 1 - alpha_bar[:-1]
    variance = 1 / (1 / prior_variance + (1 - betas) / betas)
    tables = [np.sqrt(alpha_bar[:-1]) * MEAN / prior_variance, np.sqrt(1 - betas) / betas, variance]
    shift, gain, variance = (torch.from_numpy(table) for table in tables)

    def model(x, t):
        s, g, v = (table[t].view(-1, 1, 1, 1) for table in (shift, gain, variance))
        return torch.cat([v * (s + g * x), v.log().expand_as(x)], dim=1).float()

    return model


def test_bound_of_the_exact_model_of_gaussian_pixels_is_their_entropy():
    betas = get_named_beta_schedule("linear", 300)
    types = {"model_mean_type": ModelMeanType.PREVIOUS_X, "model_var_type": ModelVarType.LEARNED}
    diffusion = GaussianDiffusion(betas=betas, loss_type=LossType.KL, **types)
    generator = torch.Generator().manual_seed(0)
    x = MEAN + STD * torch.randn(128, 3, 16, 16, generator=generator)
    x = ((x + 1) / LEVEL).round() * LEVEL - 1  # 8-bit pixels
    assert (x.abs() > 1).float().mean() < 1e-3
    torch.manual_seed(0)
    bpd = diffusion.calc_bpd_loop(exact_reverse(betas), x, clip_denoised=False)
    entropy = math.log2(STD * math.sqrt(2 * math.pi * math.e) / LEVEL)
    likelihood = torch.distributions.Normal(MEAN, STD).log_prob(x).mean().item() / math.log(2) + math.log2(LEVEL)
    assert bpd["total_bpd"].mean().item() == pytest.approx(-likelihood, abs=0.01)
    assert bpd["total_bpd"].mean().item() == pytest.approx(entropy, abs=0.015)  # 98,304 pixels: 0.005 of chance
    assert bpd["prior_bpd"].max() < 1e-3


@pytest.fixture
def run_dir(tmp_path):
    """A run folder, and beside it images.npz with 7 images in two classes."""
    network, _ = create_model_and_diffusion(**tiny_flags(learn_sigma=True, class_cond=True), num_classes=2)
    options = tiny_flags(learn_sigma=True, class_cond=True, diffusion_steps=30, noise_schedule="cosine")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels, arr_1=np.arange(7) % 2)
    return write_run(tmp_path / "run", network, options)


def nll(run_dir, *flags, data="images.npz"):
    common = ["--device cpu --threads 1 --model_path", run_dir / "ema_0.99_000020.pt"]
    return call_script(NLL, *common, "--data_dir", run_dir.parent / data, *flags)


def results(folder):
    return json.loads((folder / "nll.json").read_text()), [np.load(folder / f"{n}_terms.npz")["arr_0"] for n in ARRAYS]


def test_files_hold_the_terms_from_the_noisiest_to_the_decoder(run_dir, capsys):
    assert nll(run_dir, "--batch_size 4") == 0
    facts, (vb, mse, xstart_mse) = results(run_dir)
    assert vb.shape == mse.shape == xstart_mse.shape == (30,)
    assert facts["images"] == facts["data"]["images"] == 7
    assert facts["decoder"] == pytest.approx(vb[-1])
    assert facts["bits_per_dim"] == pytest.approx(vb.sum() + facts["prior"])
    assert sum(facts["terms_by_quartile"].values()) == pytest.approx(vb.sum())
    assert facts["terms_by_quartile"]["q3"] == pytest.approx(vb[:7].sum())
    assert xstart_mse[0] > xstart_mse[-1]  # the noisiest step knows least of the image
    assert (facts["network"], facts["timesteps"], facts["precision"]) == ("ema", 30, "float32")
    assert sorted(path.name for path in run_dir.glob("nll*")) == ["nll.json", "nll.png"]
    assert nll(run_dir, "--batch_size 2") == 0
    assert "measured already" in capsys.readouterr().out


def test_interrupted_measurement_goes_on_and_counts_every_image_once(run_dir, tmp_path, monkeypatch):
    assert nll(run_dir, "--out_dir", tmp_path / "whole", "--batch_size 2") == 0
    loop, seen = GaussianDiffusion.calc_bpd_loop, []

    def cut(diffusion, network, x_start, *args):
        if len(seen) == 2:
            seen.append(None)
            raise KeyboardInterrupt
        seen.append(x_start)
        return loop(diffusion, network, x_start, *args)

    monkeypatch.setattr(GaussianDiffusion, "calc_bpd_loop", cut)
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        nll(run_dir, "--out_dir", out, "--batch_size 2")
    assert not (out / "nll.json").exists()
    assert nll(run_dir, "--out_dir", out, "--batch_size 3 --seed 1") == 0  # another measurement keeps its hands off
    begun = len(seen)
    assert nll(run_dir, "--out_dir", out, "--batch_size 3") == 0
    assert [len(x) for x in seen[begun:]] == [3]
    whole, mended = results(tmp_path / "whole"), results(out)
    assert mended[0]["bits_per_dim"] == pytest.approx(whole[0]["bits_per_dim"], rel=1e-5)
    np.testing.assert_allclose(mended[1], whole[1], rtol=1e-3, atol=1e-6)
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def test_respaced_bound_is_another_one_and_subsets_are_spread(run_dir):
    assert nll(run_dir, "--timestep_respacing 5 --num_samples 3 --clip_denoised False") == 0
    facts, (vb, *_) = results(run_dir)
    assert vb.shape == (5,)
    assert (facts["timesteps"], facts["timestep_respacing"], facts["images"]) == (5, "5", 3)


def test_images_that_do_not_fit_are_refused(run_dir, tmp_path):
    pixels = np.load(tmp_path / "images.npz")["arr_0"]
    np.savez(tmp_path / "bare.npz", arr_0=pixels)
    np.savez(tmp_path / "many.npz", arr_0=pixels, arr_1=np.arange(7))
    with pytest.raises(
        UserError, match=r"--data_dir .*bare\.npz: the model is class-conditional, and these images have no labels"
    ):
        nll(run_dir, data="bare.npz")
    with pytest.raises(UserError, match=r"--data_dir .*many\.npz: labels up to 6; the model has 2 classes"):
        nll(run_dir, data="many.npz")
    with pytest.raises(UserError, match="--noise_schedule linear: the model was trained with cosine"):
        nll(run_dir, "--noise_schedule linear")
    assert not list(run_dir.glob("nll*"))


def test_two_processes_share_the_images_and_find_the_same(run_dir, tmp_path):
    assert nll(run_dir, "--out_dir", tmp_path / "one") == 0
    flags = ["--model_path", run_dir / "ema_0.99_000020.pt", "--data_dir", tmp_path / "images.npz", "--device cpu"]
    command = script_command(NLL, *flags, "--batch_size 2 --out_dir", tmp_path / "two")
    done = finish([*mpiexec(), *command])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bits/dim over 7 images") == 1
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert two[0]["bits_per_dim"] == pytest.approx(one[0]["bits_per_dim"], rel=1e-5)
    np.testing.assert_allclose(two[1], one[1], rtol=1e-3, atol=1e-6)
    assert not list((tmp_path / "two").glob("*part*"))


def test_sums_that_do_not_fit_on_the_disk_are_named(tmp_path, monkeypatch):
    sums = measure_nll.Sums(tmp_path / "nll.part-1.npz", 2, 3)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"nll\.part-1\.npz: could not be written \(No space left on device; "):
        sums.save()
