"""Measure how fast a model trains and samples on this machine, by its own scripts.

  python results/benchmark.py gans
  python results/benchmark.py improved-diffusion --preset gpu --rounds 5

Each round trains once with the default precision and once with --precision float32, on images drawn by code, and times
the sampler of each. Prints a table and writes benchmark.json: medians and ranges over the rounds of the seconds per
update (between the first and the last row of progress.csv, so without warm-up), the latency of one image, the
throughput, and the throughput as a fraction of the machine's convolution speed, measured in the same process.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import cli, formatting, jobs
from comparison.cli import UserError
from comparison.files import write_json
from comparison.models import MODELS, Model, preset_flags
from comparison.progress import bar
from comparison.runs import read_progress, versions

SCHEMA = 2
PRECISIONS = ("auto", "float32")
PROTOCOL = (
    "the model's own scripts on `shapes` at 32 pixels, default precision and float32 in turn, the order changing from "
    "round to round; seconds of an update between the first and last row of progress.csv; sampling as timing.json"
)
MEASURES = {  # key of the seconds -> label
    "update_seconds": "update",
    "latency_seconds": "one image, batch size 1",
    "seconds_per_image": "one image, best batch size",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help=", ".join(MODELS))
    add("--preset", default="cpu", choices=["quick", "cpu", "gpu", "paper"], help="networks and settings, see flags.sh")
    add("--seconds", type=cli.positive_float, default=30.0, metavar="S", help="time of each training")
    add("--rounds", type=cli.positive_int, default=3, help="trainings with each precision")
    add("--small", action="store_true", help="five updates of the quick preset, as a test")
    add("--out", type=cli.local_path, metavar="FILE", help="results/runs/<model>/benchmark/benchmark.json unless given")
    add("--device", type=cli.device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--threads", type=cli.thread_count, default=0, help="CPU threads, 0 for all cores")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    if args.model not in MODELS:
        raise UserError(f"MODEL {args.model}: must be among {', '.join(MODELS)}")
    model = MODELS[args.model]
    out = args.out or cli.default_run_folder(model.name, "benchmark") / "benchmark.json"
    if out.is_dir():
        raise UserError(f"--out {out}: a folder; name a file")
    cli.check_folder(out.parent, "--out")
    if not (args.small and args.out is None):
        out.parent.mkdir(parents=True, exist_ok=True)
    rounds: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    with bar(args.rounds * len(PRECISIONS), 0, f"benchmark {model.label}", "trainings") as progress:
        for number in range(args.rounds):
            for precision in PRECISIONS[:: -1 if number % 2 else 1]:
                rounds[precision].append(measure(model, precision, args))
                progress.update()
    result = summary(model, rounds, args)
    print("\n" + table(result))
    if not (args.small and args.out is None):
        write_json(out, result)
        print(f"\n{out}")


def measure(model: Model, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train once from the start and time the sampler, in a folder that is deleted afterwards."""
    flags = preset_flags("quick" if args.small else args.preset)
    common = ["--seed", "0", "--precision", precision, "--device", args.device, "--threads", str(args.threads)]
    training = [word for name in model.train_flags for word in flags[name]]
    training += ["--image_size", "32", *model.fixed, *model.quiet, *common]
    training += ["--max_steps", "5" if args.small else "0", "--log_interval", "1" if args.small else "10"]
    training += [] if args.small else ["--max_seconds", f"{args.seconds:g}"]
    sampling = [word for name in model.sample_flags for word in flags[name]] + common
    with tempfile.TemporaryDirectory() as folder:
        run, console = Path(folder) / "run", Path(folder) / "console.txt"
        config = jobs.train(model, run, "shapes", training, console=console)
        rows = read_progress(run / "progress.csv")
        if len(rows) < 2:
            raise UserError(f"--seconds {args.seconds:g}: fewer than 20 updates in this time; increase it")
        update = (rows[-1]["wall_seconds"] - rows[0]["wall_seconds"]) / (rows[-1]["step"] - rows[0]["step"])
        sampling += ["--benchmark_seconds", "0.05" if args.small else "2"]
        timing = jobs.sample(model, run, run, sampling, benchmark=True, console=console)
    best = timing["best"]["images_per_second"]
    return {
        "precision": timing["precision"],
        "device": timing["device"],
        "images_per_update": (rows[-1]["images_seen"] - rows[0]["images_seen"]) / (rows[-1]["step"] - rows[0]["step"]),
        "parameters": config.get("parameters"),
        "update_seconds": update,
        "latency_seconds": timing["batches"][0]["seconds"],
        "seconds_per_image": 1 / best,
        "gflop_per_image": timing["gflop_per_image"],
        "convolution_fraction": timing["gflop_per_image"] * best / timing["convolution_gflop_per_second"],
    }


def summary(model: Model, rounds: Mapping[str, Sequence[dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    """Return the content of benchmark.json."""
    ratios = {
        name: [slow[name] / fast[name] for fast, slow in zip(*(rounds[p] for p in PRECISIONS), strict=True)]
        for name in MEASURES
    }
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "model": model.name,
        "preset": "quick, five updates" if args.small else args.preset,
        "versions": versions(),
        "rounds": rounds,
        "ratios": {name: {"median": statistics.median(v), "range": [min(v), max(v)]} for name, v in ratios.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """Return a table of medians for both precisions, a row per measure."""
    default, slow = (result["rounds"][precision] for precision in PRECISIONS)
    rows = []
    for name, label in MEASURES.items():
        medians = [statistics.median(entry[name] for entry in side) for side in (default, slow)]
        ratio = result["ratios"][name]
        low, high = (f"{bound:.2f}" for bound in ratio["range"])
        rows.append([label, *map(formatting.seconds, medians), f"{ratio['median']:.2f} ({low} to {high})"])
    fractions = [f"{100 * statistics.median(e['convolution_fraction'] for e in side):.0f}%" for side in (default, slow)]
    rows.append(["fraction of convolution speed", *fractions, ""])
    head = ["", f"default, {default[0]['precision']}", "float32", "speed-up (range)"]
    return f"{MODELS[result['model']].label} on {default[0]['device']}\n\n{formatting.console_table(head, rows)}"


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
