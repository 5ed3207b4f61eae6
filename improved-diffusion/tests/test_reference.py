"""Networks, processes and mathematics agree with the arrays computed by OpenAI's implementation."""

import json

import numpy as np
import pytest
import torch
from diffusion_testing import Archive, Case, fill_from_names
from improved_diffusion.losses import discretized_gaussian_log_likelihood, normal_kl
from improved_diffusion.schedules import get_named_beta_schedule, space_timesteps
from improved_diffusion.script_util import create_model_and_diffusion, sr_create_model_and_diffusion

PROCESSES = [
    "learn_sigma_cosine_ddim50",
    "flags_sh",
    "use_kl_respaced",
    "fixed_large_eps",
    "fixed_small_xstart",
]
every_process = pytest.mark.parametrize("process_case", PROCESSES, indirect=True)


def assert_close(actual, expected, atol=1e-4, rtol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize("name", ["cifar10_published", "flags_sh", "class_cond64", "plain_norm", "super_res"])
def test_network_agrees_with_reference(name):
    case = Case("improved_diffusion_unet", name)
    create = sr_create_model_and_diffusion if name == "super_res" else create_model_and_diffusion
    model, _ = create(**case.config)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == json.loads(str(case.table("names")))
    assert sum(p.numel() for p in model.parameters()) == int(case["parameters"])
    fill_from_names(model)
    condition = {key: case[key] for key in ("y", "low_res") if key in case}
    with torch.no_grad():
        assert_close(model(case["x"], case["t"], **condition), case["output"])
        channels_last = model.to(memory_format=torch.channels_last)
        x = case["x"].contiguous(memory_format=torch.channels_last)
        assert_close(channels_last(x, case["t"], **condition), case["output"])


@every_process
def test_tables_agree_with_reference(process_case):
    case, _, diffusion = process_case
    for name in (
        "betas",
        "alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ):
        np.testing.assert_allclose(getattr(diffusion, name), case.table(name), rtol=1e-12, atol=1e-12)
    assert diffusion.timestep_map == case.table("timestep_map").tolist()


@every_process
def test_single_steps_agree_with_reference(process_case):
    case, model, diffusion = process_case
    t, noise = case["t"], case["step_noise"]
    x_t = diffusion.q_sample(case["x_start"], t, case["noise"])
    assert_close(x_t, case["q_sample"], atol=1e-6)
    with torch.no_grad():
        out = diffusion.p_mean_variance(model, x_t, t)
        for name in ("mean", "variance", "log_variance"):
            assert_close(out[name], case[f"p_mean_variance/{name}"])
        # x_0 = (x_t - noise scale * eps) / signal scale magnifies the network's rounding where little signal is left
        magnified = max(1.0, diffusion.sqrt_recipm1_alphas_cumprod[t].max() / 20)
        assert_close(out["pred_xstart"], case["p_mean_variance/pred_xstart"], atol=1e-4 * magnified)
        assert_close(diffusion.p_sample(model, x_t, t, noise=noise)["sample"], case["p_sample"])
        for eta in (0, 1):
            sample = diffusion.ddim_sample(model, x_t, t, eta=float(eta), noise=noise)["sample"]
            assert_close(sample, case[f"ddim_eta{eta}"])
        assert_close(diffusion.ddim_reverse_sample(model, x_t, t)["sample"], case["ddim_reverse"])


@every_process
def test_losses_agree_with_reference(process_case):
    case, model, diffusion = process_case
    with torch.no_grad():
        terms = diffusion.training_losses(model, case["x_start"], case["t"], noise=case["noise"])
    expected = {name for name in ("loss", "mse", "vb") if f"training_losses/{name}" in case}
    assert set(terms) == expected
    for name in expected:
        assert_close(terms[name], case[f"training_losses/{name}"], atol=1e-6, rtol=5e-5)


@every_process
def test_likelihood_and_loops_agree_with_reference(process_case, monkeypatch):
    case, model, diffusion = process_case
    # prior_bpd is near zero, a difference of float32 numbers near one: absolute tolerance
    assert_close(diffusion._prior_bpd(case["x_start"]), case["prior_bpd"], atol=1e-7)
    if "bpd/vb" not in case:
        return

    def fixed_noise(like):
        rng = np.random.Generator(np.random.PCG64(13))
        return torch.from_numpy(rng.standard_normal(tuple(like.shape)).astype(np.float32))

    monkeypatch.setattr(torch, "randn_like", fixed_noise)
    bpd = diffusion.calc_bpd_loop(model, case["x_start"])
    for name, value in bpd.items():
        assert_close(value, case[f"bpd/{name}"], atol=1e-4, rtol=1e-4)
    x_T = case["x_T"]
    loop = diffusion.ddim_sample_loop(model, x_T.shape, noise=x_T)
    assert_close(loop, case["ddim_loop"])
    loop = diffusion.p_sample_loop(model, x_T.shape, noise=x_T, step_noise=lambda t: fixed_noise(x_T))
    assert_close(loop, case["p_loop_fixednoise"])


def test_schedules_agree_with_reference():
    arrays = Archive("improved_diffusion_math")
    for name in ("linear", "cosine"):
        for steps in (100, 1000, 4000):
            betas = get_named_beta_schedule(name, steps)
            np.testing.assert_allclose(betas, arrays[f"betas/{name}/{steps}"], rtol=1e-12, atol=1e-12)
    for key, expected in json.loads(str(arrays["space_timesteps"])).items():
        steps, sections = key.split("|")
        assert sorted(space_timesteps(int(steps), sections)) == expected, key


def test_bound_terms_agree_with_reference():
    arrays = Archive("improved_diffusion_math")
    kl_args = torch.from_numpy(arrays["kl/args"])
    assert_close(normal_kl(*kl_args), torch.from_numpy(arrays["kl/output"]), atol=1e-6)
    x, means, log_scales = (torch.from_numpy(arrays[f"dll/{name}"]) for name in ("x", "means", "log_scales"))
    log_likelihood = discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales)
    assert_close(log_likelihood, torch.from_numpy(arrays["dll/output"]), atol=1e-5)


def test_every_array_of_the_references_is_checked(request):
    own = {name for name in globals() if name.startswith("test_")}
    chosen = {item.originalname for item in request.session.items if item.module.__name__ == __name__}
    if own - chosen:
        pytest.skip("only some tests of this file are run")
    for name in ("unet", "process", "math"):
        archive = Archive(f"improved_diffusion_{name}")
        unread = set(archive.arrays.files) - archive.used
        # the resampler's arrays belong to test_resample.py
        assert {key for key in unread if not key.startswith("resampler/")} == set()
