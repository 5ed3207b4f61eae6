"""Study: fewer training images for each model, and three ways to 64 pixels.

  python results/studies/data.py --plan
  python results/studies/data.py --seconds 75

Trains every model for the same time on 10, 30 and 100% of the images, and once on all of them at 64 pixels. All samples
are scored against the whole training set; copies are counted among the images that the training saw. The samples of 32
pixels are also enlarged and scored at 64 pixels: bicubic for each model, and by a super-resolution network, trained for
the same time again, for improved DDPM. Repeat the command to resume. Takes about 20 minutes on two CPU cores. Writes
README.md, study.json, data.png and resolution.png into results/studies/data/.
"""

import argparse
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.files import read_json
from comparison.models import DDPM, MODELS, SUPER_RESOLUTION
from comparison.report import study_page
from comparison.report.panels import STYLES, Bar, Bars, Line, Lines
from comparison.report.tradeoffs import QUALITY
from comparison.studies import SHORT, START_SECONDS, Job, Study, add_options, sampling_seconds

SMALL, LARGE = 32, 64
PERCENTS = (10, 30, 100)
MIN_IMAGES = 128  # of a subset: the largest batch of the presets for small machines
RESOLVED = "64-from-32-super-resolution"
BASE = "ddpm-100"  # the cell whose samples RESOLVED enlarges
CELLS = {  # name -> model, percent of the images, pixels
    f"{short}-{part}": (MODELS[name], part if isinstance(part, int) else 100, SMALL if isinstance(part, int) else LARGE)
    for short, name in SHORT.items()
    for part in (*PERCENTS, f"{LARGE}px")
}
Row = dict[str, Any]
Sources = dict[int, tuple[str, int]]  # percent -> data source, number of images


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=75, num_samples=500)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Validate, train, sample, enlarge, score, write."""
    study = Study("data", args)
    if args.page:
        return study.rewrite(page, draw_pictures)
    jobs = study.choose(plan(args), rest=40)
    if not jobs:
        return None
    from comparison import study_images  # torch
    from comparison.data.images import load_images

    data = load_images(study.data, SMALL)
    if len(data) * min(PERCENTS) // 100 < MIN_IMAGES:
        raise UserError(f"--data: {len(data)} images; {min(PERCENTS)}% of them must be at least {MIN_IMAGES}")
    sources: Sources = {100: (study.data, len(data))}
    for percent in {CELLS[job.name][1] for job in jobs if job.name != RESOLVED} - {100}:
        name, count = f"{data.name}-{percent}-{data.fingerprint[:8]}", len(data) * percent // 100
        sources[percent] = study_images.write_subset(study, name, count, SMALL), count
    cells = []
    for cell in study.run(jobs, lambda name, seed: [run_cell(study, name, seed, sources)]):
        cells.append(cell)
        if (cell["size"], cell["percent"]) == (SMALL, 100):
            label = f"{cell['label'].partition(', ')[0]}, {SMALL} enlarged"
            folder = study_images.enlarge(cell["folder"], LARGE)
            name = f"{cell['name'].split('-')[0]}-enlarged"
            cells.append({**cell, "name": name, "label": label, "size": LARGE, "folder": folder})
    content: Row = {"options": study.options(), "floors": {}, "cells": cells}
    for size in sorted({cell["size"] for cell in cells}):
        controls = study.score([cell for cell in cells if cell["size"] == size], size, part=str(size))
        content["floors"][str(size)] = controls["anchors"]["floor"]["metrics"]
        content["scoring"] = {name: controls[name] for name in ("reference", "extractor", "n")}

    def images_of(percent: int, reference: Any) -> tuple[Any, Any]:
        seen = load_images(study.data, SMALL, limit=len(data) * percent // 100).images
        return seen, reference.data.images[reference.others[: len(reference.chosen)]]

    study_images.add_copies(study, [cell for cell in cells if cell["size"] == SMALL], SMALL, images_of)
    return study.write(content, page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return the cells with their times."""
    training = START_SECONDS + args.seconds
    jobs = []
    for name, (model, percent, size) in CELLS.items():
        text = f"{size} pixels, {percent}% of the images, {args.seconds:g} s"
        jobs.append(Job(name, text, training + sampling_seconds(model, args.num_samples, image_size=size), args.seeds))
    text = f"samples of {BASE} enlarged by a network, {args.seconds:g} s after {BASE}"
    sampling = sampling_seconds(SUPER_RESOLUTION, args.num_samples, image_size=LARGE)
    return [*jobs, Job(RESOLVED, text, training + sampling, args.seeds)]


def run_cell(study: Study, name: str, seed: int, sources: Sources) -> Row:
    """Train and sample one cell."""
    if name == RESOLVED:
        return enlarge_by_network(study, seed, sources)
    model, percent, size = CELLS[name]
    source, count = sources[percent]
    cell = study.train_and_sample(model, name, seed, ["--image_size", str(size)], source)
    label = f"{cell['label']}, {f'{LARGE} pixels' if size == LARGE else f'{percent}%'}"
    return {**cell, "percent": percent, "training_images": count, "size": size, "label": label}


def enlarge_by_network(study: Study, seed: int, sources: Sources) -> Row:
    """Train a super-resolution network and enlarge the samples of BASE, which is trained first if necessary.

    The cell's seconds, images seen and costs are those of both networks together.
    """
    base = run_cell(study, BASE, seed, sources)
    flags = ["--small_size", str(SMALL), "--large_size", str(LARGE)]
    sampling = ["--base_samples", str(base["folder"] / read_json(base["folder"] / "sampling.json")["file"])]
    cell = study.train_and_sample(SUPER_RESOLUTION, RESOLVED, seed, flags, sampling=sampling)
    for key in ("seconds", "images_seen", "steps"):
        cell["training"][key] += base["training"][key]
    cell |= {key: base[key] + cell[key] for key in ("nfe", "seconds_per_image")}
    kept = {key: base[key] for key in ("model", "sampler", "percent", "training_images")}
    return {**cell, **kept, "label": f"{MODELS[DDPM].label}, {SMALL} by super-resolution", "size": LARGE}


def page(study: Row) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]
    small, large = ([row for row in rows if row["size"] == size] for size in (SMALL, LARGE))
    extra = {
        "images": lambda row: formatting.count(row["training_images"]),
        "images seen": lambda row: formatting.count(row["training"]["images_seen"]),
        "epochs": lambda row: formatting.format_number(row["training"]["images_seen"] / row["training_images"], 2),
        "time per image": lambda row: formatting.seconds(row["seconds_per_image"]),
    }
    held = {"held out": lambda row: formatting.metric("memorised", row["held_out"]["memorised"])}
    samplers = "; ".join(dict.fromkeys(f"{row['label'].partition(', ')[0]} {row['sampler']}" for row in rows))
    body: list[str] = []
    if small:
        body += [
            "## Fewer images",
            "![Frechet distance and coverage against the fraction of the training images](data.png)",
            "`memorised`: fraction of samples unusually close to an image that the training saw. `held out`: the same "
            "fraction for real images that it did not see.",
            study_page.score_table(small, study["floors"].get(str(SMALL)), {**extra, **held}),
        ]
    if large:
        body += [
            f"## {LARGE} pixels",
            "![Frechet distance at 64 pixels](resolution.png)",
            study_page.score_table(large, study["floors"].get(str(LARGE)), extra),
        ]
    return study_page.page(
        study,
        "resolution and data",
        "What do fewer training images change for each model? Is it better to train at 64 pixels, or to train at 32 "
        "pixels and enlarge the samples, in the same time?",
        f"Each cell was trained for {options['seconds']:g} s. Settings: `{options['preset']}` in flags.sh. Samplers: "
        f"{samplers}.",
        body,
        [
            "The number of images cannot limit a training of less than one epoch.",
            study_page.unequal_time_note(rows),
        ],
    )


def draw_pictures(study: Row, out: Path) -> None:
    """Draw data.png and resolution.png."""
    from comparison.report.study_plots import draw

    rows = study_page.pooled(study)
    panels = []
    for metric, axis, log in (
        (QUALITY, "Frechet distance (log, lower is better)", "xy"),
        ("coverage", "coverage (higher is better)", "x"),
    ):
        lines = []
        for name, look in zip(SHORT.values(), STYLES, strict=False):
            mine = [row for row in rows if (row["model"], row["size"]) == (name, SMALL)]
            label = mine[0]["label"].partition(", ")[0] if mine else ""
            points = [(row["percent"], row["metrics"][metric]) for row in mine]
            lines.append(Line(label, points, MODELS[name].colour, **look))
        panels.append(Lines("fraction of the training images, % (log)", axis, lines, log=log, ticks=PERCENTS))
    draw(panels, out / "data.png")
    large = [row for row in rows if row["size"] == LARGE]
    bars = [Bar(row["label"], row["metrics"][QUALITY], MODELS[row["model"]].colour) for row in large]
    draw([Bars(f"Frechet distance at {LARGE} pixels (log, lower is better)", bars, log=True)], out / "resolution.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
