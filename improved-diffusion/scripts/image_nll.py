#!/usr/bin/env python3
"""Compute the variational bound of a diffusion model on images, in bits per dimension, term by term.

    python improved-diffusion/scripts/image_nll.py --data_dir data/cifar_test --num_samples 1000 --batch_size 64 \\
        --model_path results/runs/improved-diffusion/cifar_train-32/ema_0.9999_005000.pt

The bound is Ho et al. 2020, Eq. 5, one network evaluation per image and timestep; lower is better. With
--timestep_respacing it is the bound of the process of the kept steps: another and higher one, not an estimate. Beside
the model file (--out_dir, else OPENAI_LOGDIR) it writes nll.json (mean with standard error, prior, terms by quartile of
t), nll.png, and the means over the images of each term, arr_0 (T,) with t = T - 1 first: vb_terms.npz (bits per
dimension), mse_terms.npz (of the noise) and xstart_mse_terms.npz. The noise depends on the seed, the image and t alone,
and every image counts once, whatever the batch size and the number of ranks, which share the images. The same call
resumes an interrupted one.
"""

import argparse
from collections.abc import Sequence

from comparison.cli import add_device_options, make_parser, non_negative_int, positive_int, str2bool
from comparison.data.sources import DATA_HELP, check_source
from comparison.distributed import run
from improved_diffusion.flags import model_and_diffusion_defaults
from model_options import MODEL, add_checkpoint_flags, add_network_flags, download_data, network_flags


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    add_network_flags(parser, model_and_diffusion_defaults())
    add_checkpoint_flags(parser)
    add = parser.add_argument_group("likelihood").add_argument
    add("--data_dir", "--data", required=True, help=DATA_HELP)
    add(
        "--split",
        default="test",
        choices=["train", "test"],
        help="split of a source known by name; a folder is used whole",
    )
    add("--num_samples", type=non_negative_int, default=1000, help="images, spread evenly over the set; 0 for all")
    add("--batch_size", type=positive_int, default=32, help="images per batch")
    add("--clip_denoised", type=str2bool, default=True, help="clip each predicted image to [-1, 1]")
    add("--seed", type=non_negative_int, default=0, help="seed of the noise")
    add_device_options(parser)
    parser.set_defaults(precision="float32")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Validate the flags, then measure."""
    args.data_dir = download_data("--data_dir", args.data_dir)
    check_source(args.data_dir, "--data_dir")
    flags = network_flags(args, model_and_diffusion_defaults(), MODEL)

    from measure_nll import measure_nll

    return measure_nll(args, flags)


if __name__ == "__main__":
    run(lambda: main(parse_args()))
