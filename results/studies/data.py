"""Study: what fewer training images do to each model, and three ways to 64 pixels.

  python results/studies/data.py --plan
  python results/studies/data.py --seconds 75

Every model trains for the same time on 10, 30 and 100% of the images, and once on all of them at 64 pixels. All
samples are scored against the whole training set; copies are sought among the images that the training saw. The
samples of 32 pixels are also enlarged (bicubic) and scored at 64 pixels; those of improved diffusion also by a
super-resolution network that is trained for the same time again. A call that was cut short goes on when it is
repeated. About twenty minutes on two CPU cores. Writes README.md, study.json, data.png and resolution.png into
results/studies/data/.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.models import DDPM, MODELS, SUPER_RESOLUTION
from comparison.report import study_page
from comparison.report.tradeoffs import QUALITY
from comparison.studies import (
    SHORT,
    START_SECONDS,
    Job,
    Study,
    add_copies,
    add_options,
    sampling_seconds,
)

if TYPE_CHECKING:
    from comparison.data.images import ImageSet
    from comparison.scores.reference import Reference
    from torch import Tensor

SMALL, LARGE = 32, 64
PERCENTS = (10, 30, 100)
LEAST_IMAGES = 128  # of a subset: the largest batch of the sets for small machines
RESOLVED = "64-from-32-super-resolution"
BASE = "ddpm-100"  # whose samples it enlarges
CELLS = {  # name -> model, percent of the images, pixels
    f"{short}-{part}": (MODELS[name], part if isinstance(part, int) else 100, SMALL if isinstance(part, int) else LARGE)
    for short, name in SHORT.items()
    for part in (*PERCENTS, f"{LARGE}px")
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=75, num_samples=500)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Judge, train, sample, enlarge, score, write."""
    study = Study("data", args)
    if args.page:
        return study.rewrite(page, draw_pictures)
    jobs = study.choose(plan(args), rest=40)
    if not jobs:
        return None
    from comparison.data.images import load_images

    data = load_images(study.data, SMALL)
    if len(data) * min(PERCENTS) // 100 < LEAST_IMAGES:
        raise UserError(f"--data: {len(data)} images; {min(PERCENTS)}% of them must be at least {LEAST_IMAGES}")
    cells = study.run(jobs, lambda name, seed: run_cell(study, name, seed, data))
    content: dict[str, Any] = {"options": study.options(), "floors": {}, "cells": cells}
    for size in sorted({cell["size"] for cell in cells}):
        controls = study.score([cell for cell in cells if cell["size"] == size], size, part=str(size))
        content["floors"][str(size)] = controls["anchors"]["floor"]["metrics"]
        content["scoring"] = {name: controls[name] for name in ("reference", "extractor", "n")}
    small = [cell for cell in cells if cell["size"] == SMALL]

    def images_of(percent: int, reference: "Reference") -> tuple["Tensor", "Tensor"]:
        seen = load_images(study.data, SMALL, limit=len(data) * percent // 100).images
        return seen, reference.data.images[reference.others[: len(reference.chosen)]]

    add_copies(study, small, SMALL, images_of)
    return study.write(content, page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return the cells with what they cost."""
    training = START_SECONDS + args.seconds
    jobs = []
    for name, (model, percent, size) in CELLS.items():
        text = f"{size} pixels, {percent}% of the images, {args.seconds:g} s"
        jobs.append(Job(name, text, training + sampling_seconds(model, args.num_samples, image_size=size), args.seeds))
    text = f"samples of {BASE} enlarged by a network, {args.seconds:g} s besides {BASE}"
    drawing = sampling_seconds(SUPER_RESOLUTION, args.num_samples, image_size=LARGE)
    return [*jobs, Job(RESOLVED, text, training + drawing, args.seeds)]


def run_cell(study: Study, name: str, seed: int, data: "ImageSet") -> list[dict[str, Any]]:
    """Train and sample one cell; the whole data at 32 pixels also gives the enlarged set."""
    if name == RESOLVED:
        return [enlarge_by_network(study, seed, data)]
    model, percent, size = CELLS[name]
    source, count = study.data, len(data) * percent // 100
    if percent < 100:
        source = study.subset(f"{data.name}-{percent}-{data.fingerprint[:8]}", count, SMALL)
    cell = study.train_and_sample(model, name, seed, ["--image_size", str(size)], source)
    cell |= {"percent": percent, "training_images": count, "size": size}
    if size == LARGE:
        return [{**cell, "label": f"{model.label}, {LARGE} pixels"}]
    cells = [{**cell, "label": f"{model.label}, {percent}%"}]
    if percent == 100:
        enlarged = {"name": f"{name.split('-')[0]}-enlarged", "label": f"{model.label}, {SMALL} enlarged"}
        cells.append({**cell, **enlarged, "size": LARGE, "folder": enlarge(cell["folder"])})
    return cells


def enlarge_by_network(study: Study, seed: int, data: "ImageSet") -> dict[str, Any]:
    """Train a super-resolution network and enlarge the samples of BASE, which is trained where it is not there yet.

    The cell's seconds, images seen and costs are those of both networks together.
    """
    from comparison.scores.evaluation import find_samples

    base = run_cell(study, BASE, seed, data)[0]
    words = ["--small_size", str(SMALL), "--large_size", str(LARGE)]
    sampling = ["--base_samples", str(find_samples(base["folder"]))]
    cell = study.train_and_sample(SUPER_RESOLUTION, RESOLVED, seed, words, sampling=sampling)
    for fact in ("seconds", "images_seen", "steps"):
        cell["training"][fact] += base["training"][fact]
    cell |= {key: base[key] + cell[key] for key in ("nfe", "seconds_per_image")}
    kept = {key: base[key] for key in ("model", "sampler", "percent", "training_images")}
    return {**cell, **kept, "label": f"{MODELS[DDPM].label}, {SMALL} by super-resolution", "size": LARGE}


def enlarge(folder: Path) -> Path:
    """Write samples at 64 pixels, bicubic, beside their folder; return where."""
    from comparison.data.images import load_npz, resize, save_npz
    from comparison.png import save_grid
    from comparison.scores.evaluation import find_samples

    target = folder.with_name("enlarged")
    target.mkdir(parents=True, exist_ok=True)
    images = resize(load_npz(find_samples(folder))[0], LARGE)
    save_npz(target / "samples.npz", images.permute(0, 2, 3, 1).numpy())
    save_grid(images[:64], target / "samples.png")
    return target


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]
    small, large = ([row for row in rows if row["size"] == size] for size in (SMALL, LARGE))
    extra = {
        "images": lambda row: formatting.count(row["training_images"]),
        "images seen": lambda row: formatting.count(row["training"]["images_seen"]),
        "passes": lambda row: formatting.plain(row["training"]["images_seen"] / row["training_images"], 2),
        "time per image": lambda row: formatting.seconds(row["seconds_per_image"]),
    }
    held = {"held out": lambda row: formatting.metric("memorised", row["held_out"])}
    samplers = "; ".join(dict.fromkeys(f"{MODELS[row['model']].label} {row['sampler']}" for row in rows))
    body: list[str] = []
    if small:
        body += [
            "## Fewer images",
            "![Frechet distance and coverage against the share of the training images](data.png)",
            "`memorised`: share of samples unusually close to an image that the training saw; `held out`: the same "
            "share of real images that it did not see.",
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
        "What do fewer training images do to each model, and is it better to train at 64 pixels or to enlarge the "
        "samples of a network of 32 pixels, in the same time?",
        f"{options['seconds']:g} s of training per cell, settings of `{options['preset']}` in flags.sh. Samplers: "
        f"{samplers}.",
        body,
        [
            "Where a training made less than one pass over its images, their number cannot have been its limit.",
            study_page.unequal(rows),
        ],
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw data.png and resolution.png."""
    from comparison.report.study_plots import STYLES, Bar, Bars, Line, Lines, draw

    rows = study_page.pooled(study)
    panels = []
    for metric, axis, log in (
        (QUALITY, "Frechet distance (log, lower is better)", "xy"),
        ("coverage", "coverage (higher is better)", "x"),
    ):
        lines = []
        for name, look in zip(SHORT.values(), STYLES, strict=False):
            mine = [row for row in rows if row["model"] == name and row["size"] == SMALL]
            points = [(row["percent"], row["metrics"][metric]) for row in mine]
            lines.append(Line(MODELS[name].label, points, MODELS[name].colour, **look))
        panels.append(Lines("share of the training images, % (log)", axis, lines, log=log, ticks=PERCENTS))
    draw(panels, out / "data.png")
    bars = [
        Bar(row["label"], row["metrics"][QUALITY], MODELS[row["model"]].colour) for row in rows if row["size"] == LARGE
    ]
    draw([Bars(f"Frechet distance at {LARGE} pixels (log, lower is better)", bars, log=True)], out / "resolution.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
