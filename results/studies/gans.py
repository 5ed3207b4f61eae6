"""Studies: the known weaknesses of GANs, and what changes them.

  python results/studies/gans.py --plan
  python results/studies/gans.py --data cifar10
  python results/studies/gans.py stability overfitting --data path/to/images --seconds 60

  stability    scores along the training of both presets and at its end, over several seeds
  collapse     modes covered on shapes, recall and coverage on --data, both presets
  modes        10, 100 and 1,000 modes of shapes at an equal budget: both presets, improved DDPM and DDGAN
  overfitting  100, 20 and 10% of --data, with and without DiffAugment: held-out gap, nearest training images

Trainings that several kinds share are done once. Repeat the command to resume. Takes less than three hours on two CPU
cores with the defaults, see --plan. Writes README.md, study.json and a picture into results/studies/gan-<kind>/ as soon
as the kind's last training is done.

Radford et al. 2016 (DCGAN); Miyato et al. 2018 (spectral norm); Zhao et al. 2020 (DiffAugment); Yazici et al. 2019
(EMA); Karras et al. 2020 (the gap to held-out images); Xiao et al. 2022 (one network pass against many steps).
"""

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from comparison import cli
from comparison.checkpoints import newest
from comparison.cli import UserError
from comparison.models import GAN, MODELS, Model
from comparison.report import study_page
from comparison.report.tradeoffs import QUALITY
from comparison.runs import read_progress
from comparison.studies import START_SECONDS, Job, Study, add_options, sampling_seconds
from gans_page import AUGMENTED, KINDS, LABELS, PERCENTS, PHOTOS, SHAPES, VARIANTS, Row, draw_pictures, page

MODE_COUNTS, PRESETS = (10, 100, 1000), ("dcgan", "dcgan-plus")
# Half of the documented widths and batch size, for more updates in the time: instability and overfitting need many.
GAN_FLAGS = ("--ngf", "32", "--ndf", "32", "--batch_size", "64", "--num_epochs", "0", "--grid_every", "10")
HELD_OUT = 1000  # real images that are not trained on, for the gap
SCORES, SCORE_IMAGES = 16, 1000  # approximate number of scores along a training; samples of each
MIN_IMAGES = 64  # of the smallest subset: a batch
MIN_COVERAGE = 0.05  # best coverage from which on a fall below its half counts as a collapse
BLOCKS = 5  # parts of the last half of a training, whose means give an interval
# For plans, on two CPU cores: training images per second, seconds of a score along the way and of an evaluation
RATE = {"dcgan": 3000, "dcgan-plus": 1800, "ddpm": 160, "ddgan": 90}
SCORE_SECONDS, EVALUATE_SECONDS = 1.5, 60.0


class Cell(NamedTuple):
    """A training of a variant on a percentage of PHOTOS or shapes:N."""

    variant: str
    source: str
    percent: int = 100
    augment: bool = True  # DiffAugment as in the preset
    scored: bool = True  # scored along the training

    @property
    def name(self) -> str:
        """Return the name in --cells."""
        share = "" if self.percent == 100 else f"-{self.percent}"
        return f"{self.variant}-{self.source.replace(':', '')}{share}{'' if self.augment else '-noaug'}"

    @property
    def model(self) -> Model:
        """Return the row of the table of models."""
        return MODELS[VARIANTS[self.variant]]


BOTH = [Cell(preset, source) for source in (PHOTOS, SHAPES) for preset in PRESETS]
CELLS = {  # kind -> its trainings, shared if equal
    "stability": BOTH,
    "collapse": BOTH,
    "modes": [Cell(variant, f"shapes:{count}", scored=False) for count in MODE_COUNTS for variant in VARIANTS],
    "overfitting": [Cell("dcgan-plus", PHOTOS, percent, augment) for percent in PERCENTS for augment in (True, False)],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; all unless given")
    add_options(parser, seconds=300, num_samples=2000)
    add("--images", type=cli.positive_int, metavar="N", help="training budget in images instead of --seconds")
    add("--image_size", type=cli.pixels, default=32, help="pixels of all images")
    add("--data_note", metavar="TEXT", help="a sentence on the data for the pages")
    parser.set_defaults(data="cifar10", seeds=3)
    args = parser.parse_args(argv)
    for kind in args.kinds:
        if kind not in KINDS:
            parser.error(f"argument KIND: must be among {', '.join(KINDS)}, not {kind}")
    if args.image_size < 16 or args.image_size & (args.image_size - 1):
        parser.error(f"argument --image_size: must be a power of two of at least 16, not {args.image_size}")
    args.kinds = [kind for kind in KINDS if kind in args.kinds or not args.kinds]
    args.out = args.out or cli.repo_root() / "results" / "studies"
    return args


def main(args: argparse.Namespace) -> None:
    """Validate, train, sample, score, and write the page of each kind."""
    study = Study("gan", args)
    study.preset["GAN_FLAGS"] = []  # the cells name both presets' flags themselves
    if args.page:
        for kind in args.kinds:
            study_page.rewrite(study.out / f"gan-{kind}", f"gan-{kind}", page, draw_pictures)
        return
    named = {cell.name: cell for kind in args.kinds for cell in CELLS[kind]}
    jobs = study.choose(plan(args), rest=EVALUATE_SECONDS * len({cell.source for cell in named.values()}))
    if not jobs:
        return
    from comparison import study_images  # torch
    from comparison.data.held_out import load_data

    total = 0  # training images of --data
    if any(named[job.name].source == PHOTOS for job in jobs):
        total = len(load_data(study.data, args.image_size, 0, HELD_OUT)[0])
        if total * min(PERCENTS) // 100 < MIN_IMAGES:
            raise UserError(f"--data: {total} images; {min(PERCENTS)}% of them must be at least {MIN_IMAGES}")
    done: dict[str, list[Row]] = {}

    def run_one(name: str, seed: int) -> list[Row]:
        parts = run_cell(study, named[name], seed, total)
        done.setdefault(name, []).extend(parts)
        return parts

    def images_of(percent: int, _: Any) -> Any:
        data, unseen = load_data(study.data, args.image_size, limit_of(percent, total), HELD_OUT)
        return data.images, unseen

    for kind in args.kinds:
        names = [cell.name for cell in CELLS[kind]]
        study.run([job for job in jobs if job.name in names and job.name not in done], run_one)
        parts = [dict(part) for name in names for part in done.get(name, []) if part["seed"] < seeds_of(kind, args)]
        if not parts:
            print(f"{kind}: none of its cells is among --cells")
            continue
        content = score(study, kind, parts, total)
        if kind == "overfitting":
            study_images.add_copies(study, content["cells"], args.image_size, images_of)
        write(study, kind, content)


def seeds_of(kind: str, args: argparse.Namespace) -> int:
    """Return the number of seeds with which a kind trains each of its cells."""
    return args.seeds if CELLS[kind] is BOTH else 1


def plan(args: argparse.Namespace) -> list[Job]:
    """Return the cells of the kinds with their times, in the order in which they run."""
    jobs = []
    for cell in dict.fromkeys(cell for kind in args.kinds for cell in CELLS[kind]):
        kinds = [kind for kind in args.kinds if cell in CELLS[kind]]
        seconds = START_SECONDS + (args.images / RATE[cell.variant] if args.images else args.seconds)
        seconds += SCORES * SCORE_SECONDS if cell.scored else 0.0
        seconds += sampling_seconds(cell.model, args.num_samples, image_size=args.image_size)
        seeds = max(seeds_of(kind, args) for kind in kinds)
        jobs.append(Job(cell.name, f"{', '.join(kinds)}; trainings: {seeds}", seconds, seeds))
    return jobs


def limit_of(percent: int, total: int) -> int:
    """Return --limit for a percentage of the images, 0 for all."""
    return 0 if percent == 100 else total * percent // 100


def training_flags(cell: Cell, args: argparse.Namespace, total: int) -> list[str]:
    """Return the flags of a cell's training, after those of its model; --data has `total` training images."""
    flags = ["--image_size", str(args.image_size)]
    flags += ["--max_seconds", "0", "--max_images", str(args.images)] if args.images else []
    if cell.model.name != GAN:
        return flags
    flags += ["--preset", cell.variant, *GAN_FLAGS, "--held_out", str(HELD_OUT)]
    flags += ["--flip", "false"] if cell.source != PHOTOS else []  # mirrored shapes are not in the data
    flags += [] if cell.augment else ["--diffaugment", "none"]
    flags += ["--limit", str(limit_of(cell.percent, total))] if cell.percent != 100 else []
    if not cell.scored:
        return [*flags, "--score_every", "0", "--keep_best", "false"]
    images = (args.images or args.seconds * RATE["dcgan"]) / SCORES  # from one score to the next, for both presets
    nearest = 10 ** max(len(str(int(images))) - 2, 0)  # two digits suffice
    every = max(int(images / nearest) * nearest, 1)
    return [*flags, "--score_every", str(every), "--score_images", str(min(SCORE_IMAGES, args.num_samples))]


def run_cell(study: Study, cell: Cell, seed: int, total: int) -> list[Row]:
    """Train and sample one cell; return its entry of study.json, and one for the best checkpoint of a whole preset."""
    model, flags = cell.model, training_flags(cell, study.args, total)
    entry = study.train_and_sample(model, cell.name, seed, flags, study.data if cell.source == PHOTOS else cell.source)
    entry |= {key: value for key, value in cell._asdict().items() if key != "scored"} | {"label": LABELS[cell.variant]}
    folder = study.folder(model, f"{cell.name}-s{seed}")
    if model.name == GAN:
        curve = [[r["images_seen"], r[QUALITY], r["coverage"]] for r in rows_with(folder / "scores.csv", QUALITY)]
        entry |= {"curve": curve, "along": along(curve), "gap": held_out_gap(folder)}
    best = newest(folder, model.best) if model.best and cell.scored and cell.percent == 100 and cell.augment else None
    if best is None:
        return [entry]
    samples = folder / "settings" / "best"
    study.sample(model, folder, samples, seed, ["--checkpoint", str(best)])
    names = {key: f"{entry[key]}-best" for key in ("name", "variant")} | {"label": f"{entry['label']}, best checkpoint"}
    return [entry, {**entry, **names, "folder": samples, "curve": [], "along": {}, "gap": None}]


def score(study: Study, kind: str, parts: list[Row], total: int) -> Row:
    """Score the entries of a kind; return the content of study.json."""
    size = study.args.image_size
    if kind == "overfitting":
        parts = [part for part in parts if not part["variant"].endswith("-best")]
        for part in parts:
            part["label"] = f"{part['percent']}% {AUGMENTED[part['augment']]}"
            part["training_images"] = total * part["percent"] // 100
    names = ("seconds", "images", "seeds", "num_samples", "preset", "precision", "image_size", "data_note")
    content: Row = {"options": study.options(*names), "floors": {}, "scoring": {}}
    for source in dict.fromkeys(part["source"] for part in parts):
        of_source = [part for part in parts if part["source"] == source]
        controls = study.score(of_source, size, None if source == PHOTOS else source, source.replace(":", ""))
        content["floors"][source] = controls["anchors"]["floor"]["metrics"]
        content["scoring"][source] = {name: controls[name] for name in ("reference", "extractor", "n")}
    return {**content, "cells": parts}


def write(study: Study, kind: str, content: Row) -> None:
    """Write study.json of a kind with its page and picture."""
    for cell in content["cells"]:
        del cell["folder"]
        cell["metrics"] |= {name: value for name, value in cell.get("along", {}).items() if isinstance(value, dict)}
    left_out = [cell.name for cell in CELLS[kind] if cell.name in study.left_out]
    content = {**content, "left_out": left_out}
    study_page.write(study.out / f"gan-{kind}", f"gan-{kind}", content, page, draw_pictures)


def rows_with(path: Path, column: str) -> list[dict[str, float]]:
    """Return the rows of a CSV file that have a column; none if the file is missing."""
    return [row for row in read_progress(path) if column in row] if path.is_file() else []


def along(curve: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return measures of stability from the scores [images seen, distance, coverage] along a training.

    worsened: last distance over the lowest; swing: mean factor between neighbouring distances in the second half;
    collapsed_at: images seen when coverage first fell below half of its best, None if it never did. Empty for fewer
    than four scores.
    """
    if len(curve) < 4:
        return {}
    distances = [max(point[1], 1e-9) for point in curve]
    steps = [abs(math.log(b / a)) for a, b in pairwise(distances[len(distances) // 2 :])]
    collapsed, best = None, 0.0
    for seen, _, coverage in curve:
        if collapsed is None and best >= MIN_COVERAGE and coverage < best / 2:
            collapsed = seen
        best = max(best, coverage)
    entries = {"worsened": distances[-1] / min(distances), "swing": math.exp(sum(steps) / len(steps))}
    return {**{name: {"value": value, "n": len(curve)} for name, value in entries.items()}, "collapsed_at": collapsed}


def held_out_gap(run: Path) -> dict[str, Any] | None:
    """Return the mean logit of training images minus that of held-out ones over the last half of a training.

    The interval comes from the means of BLOCKS parts; None if the training is too short for them.
    """
    rows = rows_with(run / "progress.csv", "gap")
    late = [row["gap"] for row in rows if row["images_seen"] > rows[-1]["images_seen"] / 2]
    if len(late) < BLOCKS:
        return None
    size = len(late) / BLOCKS
    parts = [late[round(i * size) : round((i + 1) * size)] for i in range(BLOCKS)]
    entry = study_page.pool([{"value": sum(part) / len(part)} for part in parts])
    return {"value": entry["value"], "interval": entry["interval"], "n": len(late)}


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
