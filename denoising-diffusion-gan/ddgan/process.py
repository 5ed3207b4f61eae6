"""Few-step diffusion process and its posterior (Xiao et al. 2022, section 3; Ho et al. 2020, Eq. 7)."""

import numpy as np
import torch
from torch import Tensor, nn

TIME_EPSILON = 1e-3  # the continuous process starts here, not at 0 (Song et al. 2021, appendix C)


def make_betas(num_timesteps: int, beta_min: float, beta_max: float, use_geometric: bool) -> np.ndarray:
    """Discretize a variance-preserving process into T noising steps.

    Args:
        num_timesteps: T.
        beta_min, beta_max: ends of the continuous schedule; for `use_geometric` the variances at both ends.
        use_geometric: whether the variance grows geometrically instead of by the VP-SDE (Song et al. 2021, Eq. 32).

    Returns:
        (T,) float64 in (0, 1): the variance that each step adds.
    """
    times = TIME_EPSILON + (1 - TIME_EPSILON) * np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    if use_geometric:
        alpha_bar = 1 - beta_min * (beta_max / beta_min) ** times
    else:
        alpha_bar = np.exp(-0.5 * times**2 * (beta_max - beta_min) - times * beta_min)
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


class DenoisingProcess(nn.Module):
    """T large noising steps x_0 -> ... -> x_T, and q(x_t | x_{t+1}, x_0).

    Index t in [0, T) is the transition between x_t and x_{t+1}; the paper counts from 1. x_0 is the clean image.
    Tables are computed in float64 and used in float32.

    Arguments are those of `make_betas`.
    """

    betas: Tensor
    alpha_bar: Tensor
    posterior_coef_x_0: Tensor

    def __init__(self, num_timesteps: int, beta_min: float = 0.1, beta_max: float = 20.0, use_geometric: bool = False):
        super().__init__()
        self.num_timesteps = num_timesteps
        betas = make_betas(num_timesteps, beta_min, beta_max, use_geometric)
        alpha_bar = np.cumprod(1 - betas)
        before = np.concatenate([[1.0], alpha_bar[:-1]])  # alpha_bar of x_t, exactly 1 for x_0
        variance = betas * (1 - before) / (1 - alpha_bar)
        tables = {
            "betas": betas,
            "alpha_bar": alpha_bar,
            "signal_scale": np.sqrt(before),  # of x_0 in x_t
            "noise_scale": np.sqrt(1 - before),
            "step_signal_scale": np.sqrt(1 - betas),  # of x_t in x_{t+1}
            "step_noise_scale": np.sqrt(betas),
            "posterior_coef_x_0": betas * np.sqrt(before) / (1 - alpha_bar),
            "posterior_coef_x_t_plus_1": (1 - before) * np.sqrt(1 - betas) / (1 - alpha_bar),
            "posterior_variance": variance,
            "posterior_std": np.sqrt(variance),
        }
        self.tables: dict[str, np.ndarray] = tables
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)
        # Computed, this coefficient is 1 only up to rounding; the last step must return x_0 exactly.
        self.posterior_coef_x_0[0] = 1.0

    def _at(self, name: str, t: Tensor) -> Tensor:
        return getattr(self, name)[t][:, None, None, None]

    def q_sample_pairs(
        self, x_0: Tensor, t: Tensor, noise_for_x_t: Tensor, noise_for_x_t_plus_1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sample (x_t, x_{t+1}) from q(x_t, x_{t+1} | x_0).

        x_0 are (N, C, H, W) float32 images in [-1, 1], t is (N,) int64 in [0, T), and both noises are independent
        standard normal. t = 0 gives x_t = x_0.
        """
        x_t = self._at("signal_scale", t) * x_0 + self._at("noise_scale", t) * noise_for_x_t
        x_t_plus_1 = self._at("step_signal_scale", t) * x_t + self._at("step_noise_scale", t) * noise_for_x_t_plus_1
        return x_t, x_t_plus_1

    def sample_posterior(self, x_0: Tensor, x_t_plus_1: Tensor, t: Tensor, noise: Tensor, eta: float = 1.0) -> Tensor:
        """Sample x_t from q(x_t | x_{t+1}, x_0), the reverse step, or with less new noise for eta below 1.

        With eta below 1 part of the noise of x_{t+1} is kept instead of new noise (Song et al. 2021, DDIM, Eq. 12). If
        x_0 is a sample of q(x_0 | x_{t+1}), the noise in x_{t+1} is standard normal and independent of it, so x_t has
        the correct distribution for every eta.

        Args:
            x_0, x_t_plus_1: (N, C, H, W) float32; x_0 is the generator's prediction in [-1, 1].
            t: (N,) int64 in [0, T); t = 0 returns `x_0` exactly.
            noise: (N, C, H, W) float32, standard normal.
            eta: standard deviation of the new noise relative to the posterior's, in [0, 1].
        """
        if eta == 1:
            mean = self._at("posterior_coef_x_0", t) * x_0 + self._at("posterior_coef_x_t_plus_1", t) * x_t_plus_1
            return mean + self._at("posterior_std", t) * noise
        alpha_bar, std = self._at("alpha_bar", t), eta * self._at("posterior_std", t)
        old_noise = (x_t_plus_1 - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        kept = (self._at("noise_scale", t).square() - std.square()).sqrt()
        return self._at("signal_scale", t) * x_0 + kept * old_noise + std * noise
