"""Sampling in few network evaluations, with any of `SAMPLERS`, and classifier-free guidance.

`solvers` chooses the timesteps and the weights; this module evaluates the network and adds the tensors.
"""

from typing import Any

import torch
from torch import Tensor

from .gaussian_diffusion import GaussianDiffusion, StepNoise
from .process import Denoise, Model, ModelVarType, interpolate_log_variance
from .solvers import SAMPLERS, SPACINGS, Step, check_settings, choose_timesteps, make_plan

__all__ = ["SAMPLERS", "SPACINGS", "classifier_free", "sample"]


@torch.no_grad()
def sample(
    model: Model,
    diffusion: GaussianDiffusion,
    noise: Tensor,
    *,
    sampler: str,
    num_sampling_steps: int,
    spacing: str = "logsnr",
    clip_denoised: bool = True,
    eta: float = 0.0,
    sigma_max: float | None = None,
    generator: torch.Generator | None = None,
    model_kwargs: dict[str, Any] | None = None,
    denoised_fn: Denoise | None = None,
    step_noise: StepNoise | None = None,
) -> Tensor:
    """Sample images from noise in exactly `num_sampling_steps` evaluations of the network.

    Every sampler ends with the image that the network predicts at the last, least noisy timestep.

    Args:
        model: called as model(x, t, **model_kwargs), with x like noise and t (N,) as the process hands it on: int64,
            or float32 where it rescales timesteps. Returns C channels, or 2C, whose second half only ancestral steps
            of a process with learned variances use; their first half alone makes them take the posterior's variance.
        diffusion: the process that the network was trained on; a respaced one counts its own steps.
        noise: (N, C, H, W) float, x_T, standard normal.
        sampler: 'ancestral' or 'ddim' (one evaluation a step), 'dpmpp' (DPM-Solver++(2M)), 'dpmpp-sde' (the same
            with noise) or 'unipc' (order 3); see `solvers.make_plan`.
        num_sampling_steps: from 1 to the T of `diffusion`.
        spacing: spacing of the timesteps: 'uniform', 'logsnr' or 'karras'; see `solvers.choose_timesteps`.
        clip_denoised: clip each predicted image to [-1, 1].
        eta: DDIM's noise, from 0 (deterministic) to 1 (the posterior's variance).
        sigma_max: noise over signal at the first timestep, 80 where None, not for 'uniform'. A network errs most on
            little signal, where a young one's errors grow into glaring images; 10 to 20 leaves them out.
        generator: generator of the noise that steps add; None for torch's default generator.
        model_kwargs: more keyword arguments of the model.
        denoised_fn: applied to each predicted image before clipping.
        step_noise: in place of a generator, maps the number of steps that remain after one, from
            num_sampling_steps - 1 down to 1, to that step's noise.

    Returns:
        (N, C, H, W), of noise's type.

    Raises:
        ValueError: a setting is unknown, out of range or contradicts another; or the network's output has another
            shape.
    """
    check_settings(sampler, num_sampling_steps, spacing, eta, diffusion.num_timesteps, sigma_max)
    if not noise.is_floating_point():
        raise ValueError(f"noise must be of a floating-point type, not {noise.dtype}")
    if generator is not None and step_noise is not None:
        raise ValueError("generator and step_noise exclude each other")
    timesteps = choose_timesteps(diffusion.alphas_cumprod, num_sampling_steps, spacing, sigma_max)
    large = diffusion.model_var_type == ModelVarType.FIXED_LARGE
    plan = make_plan(diffusion.alphas_cumprod, sampler, timesteps, eta=eta, large_variance=large)
    # All at once: a copy to the device for each step would wait for the step before.
    model_t = diffusion._model_timesteps(torch.tensor(timesteps).to(noise.device))
    keep = max((len(weights) for step in plan for weights in (step.corrector, step.predictor)), default=2) - 1

    x = base = noise  # base: x at the last timestep, as corrected
    images: list[Tensor] = []  # predicted, newest first
    for i, step in enumerate(plan):
        output = model(x, model_t[i].expand(len(x)), **(model_kwargs or {}))
        prediction, values = _split(output.to(x.dtype), x, diffusion.learns_variance)
        image = diffusion._pred_xstart(prediction, x, step.t, clip_denoised, denoised_fn)
        images = [image, *images][: max(keep, 1)]
        base = _combine(step.corrector, base, images) if step.corrector else x
        if not step.predictor:
            break
        x = _combine(step.predictor, base, images)
        if step.std:
            std = _std(step, values, diffusion.model_var_type)
            remaining = num_sampling_steps - 1 - i
            x = x + std * (step_noise(remaining).to(x) if step_noise else _normal_like(x, generator))
    return images[0]


def _split(output: Tensor, x: Tensor, learns_variance: bool) -> tuple[Tensor, Tensor | None]:
    """Return the prediction in the network's output, and its values for the variance, None where they do not count."""
    channels = x.shape[1]
    single, double = tuple(x.shape), (x.shape[0], 2 * channels, *x.shape[2:])
    if output.shape not in (single, double):
        raise ValueError(f"the network returned {tuple(output.shape)}, neither {single} nor {double}")
    return output[:, :channels], output[:, channels:] if learns_variance and output.shape == double else None


def _combine(weights: tuple[float, ...], x: Tensor, images: list[Tensor]) -> Tensor:
    total = weights[0] * x
    for weight, image in zip(weights[1:], images, strict=False):  # older images than there are weights do not count
        total = torch.add(total, image, alpha=weight)
    return total


def _std(step: Step, values: Tensor | None, var_type: ModelVarType) -> Tensor | float:
    if values is None or step.log_variances is None:
        return step.std
    if var_type == ModelVarType.LEARNED:
        return torch.exp(0.5 * values)
    return torch.exp(0.5 * interpolate_log_variance(values, *step.log_variances))


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def classifier_free(model: Model, scale: float) -> Model:
    """Return a model that is guided towards its class, without a classifier.

    Ho & Salimans 2022, Eq. 6, with scale = 1 + w: without class + scale (with class - without). One evaluation of it is
    one pass over twice the images; 1 leaves the model as it is, 0 makes it unconditional. What the network says of
    variances is taken from the pass with the class.

    Args:
        model: called as model(x, t, y=..., ...); takes the label -1 for 'no class', which it must have been trained
            with (class_dropout above 0).
        scale: at least 0; above 1 images are more typical of their class and less diverse.

    Returns:
        A callable (x, t, y, **kwargs), y (N,) int64; keyword tensors of N rows are doubled too.

    Raises:
        ValueError: scale is negative or not finite.
    """
    if not 0 <= scale < float("inf"):
        raise ValueError(f"guidance_scale must be 0 or more, not {scale!r}")
    if scale == 1:
        return model

    def guided(x: Tensor, t: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        doubled = {name: _twice(value, len(x)) for name, value in kwargs.items()}
        labels = torch.cat([y, torch.full_like(y, -1)])
        output = model(torch.cat([x, x]), torch.cat([t, t]), y=labels, **doubled)
        with_class, without = output.chunk(2)
        channels = x.shape[1]
        mean = torch.lerp(without[:, :channels], with_class[:, :channels], scale)
        return torch.cat([mean, with_class[:, channels:]], dim=1)

    return guided


def _twice(value: Any, rows: int) -> Any:
    per_image = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
    return torch.cat([value, value]) if per_image else value
