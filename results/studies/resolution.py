"""Study: what a doubled resolution costs each model, and how much of the quality remains in the same training time.

  python results/studies/resolution.py --plan
  python results/studies/resolution.py --seconds 150 --seeds 3

Trains each model on `shapes`, which are drawn sharp at any size, at 32, 64 and 128 pixels for the same time. Improved
DDPM is trained on patches of 2 x 2 pixels as channels at every size, and on patches that keep a grid of 16 x 16
(--patch_size 0); DDGAN works on 2 x 2 patches. The largest size has one seed. Repeat the command to resume. Writes
README.md, study.json and resolution.png into results/studies/resolution/.

Hoogeboom et al. 2023 (patches as channels).
"""

import argparse
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.models import DDGAN, DDPM, GAN, MODELS
from comparison.report import study_page
from comparison.report.panels import Line, Lines
from comparison.report.tradeoffs import QUALITY
from comparison.studies import START_SECONDS, Job, Study, add_options, sampling_seconds

SIZES = (32, 64, 128)
KINDS = {  # kind of cell -> model, label, further flags
    "gan": (GAN, "GAN", ()),
    "pixels": (DDPM, "improved DDPM, 2 x 2 patches", ("--patch_size", "2")),
    "patches": (DDPM, "improved DDPM, 16 x 16 grid", ("--patch_size", "0")),
    "ddgan": (DDGAN, "DDGAN, 2 x 2 patches", ()),
}
STYLES = {"patches": {"style": "--", "marker": "s"}}
MODES = "modes_matched"
Row = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=150, num_samples=500)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Validate, train, sample, score, write."""
    study = Study("resolution", args)
    if args.page:
        return study.rewrite(page, draw_pictures)
    jobs = study.choose(plan(args), rest=90)
    if not jobs:
        return None
    cells = study.run(jobs, lambda name, seed: [run_cell(study, name, seed)])
    floors: dict[str, Any] = {}
    content: Row = {}
    for size in sorted({cell["size"] for cell in cells}):
        content, anchors = study.score_all([cell for cell in cells if cell["size"] == size], size)
        floors[str(size)] = anchors["floor"]
    return study.write({**content, "cells": cells, "floors": floors}, page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return a cell for each kind and size; at 32 pixels both kinds of patches are the same."""
    jobs = []
    for kind, (name, label, _) in KINDS.items():
        for size in SIZES[1:] if kind == "pixels" else SIZES:
            cost = 32 if kind == "patches" else size
            seconds = START_SECONDS + args.seconds + sampling_seconds(MODELS[name], args.num_samples, image_size=cost)
            jobs.append(Job(f"{kind}-{size}", f"{label}, {size} pixels", seconds, 1 if size > 64 else args.seeds))
    return jobs


def run_cell(study: Study, name: str, seed: int) -> Row:
    """Train and sample one cell."""
    kind, size = name.split("-")
    model, label, flags = KINDS[kind]
    cell = study.train_and_sample(MODELS[model], name, seed, ["--image_size", size, *flags])
    label = cell["label"] if kind == "gan" else label  # that of the preset's GAN
    return {**cell, "kind": kind, "size": int(size), "label": f"{label}, {size} pixels"}


def training_seconds(row: Row) -> float:
    """Return the seconds per training image."""
    return row["training"]["seconds"] / row["training"]["images_seen"]


def effects(rows: list[Row]) -> list[str]:
    """Return a sentence for each kind: the factors of its cost from 32 pixels to each larger size."""
    found = {row["name"]: row for row in rows}
    sentences = []
    for kind, (_, label, _) in KINDS.items():
        base = found.get(f"{'patches' if kind == 'pixels' else kind}-32")
        larger = [found[f"{kind}-{size}"] for size in SIZES[1:] if f"{kind}-{size}" in found]
        if base is None or not larger:
            continue
        factors = [
            f"{training_seconds(row) / training_seconds(base):.2g} times per training image and "
            f"{row['seconds_per_image'] / base['seconds_per_image']:.2g} times per sample at {row['size']} pixels"
            for row in larger
        ]
        sentences.append(f"{label}, against 32 pixels: {formatting.join_words(factors)}.")
    return sentences


def page(study: Row) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]
    costs = {
        "images seen": lambda row: formatting.count(row["training"]["images_seen"]),
        "per training image": lambda row: formatting.seconds(training_seconds(row)),
        "per sample": lambda row: formatting.seconds(row["seconds_per_image"]),
    }
    names = [name for name in (QUALITY, MODES, "modes_covered") if name in rows[0]["metrics"]]
    columns = {"": lambda row: row["label"], **costs, **study_page.scores(names)}
    body: list[str | list[str]] = [
        effects(rows),
        "![Time per training image and per sample, and samples that show a mode](resolution.png)",
    ]
    for size, floor in study["floors"].items():
        real = {"label": "real images (floor)", "metrics": floor}
        shown = {**columns, **{name: missing_for_real(column) for name, column in costs.items()}}
        body.append(study_page.table([real, *(row for row in rows if row["size"] == int(size))], shown))
    return study_page.page(
        study,
        "what resolution costs each model",
        "What does a doubled resolution cost each model per training image and per sample, and how much of the quality "
        "remains in the same training time?",
        f"Each model was trained for {options['seconds']:g} s at each size. Settings: `{options['preset']}` in "
        "flags.sh.",
        body,
        ["Scores are comparable within one size only: the extractor sees every image at its own size."],
    )


def missing_for_real(column: Any) -> Any:
    """Return a column that is empty in the row of real images."""
    return lambda row: column(row) if "training" in row else formatting.MISSING


def draw_pictures(study: Row, out: Path) -> None:
    """Draw resolution.png: both costs, and the fraction that shows a mode, against the size."""
    from comparison.report.study_plots import draw

    rows = study_page.pooled(study)
    texts = {
        "training": "ms per training image (log)",
        "sample": "ms per sample (log)",
        MODES: "fraction that shows a mode",
    }
    panels = []
    for key, text in texts.items():
        lines = []
        for kind, (model, label, _) in KINDS.items():
            mine = [row for row in rows if row["kind"] == kind]
            points = [(row["size"], value_of(row, key)) for row in mine if value_of(row, key)]
            lines.append(Line(label, points, MODELS[model].colour, **STYLES.get(kind, {})))
        log = "x" if key == MODES else "xy"
        panels.append(Lines("pixels (log)", text, lines, log=log, ticks=SIZES))
    draw(panels, out / "resolution.png")


def value_of(row: Row, key: str) -> Any:
    """Return the entry of a row in a panel; None without it."""
    if key == MODES:
        return row["metrics"].get(MODES)
    return {"value": 1000 * (training_seconds(row) if key == "training" else row["seconds_per_image"])}


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
