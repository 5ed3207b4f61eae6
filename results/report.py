"""Write the comparison of runs from the files in their folders.

  python results/report.py --name cifar10 --anchors results/reports/cifar10/anchors.json \
    results/runs/gans/cifar10 results/runs/improved-diffusion/cifar10

Reads config.json, progress.csv, sampling.json, timing.json, metrics.json, samples and pictures of each run folder, its
other sampler settings in settings/ and its earlier checkpoints in history/, and the controls of evaluate.py --anchors.
The values of a missing file appear as `-`. Writes REPORT.md, REPORT.html (self-contained), report.json and pictures
into results/reports/NAME/, and prints the tables. The same files give the same report.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from comparison.cli import UserError, check_folder, make_parser, repo_root, run, run_name

FILES = ("config.json", "metrics.json", "sampling.json", "timing.json", "progress.csv")  # of a run folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("--name", type=run_name, required=True, help="name of the report and its folder")
    parser.add_argument("--anchors", type=Path, required=True, metavar="FILE", help="controls' file of evaluate.py")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="output folder instead of results/reports/NAME")
    budgets = "seconds=N, images=N, recipe (each model's own length), or MODEL:seconds=N,... for unequal budgets"
    parser.add_argument("--budget", metavar="B", help=f"training budget of the runs: {budgets}")
    parser.add_argument("--data_note", metavar="TEXT", help="a sentence on the data, e.g. that it is JPEG CIFAR-10")
    args = parser.parse_args(argv)
    bound = r"((seconds|images)=\d+(\.\d+)?|recipe)"
    if args.budget and not re.fullmatch(rf"{bound}|[a-z-]+:{bound}(,[a-z-]+:{bound})*", args.budget):
        parser.error(f"--budget {args.budget}: must be {budgets}")
    return args


def main(args: argparse.Namespace) -> None:
    """Validate the paths, then write and print."""
    if not args.anchors.is_file():
        raise UserError(f"--anchors {args.anchors}: no such file; evaluate.py --anchors writes it")
    check_runs(args.runs)
    out = args.out or repo_root() / "results" / "reports" / args.name
    check_folder(out, "--out")

    from comparison.report import page

    report = page.make_report(args.name, args.runs, args.anchors, out, args.budget, args.data_note or None)
    print(page.console(report))
    print(f"\n{out / 'REPORT.md'}")


def check_runs(folders: Sequence[Path]) -> None:
    """Raise UserError for a path that is not a run folder."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such run folder")
        if not any((folder / name).is_file() for name in FILES) and not any(folder.glob("samples*.npz")):
            raise UserError(f"{folder}: not a run folder; it holds none of {', '.join(FILES)}, samples*.npz")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
