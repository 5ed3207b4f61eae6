"""Measure what a model folder's own code gains over a plain version of the same work.

  python results/benchmark.py gans
  python results/benchmark.py improved-diffusion --pairs training --rounds 9

MODEL is a folder with a file pairs.py, which names pieces of work and does each in two ways: plainly, in float32, as
the published code does it, and as the folder's own scripts do by default. Both are timed in turn in one process that
runs in the folder. Prints a table and writes benchmark.json: medians, spread, ratios, the difference of the results,
arithmetic. Pairs that are not measured again stay in the file. With --small tiny networks show that everything works;
their ratios mean nothing and are written only to --out. The exit status is 1 where two paths disagree.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from comparison import cli
from comparison.benchmarking import HOOK

INTERRUPTED = 130


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"gans, improved-diffusion, denoising-diffusion-gan, or a folder with {HOOK}")
    add("--pairs", nargs="+", default=[], metavar="NAME", help="measure these only")
    add("--list", action="store_true", help="say what would be measured, and measure nothing")
    add("--rounds", type=cli.positive_int, default=5, help="times that each path is timed")
    add("--small", action="store_true", help="tiny networks, seconds instead of minutes")
    add("--out", type=Path, metavar="FILE", help="results/runs/<model>/benchmark/benchmark.json unless given")
    cli.add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Start the one process that measures, in the model's folder; return its exit status."""
    folder = model_folder(args.model)
    out = args.out
    if out is None and not args.small:
        out = cli.default_run_folder(folder.name, "benchmark") / "benchmark.json"
    if out and out.is_dir():
        raise cli.UserError(f"--out {out}: a folder; name a file")
    request = {name: value for name, value in vars(args).items() if name not in ("model", "out")}
    request |= {"folder": str(folder), "model": folder.name, "out": out and str(out.resolve())}
    package = str(Path(__file__).resolve().parent)
    search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", "from comparison import benchmarking; benchmarking.serve()", json.dumps(request)]
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": search}) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the process has it too and says so
            process.wait()
            return INTERRUPTED


def model_folder(name: str) -> Path:
    """Return the folder that MODEL means.

    Raises:
        UserError: there is none, or it has no hook file.
    """
    for folder in (cli.repo_root() / name, Path(name)):
        if (folder / HOOK).is_file():
            return folder.resolve()
    known = sorted(path.parent.name for path in cli.repo_root().glob(f"*/{HOOK}"))
    raise cli.UserError(f"MODEL {name}: must be {', '.join(known)}, or a folder with a file {HOOK}")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
