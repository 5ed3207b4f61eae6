"""Networks and processes made from flags; the flags themselves, by OpenAI's names, come from `flags`."""

import inspect
from collections.abc import Callable
from typing import Any

from .flags import (
    CHANNEL_MULT,
    PREDICTIONS,
    add_dict_to_argparser,
    args_to_dict,
    attention_factors,
    check_flags,
    model_and_diffusion_defaults,
    patch_side_of,
    sr_model_and_diffusion_defaults,
    str2bool,
)
from .gaussian_diffusion import LossType, LossWeighting, ModelMeanType, ModelVarType
from .respace import SpacedDiffusion
from .schedules import get_named_beta_schedule, space_timesteps
from .unet import SuperResModel, UNetModel

__all__ = [
    "add_dict_to_argparser",
    "args_to_dict",
    "create_diffusion",
    "create_gaussian_diffusion",
    "create_model",
    "create_model_and_diffusion",
    "model_and_diffusion_defaults",
    "sr_create_model",
    "sr_create_model_and_diffusion",
    "sr_model_and_diffusion_defaults",
    "str2bool",
]

NUM_CLASSES = 1000  # of class-conditional models unless the data says otherwise


def create_model_and_diffusion(
    image_size: int,
    class_cond: bool,
    learn_sigma: bool,
    sigma_small: bool,
    num_channels: int,
    num_res_blocks: int,
    num_heads: int,
    num_heads_upsample: int,
    attention_resolutions: str,
    dropout: float,
    diffusion_steps: int,
    noise_schedule: str,
    timestep_respacing: str,
    use_kl: bool,
    predict_xstart: bool,
    rescale_timesteps: bool,
    rescale_learned_sigmas: bool,
    use_checkpoint: bool,
    use_scale_shift_norm: bool,
    norm_groups: int = 32,
    num_classes: int = NUM_CLASSES,
    prediction: str = "epsilon",
    loss_weighting: str = "uniform",
    snr_gamma: float = 5.0,
    patch_size: int = 1,
) -> tuple[UNetModel, SpacedDiffusion]:
    """Make the network and the process of the flags, see `FLAG_HELP`.

    Raises:
        ValueError: a flag's value is not accepted.
    """
    flags = locals()
    check_flags(flags)
    return create_model(**_arguments(create_model, flags)), create_diffusion(flags)


def sr_create_model_and_diffusion(
    large_size: int,
    small_size: int,
    class_cond: bool,
    learn_sigma: bool,
    num_channels: int,
    num_res_blocks: int,
    num_heads: int,
    num_heads_upsample: int,
    attention_resolutions: str,
    dropout: float,
    diffusion_steps: int,
    noise_schedule: str,
    timestep_respacing: str,
    use_kl: bool,
    predict_xstart: bool,
    rescale_timesteps: bool,
    rescale_learned_sigmas: bool,
    use_checkpoint: bool,
    use_scale_shift_norm: bool,
    norm_groups: int = 32,
    num_classes: int = NUM_CLASSES,
    prediction: str = "epsilon",
    loss_weighting: str = "uniform",
    snr_gamma: float = 5.0,
    patch_size: int = 1,
) -> tuple[SuperResModel, SpacedDiffusion]:
    """Make the super-resolution network and the process of the flags, see `FLAG_HELP`.

    Raises:
        ValueError: a flag's value is not accepted.
    """
    flags = locals()
    check_flags(flags)
    return sr_create_model(**_arguments(sr_create_model, flags)), create_diffusion(flags)


def create_model(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    learn_sigma: bool,
    class_cond: bool,
    use_checkpoint: bool,
    attention_resolutions: str,
    num_heads: int,
    num_heads_upsample: int,
    use_scale_shift_norm: bool,
    dropout: float,
    norm_groups: int = 32,
    num_classes: int = NUM_CLASSES,
    patch_size: int = 1,
) -> UNetModel:
    """Make the network of the flags for RGB images, see `FLAG_HELP`; `num_classes` counts where class_cond."""
    return UNetModel(**_network_options(image_size, locals()))


def sr_create_model(
    large_size: int,
    small_size: int,
    num_channels: int,
    num_res_blocks: int,
    learn_sigma: bool,
    class_cond: bool,
    use_checkpoint: bool,
    attention_resolutions: str,
    num_heads: int,
    num_heads_upsample: int,
    use_scale_shift_norm: bool,
    dropout: float,
    norm_groups: int = 32,
    num_classes: int = NUM_CLASSES,
    patch_size: int = 1,
) -> SuperResModel:
    """Make the super-resolution network of the flags as `create_model` does; it takes every `small_size`."""
    return SuperResModel(**_network_options(large_size, locals()))


def _network_options(image_size: int, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `UNetModel` that the flags mean for RGB images of this size."""
    patch_side = patch_side_of(image_size, flags["patch_size"])
    grid = image_size // patch_side
    same = ("num_res_blocks", "dropout", "use_checkpoint", "num_heads", "num_heads_upsample", "use_scale_shift_norm")
    return {
        "in_channels": 3,
        "model_channels": flags["num_channels"],
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "attention_resolutions": attention_factors(grid, flags["attention_resolutions"]),
        "channel_mult": CHANNEL_MULT[grid],
        "patch_size": patch_side,
        "num_classes": flags["num_classes"] if flags["class_cond"] else None,
        "norm_groups": flags["norm_groups"],
        **{name: flags[name] for name in same},
    }


def create_gaussian_diffusion(
    *,
    steps: int = 1000,
    learn_sigma: bool = False,
    sigma_small: bool = False,
    noise_schedule: str = "linear",
    use_kl: bool = False,
    predict_xstart: bool = False,
    rescale_timesteps: bool = False,
    rescale_learned_sigmas: bool = False,
    timestep_respacing: str = "",
    prediction: str = "epsilon",
    loss_weighting: str = "uniform",
    snr_gamma: float = 5.0,
) -> SpacedDiffusion:
    """Make the process of the flags, see `FLAG_HELP`; with respacing, of the kept steps only."""
    if use_kl:
        loss_type = LossType.RESCALED_KL
    elif rescale_learned_sigmas:
        loss_type = LossType.RESCALED_MSE
    else:
        loss_type = LossType.MSE
    if learn_sigma:
        model_var_type = ModelVarType.LEARNED_RANGE
    else:
        model_var_type = ModelVarType.FIXED_SMALL if sigma_small else ModelVarType.FIXED_LARGE
    if predict_xstart and prediction == "epsilon":
        prediction = "x_start"
    mean_types = (ModelMeanType.EPSILON, ModelMeanType.START_X, ModelMeanType.VELOCITY)
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, timestep_respacing or [steps]),
        betas=get_named_beta_schedule(noise_schedule, steps),
        model_mean_type=dict(zip(PREDICTIONS, mean_types, strict=True))[prediction],
        model_var_type=model_var_type,
        loss_type=loss_type,
        rescale_timesteps=rescale_timesteps,
        loss_weighting=LossWeighting.MIN_SNR if loss_weighting == "min-snr" else LossWeighting.UNIFORM,
        snr_gamma=snr_gamma,
    )


def create_diffusion(flags: dict[str, Any]) -> SpacedDiffusion:
    """Make the process of a dictionary of flags; the network's are passed over."""
    return create_gaussian_diffusion(steps=flags["diffusion_steps"], **_arguments(create_gaussian_diffusion, flags))


def _arguments(function: Callable[..., Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Return those flags that are parameters of a function."""
    return {name: flags[name] for name in inspect.signature(function).parameters if name in flags}
