"""Study: what a training image and a sample cost, over width, batch size and precision; no training to quality.

  python results/studies/cost.py --plan
  python results/studies/cost.py --rounds 3

Each cell is a few updates through the model's own training script. Seconds per image are the difference of the first
and the last row of progress.csv, so that the start is left out; the rounds take turns over the cells. Sampling is
measured by the sample scripts' --benchmark, once per network. The plan varies width and precision at one batch size,
and the batch size at one width; --cells all takes every combination. A call that was cut short goes on when it is
repeated. About ten minutes on two CPU cores that have nothing else to do. Writes README.md, study.json, training.png
and sampling.png into results/studies/cost/.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import cli, formatting, studies
from comparison.cli import UserError
from comparison.report import study_page
from comparison.runs import read_progress
from comparison.studies import Job, Lab

IMAGE_SIZE = 32
WIDTHS = (16, 32, 64)
PRECISIONS = ("bf16", "float32")
SHORT = {"dcgan": "gans", "ddpm": "improved-diffusion", "ddgan": "denoising-diffusion-gan"}
BATCHES = {"dcgan": (128,), "ddpm": (16, 64), "ddgan": (16, 64)}
WIDTH_FLAGS = {"dcgan": ("--ngf", "--ndf"), "ddpm": ("--num_channels",), "ddgan": ("--num_channels_dae", "--ngf")}
SAMPLER = {"ddpm": ["--use_ddim", "True", "--timestep_respacing", "ddim5"]}  # few steps: time is linear
# For plans: seconds per training image at width 32 in bf16 on two CPU cores, and what float32 costs more
IMAGE_SECONDS = {"dcgan": 3e-4, "ddpm": 6e-3, "ddgan": 2e-2}
FLOAT32 = 1.7
BENCHMARK_SECONDS = 10.0
UNCOUNTED = (
    "Counted GFLOP of a training image: no training script counts them. For improved DDPM the table has three times an "
    "evaluation, the usual estimate for a pass forward and backward; for DCGAN and DDGAN not even the discriminators' "
    "evaluations are counted"
)


@dataclass(frozen=True)
class Cell:
    """A combination: short model name, width (channels), batch size (images), precision."""

    model: str
    width: int
    batch: int
    precision: str

    @property
    def name(self) -> str:
        """What --cells takes."""
        return f"{self.model}-w{self.width}-b{self.batch}-{self.precision}"

    @property
    def planned(self) -> bool:
        """Whether it is in the plan without --cells: batch sizes other than the first only at width 32 in bf16."""
        return self.batch == BATCHES[self.model][0] or (self.width == 32 and self.precision == "bf16")

    @property
    def benchmarked(self) -> bool:
        """Whether its network's sampling is measured: it does not depend on the batch size of training."""
        return self.batch == BATCHES[self.model][0] and (self.width == 32 or self.precision == "bf16")


CELLS = [Cell(m, w, b, p) for m in SHORT for b in BATCHES[m] for w in WIDTHS for p in PRECISIONS]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    studies.add_options(parser, seconds=None, num_samples=None)
    add = parser.add_argument
    add("--rounds", type=cli.positive_int, default=3, help="times that each cell is trained")
    add("--updates", type=cli.positive_int, default=5, help="measured in each training; DDGAN: one of them with R1")
    add("--benchmark_seconds", type=cli.positive_float, default=0.5, help="of the sampling benchmark, per batch size")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Judge, measure round by round, write."""
    lab = Lab.open("cost", args).without_sampler()
    if args.page:
        study_page.rewrite(lab.out, lab.study, page, draw_pictures)
        return
    if args.precision != "auto":
        raise UserError(f"--precision {args.precision}: a dimension of this study; name cells with --cells")
    default = [cell.name for cell in CELLS if cell.planned]
    wanted = {None: ",".join(default), "all": None}.get(args.cells, args.cells)
    names = studies.choose(wanted, [cell.name for cell in CELLS])
    cells = [cell for cell in CELLS if cell.name in names]
    if args.plan:
        print(studies.plan_table(plan(cells, args.rounds, args.updates), rest=5))
        return
    data = write_images(lab, args.updates)
    rounds: dict[str, list[dict[str, Any]]] = {cell.name: [] for cell in cells}
    for turn in range(args.rounds):
        for cell in cells:
            found = train_cell(lab, cell, turn, args.updates, data)
            rounds[cell.name].append(found)
            print(
                f"[round {turn + 1}/{args.rounds}] {cell.name}: {formatting.seconds(found['seconds_per_image'])} per "
                f"training image, {formatting.memory(found['peak_memory_bytes'])}",
                flush=True,
            )
    measured = [gather(lab, cell, rounds[cell.name], args.benchmark_seconds) for cell in cells]
    options = {name: getattr(args, name) for name in ("rounds", "updates", "benchmark_seconds", "preset")}
    left = [{"name": cell.name, "reason": "not planned"} for cell in CELLS if cell not in cells]
    study_page.write(lab, {"options": options, "cells": measured, "left_out": left}, page, draw_pictures)


def plan(cells: Sequence[Cell], rounds: int, updates: int) -> list[Job]:
    """Return the cells with what they cost."""
    jobs = []
    for cell in cells:
        image = IMAGE_SECONDS[cell.model] * (cell.width / 32) ** 1.5 * (FLOAT32 if cell.precision == "float32" else 1)
        one = studies.START_SECONDS + (updates + 1) * cell.batch * image
        bench = studies.START_SECONDS + BENCHMARK_SECONDS if cell.benchmarked else 0.0
        what = f"{rounds} x {updates} updates" + (", sampling" if cell.benchmarked else "")
        jobs.append(Job(cell.name, what, rounds * one + bench))
    return jobs


def write_images(lab: Lab, updates: int) -> Path:
    """Write as many training images as the updates see, so that no epoch ends and every start is quick."""
    from comparison.data.images import load_images, save_npz

    count = (updates + 2) * max(max(sizes) for sizes in BATCHES.values())
    path = lab.runs / "studies" / lab.study / f"images-{Path(lab.data).stem.replace(':', '-')}-{count}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_npz(path, load_images(lab.data, IMAGE_SIZE, limit=count).images.permute(0, 2, 3, 1).numpy())
    return path


def train_cell(lab: Lab, cell: Cell, turn: int, updates: int, data: Path) -> dict[str, Any]:
    """Train a cell for one more than the measured updates; the first one is left out."""
    folder = lab.folder(SHORT[cell.model], f"{cell.name}-r{turn}")
    flags = [part for flag in WIDTH_FLAGS[cell.model] for part in (flag, str(cell.width))]
    flags += ["--image_size", str(IMAGE_SIZE), "--batch_size", str(cell.batch), "--precision", cell.precision]
    flags += ["--log_interval", "1", "--seed", str(turn)]
    if cell.model == "ddgan":
        flags += ["--lazy_reg", str(updates)]
    budget = ["--max_steps", str(updates + 1)]
    config = studies.train(lab, SHORT[cell.model], folder, budget, flags, data=str(data))
    rows = read_progress(folder / "progress.csv")
    seconds, images = (rows[-1][name] - rows[0][name] for name in ("wall_seconds", "images_seen"))
    facts = studies.training_facts(config)
    return {
        "seconds_per_image": seconds / images,
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "images": int(images),
        "training": facts,
        "folder": folder,
    }


def gather(lab: Lab, cell: Cell, rounds: list[dict[str, Any]], benchmark_seconds: float) -> dict[str, Any]:
    """Return a cell of study.json: the rounds, their median and range, and the sampling of its network."""
    folders = [one.pop("folder") for one in rounds]
    facts = [one.pop("training") for one in rounds]
    label = study_page.label_of(SHORT[cell.model])
    found = {"name": cell.name, "model": SHORT[cell.model], "label": label, "width": cell.width, "batch": cell.batch}
    found |= {"precision": cell.precision, "rounds": rounds, "training": facts[0], "timing": None}
    found["seconds_per_image"] = spread([one["seconds_per_image"] for one in rounds])
    memory = [one["peak_memory_bytes"] for one in rounds if one["peak_memory_bytes"]]
    found["peak_memory_bytes"] = spread(memory) if memory else None
    if cell.benchmarked:
        flags = [*SAMPLER.get(cell.model, []), "--precision", cell.precision]
        flags += ["--benchmark_seconds", f"{benchmark_seconds:g}"]
        timing = studies.draw(lab, found["model"], folders[0], folders[0], flags, bench=True)
        kept = (
            "sampler",
            "nfe",
            "gflop_per_evaluation",
            "gflop_per_image",
            "parameters",
            "batches",
            "best",
            "protocol",
        )
        found["timing"] = {name: timing[name] for name in kept}
        print(f"{cell.name}: sampling measured", flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median as an entry whose interval is the range."""
    return {"value": statistics.median(values), "interval": [min(values), max(values)], "n": len(values)}


def ratio(over: dict[str, Any], under: dict[str, Any]) -> dict[str, Any]:
    """Return the median and range, over the rounds, of the ratio of two cells' seconds per image."""
    pairs = zip(over["rounds"], under["rounds"], strict=True)
    return spread([a["seconds_per_image"] / b["seconds_per_image"] for a, b in pairs])


def told(entry: dict[str, Any], form: Any = formatting.plain) -> str:
    """Write a median with its range."""
    low, high = entry["interval"]
    return form(entry["value"]) if low == high else f"{form(entry['value'])} ({form(low)} to {form(high)})"


def sentences(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the numbers say: bf16, width, batch size; a difference counts where the whole range shows it."""
    known = {(cell["model"], cell["width"], cell["batch"], cell["precision"]): cell for cell in cells}
    said = []
    for (model, width, batch, precision), cell in known.items():
        if precision == "bf16" and (other := known.get((model, width, batch, "float32"))):
            found = ratio(other, cell)
            low, high = found["interval"]
            word = "faster than" if low > 1 else "slower than" if high < 1 else "not clearly different from"
            where = f"{cell['label']}, width {width}, batch {batch}: training in bf16"
            if found["n"] == 1:
                said.append(f"{where} had {told(found)} times the speed of float32 in one round, too few for a claim.")
            else:
                said.append(f"{where} is {word} in float32, {told(found)} times the speed.")
    for (model, width, batch, precision), cell in known.items():
        wider = known.get((model, 4 * width, batch, precision))
        if wider:
            said.append(
                f"{cell['label']}, {precision}, batch {batch}: a training image takes {told(ratio(wider, cell))} times "
                f"as long at width {4 * width} as at {width}."
            )
        larger = known.get((model, width, 4 * batch, precision))
        if larger:
            said.append(
                f"{cell['label']}, {precision}, width {width}: a training image in a batch of {4 * batch} takes "
                f"{told(ratio(larger, cell))} times as long as in one of {batch}."
            )
    return said


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    cells, options = study["cells"], study["options"]
    lines, drawn = [], []
    for cell in cells:
        timing = cell["timing"]
        evaluation = timing and timing["gflop_per_evaluation"]
        training = 3 * evaluation if evaluation and cell["model"] == SHORT["ddpm"] else None
        front = [cell["label"], str(cell["width"]), str(cell["batch"]), cell["precision"]]
        thousand = {**cell["seconds_per_image"]}
        thousand["value"] *= 1000
        thousand["interval"] = [1000 * value for value in thousand["interval"]]
        memory = told(cell["peak_memory_bytes"], formatting.memory) if cell["peak_memory_bytes"] else formatting.MISSING
        lines.append([*front, told(thousand, formatting.seconds), memory, formatting.number(training)])
        if timing:
            first = timing["batches"][0]
            best = timing["best"]
            drawn.append(
                [
                    *(cell["label"], str(cell["width"]), cell["precision"], formatting.count(timing["parameters"])),
                    *(
                        formatting.number(evaluation),
                        f"{timing['nfe']:g}",
                        formatting.number(timing["gflop_per_image"]),
                    ),
                    *(
                        formatting.seconds(first["seconds"]),
                        f"{formatting.rate(best['images_per_second'])} at {best['batch_size']}",
                    ),
                    formatting.memory(max(batch["peak_memory_bytes"] for batch in timing["batches"])),
                ]
            )
    left = [item["name"] for item in study["left_out"]]
    header = ["", "width", "batch", "precision", "time per 1,000 images", "peak memory", "GFLOP per image, estimate"]
    sampling = ["", "width", "precision", "parameters", "GFLOP per evaluation", "NFE", "GFLOP per image"]
    sampling += ["latency, batch 1", "throughput, best batch", "peak memory"]
    return study_page.join(
        "# Study: cost",
        "What do a training image and a sample cost, and how does that change with width, batch size and precision?",
        f"Images of {IMAGE_SIZE} pixels; settings of `{options['preset']}` in flags.sh but for those in the table. "
        f"{study_page.machine(cells)}",
        f"Timed in each of {options['rounds']} rounds over all cells: {options['updates']} updates of each, after a "
        "first one that is left out; median (range) of the rounds. DDGAN's R1 penalty is in one of these updates. "
        "On a CPU memory is the peak of the whole process, libraries included.",
        "## What the numbers say",
        sentences(cells),
        "![Training time per 1,000 images against width](training.png)",
        "## Training",
        formatting.markdown_table(header, lines),
        "## Sampling",
        f"Protocol: {drawn and next(cell['timing']['protocol'] for cell in cells if cell['timing'])}."
        if drawn
        else None,
        formatting.markdown_table(sampling, drawn) if drawn else None,
        "![Sampling against width](sampling.png)" if drawn else None,
        "## Left out",
        [f"{UNCOUNTED}.", *([f"Combinations not measured: {', '.join(left)}."] if left else [])],
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw training.png and sampling.png against width."""
    training, gflop, latency = [], [], []
    for name, model in SHORT.items():
        for precision in PRECISIONS:
            mine = [c for c in study["cells"] if c["model"] == model and c["precision"] == precision]
            mine = [cell for cell in mine if cell["batch"] == BATCHES[name][0]]
            line = {"label": f"{study_page.label_of(model)}, {precision}", "model": model}
            line["style"] = "-" if precision == "bf16" else "--"
            points = [(c["width"], scaled(c["seconds_per_image"], 1000)) for c in mine]
            training.append({**line, "points": points})
            timed = [cell for cell in mine if cell["timing"]]
            points = [(c["width"], {"value": evaluation_seconds(c["timing"])}) for c in timed]
            latency.append({**line, "points": points})
            if precision == "bf16":
                points = [(c["width"], {"value": c["timing"]["gflop_per_evaluation"]}) for c in timed]
                gflop.append({**line, "points": points})
    common = {"x": "width, channels (log)", "log": "xy", "ticks": True}
    study_page.draw_lines(
        [{**common, "y": "seconds per 1,000 training images (log)", "lines": training}], out / "training.png"
    )
    panels = [
        {**common, "y": "seconds per image and evaluation, best batch (log)", "lines": latency},
        {**common, "y": "GFLOP per network evaluation (log)", "lines": gflop},
    ]
    study_page.draw_lines(panels, out / "sampling.png")


def evaluation_seconds(timing: dict[str, Any]) -> float:
    """Return the seconds of an image per network evaluation at the best batch size."""
    return 1 / (timing["best"]["images_per_second"] * timing["nfe"])


def scaled(entry: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return an entry in another unit."""
    return {"value": factor * entry["value"], "interval": [factor * value for value in entry["interval"]]}


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
