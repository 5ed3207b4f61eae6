#!/usr/bin/env python3
"""Train a diffusion model that enlarges images.

    python improved-diffusion/scripts/super_res_train.py --data_dir path/to/images --large_size 64 --small_size 32 \\
        --num_channels 64 --learn_sigma True --noise_schedule cosine --batch_size 32

The network sees each image of large_size reduced by area to small_size, and learns to restore the large one. Options
and files are those of image_train.py; the run folder is --run_dir, else OPENAI_LOGDIR, else
results/runs/improved-diffusion-sr/<data>-<small_size>to<large_size>. In grid_<step>.png rows of eight follow each
other: small images, the enlarged ones, the originals.

Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models", section 5.
"""

import argparse
from collections.abc import Sequence

from comparison.cli import make_parser
from comparison.distributed import run
from improved_diffusion.flags import add_dict_to_argparser, args_to_dict, sr_model_and_diffusion_defaults
from model_options import SR_MODEL
from train_options import add_train_options, open_training


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the flags of network and process are those of `sr_model_and_diffusion_defaults`."""
    parser = make_parser(__doc__)
    add_dict_to_argparser(parser.add_argument_group("model and process"), sr_model_and_diffusion_defaults())
    add_train_options(parser)
    parser.set_defaults(grid_images=16)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Validate the flags, then train."""
    flags = args_to_dict(args, sr_model_and_diffusion_defaults())
    training = open_training(args, flags, SR_MODEL, f"{args.small_size}to{args.large_size}")
    if training is None:
        return 0

    from train_network import SuperResTask, train_network

    return train_network(args, training, SuperResTask(flags, args.grid_images))


if __name__ == "__main__":
    run(lambda: main(parse_args()))
