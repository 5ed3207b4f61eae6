#!/usr/bin/env python3
"""Measure what samplers lose by taking few steps, apart from any network's faults.

    python improved-diffusion/scripts/exact_score.py
    python improved-diffusion/scripts/exact_score.py --noise_schedule linear --diffusion_steps 1000 --out linear-1000
    python improved-diffusion/scripts/exact_score.py --data data/cifar_train --eigenvalues cifar10.npz

For Gaussian data the best prediction of x_0 is known, and linear in x_t. In the eigenbasis of the data's covariance
every coordinate is a Gaussian of its own, which a sampler scales and adds noise to; so the variance of its samples,
and their Frechet distance from the data, follow without random sampling. The distance is given as a fraction of the
data's total variance. The data are Gaussian with the pixel covariance of CIFAR-10, of which the repository holds the
eigenvalues; --data computes them from other images and writes them to --eigenvalues. Fifteen seconds on one CPU core.
Writes README.md, study.json and exact-score.png into results/studies/exact-score/, or --out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from comparison.cli import UserError, check_folder, local_path, make_parser, pixels, positive_int, repo_root, run
from comparison.data.sources import check_source
from improved_diffusion.flags import MAX_STEPS
from improved_diffusion.schedules import NOISE_SCHEDULES, get_named_beta_schedule

EIGENVALUES = Path(__file__).parents[1] / "datasets" / "cifar10_eigenvalues.npz"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--eigenvalues", type=local_path, default=EIGENVALUES, help="file of the covariance's eigenvalues, arr_0")
    add("--data", help="folder or name of images whose eigenvalues are computed and written to --eigenvalues")
    add("--image_size", type=pixels, default=32, help="pixels, for --data")
    add("--noise_schedule", choices=NOISE_SCHEDULES, default="cosine", help="noise schedule of the process")
    add("--diffusion_steps", type=positive_int, default=4000, help="T, the number of noising steps")
    add("--evaluations", default="5,6,8,10,12,15,20,30,50,100,250,1000", help="numbers of evaluations per image")
    add("--out", type=local_path, default=repo_root() / "results" / "studies" / "exact-score", help="output folder")
    args = parser.parse_args(argv)
    if args.data and args.eigenvalues.resolve() == EIGENVALUES.resolve():
        parser.error("--data needs --eigenvalues, a file for its eigenvalues")
    if args.diffusion_steps > MAX_STEPS:
        parser.error(f"--diffusion_steps must be at most {MAX_STEPS}, not {args.diffusion_steps}")
    try:
        get_named_beta_schedule(args.noise_schedule, args.diffusion_steps)
        args.evaluations = sorted({int(word) for word in args.evaluations.split(",")})
    except ValueError as error:
        parser.error(f"--{error}" if "diffusion_steps" in str(error) else f"--evaluations {args.evaluations}: {error}")
    if not 1 <= args.evaluations[0] <= args.evaluations[-1] <= args.diffusion_steps:
        parser.error(f"--evaluations must be from 1 to --diffusion_steps {args.diffusion_steps}")
    return args


def main(args: argparse.Namespace) -> None:
    """Validate the arguments, then measure all samplers."""
    check_folder(args.out, "--out")
    if args.data:
        check_source(args.data, "--data")
        check_folder(args.eigenvalues.parent, "--eigenvalues")
    elif not args.eigenvalues.is_file():
        raise UserError(f"--eigenvalues {args.eigenvalues}: no such file")

    from measure_exact_score import measure_samplers

    measure_samplers(args)


if __name__ == "__main__":
    run(lambda: main(parse_args()))
