#!/usr/bin/env python3
"""Sample images from an improved diffusion model.

    python improved-diffusion/scripts/image_sample.py $DIFFUSION_FLAGS $MODEL_FLAGS --num_samples 1024 \\
        --model_path results/runs/improved-diffusion/cifar_train-32/ema_0.9999_005000.pt
    python improved-diffusion/scripts/image_sample.py --model_path path/to/ema_0.9999_005000.pt --sampler unipc

The network is rebuilt from the config.json beside the model file; flags that disagree with it are an error. For a
file without config.json (OpenAI's published ones) the flags describe it. Beside the model file (--out_dir, else
OPENAI_LOGDIR) it writes samples_<N>x<H>x<W>x<C>.npz, samples.png and sampling.json, with --interpolation also
interpolation.png; with --benchmark it writes timing.json instead. An interrupted call is resumed by the same call.
Image i of a seed is the same whatever the batch size.

Guidance: Ho & Salimans 2022. Samplers: see `improved_diffusion.solvers`.
"""

import argparse
from collections.abc import Sequence

from comparison.cli import (
    UserError,
    add_device_options,
    add_sampling_extras,
    make_parser,
    non_negative_int,
    positive_int,
)
from comparison.distributed import run
from improved_diffusion.flags import model_and_diffusion_defaults
from model_options import MODEL, add_checkpoint_flags, add_network_flags, network_flags
from sampler_flags import add_sampler_flags, parse_sampler


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    add_network_flags(parser, model_and_diffusion_defaults())
    add_checkpoint_flags(parser)
    add = parser.add_argument_group("sampling").add_argument
    add("--num_samples", type=positive_int, default=10000, help="images to generate")
    add("--batch_size", type=positive_int, default=64, help="images per batch")
    add("--seed", type=non_negative_int, default=0, help="seed of the noise, and of the classes of conditional models")
    add("--class_label", type=non_negative_int, help="generate only this class, by number; default: random classes")
    add_sampler_flags(parser)
    add_sampling_extras(parser)
    add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Validate the flags, then sample or measure."""
    flags = network_flags(args, model_and_diffusion_defaults(), MODEL)
    sampler = parse_sampler(args, flags)
    if args.class_label is not None and not flags["class_cond"]:
        raise UserError(f"--class_label {args.class_label} needs a class-conditional model (--class_cond True)")

    from generate import sample_images

    return sample_images(args, flags, sampler)


if __name__ == "__main__":
    run(lambda: main(parse_args()))
