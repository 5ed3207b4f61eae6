"""The Gaussian diffusion process: its coefficients, its forward side, and what a network's output says.

Papers: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Nichol & Dhariwal 2021 (improved DDPM).
Timesteps are 0-based: x_start is the image, t = 0 the least noisy step, and x_t has been noised t + 1 times.
Images are (N, C, H, W) float32 in [-1, 1]; model_kwargs reach the network as keyword arguments.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from .schedules import posterior

Model = Callable[..., Tensor]
Denoise = Callable[[Tensor], Tensor]


class ModelMeanType(Enum):
    """What the network predicts."""

    PREVIOUS_X = auto()  # the mean of x_{t-1}
    START_X = auto()  # x_0
    EPSILON = auto()  # the noise in x_t
    VELOCITY = auto()  # sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, section 4)


class ModelVarType(Enum):
    """Where the variance of a reverse step comes from."""

    LEARNED = auto()  # the network's second half, as a log-variance
    FIXED_SMALL = auto()  # the posterior's variance, beta tilde
    FIXED_LARGE = auto()  # beta
    LEARNED_RANGE = auto()  # the network interpolates between these two


class LossType(Enum):
    """What training minimises."""

    MSE = auto()  # L_simple, plus the bound's term divided by T where the variance is learned
    RESCALED_MSE = auto()  # the same with the bound's term divided by 1,000: L_hybrid
    KL = auto()  # a term of the bound, in bits per dimension
    RESCALED_KL = auto()  # the same times T, an estimate of the whole bound: L_vlb

    def is_vb(self) -> bool:
        """Return True if this is the variational bound itself."""
        return self in (LossType.KL, LossType.RESCALED_KL)


class LossWeighting(Enum):
    """How much a timestep's squared error counts in training, in terms of SNR = alpha_bar / (1 - alpha_bar)."""

    UNIFORM = auto()  # 1, whatever the network predicts
    MIN_SNR = auto()  # min(SNR, gamma) on the error of x_0 (Hang et al. 2023, section 3.4)


class DiffusionProcess:
    """T steps of Gaussian noise and their reversal, given the variances.

    Every coefficient is a (T,) float64 attribute computed once; the device's float32 copies are made once too.

    Args:
        betas: (T,) variances in (0, 1], T at least 1. After a 1 nothing is left of the image: what divides by
            alphas_cumprod is infinite there.
        model_mean_type: prediction of the network.
        model_var_type: source of the variances.
        loss_type: loss of `training_losses`.
        rescale_timesteps: hand t * 1000 / T to the network, so that it sees the same range for every T.
        loss_weighting: weights of the squared errors; the terms of the bound are not weighted.
        snr_gamma: gamma of MIN_SNR, above 0.

    Raises:
        ValueError: betas are not (T,) in (0, 1], or the weighting does not fit what the network predicts.
    """

    def __init__(
        self,
        *,
        betas: np.ndarray | Sequence[float],
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        loss_type: LossType,
        rescale_timesteps: bool = False,
        loss_weighting: LossWeighting = LossWeighting.UNIFORM,
        snr_gamma: float = 5.0,
    ) -> None:
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps

        betas = np.array(betas, dtype=np.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError("betas must be one-dimensional and not empty, each above 0 and at most 1")
        self.betas = betas
        self.num_timesteps = self.original_num_steps = len(betas)
        self.alphas_cumprod = np.cumprod(1.0 - betas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.alphas_cumprod_next = np.append(self.alphas_cumprod[1:], 0.0)

        # q(x_t | x_0), Ho et al. 2020, Eq. 4
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - self.alphas_cumprod)
        self.log_one_minus_alphas_cumprod = np.log(1.0 - self.alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1.0)

        # q(x_{t-1} | x_t, x_0), Ho et al. 2020, Eqs. 6 and 7
        self.posterior_mean_coef1, self.posterior_mean_coef2, self.posterior_variance = posterior(
            betas, self.alphas_cumprod, self.alphas_cumprod_prev
        )
        # The posterior's variance is zero at t = 0; its logarithm borrows the next step's there. A process
        # of a single step has no next one.
        first = self.posterior_variance[1] if self.num_timesteps > 1 else betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(first, self.posterior_variance[1:]))
        self.log_betas = np.log(betas)
        # FIXED_LARGE: beta, but the posterior's value at t = 0 gives a better likelihood of the pixels.
        self.fixed_large_variance = np.append(first, betas[1:])
        self.fixed_large_log_variance = np.log(self.fixed_large_variance)
        self.loss_weights = self._loss_weights(loss_weighting, snr_gamma)
        self.learns_variance = model_var_type in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    def _loss_weights(self, weighting: LossWeighting, gamma: float) -> np.ndarray | None:
        """Return the (T,) weights of the squared errors of the network's prediction, None for ones.

        For one x_t the squared error of the noise is SNR times that of x_0, and that of the velocity SNR + 1 times.
        """
        if weighting == LossWeighting.UNIFORM:
            return None
        if self.model_mean_type == ModelMeanType.PREVIOUS_X:
            raise ValueError("min-SNR weights are defined for predictions of x_0, noise or velocity")
        if not 0 < gamma < np.inf:
            raise ValueError(f"snr_gamma must be above 0 and finite, not {gamma!r}")
        noise = 1.0 - self.alphas_cumprod
        if self.model_mean_type == ModelMeanType.EPSILON:
            with np.errstate(divide="ignore"):  # no signal is left after a beta of 1
                return np.minimum(1.0, gamma * noise / self.alphas_cumprod)
        of_velocity = np.minimum(self.alphas_cumprod, gamma * noise)
        return of_velocity if self.model_mean_type == ModelMeanType.VELOCITY else of_velocity / noise

    @overload
    def _at(self, table: str, t: Tensor, like: Tensor) -> Tensor: ...

    @overload
    def _at(self, table: str, t: int, like: Tensor) -> float: ...

    def _at(self, table: str, t: Tensor | int, like: Tensor) -> Tensor | float:
        """Look up a coefficient for each image, (N,) int64 -> (N, 1, 1, 1) float32, or for all, int -> float."""
        if isinstance(t, int):
            return float(getattr(self, table)[t])
        key = (table, t.device)
        if key not in self._on_device:
            with torch.inference_mode(False):
                self._on_device[key] = torch.from_numpy(getattr(self, table).astype(np.float32)).to(t.device)
        return self._on_device[key][t].view(-1, *[1] * (like.ndim - 1))

    def _model_timesteps(self, t: Tensor) -> Tensor:
        """Return the network's input for timesteps of this process."""
        return t.float() * (1000.0 / self.original_num_steps) if self.rescale_timesteps else t

    # The forward process

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mean, variance and log-variance of q(x_t | x_0) (Ho et al. 2020, Eq. 4).

        Args:
            x_start: (N, C, H, W).
            t: (N,) int64 in [0, T).

        Returns:
            Mean like x_start; variance and log-variance (N, 1, 1, 1).
        """
        std = self._at("sqrt_one_minus_alphas_cumprod", t, x_start)
        log_variance = self._at("log_one_minus_alphas_cumprod", t, x_start)
        return self._at("sqrt_alphas_cumprod", t, x_start) * x_start, std**2, log_variance

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Sample x_t from q(x_t | x_0) (Ho et al. 2020, Eq. 4).

        Args:
            x_start: (N, C, H, W), clean images in [-1, 1].
            t: (N,) int64 in [0, T).
            noise: standard normal like x_start; sampled where None.

        Returns:
            Like x_start, unbounded.

        Raises:
            ValueError: noise and x_start differ in shape.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        if noise.shape != x_start.shape:
            raise ValueError(f"noise is {tuple(noise.shape)}, x_start {tuple(x_start.shape)}")
        mean, _, _ = self.q_mean_variance(x_start, t)
        return mean + self._at("sqrt_one_minus_alphas_cumprod", t, x_start) * noise

    def velocity(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Compute sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, section 4).

        Args:
            x_start: (N, C, H, W), clean images in [-1, 1].
            noise: (N, C, H, W), standard normal.
            t: (N,) int64 in [0, T).

        Returns:
            Like x_start, unbounded.
        """
        of_x_start = self._at("sqrt_one_minus_alphas_cumprod", t, x_start)
        return self._at("sqrt_alphas_cumprod", t, x_start) * noise - of_x_start * x_start

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eqs. 6, 7).

        Returns:
            Mean like x_start; variance and log-variance (N, 1, 1, 1).
        """
        mean = self._at("posterior_mean_coef1", t, x_t) * x_start + self._at("posterior_mean_coef2", t, x_t) * x_t
        log_variance = self._at("posterior_log_variance_clipped", t, x_t)
        return mean, self._at("posterior_variance", t, x_t), log_variance

    # What the network's output says

    def _call(self, model: Model, x: Tensor, t: Tensor, model_kwargs: dict[str, Any] | None) -> Tensor:
        return model(x, self._model_timesteps(t), **(model_kwargs or {}))

    def p_mean_variance(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Compute p(x_{t-1} | x_t) and the image it points to.

        Args:
            model: called as model(x, t, **model_kwargs); returns C channels, 2C where variances are learned.
            x: (N, C, H, W), x_t.
            t: (N,) int64 in [0, T).
            clip_denoised: clip the predicted image to [-1, 1].
            denoised_fn: applied to the predicted image before clipping.

        Returns:
            'mean', 'variance', 'log_variance' and 'pred_xstart', each like x.
        """
        output = self._call(model, x, t, model_kwargs)
        return self._moments(output, x, t, clip_denoised, denoised_fn)

    def _moments(
        self, output: Tensor, x: Tensor, t: Tensor, clip_denoised: bool, denoised_fn: Denoise | None = None
    ) -> dict[str, Tensor]:
        prediction, variance, log_variance = self._split(output, x, t)
        pred_xstart = self._pred_xstart(prediction, x, t, clip_denoised, denoised_fn)
        if self.model_mean_type == ModelMeanType.PREVIOUS_X:
            mean = prediction
        else:
            mean, _, _ = self.q_posterior_mean_variance(pred_xstart, x, t)
        return {
            "mean": mean,
            "variance": variance.expand_as(x),
            "log_variance": log_variance.expand_as(x),
            "pred_xstart": pred_xstart,
        }

    def _split(self, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the prediction proper, the variance and the log-variance that the network's output means."""
        channels = x.shape[1]
        expected = (x.shape[0], channels * (2 if self.learns_variance else 1), *x.shape[2:])
        if output.shape != expected:
            raise ValueError(f"the network returned {tuple(output.shape)}, not {expected}: does learn_sigma fit?")
        if self.model_var_type == ModelVarType.FIXED_SMALL:
            return (
                output,
                self._at("posterior_variance", t, x),
                self._at("posterior_log_variance_clipped", t, x),
            )
        if self.model_var_type == ModelVarType.FIXED_LARGE:
            return output, self._at("fixed_large_variance", t, x), self._at("fixed_large_log_variance", t, x)
        prediction, values = output.split(channels, dim=1)
        if self.model_var_type == ModelVarType.LEARNED:
            return prediction, values.exp(), values
        low, high = self._at("posterior_log_variance_clipped", t, x), self._at("log_betas", t, x)
        log_variance = interpolate_log_variance(values, low, high)
        return prediction, log_variance.exp(), log_variance

    def _pred_xstart(
        self, prediction: Tensor, x_t: Tensor, t: Tensor | int, clip_denoised: bool, denoised_fn: Denoise | None
    ) -> Tensor:
        """Return the image that a prediction stands for, after `denoised_fn` and clipping; t as in `_at`."""
        if self.model_mean_type == ModelMeanType.EPSILON:  # Ho et al. 2020, Eq. 4, solved for x_0
            of_x = self._at("sqrt_recip_alphas_cumprod", t, x_t)
            prediction = of_x * x_t - self._at("sqrt_recipm1_alphas_cumprod", t, x_t) * prediction
        elif self.model_mean_type == ModelMeanType.VELOCITY:  # Salimans & Ho 2022, appendix D
            of_x = self._at("sqrt_alphas_cumprod", t, x_t)
            prediction = of_x * x_t - self._at("sqrt_one_minus_alphas_cumprod", t, x_t) * prediction
        elif self.model_mean_type == ModelMeanType.PREVIOUS_X:  # Ho et al. 2020, Eq. 7, solved for x_0
            of_x = self._at("posterior_mean_coef2", t, x_t)
            prediction = (prediction - of_x * x_t) / self._at("posterior_mean_coef1", t, x_t)
        if denoised_fn is not None:
            prediction = denoised_fn(prediction)
        return prediction.clamp(-1, 1) if clip_denoised else prediction

    def _eps_from_xstart(self, x_t: Tensor, t: Tensor, pred_xstart: Tensor) -> Tensor:
        return (self._at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - pred_xstart) / self._at(
            "sqrt_recipm1_alphas_cumprod", t, x_t
        )


def interpolate_log_variance(values: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return the log-variance that a network of ModelVarType.LEARNED_RANGE means (Nichol & Dhariwal 2021, Eq. 15).

    Args:
        values: (N, C, H, W), the second half of its output; -1 stands for `low`, 1 for `high`.
        low: the posterior's log-variance.
        high: the logarithm of beta.
    """
    v = (values + 1) / 2
    return v * high + (1 - v) * low
