"""Study: time and memory of a training image and of a sample, over width, batch size and precision; no scores.

  python results/studies/cost.py --plan
  python results/studies/cost.py --rounds 3

Each cell is a few updates by the model's own training script. The time per image is taken between the first and the
last row of progress.csv, so start-up is excluded; each round trains all cells once. Sampling is measured once per
network by the sample script's --benchmark. The plan varies width and precision at one batch size, and the batch size at
one width; --cells all takes every combination. Repeat the command to resume. Takes about 10 minutes on two idle CPU
cores. Writes README.md, study.json, training.png and sampling.png into results/studies/cost/.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.models import MODELS, label_of
from comparison.report import study_page
from comparison.report.panels import STYLES, Line, Lines
from comparison.report.study_page import Row, scaled
from comparison.runs import read_progress
from comparison.studies import SHORT, START_SECONDS, Job, Study, add_options, training_facts

IMAGE_SIZE = 32
WIDTHS = (16, 32, 64)
PRECISIONS = ("bf16", "float32")
BATCHES = {"dcgan": (128,), "ddpm": (16, 64), "ddgan": (16, 64)}
WIDTH_FLAGS = {"dcgan": ("--ngf", "--ndf"), "ddpm": ("--num_channels",), "ddgan": ("--num_channels_dae", "--ngf")}
SAMPLER = {"ddpm": ["--use_ddim", "True", "--timestep_respacing", "ddim5"]}  # few steps: time is linear
TIMING = ("sampler", "nfe", "gflop_per_evaluation", "gflop_per_image", "parameters", "batches", "best", "protocol")
# For plans: seconds per training image at width 32 in bf16 on two CPU cores, and the factor of float32
IMAGE_SECONDS = {"dcgan": 3e-4, "ddpm": 6e-3, "ddgan": 2e-2}
FLOAT32 = 1.7
BENCHMARK_SECONDS = 10.0


class Cell(NamedTuple):
    """A combination: model, width (channels), batch size (images), precision."""

    model: str
    width: int
    batch: int
    precision: str

    @property
    def name(self) -> str:
        """Return the name in --cells."""
        return "{}-w{}-b{}-{}".format(*self)

    @property
    def benchmarked(self) -> bool:
        """Return True if the sampling is measured; the batch size of training does not change it."""
        return self.batch == BATCHES[self.model][0] and (self.width == 32 or self.precision == "bf16")

    @property
    def planned(self) -> bool:
        """Return True if the cell runs without --cells: only width 32 in bf16 has a second batch size."""
        return self.batch == BATCHES[self.model][0] or (self.width == 32 and self.precision == "bf16")


CELLS = {c.name: c for m in SHORT for b in BATCHES[m] for w in WIDTHS for p in PRECISIONS if (c := Cell(m, w, b, p))}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=None, num_samples=None)
    add = parser.add_argument
    add("--rounds", type=cli.positive_int, default=3, help="trainings of each cell")
    add("--updates", type=cli.positive_int, default=5, help="measured updates per training; for DDGAN, R1 is in one")
    add(
        "--benchmark_seconds",
        type=cli.positive_float,
        default=0.5,
        help="seconds per batch size, sampling",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Validate, measure round by round, write."""
    study = Study("cost", args, sampler=False)
    if args.page:
        return study.rewrite(page, draw_pictures)
    if args.precision != "auto":
        raise UserError(f"--precision {args.precision}: the study varies the precision; choose it with --cells")
    planned = ",".join(cell.name for cell in CELLS.values() if cell.planned)
    args.cells = {None: planned, "all": None}.get(args.cells, args.cells)
    names = [job.name for job in study.choose(plan(args.rounds, args.updates), rest=5)]
    if not names:
        return None
    from comparison import study_images  # torch

    stem = Path(study.data).stem.replace(":", "-")
    count = (args.updates + 2) * max(max(sizes) for sizes in BATCHES.values())  # less than an epoch, and quick to load
    data = study_images.write_subset(study, f"images-{stem}-{count}", count, IMAGE_SIZE)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn, name in product(range(args.rounds), names):
        rounds[name].append(train_cell(study, CELLS[name], turn, data))
        each = formatting.seconds(rounds[name][-1]["seconds_per_image"])
        print(f"[round {turn + 1}/{args.rounds}] {name}: {each} per training image", flush=True)
    content = {
        "options": study.options("rounds", "updates", "benchmark_seconds", "preset"),
        "cells": [gather(study, CELLS[name], rounds[name]) for name in names],
        "left_out": [{"name": name, "reason": "not planned"} for name in study.left_out],
    }
    return study.write(content, page, draw_pictures)


def plan(rounds: int, updates: int) -> list[Job]:
    """Return the cells with their times."""
    jobs = []
    for name, cell in CELLS.items():
        image = IMAGE_SECONDS[cell.model] * (cell.width / 32) ** 1.5 * (FLOAT32 if cell.precision == "float32" else 1)
        seconds = rounds * (START_SECONDS + (updates + 1) * cell.batch * image)
        seconds += START_SECONDS + BENCHMARK_SECONDS if cell.benchmarked else 0.0
        jobs.append(Job(name, f"{rounds} x {updates} updates" + (", sampling" if cell.benchmarked else ""), seconds))
    return jobs


def train_cell(study: Study, cell: Cell, turn: int, data: str) -> dict[str, Any]:
    """Train a cell for one more than the measured updates; the first is a warm-up."""
    updates, model = study.args.updates, MODELS[SHORT[cell.model]]
    folder = study.folder(model, f"{cell.name}-r{turn}")
    flags = [part for flag in WIDTH_FLAGS[cell.model] for part in (flag, str(cell.width))]
    flags += ["--image_size", str(IMAGE_SIZE), "--batch_size", str(cell.batch), "--precision", cell.precision]
    flags += ["--log_interval", "1", "--max_steps", str(updates + 1)]
    flags += ["--lazy_reg", str(updates)] if cell.model == "ddgan" else []
    config = study.train(model, folder, turn, flags, data)
    first, *_, last = read_progress(folder / "progress.csv")
    seconds, images = (last[key] - first[key] for key in ("wall_seconds", "images_seen"))
    memory = config["finished"].get("peak_memory_bytes")
    measured = {"seconds_per_image": seconds / images, "peak_memory_bytes": memory, "images": int(images)}
    return {**measured, "training": training_facts(config), "folder": folder}


def gather(study: Study, cell: Cell, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a cell of study.json: the rounds, their median and range, and the sampling of its network."""
    folders, training = ([entry.pop(key) for entry in rounds] for key in ("folder", "training"))
    model, timing = MODELS[SHORT[cell.model]], None
    memory = [entry["peak_memory_bytes"] for entry in rounds if entry["peak_memory_bytes"]]
    if cell.benchmarked:
        flags = [*SAMPLER.get(cell.model, []), "--precision", cell.precision]
        flags += ["--benchmark_seconds", f"{study.args.benchmark_seconds:g}"]
        measured = study.sample(model, folders[0], folders[0], 0, flags, benchmark=True)
        timing = {name: measured[name] for name in TIMING}
        print(f"{cell.name}: sampling measured", flush=True)
    return {
        **{"name": cell.name, "label": label_of(model.name, training[0]["options"].get("preset")), **cell._asdict()},
        **{"model": model.name, "rounds": rounds},
        **{"training": training[0], "timing": timing, "peak_memory_bytes": spread(memory) if memory else None},
        "seconds_per_image": spread([entry["seconds_per_image"] for entry in rounds]),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median as an entry whose interval is the range."""
    return {"value": statistics.median(values), "interval": [min(values), max(values)], "n": len(values)}


def with_range(entry: dict[str, Any], form: Callable[[float], str]) -> str:
    """Return a median with its range as text."""
    low, high = entry["interval"]
    return form(entry["value"]) if low == high else f"{form(entry['value'])} ({form(low)} to {form(high)})"


def speed_up(cell: Row, cells: Sequence[Row]) -> str:
    """Return the training speed of a cell in bf16 relative to the same in float32: median and range over the rounds."""
    key = (cell["model"], cell["width"], cell["batch"], "float32")
    other = next((c for c in cells if (c["model"], c["width"], c["batch"], c["precision"]) == key), None)
    if cell["precision"] != "bf16" or other is None:
        return formatting.MISSING
    pairs = zip(other["rounds"], cell["rounds"], strict=True)
    return with_range(
        spread([a["seconds_per_image"] / b["seconds_per_image"] for a, b in pairs]), formatting.format_number
    )


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    cells, options = study["cells"], study["options"]
    timed = [cell for cell in cells if cell["timing"]]
    first: dict[str, Callable[[Row], str]] = {"": lambda cell: cell["label"], "width": lambda cell: str(cell["width"])}
    training = {
        **first,
        "batch": lambda cell: str(cell["batch"]),
        "precision": lambda cell: cell["precision"],
        "time per 1,000 images": lambda cell: with_range(scaled(cell["seconds_per_image"], 1000), formatting.seconds),
        "speed-up by bf16": lambda cell: speed_up(cell, cells),
        "peak memory": lambda cell: formatting.memory((cell["peak_memory_bytes"] or {}).get("value")),
    }
    sampling = {
        **first,
        "precision": lambda cell: cell["precision"],
        "parameters": lambda cell: formatting.count(cell["timing"]["parameters"]),
        "GFLOP per evaluation": lambda cell: formatting.number(cell["timing"]["gflop_per_evaluation"]),
        "NFE": lambda cell: f"{cell['timing']['nfe']:g}",
        "GFLOP per image": lambda cell: formatting.number(cell["timing"]["gflop_per_image"]),
        "latency, batch 1": lambda cell: formatting.seconds(cell["timing"]["batches"][0]["seconds"]),
        "throughput": lambda cell: formatting.rate(cell["timing"]["best"]["images_per_second"]),
        "best batch": lambda cell: str(cell["timing"]["best"]["batch_size"]),
        "peak memory": lambda cell: formatting.memory(max(b["peak_memory_bytes"] for b in cell["timing"]["batches"])),
    }
    return study_page.page(
        study,
        "cost of training and sampling",
        "How much time and memory do a training image and a sample take, and how does that depend on width, batch size "
        "and precision?",
        f"Images of {IMAGE_SIZE} pixels. Settings: `{options['preset']}` in flags.sh, except those in the tables.",
        [
            "## Training",
            f"Median (range) over {options['rounds']} rounds. In each round, every cell makes {options['updates']} "
            "measured updates after one warm-up update. DDGAN's R1 penalty is in one of them.",
            "![Training time per 1,000 images against width](training.png)",
            study_page.table(cells, training),
            *(["## Sampling", f"Protocol: {timed[0]['timing']['protocol']}."] if timed else []),
            *(["![Sampling](sampling.png)", study_page.table(timed, sampling)] if timed else []),
        ],
        [
            "On a CPU, memory is the peak of the whole process, libraries included.",
            "The arithmetic of training is not counted.",
        ],
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw training.png and sampling.png against width, at each model's first batch size."""
    from comparison.report.study_plots import draw

    training, gflop, latency = [], [], []
    for short, name in SHORT.items():
        model = MODELS[name]
        for precision, look in zip(PRECISIONS, STYLES, strict=False):
            key = (name, precision, BATCHES[short][0])
            cells = [c for c in study["cells"] if (c["model"], c["precision"], c["batch"]) == key]
            timed = [cell for cell in cells if cell["timing"]]
            label = f"{cells[0]['label'] if cells else ''}, {precision}"
            points = [(c["width"], scaled(c["seconds_per_image"], 1000)) for c in cells]
            training.append(Line(label, points, model.colour, **look))
            points = [
                (c["width"], {"value": 1000 / (c["timing"]["best"]["images_per_second"] * c["timing"]["nfe"])})
                for c in timed
            ]
            latency.append(Line(label, points, model.colour, **look))
            if precision == "bf16":
                points = [(c["width"], {"value": c["timing"]["gflop_per_evaluation"]}) for c in timed]
                gflop.append(Line(label, points, model.colour, **look))
    axes = {
        "seconds per 1,000 training images (log)": training,
        "ms per network evaluation of an image,\nbest batch (log)": latency,
        "GFLOP per network evaluation (log)": gflop,
    }
    panels = [Lines("width, channels (log)", y, lines, log="xy", ticks=WIDTHS) for y, lines in axes.items()]
    draw(panels[:1], out / "training.png")
    draw(panels[1:], out / "sampling.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
