"""The trainings of study.py: which study needs which, their flags, and about how long they take.

Standard library only, so that a plan is printed at once.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comparison import studies
from comparison.studies import Job

STUDIES = ("stability", "collapse", "modes", "overfitting")
PHOTOS = "photos"  # stands for --data
SHAPES = "shapes:200"  # what plain `shapes` means
MODE_COUNTS = (10, 100, 1000)
PERCENTS = (100, 20, 10)
PRESETS = ("dcgan", "dcgan-plus")
MODELS = {"dcgan": "gans", "dcgan-plus": "gans", "ddpm": "improved-diffusion", "ddgan": "denoising-diffusion-gan"}
LABELS = {"dcgan": "DCGAN", "dcgan-plus": "DCGAN plus", "ddpm": "improved DDPM", "ddgan": "DDGAN"}

# Half of the documented widths and batch size: several times as many updates in the same minutes, and instability and
# overfitting are matters of many updates.
GAN_FLAGS = ("--ngf", "32", "--ndf", "32", "--batch_size", "64", "--num_epochs", "0", "--grid_every", "10")
HELD_OUT = 1000  # real images kept from the training, for the gap
SCORES = 16  # scores along a training, about
SCORE_IMAGES = 1000
# For plans, on two CPU cores: training images per second, and a score along the way
RATE = {"dcgan": 3000, "dcgan-plus": 1800, "ddpm": 160, "ddgan": 90}
SCORE_SECONDS = 1.5
EVALUATE_SECONDS = 60.0  # of one source: reading, embedding, controls


@dataclass(frozen=True)
class Cell:
    """One training and its sample set.

    Attributes:
        variant: one of MODELS.
        source: PHOTOS or shapes:N.
        seed: of weights, order, noise.
        percent: of the photos that are trained on.
        augment: whether DiffAugment is as the preset has it; False takes it away.
        scored: whether the score is taken along the training.
    """

    variant: str
    source: str
    seed: int = 0
    percent: int = 100
    augment: bool = True
    scored: bool = True

    @property
    def row(self) -> str:
        """Name it without its seed: the cells of a row are pooled."""
        share = "" if self.percent == 100 else f"-{self.percent}"
        return f"{self.variant}-{self.source.replace(':', '')}{share}{'' if self.augment else '-noaug'}"

    @property
    def name(self) -> str:
        """Name it as --cells does."""
        return f"{self.row}-s{self.seed}"

    @property
    def model(self) -> str:
        """Return its model family."""
        return MODELS[self.variant]

    @property
    def label(self) -> str:
        """Name it in tables."""
        return LABELS[self.variant]

    @property
    def what(self) -> str:
        """Say in a plan what it is."""
        part = f"{self.percent}% of the {PHOTOS}" if self.source == PHOTOS else self.source
        return f"{LABELS[self.variant]}{'' if self.augment else ' without DiffAugment'} on {part}, seed {self.seed}"


def cells_of(study: str, seeds: int) -> list[Cell]:
    """Return the trainings that a study needs; equal ones of two studies are one and the same."""
    if study in ("stability", "collapse"):
        return [
            Cell(preset, source, seed) for source in (PHOTOS, SHAPES) for preset in PRESETS for seed in range(seeds)
        ]
    if study == "modes":
        return [Cell(variant, f"shapes:{count}", scored=False) for count in MODE_COUNTS for variant in MODELS]
    return [Cell("dcgan-plus", PHOTOS, percent=p, augment=augment) for p in PERCENTS for augment in (True, False)]


def all_cells(chosen: Sequence[str], seeds: int) -> dict[Cell, list[str]]:
    """Return cell -> the studies among `chosen` that need it, in the order in which they run."""
    found: dict[Cell, list[str]] = {}
    for study in chosen:
        for cell in cells_of(study, seeds):
            found.setdefault(cell, []).append(study)
    return found


def by_share(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of study.json that are of last checkpoints, labelled by their share of the images."""
    words = {True: "with DiffAugment", False: "without DiffAugment"}
    last = [part for part in parts if not part["variant"].endswith("-best")]
    return [{**part, "label": f"{part['percent']}% {words[part['augment']]}"} for part in last]


def budget_flags(images: int | None, seconds: float) -> list[str]:
    """Return the budget of a training script: images where they are given, else seconds."""
    return ["--max_images", str(images)] if images else ["--max_seconds", f"{seconds:g}"]


def score_every(images: int | None, seconds: float) -> int:
    """Return after how many training images a score is due, for both presets alike: about SCORES in a training."""
    total = images or seconds * RATE["dcgan"]
    nearest = 10 ** max(len(str(int(total // SCORES))) - 2, 0)  # two digits say enough
    return max(int(total / SCORES / nearest) * nearest, 1)


def training_flags(cell: Cell, args: argparse.Namespace, total: int) -> list[str]:
    """Return the flags of a cell's training, after those of its family.

    Args:
        cell: to train.
        args: with image_size, precision, images, seconds, num_samples.
        total: images of --data that can be trained on.
    """
    flags = ["--image_size", str(args.image_size), "--seed", str(cell.seed), "--precision", args.precision]
    if cell.model != "gans":
        return flags
    flags = ["--preset", cell.variant, *GAN_FLAGS, *flags]
    if cell.source != PHOTOS:
        flags += ["--flip", "false"]  # mirrored shapes throw their shadow to the wrong side
    if not cell.augment:
        flags += ["--diffaugment", "none"]
    if cell.percent != 100:
        flags += ["--limit", str(total * cell.percent // 100)]
    every = score_every(args.images, args.seconds) if cell.scored else 0
    flags += ["--held_out", str(HELD_OUT), "--score_every", str(every)]
    if not cell.scored:
        flags += ["--keep_best", "false"]
    return [*flags, "--score_images", str(min(SCORE_IMAGES, args.num_samples))]


def plan(cells: Mapping[Cell, Sequence[str]], args: argparse.Namespace) -> list[Job]:
    """Return the cells with what they cost."""
    jobs = []
    for cell, needed_by in cells.items():
        training = args.images / RATE[cell.variant] if args.images else args.seconds
        scoring = SCORES * SCORE_SECONDS if cell.scored else 0.0
        evaluations = studies.DEFAULT_EVALUATIONS[cell.model]
        drawing = studies.drawing_seconds(cell.model, args.num_samples, evaluations, args.image_size)
        seconds = studies.START_SECONDS + training + scoring + drawing
        jobs.append(Job(cell.name, f"{', '.join(needed_by)}: {cell.what}", seconds))
    return jobs


def evaluation_seconds(cells: Mapping[Cell, Sequence[str]]) -> float:
    """Return what scoring the sample sets takes: most of it belongs to the source, not to the set."""
    return EVALUATE_SECONDS * len({cell.source for cell in cells})
