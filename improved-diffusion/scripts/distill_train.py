#!/usr/bin/env python3
"""Distil a trained improved diffusion model into one that needs one to four network evaluations per image.

    python improved-diffusion/scripts/distill_train.py --max_seconds 300 \\
        --model_path results/runs/improved-diffusion/cifar_train-32/ema_0.9999_005000.pt
    python improved-diffusion/scripts/image_sample.py --sampler few-step --num_sampling_steps 2 \\
        --model_path results/runs/improved-diffusion/cifar_train-32-few-step/ema_0.9999_000300.pt

The network starts from the model file, its teacher, and learns to follow the teacher's own paths from noise in few
steps (Zhou et al. 2024, "Simple and fast distillation of diffusion models"). That takes a small part of the teacher's
training, and its quality is the limit. The teacher's config.json gives the flags; for a file without config.json the
flags describe it. --data_dir is by default the teacher's data, which is only used for the records: paths begin at
noise. Other options and the files are those of image_train.py; the same command again resumes.
"""

import argparse
from collections.abc import Sequence

from comparison.cli import UserError, make_parser, positive_int
from comparison.distributed import run
from comparison.files import digest
from improved_diffusion.flags import model_and_diffusion_defaults
from model_options import (
    MODEL,
    add_model_path,
    add_network_flags,
    find_model,
    flags_of_run,
    options_of_run,
    training_of,
)
from train_options import add_train_options, open_training

# Number of evaluations -> noise levels. No two are equal, so that a level has one destination.
LEVELS = {1: [20.0], 2: [40.0, 1.0], 3: [60.0, 2.0, 0.6], 4: [80.0, 4.0, 1.4, 0.4]}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    add_network_flags(parser, model_and_diffusion_defaults())
    help_text = "the teacher: ema_<rate>_<step>.pt or model<step>.pt of image_train.py; local or remote"
    add = add_model_path(parser, "distillation", help_text)
    add("--evaluations", type=read_counts, default="1,2,4", help="numbers of evaluations to tune for, from 1 to 4")
    add("--teacher_steps", type=positive_int, default=16, help="the teacher's evaluations per path")
    add_train_options(parser)
    parser.set_defaults(lr=3e-4, batch_size=12, beta2=0.99, lr_warmup=0.05, lr_decay="cosine", ema_horizon=0.05)
    return parser.parse_args(argv)


def read_counts(text: str) -> str:
    """Read --evaluations, an argparse type."""
    counts = text.split(",")
    if not set(counts) <= {"1", "2", "3", "4"} or len(set(counts)) < len(counts):
        raise argparse.ArgumentTypeError(f"must be different numbers from 1 to 4 such as 1,2,4, not {text!r}")
    return ",".join(sorted(counts))


def main(args: argparse.Namespace) -> int:
    """Validate the flags, then distil."""
    if args.schedule_sampler != "uniform":
        raise UserError(f"--schedule_sampler {args.schedule_sampler}: a distillation samples its own noise levels")
    find_model(args)
    flags = flags_of_run(args, model_and_diffusion_defaults(), MODEL)
    flags["timestep_respacing"] = ""
    options = options_of_run(args.model_path) or {}
    if options.get("few_step"):
        raise UserError(f"--model_path {args.model_path}: already distilled; give its teacher")
    args.data_dir = args.data_dir or options.get("data_dir", "")
    vars(args).update(flags)
    args.few_step = {"levels": {count: LEVELS[int(count)] for count in args.evaluations.split(",")}}
    args.teacher = {"checkpoint": args.model_path.name, "sha256": digest(args.model_path)}
    args.teacher |= training_of(args.model_path)
    training = open_training(args, flags, MODEL, f"{args.image_size}-few-step")
    if training is None:
        return 0

    from distill_network import DistillTask
    from train_network import train_network

    return train_network(args, training, DistillTask(flags, args.model_path, args.few_step))


if __name__ == "__main__":
    run(lambda: main(parse_args()))
