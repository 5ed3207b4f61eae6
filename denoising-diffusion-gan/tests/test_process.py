"""The few-step process: golden tables, the published arrays, exactness at the last step."""

import numpy as np
import pytest
import torch
from ddgan.process import DenoisingProcess
from helpers_ddgan import archive, config_of

# T = 4, columns beta, sqrt(alpha_bar), c1, c2, sqrt(v), computed with 40 decimal digits from the formulas.
GOLDEN = [
    (0.478255302962, 0.722318971811, 1.0, 0.0, 0.0),
    (0.849206004317, 0.280492366372, 0.665778364959, 0.201576276684, 0.663942126893),
    (0.956417709153, 0.0585566298748, 0.269190889442, 0.193000808862, 0.940320394103),
    (0.987403901151, 0.00657194777783, 0.0578215421178, 0.111852342995, 0.991998344161),
]
CASES = ["cifar10", "geometric8", "T2"]


def test_tables_equal_the_golden_values():
    tables = DenoisingProcess(4).tables
    found = np.stack(
        [
            tables["betas"],
            np.sqrt(tables["alpha_bar"]),
            tables["posterior_coef_x_0"],
            tables["posterior_coef_x_t_plus_1"],
            tables["posterior_std"],
        ],
        axis=1,
    )
    np.testing.assert_allclose(found, np.array(GOLDEN), rtol=1e-11)
    np.testing.assert_allclose(DenoisingProcess(2).tables["betas"], [0.921324032, 0.999451033], atol=6e-10)
    np.testing.assert_allclose(DenoisingProcess(1).tables["betas"], [0.99995681], atol=6e-9)


@pytest.mark.parametrize("case", CASES)
def test_tables_equal_the_published_coefficients(case):
    arrays = archive("ddgan_process.npz")
    tables = DenoisingProcess(**config_of(arrays, case)).tables

    def published(name):
        return arrays[f"{case}/{name}"].astype(np.float64)

    # The published tables start with an unused step of variance 1e-8, and are computed in float32.
    close = {"rtol": 1e-5, "atol": 2e-7}
    np.testing.assert_allclose(tables["step_noise_scale"], published("coeff/sigmas")[1:], **close)
    np.testing.assert_allclose(tables["step_signal_scale"], published("coeff/a_s")[1:], **close)
    np.testing.assert_allclose(tables["signal_scale"], published("coeff/a_s_cum")[:-1], **close)
    np.testing.assert_allclose(tables["noise_scale"], published("coeff/sigmas_cum")[:-1], **close)
    np.testing.assert_allclose(tables["betas"], published("posterior/betas"), **close)
    np.testing.assert_allclose(tables["alpha_bar"], published("posterior/alphas_cumprod"), **close)
    np.testing.assert_allclose(tables["posterior_variance"], published("posterior/posterior_variance"), **close)
    np.testing.assert_allclose(tables["posterior_coef_x_0"], published("posterior/posterior_mean_coef1"), **close)
    np.testing.assert_allclose(
        tables["posterior_coef_x_t_plus_1"], published("posterior/posterior_mean_coef2"), **close
    )
    log_variance = np.log(tables["posterior_variance"].clip(min=1e-20))
    np.testing.assert_allclose(log_variance, published("posterior/posterior_log_variance_clipped"), rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_pairs_and_posterior_samples_equal_the_published_ones(case):
    arrays = archive("ddgan_process.npz")
    process = DenoisingProcess(**config_of(arrays, case))
    x_0, noise_t, noise_next, t, posterior_noise, *expected = (
        torch.tensor(arrays[f"{case}/{name}"])
        for name in (
            *("x_start", "noise_for_x_t", "noise_for_x_t_plus_1", "t", "posterior_noise"),
            *("x_t", "x_t_plus_1", "posterior_sample"),
        )
    )
    x_t, x_t_plus_1 = process.q_sample_pairs(x_0, t, noise_t, noise_next)
    sample = process.sample_posterior(x_0, x_t_plus_1, t, posterior_noise)
    for found, published in zip((x_t, x_t_plus_1, sample), expected, strict=True):
        torch.testing.assert_close(found, published, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_timesteps", [1, 2, 4, 8])
def test_the_last_step_returns_the_prediction_exactly(num_timesteps):
    process = DenoisingProcess(num_timesteps)
    x_0, x_1, noise = torch.randn(3, 5, 3, 4, 4).unbind(0)
    t = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(process.sample_posterior(x_0, x_1, t, noise), x_0)
    assert torch.equal(process.q_sample_pairs(x_0, t, noise, noise)[0], x_0)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_from_the_true_x_0_gives_the_forward_marginal_for_every_eta(eta):
    """Mean and variance of x_t given x_0, in closed form from those of x_{t+1}."""
    process = DenoisingProcess(4)
    for t in range(4):
        index, x_0 = torch.tensor([t]), torch.full((1, 1, 1, 1), 0.7)
        zero, one = torch.zeros_like(x_0), torch.ones_like(x_0)
        scale, spread = process.alpha_bar[t].sqrt(), (1 - process.alpha_bar[t]).sqrt()

        def step(old, new, x_0=x_0, index=index, scale=scale, spread=spread):
            return process.sample_posterior(x_0, scale * x_0 + spread * old, index, new, eta)

        mean = step(zero, zero)
        variance = (step(one, zero) - mean).square() + (step(zero, one) - mean).square()
        torch.testing.assert_close(mean, process.signal_scale[t] * x_0)
        torch.testing.assert_close(variance.flatten()[0], process.noise_scale[t].square(), atol=1e-6, rtol=1e-5)
