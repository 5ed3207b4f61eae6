"""Train the CIFAR-10 classifier whose features the comparison uses, and export its weights.

  python results/train_classifier.py --data cifar10
  python results/train_classifier.py --data data/cifar10-jpeg/train --test data/cifar10-jpeg/test

The repository holds the weights: run this only to reproduce them, or to train on other images of the ten classes.
Trains a residual network with 0.66 M parameters (He et al. 2016) with flips, shifts and label smoothing, tests it once,
and writes cifar_classifier.npz and cifar_classifier.json to --out. The run folder gets config.json, progress.csv,
log.txt and a checkpoint per epoch; repeat the command to resume. An epoch takes about 30 s on two CPU cores with bf16.
"""

import argparse
from pathlib import Path

from comparison import cli
from comparison.data.sources import check_source, source_name
from comparison.runs import Run

MODEL = "classifier"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--data", default="cifar10", metavar="SOURCE", help="training images of the ten classes of CIFAR-10")
    add("--test", metavar="SOURCE", help="test images; required unless --data is cifar10")
    add("--out", type=Path, metavar="FOLDER", help="folder of the exported weights; the package unless given")
    add("--run_dir", type=Path, metavar="FOLDER", help="run folder; results/runs/classifier/<data> unless given")
    add("--epochs", type=cli.positive_int, default=30, help="epochs")
    add("--batch_size", type=cli.positive_int, default=128, help="images per update")
    add("--lr", type=cli.positive_float, default=0.2, help="peak learning rate, reached after a fifth of the updates")
    add(
        "--weight_decay",
        type=cli.non_negative_float,
        default=5e-4,
        help="weight decay, not of the norms",
    )
    add("--label_smoothing", type=cli.fraction, default=0.1, help="label smoothing")
    add("--shift", type=cli.non_negative_int, default=4, help="largest random shift, pixels")
    add("--seed", type=cli.non_negative_int, default=0, help="seed of weights, data order and augmentation")
    add("--fresh", action="store_true", help="start over, deleting the content of the run folder")
    cli.add_device_options(parser)
    args = parser.parse_args(argv)
    if args.test is None and args.data != "cifar10":
        parser.error(f"--data {args.data}: --test is required")
    return args


def main(args: argparse.Namespace) -> int:
    """Train, test and export; return the exit status."""
    check_source(args.data, "--data")
    check_source(args.test or args.data, "--test")
    folder = args.run_dir or cli.default_run_folder(MODEL, source_name(args.data))
    cli.check_folder(folder, "--run_dir")
    if args.out:
        cli.check_folder(args.out, "--out")
    options = {name: value for name, value in vars(args).items() if name not in ("run_dir", "out")}
    run = Run.open(folder, options, model=MODEL, fresh=args.fresh)

    from comparison.scores import classifier_training  # torch

    return classifier_training.train_and_export(run, vars(args), args.out)


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
