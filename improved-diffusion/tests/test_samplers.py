"""Samplers against the loops that they shorten, against closed forms, and what they ask of the network."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from improved_diffusion import solvers
from improved_diffusion.samplers import SAMPLERS, SPACINGS, classifier_free, sample
from improved_diffusion.schedules import get_named_beta_schedule
from improved_diffusion.script_util import create_gaussian_diffusion


class Network:
    """A smooth stand-in for a network that notes the timesteps it is told; 2C channels where `double`."""

    def __init__(self, double=False):
        self.double, self.told = double, []

    def __call__(self, x, t, y=None):
        self.told.append(t)
        wave = torch.sin(3 * x + t.view(-1, 1, 1, 1) / 50)
        return torch.cat([wave, torch.cos(x)], dim=1) if self.double else wave


def noise(*shape, seed=0):
    return torch.randn(shape or (3, 3, 4, 4), generator=torch.Generator().manual_seed(seed))


def step_noise(step):
    return noise(seed=1000 + step)


@pytest.mark.parametrize("predict_xstart", [False, True])
@pytest.mark.parametrize(("learn_sigma", "sigma_small"), [(True, False), (False, True), (False, False)])
def test_ancestral_and_uniform_is_the_loop_of_the_respaced_process(learn_sigma, sigma_small, predict_xstart):
    common = {"steps": 400, "noise_schedule": "cosine", "learn_sigma": learn_sigma, "sigma_small": sigma_small}
    common["predict_xstart"] = predict_xstart
    spaced = create_gaussian_diffusion(**common, timestep_respacing="25")
    expected = spaced.p_sample_loop(Network(learn_sigma), (3, 3, 4, 4), noise=noise(), step_noise=step_noise)
    settings = {"sampler": "ancestral", "num_sampling_steps": 25, "spacing": "uniform", "step_noise": step_noise}
    drawn = sample(Network(learn_sigma), create_gaussian_diffusion(**common), noise(), **settings)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip_denoised", [False, True])
def test_ddim_and_uniform_is_the_loop_of_the_respaced_process(eta, clip_denoised):
    common = {"steps": 400, "noise_schedule": "linear", "learn_sigma": True}
    shared = {"clip_denoised": clip_denoised, "denoised_fn": lambda x: 0.9 * x, "eta": eta, "step_noise": step_noise}
    spaced = create_gaussian_diffusion(**common, timestep_respacing="25")
    expected = spaced.ddim_sample_loop(Network(True), (3, 3, 4, 4), noise=noise(), **shared)
    settings = {"sampler": "ddim", "num_sampling_steps": 25, "spacing": "uniform"}
    drawn = sample(Network(True), create_gaussian_diffusion(**common), noise(), **settings, **shared)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=2e-4)


def test_dpm_solver_of_first_order_is_ddim_and_of_second_the_published_update():
    alpha_bar = np.cumprod(1 - get_named_beta_schedule("cosine", 1000))
    t = [900, 600, 200]
    alpha, sigma = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
    lam = np.log(alpha / sigma)
    first, second, _ = solvers.make_plan(alpha_bar, "dpmpp", t)
    ddim = solvers.make_plan(alpha_bar, "ddim", t)
    noiseless = (sigma[1] / sigma[0], alpha[1] - sigma[1] / sigma[0] * alpha[0])  # Song et al. 2021, Eq. 12
    assert first.predictor == pytest.approx(ddim[0].predictor)
    assert ddim[0].predictor == pytest.approx(noiseless)
    # Lu et al. 2022, Algorithm 2
    h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
    gain = -alpha[2] * math.expm1(-h)
    assert second.predictor == pytest.approx((sigma[2] / sigma[1], gain * (1 + 1 / (2 * r)), -gain / (2 * r)))


def test_third_order_weights_solve_the_linear_system_of_unipc():
    alpha_bar = np.cumprod(1 - get_named_beta_schedule("cosine", 1000))
    t = list(range(900, 0, -80))
    plan = solvers.make_plan(alpha_bar, "unipc", t)
    alpha, sigma = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
    lam = np.log(alpha / sigma)
    # Zhao et al. 2023, Eqs. 3, 9 and 10 in their data-prediction form, with B(h) = exp(h) - 1
    i, h = 5, lam[6] - lam[5]
    phi = [-math.expm1(-h) / h]
    for n in range(1, 4):
        phi.append((1 / math.factorial(n) - phi[-1]) / h)
    r = np.array([(lam[4] - lam[5]) / h, (lam[3] - lam[5]) / h, 1.0])
    for weights, nodes in ((plan[5].predictor, r[:2]), (plan[6].corrector, r)):
        orders = range(1, len(nodes) + 1)
        matrix = np.array([nodes**n for n in orders])
        moments = np.array([h * phi[n] * math.factorial(n) for n in orders])
        of_node = alpha[6] * np.linalg.solve(matrix, moments)
        of_start = -alpha[6] * math.expm1(-h) - of_node.sum()
        order = (of_start, *of_node) if len(nodes) == 2 else (of_node[2], of_start, *of_node[:2])
        assert weights == pytest.approx((sigma[6] / sigma[i], *order), rel=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_network_is_evaluated_exactly_so_often(sampler):
    diffusion = create_gaussian_diffusion(steps=200, noise_schedule="cosine", learn_sigma=True)
    for spacing in SPACINGS:
        for steps in (1, 2, 3, 5, 20, 200):
            network = Network(double=True)
            drawn = sample(network, diffusion, noise(), sampler=sampler, num_sampling_steps=steps, spacing=spacing)
            assert len(network.told) == steps
            assert torch.isfinite(drawn).all()
            assert drawn.abs().max() <= 1


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_fall_without_repetition_and_all_are_kept_where_all_are_asked_for(spacing):
    for schedule, total in (("cosine", 4000), ("linear", 1000), ("linear", 21), ("cosine", 1)):
        alpha_bar = np.cumprod(1 - get_named_beta_schedule(schedule, total))
        for steps in {1, min(2, total), min(20, total), total // 2 or 1, total}:
            t = solvers.choose_timesteps(alpha_bar, steps, spacing)
            assert len(t) == steps
            assert all(later < earlier for earlier, later in pairwise(t))
            assert 0 <= t[-1] <= t[0] < total
        assert solvers.choose_timesteps(alpha_bar, total, spacing) == list(range(total))[::-1]


def test_sigma_max_is_the_noise_over_signal_at_the_start():
    alpha_bar = np.cumprod(1 - get_named_beta_schedule("cosine", 4000))
    sigma = np.sqrt(1 / alpha_bar - 1)
    for spacing in ("logsnr", "karras"):
        for sigma_max, start in ((None, 80), (20.0, 20), (1e9, sigma[-1])):
            t = solvers.choose_timesteps(alpha_bar, 20, spacing, sigma_max)
            assert sigma[[t[0], t[-1]]] == pytest.approx([start, 0.01], rel=0.02)


def test_timesteps_are_told_as_the_process_tells_them():
    for rescale in (False, True):
        diffusion = create_gaussian_diffusion(steps=400, rescale_timesteps=rescale)
        network = Network()
        sample(network, diffusion, noise(), sampler="unipc", num_sampling_steps=4, spacing="uniform")
        expected = torch.tensor([399, 266, 133, 0])
        expected = expected.float() * (1000 / 400) if rescale else expected
        assert all(t.shape == (3,) and t.dtype == expected.dtype for t in network.told)
        assert torch.equal(torch.stack(network.told)[:, 0], expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "euler"}, "sampler must be one of ancestral, .*not 'euler'"),
        ({"num_sampling_steps": 0}, "num_sampling_steps must .* from 1 to the process's 100, not 0"),
        ({"num_sampling_steps": 2.5}, "not 2.5"),
        ({"sigma_max": 10.0, "spacing": "uniform"}, "sigma_max is of the spacings logsnr and karras"),
        ({"sigma_max": 0.001}, "sigma_max must be above 0.01, not 0.001"),
        ({"eta": 0.5}, "eta is of the sampler ddim alone"),
        ({"sampler": "ddim", "eta": 2.0}, "eta must be between 0 and 1"),
        ({"generator": torch.Generator(), "step_noise": step_noise}, "exclude each other"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_network_is_called(settings, words):
    network, settings = Network(), {"sampler": "dpmpp", "num_sampling_steps": 5, **settings}
    with pytest.raises(ValueError, match=words):
        sample(network, create_gaussian_diffusion(steps=100), noise(), **settings)
    assert not network.told


def test_an_output_of_another_shape_is_refused():
    settings = {"sampler": "dpmpp", "num_sampling_steps": 5}
    with pytest.raises(ValueError, match=r"returned \(3, 2, 4, 4\), neither \(3, 3, 4, 4\) nor \(3, 6, 4, 4\)"):
        sample(lambda x, t: x[:, :2], create_gaussian_diffusion(steps=100), noise(), **settings)


def test_guidance_moves_away_from_the_prediction_without_class():
    def network(x, t, y, low_res=None):
        assert len(x) == len(t) == len(y) == len(low_res)
        return torch.cat([x * y.view(-1, 1, 1, 1), low_res * y.view(-1, 1, 1, 1)], dim=1)

    x, y, t = noise(), torch.tensor([0, 1, 2]), torch.tensor([5, 5, 5])
    out = classifier_free(network, 3.0)(x, t, y, low_res=2 * x)
    column = y.view(-1, 1, 1, 1)
    torch.testing.assert_close(out[:, :3], -x + 3 * (x * column + x))
    torch.testing.assert_close(out[:, 3:], 2 * x * column)
    assert classifier_free(network, 1.0) is network
    torch.testing.assert_close(classifier_free(network, 0.0)(x, t, y, low_res=x)[:, :3], -x)
    with pytest.raises(ValueError, match="guidance_scale must be 0 or more, not -1"):
        classifier_free(network, -1)


# Gaussian data with the pixel covariance of CIFAR-10: the best prediction is known and linear in x_t, so the variance
# of the samples, and their distance from the data, follow without random sampling.


@pytest.fixture(scope="module")
def distance():
    """Return the function from (sampler, evaluations, spacing, eta) to the Frechet distance over the total variance."""
    with np.load(Path(__file__).parent / "cifar10_eigenvalues.npz") as file:
        eigenvalues = file["arr_0"].astype(np.float64)
    diffusion = create_gaussian_diffusion(steps=4000, noise_schedule="cosine", sigma_small=True)
    return lambda *setting: frechet_share(eigenvalues, diffusion, *setting)


def frechet_share(eigenvalues, diffusion, sampler, steps, spacing, eta=0.0):
    """Return sum (std - std of the samples)^2 / total variance, of Gaussians with one eigenbasis (Dowson & Landau)."""
    noisy = sampler in solvers.NOISY and (sampler != "ddim" or eta > 0)
    # The noise of each step needs an image of its own; a subset will do, as the result is smooth in the eigenvalue.
    count = len(eigenvalues)
    some = np.unique(np.r_[0 : min(64, count), 64:count:12, count - 1]) if noisy else slice(None)
    variance = torch.from_numpy(np.clip(eigenvalues[some], 1e-12, None))
    alpha_bar = torch.from_numpy(diffusion.alphas_cumprod)

    def exact(x, t):  # the noise expected in x_t
        level = alpha_bar[t].view(-1, 1, 1, 1)
        return x * (1 - level).sqrt() / (level * variance.view(1, -1, 1, 1) + 1 - level)

    # The sampler is linear: image 0 is its response to x_T, image k to the noise of the step k from the end.
    impulses = torch.eye(steps if noisy else 1, dtype=torch.float64)[:, :, None, None, None]
    x = impulses[0].expand(-1, len(variance), 1, 1)
    settings = {"sampler": sampler, "num_sampling_steps": steps, "spacing": spacing, "eta": eta}
    drawn = sample(exact, diffusion, x, **settings, clip_denoised=False, step_noise=lambda step: impulses[step])
    std = drawn.flatten(1).norm(dim=0).numpy()
    std = np.interp(np.log(np.clip(eigenvalues, 1e-12, None))[::-1], variance.log().numpy()[::-1], std[::-1])[::-1]
    return float(((np.sqrt(eigenvalues) - std) ** 2).sum() / eigenvalues.sum())


@pytest.mark.parametrize(
    ("sampler", "steps", "spacing", "known"),
    [
        ("ancestral", 250, "uniform", 6e-4),
        ("ddim", 20, "uniform", 6.5e-2),
        ("dpmpp", 20, "uniform", 5.6e-2),
    ],
)
def test_with_the_exact_score_known_settings_lose_what_is_known(distance, sampler, steps, spacing, known):
    assert distance(sampler, steps, spacing) == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize(
    ("sampler", "steps", "most"),
    [("dpmpp", 20, 2e-4), ("dpmpp", 10, 1e-3), ("unipc", 20, 5e-5), ("unipc", 10, 5e-4), ("dpmpp-sde", 20, 1e-3)],
)
def test_with_the_exact_score_few_evaluations_suffice(distance, sampler, steps, most):
    assert distance(sampler, steps, "logsnr") <= most
    assert distance(sampler, steps, "logsnr") < distance(sampler, steps, "uniform") / 50


def test_with_the_exact_score_ddim_with_full_noise_is_the_ancestral_sampler(distance):
    assert distance("ddim", 40, "uniform", 1.0) == pytest.approx(distance("ancestral", 40, "uniform"), rel=1e-9)
