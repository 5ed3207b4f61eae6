"""Write the comparison of some runs from the files in their folders.

  python results/report.py --name cifar10 --anchors results/reports/cifar10/anchors.json \
    results/runs/gans/cifar10 results/runs/improved-diffusion/cifar10

Reads config.json, progress.csv, sampling.json, timing.json, metrics.json, samples and pictures of each run folder, of
the other sampler settings in its settings/ and of the earlier checkpoints in its history/, and the controls that
evaluate.py --anchors wrote. A missing file shows as `-` in the tables. Writes REPORT.md, REPORT.html (self-contained),
report.json and pictures into results/reports/NAME/, and prints the tables. The same files give the same report.
"""

import argparse
import re
from pathlib import Path

from comparison.cli import UserError, make_parser, repo_root, run
from comparison.report.rows import check_runs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("--name", required=True, help="name of the report and its folder")
    parser.add_argument("--anchors", type=Path, required=True, metavar="FILE", help="controls, from evaluate.py")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="output folder instead of results/reports/NAME")
    budgets = "seconds=N, images=N, recipe (each model's own length), or MODEL:seconds=N,... for each model"
    parser.add_argument("--budget", metavar="B", help=f"training budget of the runs: {budgets}")
    parser.add_argument("--data_note", metavar="TEXT", help="a sentence on the data, e.g. that it is JPEG CIFAR-10")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", args.name) or args.name.strip(".") == "":
        parser.error(f"--name {args.name}: letters, digits, '.', '_' and '-' only")
    bound = r"((seconds|images)=\d+(\.\d+)?|recipe)"
    if args.budget and not re.fullmatch(rf"{bound}|[a-z-]+:{bound}(,[a-z-]+:{bound})*", args.budget):
        parser.error(f"--budget {args.budget}: must be {budgets}")
    return args


def main(args: argparse.Namespace) -> None:
    """Validate the paths, then write and print."""
    if not args.anchors.is_file():
        raise UserError(f"--anchors {args.anchors}: no such file; evaluate.py --anchors writes it")
    check_runs(args.runs)

    from comparison.report import page

    out = args.out or repo_root() / "results" / "reports" / args.name
    report = page.make_report(args.name, args.runs, args.anchors, out, args.budget, args.data_note or None)
    print(page.console(report))
    print(f"\n{out / 'REPORT.md'}")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
