"""Studies: what GANs are said to be bad at, measured, and what changes it.

  python results/studies/gans.py --plan
  python results/studies/gans.py --data cifar10
  python results/studies/gans.py stability overfitting --data path/to/images --seconds 60

  stability    the score along the training of both presets, over several seeds, and the score at its end
  collapse     modes covered on shapes, recall and coverage on --data, both presets
  modes        10, 100 and 1,000 modes of shapes at an equal budget: both presets, improved DDPM and DDGAN
  overfitting  100, 20 and 10% of --data, with and without DiffAugment: held-out gap, nearest training images

A training that several kinds need is done once. A call that was cut short goes on when it is repeated. Below three
hours on two CPU cores with the defaults, see --plan. Writes README.md, study.json and a picture into
results/studies/gan-<kind>/, and the page of a kind as soon as its last training is done.

Radford et al. 2016 (DCGAN); Miyato et al. 2018 (spectral norm); Zhao et al. 2020 (DiffAugment); Yazici et al. 2019
(moving average); Karras et al. 2020 (the gap to held-out images); Xiao et al. 2022 (one shot against many steps).
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
from comparison.studies import START_SECONDS, Job, Study, add_copies, add_options, sampling_seconds
from gans_page import AUGMENTED, KINDS, LABELS, PERCENTS, PHOTOS, SHAPES, VARIANTS, Row, draw_pictures, page

MODE_COUNTS, PRESETS = (10, 100, 1000), ("dcgan", "dcgan-plus")
# Half of the documented widths and batch size: several times as many updates in the same minutes, and instability and
# overfitting are matters of many updates.
GAN_FLAGS = ("--ngf", "32", "--ndf", "32", "--batch_size", "64", "--num_epochs", "0", "--grid_every", "10")
HELD_OUT = 1000  # real images kept from the training, for the gap
SCORES, SCORE_IMAGES = 16, 1000  # scores along a training, about; images of each
LEAST_IMAGES = 64  # of the smallest share: a batch
LEAST_COVERAGE = 0.05  # a best coverage below it is not worth halving
BLOCKS = 5  # stretches of the end of a training whose means give an interval
# For plans, on two CPU cores: training images per second, a score along the way, scoring the sets of one source
RATE = {"dcgan": 3000, "dcgan-plus": 1800, "ddpm": 160, "ddgan": 90}
SCORE_SECONDS, EVALUATE_SECONDS = 1.5, 60.0


class Cell(NamedTuple):
    """A training: of a variant, on PHOTOS or shapes:N, percent of them, DiffAugment kept, scored on the way."""

    variant: str
    source: str
    percent: int = 100
    augment: bool = True
    scored: bool = True

    @property
    def name(self) -> str:
        """What --cells takes."""
        share = "" if self.percent == 100 else f"-{self.percent}"
        return f"{self.variant}-{self.source.replace(':', '')}{share}{'' if self.augment else '-noaug'}"

    @property
    def model(self) -> Model:
        """Of the table."""
        return MODELS[VARIANTS[self.variant]]


BOTH = [Cell(preset, source) for source in (PHOTOS, SHAPES) for preset in PRESETS]
CELLS = {  # kind -> its trainings; equal ones of two kinds are one and the same
    "stability": BOTH,
    "collapse": BOTH,
    "modes": [Cell(variant, f"shapes:{count}", scored=False) for count in MODE_COUNTS for variant in VARIANTS],
    "overfitting": [Cell("dcgan-plus", PHOTOS, percent, augment) for percent in PERCENTS for augment in (True, False)],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all unless given")
    add_options(parser, seconds=300, num_samples=2000)
    add("--images", type=cli.positive_int, metavar="N", help="training images of each cell, instead of --seconds")
    add("--image_size", type=cli.pixels, default=32, help="pixels of all images")
    add("--data_note", metavar="TEXT", help="a sentence on the data for the pages, e.g. that it is JPEG CIFAR-10")
    parser.set_defaults(data="cifar10", seeds=3)
    args = parser.parse_args(argv)
    for kind in args.kinds:
        if kind not in KINDS:
            parser.error(f"argument KIND: {kind} is not among {', '.join(KINDS)}")
    if args.image_size < 16 or args.image_size & (args.image_size - 1):
        parser.error(f"argument --image_size: must be a power of two of at least 16, not {args.image_size}")
    args.kinds = [kind for kind in KINDS if kind in args.kinds or not args.kinds]
    args.out = args.out or cli.repo_root() / "results" / "studies"
    return args


def main(args: argparse.Namespace) -> None:
    """Judge, train, sample, score, and write the page of each kind."""
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
    total = count_photos(study) if any(named[job.name].source == PHOTOS for job in jobs) else 0
    found: dict[str, list[Row]] = {}

    def run_one(name: str, seed: int) -> list[Row]:
        parts = run_cell(study, named[name], seed, total)
        found.setdefault(name, []).extend(parts)
        return parts

    for kind in args.kinds:
        mine = [cell.name for cell in CELLS[kind]]
        study.run([job for job in jobs if job.name in mine and job.name not in found], run_one)
        parts = [dict(part) for name in mine for part in found.get(name, []) if part["seed"] < seeds_of(kind, args)]
        if parts:
            write(study, kind, parts, total)
        else:
            print(f"{kind}: none of its cells is among --cells")


def seeds_of(kind: str, args: argparse.Namespace) -> int:
    """Return how often a kind trains each of its cells."""
    return args.seeds if CELLS[kind] is BOTH else 1


def plan(args: argparse.Namespace) -> list[Job]:
    """Return the cells of the kinds with what they cost, in the order in which they run."""
    jobs = []
    for cell in dict.fromkeys(cell for kind in args.kinds for cell in CELLS[kind]):
        kinds = [kind for kind in args.kinds if cell in CELLS[kind]]
        seconds = START_SECONDS + (args.images / RATE[cell.variant] if args.images else args.seconds)
        seconds += SCORES * SCORE_SECONDS if cell.scored else 0.0
        seconds += sampling_seconds(cell.model, args.num_samples, image_size=args.image_size)
        seeds = max(seeds_of(kind, args) for kind in kinds)
        jobs.append(Job(cell.name, f"{', '.join(kinds)}; trainings: {seeds}", seconds, seeds))
    return jobs


def count_photos(study: Study) -> int:
    """Return how many images of --data a training with held-out images sees.

    Raises:
        UserError: too few for the smallest share.
    """
    from comparison.data.held_out import load_data

    total = len(load_data(study.data, study.args.image_size, 0, HELD_OUT)[0])
    if total * min(PERCENTS) // 100 < LEAST_IMAGES:
        raise UserError(f"--data: {total} images; {min(PERCENTS)}% of them must be at least {LEAST_IMAGES}")
    return total


def training_flags(cell: Cell, args: argparse.Namespace, total: int) -> list[str]:
    """Return the flags of a cell's training, after those of its family.

    Args:
        cell: to train.
        args: with image_size, images, seconds, num_samples.
        total: images of --data that can be trained on.
    """
    flags = ["--image_size", str(args.image_size)]
    flags += ["--max_seconds", "0", "--max_images", str(args.images)] if args.images else []
    if cell.model.name != GAN:
        return flags
    flags += ["--preset", cell.variant, *GAN_FLAGS, "--held_out", str(HELD_OUT)]
    flags += ["--flip", "false"] if cell.source != PHOTOS else []  # mirrored shapes cast their shadow to the wrong side
    flags += [] if cell.augment else ["--diffaugment", "none"]
    flags += ["--limit", str(total * cell.percent // 100)] if cell.percent != 100 else []
    if not cell.scored:
        return [*flags, "--score_every", "0", "--keep_best", "false"]
    images = (args.images or args.seconds * RATE["dcgan"]) / SCORES  # from one score to the next, for both presets
    nearest = 10 ** max(len(str(int(images))) - 2, 0)  # two digits say enough
    every = max(int(images / nearest) * nearest, 1)
    return [*flags, "--score_every", str(every), "--score_images", str(min(SCORE_IMAGES, args.num_samples))]


def run_cell(study: Study, cell: Cell, seed: int, total: int) -> list[Row]:
    """Train and sample one cell; return its parts of study.json.

    Where a training with the preset as it is kept its best checkpoint beside the last one, that is sampled too.
    """
    model, flags = cell.model, training_flags(cell, study.args, total)
    found = study.train_and_sample(model, cell.name, seed, flags, study.data if cell.source == PHOTOS else cell.source)
    found |= {key: value for key, value in cell._asdict().items() if key != "scored"} | {"label": LABELS[cell.variant]}
    folder = study.folder(model, f"{cell.name}-s{seed}")
    if model.name == GAN:
        curve = [[r["images_seen"], r[QUALITY], r["coverage"]] for r in rows_with(folder / "scores.csv", QUALITY)]
        found |= {"curve": curve, "along": along(curve), "gap": held_out_gap(folder)}
    best = newest(folder, model.best) if model.best and cell.scored and cell.percent == 100 and cell.augment else None
    if best is None:
        return [found]
    place = folder / "settings" / "best"
    study.sample(model, folder, place, seed, ["--checkpoint", str(best)])
    kept = {name: f"{found[name]}-best" for name in ("name", "variant")} | {
        "label": f"{found['label']}, best checkpoint"
    }
    return [found, {**found, **kept, "folder": place, "curve": [], "along": {}, "gap": None}]


def write(study: Study, kind: str, parts: list[Row], total: int) -> None:
    """Score the parts of study.json, and write it with page and picture."""
    size = study.args.image_size
    if kind == "overfitting":
        parts = [part for part in parts if not part["variant"].endswith("-best")]
        for part in parts:
            part["label"] = f"{part['percent']}% {AUGMENTED[part['augment']]}"
            part["training_images"] = total * part["percent"] // 100
    names = ("seconds", "images", "seeds", "num_samples", "preset", "precision", "image_size", "data_note")
    content: Row = {"options": study.options(*names), "floors": {}, "scoring": {}}
    for source in dict.fromkeys(part["source"] for part in parts):
        mine = [part for part in parts if part["source"] == source]
        controls = study.score(mine, size, None if source == PHOTOS else source, source.replace(":", ""))
        content["floors"][source] = controls["anchors"]["floor"]["metrics"]
        content["scoring"][source] = {name: controls[name] for name in ("reference", "extractor", "n")}
    if kind == "overfitting":
        from comparison.data.held_out import load_data

        def images_of(percent: int, _: Any) -> Any:
            data, unseen = load_data(study.data, size, 0 if percent == 100 else total * percent // 100, HELD_OUT)
            return data.images, unseen

        add_copies(study, parts, size, images_of)
    for part in parts:
        del part["folder"]
        part["metrics"] |= {name: value for name, value in part.get("along", {}).items() if isinstance(value, dict)}
    content |= {"cells": parts, "left_out": [cell.name for cell in CELLS[kind] if cell.name in study.left_out]}
    study_page.write(study.out / f"gan-{kind}", f"gan-{kind}", content, page, draw_pictures)


def rows_with(path: Path, column: str) -> list[dict[str, float]]:
    """Return the rows of a table that have a column, none without the file."""
    return [row for row in read_progress(path) if column in row] if path.is_file() else []


def along(curve: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Measure how steadily a training went.

    Args:
        curve: [images seen, distance, coverage] of each score on the way.

    Returns:
        worsened: the last distance over the best; swing: mean factor between neighbouring distances in the second
        half; collapsed_at: images seen when coverage first fell below half of its best so far, None where it never
        did. Empty for fewer than four scores.
    """
    if len(curve) < 4:
        return {}
    distances = [max(point[1], 1e-9) for point in curve]
    steps = [abs(math.log(b / a)) for a, b in pairwise(distances[len(distances) // 2 :])]
    collapsed, best = None, 0.0
    for seen, _, coverage in curve:
        if collapsed is None and best >= LEAST_COVERAGE and coverage < best / 2:
            collapsed = seen
        best = max(best, coverage)
    entries = {"worsened": distances[-1] / min(distances), "swing": math.exp(sum(steps) / len(steps))}
    return {**{name: {"value": value, "n": len(curve)} for name, value in entries.items()}, "collapsed_at": collapsed}


def held_out_gap(run: Path) -> dict[str, Any] | None:
    """Return the mean logit of training images less that of held-out ones in the last half of a training.

    The interval is from the means of BLOCKS stretches; None where the training was too short for that.
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
