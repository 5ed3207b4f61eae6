"""Measure how fast a model trains and samples on this machine, by its own scripts as users run them.

  python results/benchmark.py gans
  python results/benchmark.py improved-diffusion --preset gpu --rounds 5

Each round trains with the default precision and with --precision float32, in turn, on images drawn by code, and times
the sampler of each. Prints a table and writes benchmark.json: seconds of an update (between the first and the last row
of progress.csv, so without warm-up), latency of one image, throughput, and which fraction of the machine's convolution
speed, measured in the same process as the sampler, the throughput is. Medians and ranges over the rounds.
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
MEASURES = {  # seconds of what -> words
    "update_seconds": "update",
    "latency_seconds": "one image alone",
    "seconds_per_image": "an image in large batches",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help=", ".join(MODELS))
    add("--preset", default="cpu", choices=["quick", "cpu", "gpu", "paper"], help="networks and settings, see flags.sh")
    add("--seconds", type=cli.positive_float, default=30.0, metavar="S", help="time of each training")
    add("--rounds", type=cli.positive_int, default=3, help="trainings with each precision")
    add("--small", action="store_true", help="five updates of the quick preset: shows that everything works")
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
    rounds: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    with bar(args.rounds * len(PRECISIONS), 0, f"benchmark {model.label}", "trainings") as progress:
        for number in range(args.rounds):
            for precision in PRECISIONS[:: -1 if number % 2 else 1]:
                rounds[precision].append(measure(model, precision, args))
                progress.update()
    result = summary(model, rounds, args)
    print("\n" + table(result))
    if not (args.small and args.out is None):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
        print(f"\n{out}")


def measure(model: Model, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train once from the start and time the sampler, in a folder that is deleted afterwards."""
    flags = preset_flags("quick" if args.small else args.preset)
    common = ["--seed", "0", "--precision", precision, "--device", args.device, "--threads", str(args.threads)]
    words = [word for name in model.train_flags for word in flags[name]]
    words += ["--image_size", "32", *model.fixed, *model.quiet, *common]
    words += ["--max_steps", "5" if args.small else "0", "--log_interval", "1" if args.small else "10"]
    words += [] if args.small else ["--max_seconds", f"{args.seconds:g}"]
    drawing = [word for name in model.sample_flags for word in flags[name]] + common
    with tempfile.TemporaryDirectory() as folder:
        run, console = Path(folder) / "run", Path(folder) / "console.txt"
        config = jobs.train(model, run, "shapes", words, console=console)
        rows = read_progress(run / "progress.csv")
        if len(rows) < 2:
            raise UserError(f"--seconds {args.seconds:g}: fewer than 20 updates in this time; give it more")
        update = (rows[-1]["wall_seconds"] - rows[0]["wall_seconds"]) / (rows[-1]["step"] - rows[0]["step"])
        drawing += ["--benchmark_seconds", "0.05" if args.small else "2"]
        timing = jobs.sample(model, run, run, drawing, benchmark=True, console=console)
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
    """Lay out medians of both precisions, a row for each measure, and the fraction of the convolution speed."""
    default, slow = (result["rounds"][precision] for precision in PRECISIONS)
    rows = []
    for name, words in MEASURES.items():
        medians = [statistics.median(entry[name] for entry in side) for side in (default, slow)]
        ratio = result["ratios"][name]
        low, high = (f"{bound:.2f}" for bound in ratio["range"])
        rows.append([words, *map(formatting.seconds, medians), f"{ratio['median']:.2f} ({low} to {high})"])
    shares = [f"{100 * statistics.median(e['convolution_fraction'] for e in side):.0f}%" for side in (default, slow)]
    rows.append(["of the convolution speed", *shares, ""])
    head = ["", f"default, {default[0]['precision']}", "float32", "times as fast (range)"]
    return f"{MODELS[result['model']].label} on {default[0]['device']}\n\n{formatting.console_table(head, rows)}"


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
