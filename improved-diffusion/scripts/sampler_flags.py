"""The flags that choose a sampler, what they may not say together, and the sampler that they mean."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comparison.cli import UserError, fraction, non_negative_float, positive_float, positive_int, str2bool
from comparison.runs import read_config
from improved_diffusion.solvers import NOISY, SAMPLERS, SPACINGS, check_settings

if TYPE_CHECKING:
    import torch
    from comparison.rng import SampleNoise
    from improved_diffusion.respace import SpacedDiffusion

NAMES = {
    "ancestral": "ancestral",
    "ddim": "DDIM",
    "dpmpp": "DPM-Solver++ 2M",
    "dpmpp-sde": "DPM-Solver++ 2M SDE",
    "unipc": "UniPC",
}
MAX_GUIDANCE = 1000
DEFAULT_STEPS = {"ancestral": 250, "ddim": 50, "dpmpp": 20, "dpmpp-sde": 50, "unipc": 20}


def add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """Add --sampler and what belongs to it, and the older --use_ddim with --eta."""
    counts = ", ".join(f"{count} for {name}" for name, count in DEFAULT_STEPS.items())
    add = parser.add_argument_group("sampler").add_argument
    add("--sampler", choices=SAMPLERS, help="how to step; by default ancestral over --timestep_respacing")
    add("--num_sampling_steps", type=positive_int, help=f"network evaluations per image with --sampler; {counts}")
    add("--spacing", choices=SPACINGS, help="of the timesteps with --sampler; logsnr where not given")
    add("--sigma_max", type=positive_float, help="noise over signal to start at with --sampler; 80 where not given")
    add("--use_ddim", type=str2bool, default=False, help="DDIM over --timestep_respacing instead of ancestral steps")
    add("--eta", type=fraction, default=0.0, help="DDIM's noise, 0 for none to 1 for as much as ancestral steps add")
    add("--clip_denoised", type=str2bool, default=True, help="clip each predicted image to [-1, 1]")


def add_guidance_flag(parser: argparse.ArgumentParser) -> None:
    """Add --guidance_scale."""
    parser.add_argument(
        "--guidance_scale",
        type=non_negative_float,
        help="classifier-free guidance of a model trained with --class_dropout: 1 for none, more for images more "
        "typical of their class; each evaluation passes twice the images (Ho & Salimans 2022)",
    )


@dataclass(frozen=True)
class Sampler:
    """A sampler with its settings.

    Attributes:
        name: of `SAMPLERS`.
        steps: evaluations per image.
        spacing: of `SPACINGS`; None for the steps of --timestep_respacing.
        eta: DDIM's noise.
        clip_denoised: clip each predicted image to [-1, 1].
        sigma_max: noise over signal at the start; None for the usual.
    """

    name: str
    steps: int
    spacing: str | None
    eta: float
    clip_denoised: bool
    sigma_max: float | None = None

    def describe(self) -> str:
        """Return the sampler in words, for sampling.json."""
        eta = f", eta {self.eta:g}" if self.name == "ddim" else ""
        spacing = f", {self.spacing}" if self.spacing else ""
        start = f", sigma_max {self.sigma_max:g}" if self.sigma_max else ""
        return f"{NAMES[self.name]}, {self.steps} steps{eta}{spacing}{start}"

    def adds_noise(self) -> bool:
        """Tell whether its steps draw noise."""
        return self.name in NOISY and (self.name != "ddim" or self.eta > 0)

    def draw(
        self,
        model: "Callable[..., torch.Tensor]",
        diffusion: "SpacedDiffusion",
        shape: tuple[int, int, int],
        noise: "SampleNoise",
        model_kwargs: dict[str, Any] | None = None,
        on_step: "Callable[[int, torch.Tensor, torch.Tensor], object] | None" = None,
    ) -> "torch.Tensor":
        """Draw images.

        Args:
            model: the network, on its device, or what guides it.
            diffusion: its process, respaced where `spacing` is None.
            shape: (C, H, W).
            noise: of N images; asked for `x_T`, and by steps that add noise for that of each, by number.
            model_kwargs: of the network.
            on_step: told each evaluation's timestep in `diffusion`, its x_t and the predicted image.

        Returns:
            (N, C, H, W) float32.
        """
        from improved_diffusion.samplers import sample

        x = noise.normal(shape, "x_T")
        common: dict[str, Any] = {"clip_denoised": self.clip_denoised, "model_kwargs": model_kwargs}
        common["step_noise"] = lambda step: noise.normal(shape, step)
        if self.spacing is not None:
            common |= {"sampler": self.name, "num_sampling_steps": self.steps, "spacing": self.spacing}
            common |= {"eta": self.eta, "sigma_max": self.sigma_max, "on_step": on_step}
            return sample(model, diffusion, x, **common)
        if self.name == "ddim":
            steps = diffusion.ddim_sample_loop_progressive(model, x.shape, noise=x, eta=self.eta, **common)
        else:
            steps = diffusion.p_sample_loop_progressive(model, x.shape, noise=x, **common)
        for i, out in enumerate(steps):
            if on_step is not None:
                on_step(diffusion.num_timesteps - 1 - i, x, out["pred_xstart"])
            x = out["sample"]
        return x


def judge_sampler(args: argparse.Namespace, flags: dict[str, Any]) -> Sampler:
    """Return the sampler that the command line means; without torch.

    Args:
        args: of the command line, with `add_sampler_flags`.
        flags: of the process. With --sampler its timestep_respacing is emptied: a run's own does not bind it.

    Raises:
        UserError: flags contradict each other, or ask for more steps than there are.
    """
    if args.sampler is None:
        for name in ("num_sampling_steps", "spacing", "sigma_max"):
            if (value := getattr(args, name)) is not None:
                instead = ", or use --timestep_respacing" if name == "num_sampling_steps" else ""
                raise UserError(f"--{name} {value} needs --sampler{instead}")
        if args.eta and not args.use_ddim:
            raise UserError(f"--eta {args.eta:g} needs --use_ddim True or --sampler ddim")
        return Sampler("ddim" if args.use_ddim else "ancestral", _kept_steps(flags), None, args.eta, args.clip_denoised)
    if args.use_ddim:
        raise UserError(f"--sampler {args.sampler} and --use_ddim True exclude each other: --sampler ddim is DDIM")
    if getattr(args, "timestep_respacing", ""):
        raise UserError(
            f"--sampler {args.sampler} and --timestep_respacing {args.timestep_respacing} exclude each other: "
            "--num_sampling_steps and --spacing choose its steps"
        )
    if args.eta and args.sampler != "ddim":
        kind = "has its own noise" if args.sampler in NOISY else "adds no noise"
        raise UserError(f"--eta {args.eta:g} is DDIM's, and --sampler {args.sampler} {kind}")
    flags["timestep_respacing"] = ""
    total = flags["diffusion_steps"]
    steps = args.num_sampling_steps or min(DEFAULT_STEPS[args.sampler], total)
    spacing = args.spacing or "logsnr"
    try:
        check_settings(args.sampler, steps, spacing, args.eta, total, args.sigma_max)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    return Sampler(args.sampler, steps, spacing, args.eta, args.clip_denoised, args.sigma_max)


def judge_guidance(args: argparse.Namespace, flags: dict[str, Any]) -> None:
    """Refuse guidance that the network cannot follow; without torch.

    Raises:
        UserError: it is out of range, the network knows no classes, or was never trained without them.
    """
    if args.guidance_scale is None:
        return
    if args.guidance_scale > MAX_GUIDANCE:
        raise UserError(f"--guidance_scale {args.guidance_scale:g}: must be at most {MAX_GUIDANCE}")
    if not flags["class_cond"]:
        raise UserError(f"--guidance_scale {args.guidance_scale} needs a class-conditional model (--class_cond True)")
    config = args.model_path.parent / "config.json"
    if not config.is_file():
        print(
            "warning: --guidance_scale: no config.json tells whether the model was trained with --class_dropout; "
            "without it guidance spoils the images",
            flush=True,
        )
    elif not read_config(config)["options"].get("class_dropout"):
        raise UserError(
            f"--guidance_scale {args.guidance_scale:g}: the model was trained with --class_dropout 0, so it does not "
            "know images without their class"
        )


def _kept_steps(flags: dict[str, Any]) -> int:
    from improved_diffusion.schedules import space_timesteps

    total, respacing = flags["diffusion_steps"], flags["timestep_respacing"]
    return len(space_timesteps(total, respacing)) if respacing else total
