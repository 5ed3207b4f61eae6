#!/usr/bin/env python3
"""Enlarge images with a super-resolution model.

    python improved-diffusion/scripts/super_res_sample.py --base_samples samples_1000x32x32x3.npz \\
        --model_path results/runs/improved-diffusion-sr/images-32to64/ema_0.9999_010000.pt

--base_samples is what image_sample.py wrote, or a folder of images. The network is rebuilt from the config.json beside
the model file; without one the flags describe it. Beside the model file (--out_dir, else OPENAI_LOGDIR) it
writes samples_<N>x<H>x<W>x<C>.npz in the order of the base images, with their labels, samples.png, comparison.png
(rows of base images and of the enlarged ones) and sampling.json. An interrupted call is resumed by the same
call. Image i of a seed is the same whatever the batch size.
"""

import argparse
from collections.abc import Sequence

from comparison.cli import add_device_options, make_parser, non_negative_int, positive_int
from comparison.data.sources import check_source
from comparison.distributed import run
from improved_diffusion.flags import sr_model_and_diffusion_defaults
from model_options import SR_MODEL, add_checkpoint_flags, add_network_flags, download_data, network_flags
from sampler_flags import add_sampler_flags, parse_sampler


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    add_network_flags(parser, sr_model_and_diffusion_defaults())
    add_checkpoint_flags(parser)
    add = parser.add_argument_group("sampling").add_argument
    add("--base_samples", required=True, help="an .npz file of image_sample.py, or a folder of images")
    add("--num_samples", type=positive_int, help="images to enlarge, the first ones; default: all")
    add("--batch_size", type=positive_int, default=16, help="images per batch")
    add("--seed", type=non_negative_int, default=0, help="seed of the noise")
    add_sampler_flags(parser)
    add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Validate the flags, then enlarge."""
    args.base_samples = download_data("--base_samples", args.base_samples)
    check_source(args.base_samples, "--base_samples")
    flags = network_flags(args, sr_model_and_diffusion_defaults(), SR_MODEL)
    sampler = parse_sampler(args, flags)

    from enlarge_images import enlarge_images

    return enlarge_images(args, flags, sampler)


if __name__ == "__main__":
    run(lambda: main(parse_args()))
