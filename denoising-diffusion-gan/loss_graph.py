"""Plot the generator's and the discriminator's loss of one or more runs against training images seen.

    python3 denoising-diffusion-gan/loss_graph.py ddgan_cifar10_exp1
    python3 denoising-diffusion-gan/loss_graph.py mine-s0 mine-s1 mine-s2 --mean --also r1 grad_norm_g

Reads the runs' progress.csv and writes one PNG. Several runs share the plot, with a line style each; --mean plots their
average and range instead, for runs that differ in the seed.
"""

import argparse
import math
from pathlib import Path

from comparison.cli import UserError, check_folder, local_path, make_parser, run
from comparison.curves import LARGEST
from comparison.files import remove_stale
from comparison.runs import read_progress
from ddgan.options import run_folder

LOSSES = ("loss_d", "loss_g")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="name of a run (its --exp); with a slash, its folder")
    add("--out", type=local_path, help="PNG to write; default: out/loss_<run>.png next to this script")
    also_help = "columns that get a panel each: r1, lr, grad_norm_d and others"
    add("--also", nargs="+", default=[], metavar="COLUMN", help=also_help)
    add("--mean", action="store_true", help="plot the average and range of the runs instead of a line for each")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Read and validate the runs, and plot them."""
    folders = [run_folder(name) for name in args.runs]
    rows = {folder: read_rows(folder) for folder in folders}
    if args.mean and len(rows) < 2:
        raise UserError("--mean: needs several runs")
    for folder, run_rows in rows.items():
        columns = {name for row in run_rows for name in row}
        if missing := [name for name in args.also if name not in columns]:
            has = ", ".join(sorted(columns))
            raise UserError(f"--also {missing[0]}: not in {folder / 'progress.csv'}, which has {has}")
    first = folders[0].resolve().name
    name = first if len(rows) == 1 else f"{first}_and_{len(rows) - 1}_more"
    out = args.out or Path(__file__).parent / "out" / f"loss_{name}.png"
    if out.is_dir():
        raise UserError(f"--out {out}: a folder, not a PNG file")
    check_folder(out.parent, "--out")
    from ddgan.loss_plot import draw

    remove_stale(out.parent)
    draw(rows, args.also, args.mean, out)
    print(out)
    return 0


def read_rows(folder: Path) -> list[dict[str, float]]:
    """Return the rows with losses of a run's progress.csv; raise UserError if there are none."""
    path = folder / "progress.csv"
    if not path.is_file():
        raise UserError(f"{folder}: holds no progress.csv")
    rows = [row for row in read_progress(path) if all(abs(row.get(name, math.inf)) < LARGEST for name in LOSSES)]
    if not rows:
        raise UserError(f"{path}: no row with losses yet")
    return rows


if __name__ == "__main__":
    run(lambda: main(parse_args()))
