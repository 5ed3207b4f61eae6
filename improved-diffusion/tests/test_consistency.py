"""Consistency functions against closed forms: levels and timesteps, boundary, Gaussian data, sampling."""

import math

import numpy as np
import pytest
import torch
from improved_diffusion.consistency import ConsistencyLoss
from improved_diffusion.few_steps import NoiseLevels, predict, sample_few_steps
from improved_diffusion.schedules import get_named_beta_schedule
from improved_diffusion.script_util import create_gaussian_diffusion
from torch import nn

VARIANCE = 0.25  # of the Gaussian data


def process(prediction="velocity", schedule="cosine", steps=1000):
    return create_gaussian_diffusion(steps=steps, noise_schedule=schedule, prediction=prediction)


def true_function(diffusion):
    """Return the network whose consistency function is that of Gaussian data: y sqrt(c / (c + sigma^2))."""
    levels = NoiseLevels(diffusion.alphas_cumprod)

    def model(x, t):
        sigma = levels.sigma(t).float().view(-1, 1, 1, 1)
        signal = (1 + sigma**2).rsqrt()
        image = x / signal * (VARIANCE / (VARIANCE + sigma**2)).sqrt()
        return (signal * x - image) / (signal * sigma)

    return model


def denoiser(diffusion):
    """Return the network that predicts the velocity of the expected image, y c / (c + sigma^2)."""
    levels = NoiseLevels(diffusion.alphas_cumprod)

    def model(x, t):
        sigma = levels.sigma(t).float().view(-1, 1, 1, 1)
        signal = (1 + sigma**2).rsqrt()
        return (signal * x - x / signal * VARIANCE / (VARIANCE + sigma**2)) / (signal * sigma)

    return model


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_levels_and_timesteps_are_inverse(schedule):
    alphas = np.cumprod(1 - get_named_beta_schedule(schedule, 4000))
    levels = NoiseLevels(alphas)
    t = torch.linspace(0, 3999, 977, dtype=torch.float64)
    assert (levels.timestep(levels.sigma(t)) - t).abs().max() < 1e-6
    whole = levels.sigma(torch.arange(4000)).numpy()
    np.testing.assert_allclose(whole, np.sqrt((1 - alphas) / alphas), rtol=1e-10)
    outside = torch.tensor([levels.sigma_min / 2, levels.sigma_max * 2])
    assert levels.timestep(outside).tolist() == [0, 3999]


def test_cosine_levels_agree_with_the_formula_of_the_schedule():
    levels = NoiseLevels(process(steps=4000).alphas_cumprod)
    sigma = torch.tensor([0.05, 0.5, 1.0, 10.0], dtype=torch.float64)
    alpha_bar = 1 / (1 + sigma**2)
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    expected = 4000 * (2 / math.pi * 1.008 * torch.arccos((alpha_bar * start).sqrt()) - 0.008) - 1
    torch.testing.assert_close(levels.timestep(sigma), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "x_start"])
def test_function_at_whole_timesteps_is_the_predicted_image_of_the_process(prediction):
    diffusion = process(prediction)
    levels, t = NoiseLevels(diffusion.alphas_cumprod), torch.tensor([3, 500, 990])
    x, output = torch.randn(2, 3, 3, 4, 4).unbind()
    signal = torch.from_numpy(diffusion.alphas_cumprod)[t].sqrt().float().view(-1, 1, 1, 1)
    image = predict(lambda *_: output, diffusion, levels, x / signal, levels.sigma(t))
    torch.testing.assert_close(image, diffusion._pred_xstart(output, x, t, False, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
def test_function_of_an_image_without_noise_is_the_image(prediction):
    diffusion = process(prediction)
    y, sigma = torch.randn(4, 3, 4, 4), torch.full((4,), 1e-7, dtype=torch.float64)
    image = predict(lambda x, t: torch.ones_like(x), diffusion, NoiseLevels(diffusion.alphas_cumprod), y, sigma)
    torch.testing.assert_close(image, y, atol=1e-6, rtol=0)


def test_lower_level_is_below_and_its_target_at_zero_is_the_image():
    loss = ConsistencyLoss(process(), q=2.0)
    sigma = torch.logspace(-2, 1.9, 100, dtype=torch.float64)
    r = loss.lower_level(sigma)
    assert (r < sigma).all()
    assert (r >= 0).all()
    assert (r == 0).any()
    assert (r > 0).any()
    x, noise = torch.randn(2, 3, 3, 4, 4).unbind()
    low = torch.full((3,), 0.02, dtype=torch.float64)
    model = denoiser(loss.diffusion)
    found = loss.difference(model, x, low, torch.zeros(3, dtype=torch.float64), None, noise)
    expected = predict(model, loss.diffusion, loss.levels, x + 0.02 * noise, low) - x
    torch.testing.assert_close(found, expected)


def test_both_levels_see_the_same_dropout_mask():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 3, 1))
    loss = ConsistencyLoss(process())
    x, noise = torch.randn(2, 4, 3, 4, 4).unbind()
    sigma = torch.ones(4, dtype=torch.float64)
    same = loss.difference(lambda x, t: network(x), x, sigma, sigma, None, noise)
    assert not same.any()
    same.sum().backward()  # the gradient is that of the first term alone
    assert any(p.grad.any() for p in network.parameters())
    assert (network(x) - network(x)).any()


@pytest.mark.parametrize("level", [0.2, 1.0, 5.0])
def test_slope_of_the_difference_is_zero_for_the_consistency_function_alone(level):
    torch.manual_seed(0)
    loss, count = ConsistencyLoss(process(steps=4000), q=256.0), 400_000
    x, noise = VARIANCE**0.5 * torch.randn(count, 1, 1, 1), torch.randn(count, 1, 1, 1)
    sigma = torch.full((count,), level, dtype=torch.float64)
    r = loss.lower_level(sigma)
    y = (x + level * noise).flatten()

    def slope(model):
        change = loss.difference(model, x, sigma, r, None, noise).flatten() / (sigma - r).float()
        return float((change * y).mean() / y.square().mean())

    assert slope(true_function(loss.diffusion)) == pytest.approx(0, abs=6e-3)
    expected = -VARIANCE * level / (VARIANCE + level**2) ** 2
    assert slope(denoiser(loss.diffusion)) == pytest.approx(expected, rel=0.1, abs=6e-3)


def test_tuning_turns_the_denoiser_of_gaussian_data_into_its_consistency_function():
    torch.manual_seed(0)
    diffusion = process()
    loss, start = ConsistencyLoss(diffusion, q=4.0), denoiser(diffusion)
    correction = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    nn.init.zeros_(correction[2].weight)
    nn.init.zeros_(correction[2].bias)

    def model(x, t):
        return start(x, t) + correction(t.view(-1, 1) / 500 - 1).view(-1, 1, 1, 1) * x

    optimizer = torch.optim.Adam(correction.parameters(), lr=5e-3)
    for step in range(2000):
        loss.q = 4.0 ** (1 + step // 500)
        x, noise = VARIANCE**0.5 * torch.randn(256, 1, 1, 1), torch.randn(256, 1, 1, 1)
        sigma = torch.exp(2 * torch.randn(256, dtype=torch.float64) - 1.1).clamp(0.01, 80)
        difference = loss.difference(model, x, sigma, loss.lower_level(sigma), None, noise).flatten()
        optimizer.zero_grad()
        (difference.square() / (sigma - loss.lower_level(sigma)).float()).mean().backward()
        optimizer.step()
    sigma = torch.tensor([0.1, 0.3, 0.5, 1.0, 3.0], dtype=torch.float64)
    y = torch.ones(5, 1, 1, 1)
    with torch.no_grad():
        tuned = predict(model, diffusion, loss.levels, y, sigma).flatten()
        before = predict(start, diffusion, loss.levels, y, sigma).flatten()
    exact = (VARIANCE / (VARIANCE + sigma**2)).sqrt().float()
    assert (tuned - exact).abs().max() < 0.06
    assert (before - exact).abs().max() > 0.2


@pytest.mark.parametrize("sigmas", [[80.0], [80.0, 0.8], [80.0, 3.0, 0.8, 0.2]])
def test_samples_of_the_true_function_have_the_variance_of_the_data(sigmas):
    torch.manual_seed(0)
    diffusion, asked = process(steps=4000), []

    def step_noise(remaining):
        asked.append(remaining)
        return torch.randn(100_000, 1, 1, 1)

    images = sample_few_steps(
        true_function(diffusion), diffusion, sigmas, step_noise, renoise=True, clip_denoised=False
    )
    assert asked == list(range(len(sigmas), 0, -1))
    assert images.var().item() == pytest.approx(VARIANCE, rel=0.02)
