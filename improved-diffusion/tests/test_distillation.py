"""Noise levels, distillation against the exact path of Gaussian data, and few-step samples."""

import numpy as np
import pytest
import torch
from distill_train import LEVELS as GRIDS
from improved_diffusion.distillation import TrajectoryLoss
from improved_diffusion.few_steps import NoiseLevels, predict, sample_few_steps
from improved_diffusion.schedules import get_named_beta_schedule
from improved_diffusion.script_util import create_gaussian_diffusion

VARIANCE = 0.25  # of the Gaussian data
GOLDEN = [1.3e-05, 0.1367, 0.210775, 0.896517]  # losses of a path of each grid


def process(prediction="x_start"):
    return create_gaussian_diffusion(steps=1000, noise_schedule="cosine", prediction=prediction)


def gaussian_teacher(diffusion):
    """Return the network that predicts the expected image of Gaussian data, y c / (c + sigma^2)."""
    levels = NoiseLevels(diffusion.alphas_cumprod)

    def model(x, t):
        sigma = levels.sigma(t).float().view(-1, 1, 1, 1)
        return x * (1 + sigma**2).sqrt() * VARIANCE / (VARIANCE + sigma**2)

    return model


def exact_path(y, high, low):
    """Return where the path through y at the level `high` is at `low`."""
    return y * ((VARIANCE + low**2) / (VARIANCE + high**2)) ** 0.5


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_levels_and_timesteps_are_inverse(schedule):
    alphas = np.cumprod(1 - get_named_beta_schedule(schedule, 4000))
    levels = NoiseLevels(alphas)
    t = torch.linspace(0, 3999, 977, dtype=torch.float64)
    assert (levels.timestep(levels.sigma(t)) - t).abs().max() < 1e-6
    whole = levels.sigma(torch.arange(4000)).numpy()
    np.testing.assert_allclose(whole, np.sqrt((1 - alphas) / alphas), rtol=1e-10)
    outside = torch.tensor([whole[0] / 2, whole[-1] * 2])
    assert levels.timestep(outside).tolist() == [0, 3999]


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "x_start"])
def test_function_at_whole_timesteps_is_the_predicted_image_of_the_process(prediction):
    diffusion = process(prediction)
    levels, t = NoiseLevels(diffusion.alphas_cumprod), torch.tensor([3, 500, 990])
    x, output = torch.randn(2, 3, 3, 4, 4).unbind()
    signal = torch.from_numpy(diffusion.alphas_cumprod)[t].sqrt().float().view(-1, 1, 1, 1)
    image = predict(lambda *_: output, diffusion, levels, x / signal, levels.sigma(t))
    torch.testing.assert_close(image, diffusion._pred_xstart(output, x, t, False, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("high", "low"), [(80.0, 4.0), (4.0, 1.4), (1.0, 0.0), (20.0, 0.0)])
def test_step_towards_the_target_ends_on_the_exact_path(high, low):
    diffusion = process()
    loss = TrajectoryLoss(diffusion, gaussian_teacher(diffusion), GRIDS)
    y = 0.01 * torch.tensor([-high, high / 2]).view(2, 1, 1, 1)  # small, so that nothing is clipped
    level, end = torch.full((2,), high, dtype=torch.float64), torch.full((2,), low, dtype=torch.float64)

    def miss(substeps):
        image = loss.target(y, level, end, torch.full((2,), substeps), {})
        reached = low / high * y + (1 - low / high) * image
        return float(((reached - exact_path(y, high, low)) / exact_path(y, high, low)).abs().max())

    assert miss(64) < 0.01 if low else miss(64) < 0.02  # LAST_LEVEL remains
    assert miss(64) < miss(4)


def test_student_learns_the_paths_of_gaussian_data_in_one_and_two_evaluations():
    torch.manual_seed(0)
    diffusion = process()
    teacher, grids = gaussian_teacher(diffusion), {1: (20.0,), 2: (40.0, 1.0)}
    loss = TrajectoryLoss(diffusion, teacher, grids, teacher_steps=32)
    gain = torch.nn.Parameter(torch.zeros(3))
    points = loss.levels.timestep(torch.tensor([20.0, 40.0, 1.0]))

    def student(x, t):
        chosen = (t.double().unsqueeze(1) - points).abs().argmin(1)
        return teacher(x, t) + gain[chosen].view(-1, 1, 1, 1) * x

    optimizer = torch.optim.Adam([gain], lr=0.02)
    for _ in range(150):
        noise = 0.3 * torch.randn(64, 1, 2, 2)
        losses = loss.training_losses(student, noise, loss.starts[torch.arange(64) % 2], None, noise)
        optimizer.zero_grad()
        losses["loss"].mean().backward()
        optimizer.step()
    noise = 0.3 * torch.randn(50, 1, 2, 2)
    for grid in grids.values():
        images = sample_few_steps(student, diffusion, grid, noise, clip_denoised=False)
        untuned = sample_few_steps(teacher, diffusion, grid, noise, clip_denoised=False)
        exact = exact_path(grid[0] * noise, grid[0], 0.0)
        assert (images - exact).norm() / exact.norm() < 0.03
        assert (untuned - exact).norm() / exact.norm() > 0.3


def test_losses_of_a_fixed_student_are_known():
    diffusion = process()
    loss = TrajectoryLoss(diffusion, gaussian_teacher(diffusion), GRIDS, teacher_steps=8)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 1, 2, 2)).astype(np.float32))
    found = loss.training_losses(lambda x, t: 0.5 * x, noise, loss.starts, None, noise)["loss"]
    torch.testing.assert_close(found, torch.tensor(GOLDEN), rtol=1e-4, atol=1e-6)


def test_classes_go_to_teacher_and_student_with_their_rows():
    diffusion = process()
    levels = NoiseLevels(diffusion.alphas_cumprod)

    def model(x, t, y):
        return y.float().view(-1, 1, 1, 1).expand_as(x)

    loss = TrajectoryLoss(diffusion, model, GRIDS)
    noise, y = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    found = loss.training_losses(model, noise, loss.starts, {"y": y}, noise)["loss"]
    assert found.max() < 1e-3  # each path goes to its class
    image = predict(model, diffusion, levels, noise, torch.ones(4), {"y": y})
    torch.testing.assert_close(image[:, 0, 0, 0], y.float())
