#!/usr/bin/env python3
"""Train an improved diffusion model on a set of images.

    source flags.sh
    python improved-diffusion/scripts/image_train.py $MODEL_FLAGS $DIFFUSION_FLAGS $TRAIN_FLAGS

Without --data_dir it trains on the folder that improved-diffusion/datasets/cifar10.py writes. The same command
again resumes the run. Into the run folder (--run_dir, else OPENAI_LOGDIR, else
results/runs/improved-diffusion/<data>-<image_size>) it writes config.json, log.txt, progress.csv, progress.json,
loss.png, grid_<step>.png, and checkpoints: model<step>.pt, ema_<rate>_<step>.pt, opt<step>.pt.

Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models".
"""

import argparse
from collections.abc import Sequence

from comparison.cli import make_parser
from comparison.distributed import run
from improved_diffusion.flags import add_dict_to_argparser, args_to_dict, model_and_diffusion_defaults
from model_options import MODEL
from train_options import add_train_options, open_training


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the flags of network and process are those of `model_and_diffusion_defaults`."""
    parser = make_parser(__doc__)
    add_dict_to_argparser(parser.add_argument_group("model and process"), model_and_diffusion_defaults())
    add_train_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Validate the flags, then train."""
    flags = args_to_dict(args, model_and_diffusion_defaults())
    training = open_training(args, flags, MODEL, str(args.image_size))
    if training is None:
        return 0

    from train_network import ImageTask, train_network

    return train_network(args, training, ImageTask(flags))


if __name__ == "__main__":
    run(lambda: main(parse_args()))
