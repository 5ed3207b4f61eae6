"""Flags that choose a sampler and guidance, and their validation; without torch."""

import argparse
from dataclasses import dataclass
from typing import Any

from comparison.cli import UserError, fraction, non_negative_float, positive_float, positive_int, str2bool
from improved_diffusion.schedules import space_timesteps
from improved_diffusion.solvers import NOISY, SAMPLERS, SPACINGS, check_settings
from model_options import options_of_run

NAMES = {
    "ancestral": "ancestral",
    "ddim": "DDIM",
    "dpmpp": "DPM-Solver++ 2M",
    "dpmpp-sde": "DPM-Solver++ 2M SDE",
    "unipc": "UniPC",
    "few-step": "few-step",
}
MAX_GUIDANCE = 1000
DEFAULT_STEPS = {"ancestral": 250, "ddim": 50, "dpmpp": 20, "dpmpp-sde": 50, "unipc": 20}


def add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """Add --sampler and its settings, the older --use_ddim with --eta, and --guidance_scale."""
    counts = ", ".join(f"{count} for {name}" for name, count in DEFAULT_STEPS.items())
    add = parser.add_argument_group("sampler").add_argument
    add(
        "--sampler",
        choices=[*SAMPLERS, "few-step"],
        help="sampler, few-step for models of distill_train.py; default: ancestral over --timestep_respacing",
    )
    add("--num_sampling_steps", type=positive_int, help=f"network evaluations per image with --sampler; {counts}")
    add("--spacing", choices=SPACINGS, help="spacing of the timesteps with --sampler; default: logsnr")
    add("--sigma_max", type=positive_float, help="noise-to-signal ratio at the start with --sampler; default: 80")
    add("--use_ddim", type=str2bool, default=False, help="DDIM over --timestep_respacing instead of ancestral steps")
    add("--eta", type=fraction, default=0.0, help="noise of DDIM, from 0 for none to 1 for that of ancestral steps")
    add("--clip_denoised", type=str2bool, default=True, help="clip each predicted image to [-1, 1]")
    add(
        "--guidance_scale",
        type=non_negative_float,
        help="classifier-free guidance of a model trained with --class_dropout: 1 for none, more for images more "
        "typical of their class; each evaluation takes twice the images (Ho & Salimans 2022)",
    )


@dataclass(frozen=True)
class Sampler:
    """A sampler with its settings.

    Attributes:
        name: one of `SAMPLERS`.
        steps: network evaluations per image.
        spacing: one of `SPACINGS`; None for the steps of --timestep_respacing.
        eta: noise of DDIM.
        clip_denoised: clip each predicted image to [-1, 1].
        sigma_max: noise-to-signal ratio at the start; None for the default.
        levels: noise levels of the evaluations of few-step; empty for the other samplers.
        guidance_scale: scale of classifier-free guidance; None for none.
    """

    name: str
    steps: int
    spacing: str | None
    eta: float
    clip_denoised: bool
    sigma_max: float | None = None
    levels: tuple[float, ...] = ()
    guidance_scale: float | None = None

    def describe(self) -> str:
        """Return the sampler and the guidance as text, for sampling.json."""
        guidance = "" if self.guidance_scale is None else f", guidance {self.guidance_scale:g}"
        if self.levels:
            return f"few-step, levels {', '.join(f'{level:g}' for level in self.levels)}{guidance}"
        eta = f", eta {self.eta:g}" if self.name == "ddim" else ""
        spacing = f", {self.spacing}" if self.spacing else ""
        start = f", sigma_max {self.sigma_max:g}" if self.sigma_max else ""
        return f"{NAMES[self.name]}, {self.steps} steps{eta}{spacing}{start}{guidance}"


def parse_sampler(args: argparse.Namespace, flags: dict[str, Any]) -> Sampler:
    """Return the sampler of the command line.

    Args:
        args: command line with `add_sampler_flags`.
        flags: flags of the process. With --sampler their timestep_respacing is emptied, as the run's does not apply.

    Raises:
        UserError: flags contradict each other or the network, or ask for more steps than there are.
    """
    options = options_of_run(args.model_path)
    if args.guidance_scale is not None:
        _check_guidance(args, flags, options)
    few_step = (options or {}).get("few_step")
    common: dict[str, Any] = {
        "eta": args.eta,
        "clip_denoised": args.clip_denoised,
        "guidance_scale": args.guidance_scale,
    }
    if args.sampler == "few-step":
        flags["timestep_respacing"] = ""
        return _few_step(args, few_step)
    if few_step:
        raise UserError(f"--model_path {args.model_path}: was distilled, so it needs --sampler few-step")
    if args.sampler is None:
        for name in ("num_sampling_steps", "spacing", "sigma_max"):
            if (value := getattr(args, name)) is not None:
                instead = ", or use --timestep_respacing" if name == "num_sampling_steps" else ""
                raise UserError(f"--{name} {value} needs --sampler{instead}")
        if args.eta and not args.use_ddim:
            raise UserError(f"--eta {args.eta:g} needs --use_ddim True or --sampler ddim")
        return Sampler("ddim" if args.use_ddim else "ancestral", _kept_steps(flags), None, **common)
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
    return Sampler(args.sampler, steps, spacing, sigma_max=args.sigma_max, **common)


def _few_step(args: argparse.Namespace, few_step: dict[str, Any] | None) -> Sampler:
    """Return the few-step sampler of a distilled model; `few_step` is the entry of its config.json."""
    if not few_step:
        raise UserError(f"--sampler few-step: {args.model_path} was not distilled; see distill_train.py")
    for name in ("spacing", "sigma_max", "eta", "use_ddim", "timestep_respacing"):
        if value := getattr(args, name, None):
            raise UserError(f"--{name} {value}: not with --sampler few-step")
    grids = {int(count): tuple(grid) for count, grid in few_step["levels"].items()}
    steps = args.num_sampling_steps or (2 if 2 in grids else max(grids))
    if steps not in grids:
        counts = ", ".join(map(str, grids))
        raise UserError(f"--num_sampling_steps {steps}: the model was distilled for {counts} evaluations")
    return Sampler("few-step", steps, None, 0.0, args.clip_denoised, None, grids[steps], args.guidance_scale)


def _check_guidance(args: argparse.Namespace, flags: dict[str, Any], options: dict[str, Any] | None) -> None:
    """Raise UserError if --guidance_scale is out of range, or the network was not trained for it."""
    if args.guidance_scale > MAX_GUIDANCE:
        raise UserError(f"--guidance_scale {args.guidance_scale:g}: must be at most {MAX_GUIDANCE}")
    if not flags["class_cond"]:
        raise UserError(f"--guidance_scale {args.guidance_scale} needs a class-conditional model (--class_cond True)")
    if options is None:
        print(
            "warning: --guidance_scale: no config.json says whether the model was trained with --class_dropout; "
            "guidance degrades samples otherwise",
            flush=True,
        )
    elif not options.get("class_dropout"):
        raise UserError(
            f"--guidance_scale {args.guidance_scale:g}: the model was trained with --class_dropout 0, so it has not "
            "learnt images without a class"
        )


def _kept_steps(flags: dict[str, Any]) -> int:
    total, respacing = flags["diffusion_steps"], flags["timestep_respacing"]
    return len(space_timesteps(total, respacing)) if respacing else total
