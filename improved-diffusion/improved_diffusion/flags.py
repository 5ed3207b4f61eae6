"""Flags of networks and processes: their defaults, their meaning, and the values that are accepted; without torch."""

import argparse
from collections.abc import Iterable
from typing import Any

from .schedules import get_named_beta_schedule, space_timesteps

LOG_FORMATS = ("stdout", "log", "csv", "json", "tensorboard")
PREDICTIONS = ("epsilon", "x_start", "velocity")
LOSS_WEIGHTINGS = ("uniform", "min-snr")
GRID = 16  # positions along a side of the grid that patch_size 0 makes
MAX_STEPS, MAX_CHANNELS, MAX_BLOCKS = 1_000_000, 4096, 128
CHANNEL_MULT = {16: (1, 2, 2), 32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}

FLAG_HELP = {
    "image_size": "height and width in pixels: 16, 32, 64, 128 or 256",
    "large_size": "height and width in pixels of the images to make: 16, 32, 64, 128 or 256",
    "small_size": "height and width in pixels of the images to enlarge, a divisor of large_size",
    "num_channels": "width of the first level, a multiple of norm_groups",
    "num_res_blocks": "residual blocks per level",
    "num_heads": "attention heads",
    "num_heads_upsample": "attention heads on the way up, -1 for the same",
    "attention_resolutions": "sizes of the network's grid, of pixels or patches, that have attention: '16,8'",
    "dropout": "probability inside residual blocks while training",
    "learn_sigma": "learn the variances of the reverse steps",
    "sigma_small": "use the posterior's variances instead of beta (without learn_sigma)",
    "class_cond": "condition on class labels",
    "diffusion_steps": "T, the number of noising steps",
    "noise_schedule": "linear or cosine",
    "timestep_respacing": "steps kept for sampling: '250', '10,15,20' (by section) or 'ddim50'; '' for all",
    "use_kl": "train on the variational bound itself (L_vlb)",
    "predict_xstart": "the same as --prediction x_start",
    "prediction": "what the network predicts: epsilon (the noise), x_start (the image) or velocity",
    "loss_weighting": "of the squared errors: uniform, or min-snr, where x_0's error counts min(SNR, snr_gamma)",
    "snr_gamma": "bound of the min-snr weights, above 0",
    "patch_size": "side of the square patches that become channels: 1 for pixels, 0 for a grid of 16 x 16 patches",
    "rescale_timesteps": "give the network t * 1000 / T",
    "rescale_learned_sigmas": "weight the bound by 0.001 whatever T (L_hybrid), not by 1 / T",
    "use_checkpoint": "recompute activations in the backward pass: less memory, more time",
    "use_scale_shift_norm": "condition by scale and shift after the norm, else by addition",
    "norm_groups": "groups of each normalisation; networks narrower than 128 channels want fewer",
}


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Return the flags of a model and its process, with their defaults."""
    return {
        "image_size": 64,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "attention_resolutions": "16,8",
        "dropout": 0.0,
        "learn_sigma": False,
        "sigma_small": False,
        "class_cond": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "timestep_respacing": "",
        "use_kl": False,
        "predict_xstart": False,
        "rescale_timesteps": True,
        "rescale_learned_sigmas": True,
        "use_checkpoint": False,
        "use_scale_shift_norm": True,
        "norm_groups": 32,
        "prediction": "epsilon",
        "loss_weighting": "uniform",
        "snr_gamma": 5.0,
        "patch_size": 1,
    }


def sr_model_and_diffusion_defaults() -> dict[str, Any]:
    """Return the flags of a super-resolution model and its process, with their defaults."""
    sizes = {"large_size": 256, "small_size": 64}
    own = ("image_size", "sigma_small")
    return {**sizes, **{name: value for name, value in model_and_diffusion_defaults().items() if name not in own}}


def check_flags(flags: dict[str, Any]) -> None:
    """Validate the flags of `model_and_diffusion_defaults` or `sr_model_and_diffusion_defaults`.

    Raises:
        ValueError: one sentence that names the flag, its value and what is accepted.
    """
    size = "large_size" if "large_size" in flags else "image_size"
    patch_side = patch_side_of(flags[size], flags["patch_size"], size)
    small = flags.get("small_size", 1)
    if not 1 <= small < flags[size] or flags[size] % small:
        raise ValueError(f"small_size must divide large_size {flags[size]} and be smaller, which {small} does not")
    if flags["norm_groups"] < 1:
        raise ValueError(f"norm_groups must be at least 1, not {flags['norm_groups']}")
    if flags["num_channels"] < 1 or flags["num_channels"] % flags["norm_groups"]:
        raise ValueError(
            f"num_channels must be a multiple of norm_groups {flags['norm_groups']}, not {flags['num_channels']}"
        )
    if flags["num_channels"] > MAX_CHANNELS:
        raise ValueError(f"num_channels must be at most {MAX_CHANNELS}, not {flags['num_channels']}")
    if not 1 <= flags["num_res_blocks"] <= MAX_BLOCKS:
        raise ValueError(f"num_res_blocks must be from 1 to {MAX_BLOCKS}, not {flags['num_res_blocks']}")
    attention_factors(flags[size] // patch_side, flags["attention_resolutions"])
    for name in ("num_heads", "num_heads_upsample"):
        heads = flags[name]
        if not (heads == -1 and name == "num_heads_upsample") and (heads < 1 or flags["num_channels"] % heads):
            raise ValueError(f"{name} must divide num_channels {flags['num_channels']}, which {heads} does not")
    if not 0 <= flags["dropout"] < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {flags['dropout']}")
    if flags["diffusion_steps"] > MAX_STEPS:
        raise ValueError(f"diffusion_steps must be at most {MAX_STEPS}, not {flags['diffusion_steps']}")
    get_named_beta_schedule(flags["noise_schedule"], flags["diffusion_steps"])
    _check_objective(flags)
    if flags["timestep_respacing"]:
        space_timesteps(flags["diffusion_steps"], flags["timestep_respacing"])


def _check_objective(flags: dict[str, Any]) -> None:
    """Raise ValueError unless prediction, loss weighting and use_kl fit together."""
    if flags["prediction"] not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {flags['prediction']!r}")
    if flags["predict_xstart"] and flags["prediction"] == "velocity":
        raise ValueError("prediction velocity and predict_xstart True contradict each other")
    if flags["loss_weighting"] not in LOSS_WEIGHTINGS:
        raise ValueError(f"loss_weighting must be one of {', '.join(LOSS_WEIGHTINGS)}, not {flags['loss_weighting']!r}")
    if flags["loss_weighting"] != "uniform" and flags["use_kl"]:
        raise ValueError("loss_weighting min-snr weights squared errors, which use_kl True does not train on")
    if not 0 < flags["snr_gamma"] < float("inf"):
        raise ValueError(f"snr_gamma must be above 0 and finite, not {flags['snr_gamma']}")


def unify_prediction(flags: dict[str, Any]) -> None:
    """Make `predict_xstart` and `prediction` say the same, in place; either may be missing."""
    if flags.get("predict_xstart") and flags.get("prediction", "epsilon") == "epsilon":
        flags["prediction"] = "x_start"
    elif flags.get("prediction") == "x_start":
        flags["predict_xstart"] = True


def patch_side_of(image_size: int, patch_size: int, flag: str = "image_size") -> int:
    """Return the side of the patches in pixels; patch_size 0 stands for a grid of GRID x GRID patches."""
    if image_size not in CHANNEL_MULT:
        raise ValueError(f"{flag} must be one of {', '.join(map(str, CHANNEL_MULT))}, not {image_size}")
    side = patch_size or image_size // GRID
    if side < 1 or image_size % side or image_size // side not in CHANNEL_MULT:
        sizes = [str(image_size // grid) for grid in reversed(CHANNEL_MULT) if grid <= image_size]
        raise ValueError(f"patch_size must be 0 or one of {', '.join(sizes)} at {flag} {image_size}, not {patch_size}")
    return side


def attention_factors(grid: int, attention_resolutions: str) -> tuple[int, ...]:
    """Turn sizes of the grid such as "16,8" into its downsampling factors."""
    levels = {grid // 2**level: 2**level for level in range(len(CHANNEL_MULT[grid]))}
    factors = [levels.get(int(size)) if size.strip().isdecimal() else None for size in attention_resolutions.split(",")]
    if attention_resolutions and None in factors:
        sizes = ", ".join(map(str, levels))
        raise ValueError(
            f"attention_resolutions must be sizes among {sizes}, such as '16,8', not {attention_resolutions!r}"
        )
    return tuple(factor for factor in factors if factor)


def add_dict_to_argparser(parser: argparse._ActionsContainer, default_dict: dict[str, Any]) -> None:
    """Add a flag for each entry, of its default's type; None takes a string, a bool takes true or false."""
    kinds = {bool: str2bool, int: whole_number, float: number}
    for name, default in default_dict.items():
        kind: Any = str if default is None else kinds.get(type(default), type(default))
        parser.add_argument(f"--{name}", default=default, type=kind, help=FLAG_HELP.get(name, " "))


def whole_number(text: str) -> int:
    """Read an integer below 2^63, an argparse type."""
    value = int(text)
    if abs(value) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2^63, not {text}")
    return value


def number(text: str) -> float:
    """Read a finite number, an argparse type."""
    value = float(text)
    if not abs(value) < float("inf"):  # nor is NaN
        raise argparse.ArgumentTypeError(f"must be finite, not {text}")
    return value


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """Pick the named values out of parsed arguments."""
    return {name: getattr(args, name) for name in keys}


def str2bool(v: str | bool) -> bool:
    """Read 'yes', 'true', 't', 'y', '1' or their opposites, in any case.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if isinstance(v, bool):
        return v
    if v.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if v.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, not {v!r}")
