"""Fill the blocks of README.md from committed reports, or check that they are up to date.

  python results/readme.py
  python results/readme.py --check

A block begins with `<!-- report NAME PART -->` and ends with `<!-- /report -->`; between them stands what
results/reports/NAME/report.json says: the table `quality` or `cost`, the `sentences`, or `picture:FILE`. With --check
nothing is written; stale blocks are named, and the exit status is 1 if there are any.
"""

import argparse
import os
from pathlib import Path

from comparison.cli import UserError, make_parser, repo_root, run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, name stale blocks")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="other file than README.md of the repository")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="other folder than results/reports")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Fill or check the blocks; return the exit status."""
    from comparison.files import write_text
    from comparison.report import readme

    path = args.readme or repo_root() / "README.md"
    reports = args.reports or repo_root() / "results" / "reports"
    if not path.is_file():
        raise UserError(f"--readme {path}: no such file")
    link = Path(os.path.relpath(reports.resolve(), path.resolve().parent)).as_posix()
    old = readme.stale(path, reports, link)
    if args.check:
        for block in old:
            print(f"stale: {block}")
        return 1 if old else 0
    if old:
        write_text(path, readme.render(path.read_text(encoding="utf-8"), reports, link))
    print(f"{path}: {len(old)} of its blocks filled anew")
    return 0


if __name__ == "__main__":
    run(lambda: main(parse_args()))
