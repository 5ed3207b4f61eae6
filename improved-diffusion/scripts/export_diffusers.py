#!/usr/bin/env python3
"""Write a trained improved diffusion model as a pipeline of Hugging Face's diffusers; needs the package diffusers.

    python improved-diffusion/scripts/export_diffusers.py --out_dir pipeline \\
        --model_path results/runs/improved-diffusion/cifar_train-32/ema_0.9999_005000.pt
    python -c "from diffusers import DDIMPipeline; DDIMPipeline.from_pretrained('pipeline')().images[0].save('a.png')"

The folder holds a DDIMPipeline: the weights of a UNet2DModel as safetensors, and a DDIMScheduler with the process. Both
networks are evaluated on noise, and nothing is written unless they agree. Of learned variances, which DDIM does not
use, the channels are left out. Networks that UNet2DModel cannot express are an error that says why: patches as
channels, heads of different sizes, and a distilled network, which needs its own sampler.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from typing import Any

from comparison import cli
from comparison.cli import UserError, check_folder, local_path, make_parser
from improved_diffusion.flags import CHANNEL_MULT, attention_factors, model_and_diffusion_defaults
from model_options import MODEL, add_model_path, add_network_flags, find_model, flags_of_run, options_of_run

RESCALED = 1000  # steps of the process that a network with --rescale_timesteps counts in


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    add_network_flags(parser, model_and_diffusion_defaults())
    add = add_model_path(parser, "export", "ema_<rate>_<step>.pt or model<step>.pt of image_train.py; local or remote")
    add("--out_dir", "--out", type=local_path, help="folder to write; default: diffusers, beside the model file")
    parser.set_defaults(use_fp16=None, precision="float32")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Validate the flags, then convert."""
    find_model(args)
    out = args.out_dir or args.model_path.parent / "diffusers"
    check_folder(out, "--out_dir")
    flags = flags_of_run(args, model_and_diffusion_defaults(), MODEL)
    if reason := why_not(flags, distilled="few_step" in (options_of_run(args.model_path) or {})):
        raise UserError(f"--model_path {args.model_path}: diffusers cannot express it: {reason}")
    if importlib.util.find_spec("diffusers") is None:
        raise UserError("the package diffusers is missing: pip install diffusers")

    from diffusers_pipeline import export

    return export(args.model_path, flags, out)


def why_not(flags: dict[str, Any], distilled: bool) -> str | None:
    """Return why UNet2DModel and DDIMScheduler cannot express a network and its process, None where they can."""
    if distilled:
        return "a distilled network needs --sampler few-step of image_sample.py; export its teacher"
    if flags["patch_size"] != 1:
        return "it turns patches into channels (--patch_size)"
    if flags["num_heads_upsample"] not in (-1, flags["num_heads"]):
        return "attention has other heads on the way up (--num_heads_upsample)"
    widths, factors = (
        CHANNEL_MULT[flags["image_size"]],
        attention_factors(flags["image_size"], flags["attention_resolutions"]),
    )
    attended = {width for level, width in enumerate(widths) if 2**level in factors} | {widths[-1]}
    if flags["num_heads"] > 1 and len(attended) > 1:
        return f"its {flags['num_heads']} attention heads differ in size between levels (--num_heads 1 would do)"
    if flags["rescale_timesteps"] and flags["diffusion_steps"] % RESCALED:
        return f"its {flags['diffusion_steps']} steps, rescaled to {RESCALED}, are not whole (--rescale_timesteps)"
    return None


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
