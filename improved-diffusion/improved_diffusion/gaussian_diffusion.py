"""Sampling from a diffusion process, training it, and its likelihood.

Papers: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Nichol & Dhariwal 2021 (improved DDPM).
The conventions are those of `process`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .losses import discretized_gaussian_log_likelihood, mean_flat, normal_kl
from .process import Denoise, DiffusionProcess, LossType, LossWeighting, Model, ModelMeanType, ModelVarType
from .schedules import betas_for_alpha_bar, ddim_std, ddim_weights, get_named_beta_schedule

__all__ = [
    "GaussianDiffusion",
    "LossType",
    "LossWeighting",
    "ModelMeanType",
    "ModelVarType",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
]

ModelKwargs = dict[str, Any] | None
StepNoise = Callable[[int], Tensor]  # timestep -> standard normal like x


class GaussianDiffusion(DiffusionProcess):
    """A diffusion process with its samplers, losses and likelihood; constructed as `DiffusionProcess`.

    Arguments that several methods share:
        model: called as model(x, t, **model_kwargs).
        clip_denoised: clip each predicted image to [-1, 1].
        denoised_fn: applied to each predicted image before clipping.
        eta: DDIM's noise, from 0 (deterministic) to 1 (the posterior's variance).
    """

    # Reverse steps

    def p_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: ModelKwargs = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Sample x_{t-1} from p(x_{t-1} | x_t), an ancestral step (Ho et al. 2020, Algorithm 2).

        Args:
            x: (N, C, H, W), x_t.
            t: (N,) int64 in [0, T).
            noise: standard normal like x; sampled where None.

        Returns:
            'sample' and 'pred_xstart', each like x. No noise is added at t = 0.
        """
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        std = torch.exp(0.5 * out["log_variance"])
        return {"sample": _add_noise(out["mean"], std, t, noise), "pred_xstart": out["pred_xstart"]}

    def ddim_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: ModelKwargs = None,
        eta: float = 0.0,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Step from x_t to x_{t-1} by DDIM (Song et al. 2021, Eqs. 12 and 16).

        Arguments and result as in `p_sample`; learned variances are not used.
        """
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        alpha_bar_prev = self._at("alphas_cumprod_prev", t, x)
        std = ddim_std(self._at("alphas_cumprod", t, x), alpha_bar_prev, eta)
        mean = self._ddim_mean(x, t, out["pred_xstart"], alpha_bar_prev, std)
        sample = _add_noise(mean, std, t, noise) if eta else mean
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def ddim_reverse_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: ModelKwargs = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """Step from x_t to x_{t+1} along DDIM's deterministic path, to encode an image.

        Raises:
            ValueError: eta is not 0; only the deterministic path can be reversed.
        """
        if eta:
            raise ValueError(f"eta must be 0 to reverse DDIM, not {eta}")
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        sample = self._ddim_mean(x, t, out["pred_xstart"], self._at("alphas_cumprod_next", t, x), 0.0)
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def _ddim_mean(self, x: Tensor, t: Tensor, pred_xstart: Tensor, alpha_bar: Tensor, std: Tensor | float) -> Tensor:
        """Return the mean of the DDIM step from x_t to the level `alpha_bar`."""
        of_x_start, of_eps = ddim_weights(alpha_bar, std)
        return of_x_start * pred_xstart + of_eps * self._eps_from_xstart(x, t, pred_xstart)

    # Loops over all steps

    def p_sample_loop(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: ModelKwargs = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        step_noise: StepNoise | None = None,
    ) -> Tensor:
        """Sample images by T ancestral steps; arguments of `p_sample_loop_progressive`, its last 'sample'."""
        steps = self.p_sample_loop_progressive(
            model, shape, noise, clip_denoised, denoised_fn, model_kwargs, device, progress, step_noise
        )
        return deque(steps, maxlen=1)[0]["sample"]

    def p_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: ModelKwargs = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        step_noise: StepNoise | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the result of each ancestral step, from noise to image.

        Args:
            shape: (N, C, H, W).
            noise: x_T, standard normal of that shape; sampled where None.
            device: device of the images; default: that of the noise, else of the network.
            progress: show a progress bar.
            step_noise: maps each t to the noise of its step; sampled where None.
        """

        def step(x: Tensor, t: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
            return self.p_sample(model, x, t, clip_denoised, denoised_fn, model_kwargs, noise)

        return self._loop(step, _start(model, shape, noise, device), progress, step_noise)

    def ddim_sample_loop(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: ModelKwargs = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
        step_noise: StepNoise | None = None,
    ) -> Tensor:
        """Sample images by T steps of DDIM; arguments of `ddim_sample_loop_progressive`, its last 'sample'."""
        steps = self.ddim_sample_loop_progressive(
            model, shape, noise, clip_denoised, denoised_fn, model_kwargs, device, progress, eta, step_noise
        )
        return deque(steps, maxlen=1)[0]["sample"]

    def ddim_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: ModelKwargs = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
        step_noise: StepNoise | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the result of each DDIM step; arguments as in `p_sample_loop_progressive`."""

        def step(x: Tensor, t: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
            return self.ddim_sample(model, x, t, clip_denoised, denoised_fn, model_kwargs, eta, noise)

        return self._loop(step, _start(model, shape, noise, device), progress, step_noise if eta else None)

    def _loop(
        self,
        step: Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]],
        x: Tensor,
        progress: bool,
        step_noise: StepNoise | None,
    ) -> Iterator[dict[str, Tensor]]:
        steps: Any = reversed(range(self.num_timesteps))
        if progress:
            from tqdm.auto import tqdm

            steps = tqdm(steps, total=self.num_timesteps, unit="step")
        for i in steps:
            t = torch.full((x.shape[0],), i, device=x.device)
            with torch.no_grad():  # not around the yield: it would reach into the caller
                out = step(x, t, step_noise(i) if step_noise else None)
            yield out
            x = out["sample"]

    # Training

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: ModelKwargs = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of one timestep for each image.

        L_simple: Ho et al. 2020, Eq. 14. L_hybrid and L_vlb: Nichol & Dhariwal 2021, Eqs. 4 to 7 and 16.

        Args:
            x_start: (N, C, H, W), clean images in [-1, 1].
            t: (N,) int64 in [0, T).
            noise: standard normal like x_start; sampled where None.

        Returns:
            'loss', and its parts 'mse', without the weight that it has in the loss, and 'vb' where it has them; each
            (N,) float32.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        output = self._call(model, x_t, t, model_kwargs)
        if self.loss_type.is_vb():
            vb, _ = self._vb_term(output, x_start, x_t, t, clip_denoised=False)
            return {"loss": vb * self.num_timesteps if self.loss_type == LossType.RESCALED_KL else vb}

        prediction, *_ = self._split(output, x_t, t)
        targets = {
            ModelMeanType.PREVIOUS_X: lambda: self.q_posterior_mean_variance(x_start, x_t, t)[0],
            ModelMeanType.START_X: lambda: x_start,
            ModelMeanType.EPSILON: lambda: noise,
            ModelMeanType.VELOCITY: lambda: self.velocity(x_start, noise, t),
        }
        terms = {"mse": mean_flat((targets[self.model_mean_type]() - prediction) ** 2)}
        weighted = terms["mse"]
        if self.loss_weights is not None:
            weighted = weighted * self._at("loss_weights", t, x_start).flatten()
        terms["loss"] = weighted
        if self.learns_variance:
            # The bound teaches the variance only: its gradient to the mean would drown that of the MSE.
            values = output[:, prediction.shape[1] :]
            frozen = torch.cat([prediction.detach(), values], dim=1)
            vb, _ = self._vb_term(frozen, x_start, x_t, t, clip_denoised=False)
            if self.loss_type == LossType.RESCALED_MSE:
                vb = vb * (self.num_timesteps / 1000.0)  # lambda = 0.001 of L_hybrid for the sum over T steps
            terms["vb"] = vb
            terms["loss"] = weighted + vb
        return terms

    # Likelihood

    def _vb_term(
        self, output: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor, clip_denoised: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the bound's term of each image in bits per dimension, (N,), and the predicted image.

        Ho et al. 2020, Eq. 5: L_{t-1}, a KL divergence, or at t = 0 the decoder's negative log-likelihood.
        """
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        out = self._moments(output, x_t, t, clip_denoised)
        kl = normal_kl(true_mean, true_log_variance, out["mean"], out["log_variance"])
        decoder_nll = -discretized_gaussian_log_likelihood(
            x_start, means=out["mean"], log_scales=0.5 * out["log_variance"]
        )
        bits = torch.where(t == 0, mean_flat(decoder_nll), mean_flat(kl)) / math.log(2.0)
        return bits, out["pred_xstart"]

    def _prior_bpd(self, x_start: Tensor) -> Tensor:
        """Return KL(q(x_T | x_0) || N(0, I)), (N,) bits per dimension; no network can lower it."""
        t = torch.full((x_start.shape[0],), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        zero = torch.zeros_like(log_variance)
        return mean_flat(normal_kl(mean, log_variance, zero, zero)) / math.log(2.0)

    @torch.no_grad()
    def calc_bpd_loop(
        self,
        model: Model,
        x_start: Tensor,
        clip_denoised: bool = True,
        model_kwargs: ModelKwargs = None,
        step_noise: StepNoise | None = None,
    ) -> dict[str, Tensor]:
        """Evaluate every term of the variational bound (Ho et al. 2020, Eq. 5), each at one sample of x_t.

        Args:
            x_start: (N, C, H, W), 8-bit pixels in [-1, 1].
            step_noise: maps each t to the noise in its x_t; sampled where None.

        Returns:
            'total_bpd' and 'prior_bpd', (N,); 'vb', 'xstart_mse' and 'mse' (of the noise), (N, T), columns
            from t = T - 1 down to 0. Bits per dimension.
        """
        columns: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
        for i in reversed(range(self.num_timesteps)):
            t = torch.full((x_start.shape[0],), i, device=x_start.device)
            noise = step_noise(i) if step_noise else torch.randn_like(x_start)
            x_t = self.q_sample(x_start, t, noise)
            output = self._call(model, x_t, t, model_kwargs)
            vb, pred_xstart = self._vb_term(output, x_start, x_t, t, clip_denoised)
            columns["vb"].append(vb)
            columns["xstart_mse"].append(mean_flat((pred_xstart - x_start) ** 2))
            columns["mse"].append(mean_flat((self._eps_from_xstart(x_t, t, pred_xstart) - noise) ** 2))
        terms = {name: torch.stack(values, dim=1) for name, values in columns.items()}
        prior_bpd = self._prior_bpd(x_start)
        return {"total_bpd": terms["vb"].sum(dim=1) + prior_bpd, "prior_bpd": prior_bpd, **terms}


def _add_noise(mean: Tensor, std: Tensor, t: Tensor, noise: Tensor | None) -> Tensor:
    """Return mean + std * noise, without the noise where t = 0."""
    noise = torch.randn_like(mean) if noise is None else noise
    return mean + (t != 0).view(-1, *[1] * (mean.ndim - 1)) * std * noise


def _start(model: Model, shape: Sequence[int], noise: Tensor | None, device: torch.device | str | None) -> Tensor:
    """Return x_T: the given noise, or standard normal on the network's device."""
    if noise is not None:
        if tuple(noise.shape) != tuple(shape):
            raise ValueError(f"noise is {tuple(noise.shape)}, not of the shape {tuple(shape)} asked for")
        return noise if device is None else noise.to(device)
    if device is None and isinstance(model, nn.Module):
        device = next(model.parameters()).device
    return torch.randn(tuple(shape), device=device)
