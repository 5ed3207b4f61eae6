"""The Gaussian process against closed forms."""

import pytest
import torch
from improved_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
)
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.schedules import space_timesteps
from improved_diffusion.script_util import create_gaussian_diffusion

MEAN, STD = 0.3, 0.4  # of the Gaussian data


def exact_score(diffusion, original, learn_sigma=False):
    """Return the best network for pixels from N(MEAN, STD^2): the noise's conditional mean given x_t."""
    alpha_bar = torch.from_numpy(original.alphas_cumprod).float()

    def model(x, t):
        if original.rescale_timesteps:
            t = (t * original.num_timesteps / 1000).round().long()
        a = alpha_bar[t].view(-1, 1, 1, 1)
        gain = a.sqrt() * STD**2 / (a * STD**2 + 1 - a)
        x_0 = MEAN + gain * (x - a.sqrt() * MEAN)
        eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        return torch.cat([eps, torch.zeros_like(eps)], dim=1) if learn_sigma else eps

    return model


@pytest.mark.parametrize(
    ("sampler", "respacing", "schedule", "learn_sigma"),
    [
        ("ancestral", "", "linear", False),
        ("ancestral", "250", "cosine", True),
        ("ddim", "ddim50", "cosine", True),
        ("ddim eta 1", "250", "cosine", True),
    ],
)
def test_exact_score_reproduces_mean_and_variance_of_gaussian_data(sampler, respacing, schedule, learn_sigma):
    options = {"steps": 1000, "learn_sigma": learn_sigma, "sigma_small": True, "noise_schedule": schedule}
    options["rescale_timesteps"] = True
    original = create_gaussian_diffusion(**options)
    diffusion = create_gaussian_diffusion(**options, timestep_respacing=respacing)
    model = exact_score(diffusion, original, learn_sigma)
    torch.manual_seed(0)
    shape = (64, 3, 16, 16)  # 49,152 values: standard errors of 0.002 in the mean, 0.0013 in the deviation
    if sampler == "ancestral":
        samples = diffusion.p_sample_loop(model, shape, clip_denoised=False)
    else:
        samples = diffusion.ddim_sample_loop(model, shape, clip_denoised=False, eta=float(sampler == "ddim eta 1"))
    assert abs(samples.mean().item() - MEAN) < 0.015
    assert abs(samples.std().item() - STD) < 0.02


@pytest.mark.parametrize("mean_type", list(ModelMeanType))
@pytest.mark.parametrize("var_type", list(ModelVarType))
def test_every_parametrisation_of_the_truth_recovers_the_image(mean_type, var_type):
    betas = get_named_beta_schedule("cosine", 50)
    d = GaussianDiffusion(betas=betas, model_mean_type=mean_type, model_var_type=var_type, loss_type=LossType.MSE)
    torch.manual_seed(0)
    x, noise, t = torch.rand(3, 3, 8, 8) * 2 - 1, torch.randn(3, 3, 8, 8), torch.tensor([1, 20, 40])
    x_t = d.q_sample(x, t, noise)
    truth = {
        ModelMeanType.START_X: x,
        ModelMeanType.EPSILON: noise,
        ModelMeanType.VELOCITY: d.velocity(x, noise, t),
        ModelMeanType.PREVIOUS_X: d.q_posterior_mean_variance(x, x_t, t)[0],
    }[mean_type]
    output = torch.cat([truth, torch.zeros_like(x)], dim=1) if d.learns_variance else truth
    out = d.p_mean_variance(lambda x, t: output, x_t, t)
    torch.testing.assert_close(out["pred_xstart"], x, atol=1e-4, rtol=0)
    losses = d.training_losses(lambda x, t: output, x, t, noise=noise)
    torch.testing.assert_close(losses["mse"], torch.zeros(3), atol=1e-8, rtol=0)


def test_only_the_deterministic_path_is_reversed():
    d = create_gaussian_diffusion(steps=100)
    with pytest.raises(ValueError, match="eta must be 0"):
        d.ddim_reverse_sample(lambda x, t: x, torch.zeros(1, 3, 4, 4), torch.tensor([5]), eta=0.5)


def test_a_process_of_one_step_samples():
    spaced = create_gaussian_diffusion(steps=100, timestep_respacing="ddim1")
    assert spaced.p_sample_loop(lambda x, t: x, (1, 3, 4, 4)).isfinite().all()


def test_ddim_respacing_accepts_every_count():
    for count in range(1, 1001):
        kept = space_timesteps(1000, f"ddim{count}")
        assert len(kept) == count
        assert min(kept) == 0
        assert max(kept) < 1000


@pytest.mark.parametrize("respacing", ["ddim0", "ddim1001", "ddim", "many", "1001", "600,600", "0", "10,,3"])
def test_impossible_respacing_is_refused(respacing):
    with pytest.raises(ValueError, match="timestep_respacing"):
        space_timesteps(1000, respacing)


def test_wrong_channel_count_is_refused_by_name():
    d = create_gaussian_diffusion(steps=100, learn_sigma=True)
    with pytest.raises(ValueError, match="learn_sigma"):
        d.p_sample(lambda x, t: x, torch.zeros(1, 3, 4, 4), torch.tensor([5]))


def test_spaced_process_refuses_steps_outside():
    kwargs = {"model_mean_type": ModelMeanType.EPSILON, "model_var_type": ModelVarType.FIXED_SMALL}
    with pytest.raises(ValueError, match="use_timesteps"):
        SpacedDiffusion([0, 100], betas=get_named_beta_schedule("cosine", 100), loss_type=LossType.MSE, **kwargs)
