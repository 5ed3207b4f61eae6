"""The two terms of the variational bound: a KL divergence and a discretized likelihood."""

import math

import torch
from torch import Tensor


def normal_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    """Compute KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))) elementwise, in nats.

    The arguments may be of any shapes that broadcast together.
    """
    return 0.5 * (logvar2 - logvar1 - 1.0 + torch.exp(logvar1 - logvar2) + (mean1 - mean2) ** 2 * torch.exp(-logvar2))


def approx_standard_normal_cdf(x: Tensor) -> Tensor:
    """Approximate the distribution function of N(0, 1), within 2e-4 (Page 1977).

    The published likelihoods use this approximation, not erf.
    """
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, *, means: Tensor, log_scales: Tensor) -> Tensor:
    """Compute the log-probability of 8-bit pixels under a Gaussian cut into 256 bins.

    Ho et al. 2020, Eq. 13: the outermost bins reach to infinity.

    Args:
        x: (N, C, H, W), pixels in [-1, 1], 2 / 255 apart.
        means: (N, C, H, W).
        log_scales: (N, C, H, W), logarithms of the standard deviations.

    Returns:
        (N, C, H, W), nats, at most 0.

    Raises:
        ValueError: the shapes differ.
    """
    if not x.shape == means.shape == log_scales.shape:
        raise ValueError(f"shapes differ: {x.shape}, {means.shape}, {log_scales.shape}")
    centered = x - means
    inverse_scale = torch.exp(-log_scales)
    cdf_above = approx_standard_normal_cdf(inverse_scale * (centered + 1.0 / 255.0))
    cdf_below = approx_standard_normal_cdf(inverse_scale * (centered - 1.0 / 255.0))
    probability = torch.where(x < -0.999, cdf_above, torch.where(x > 0.999, 1.0 - cdf_below, cdf_above - cdf_below))
    return torch.log(probability.clamp(min=1e-12))


def mean_flat(x: Tensor) -> Tensor:
    """Average over all but the first axis: (N, ...) -> (N,)."""
    return x.flatten(1).mean(dim=1)
