"""Studies: what GANs are said to be bad at, measured, and what lifts it.

  bash gans/study.sh --plan
  bash gans/study.sh --data cifar10
  bash gans/study.sh stability overfitting --data path/to/images --seconds 60

  stability    the score along the training of both presets, over several seeds, and the score at its end
  collapse     modes covered on shapes, recall and coverage on --data, both presets
  modes        10, 100 and 1,000 modes of shapes at an equal budget: both presets, improved DDPM and DDGAN
  overfitting  100, 20 and 10% of --data, with and without DiffAugment: held-out gap, nearest training images

A training that several studies need is done once. A call that was cut short goes on when it is repeated. Below three
hours on two CPU cores with the defaults, see --plan. Writes README.md, study.json and a picture into
results/studies/gan-<study>/, and the page of a study as soon as its last training is done.

Radford et al. 2016 (DCGAN); Miyato et al. 2018 (spectral norm); Zhao et al. 2020 (DiffAugment); Yazici et al. 2019
(moving average); Karras et al. 2020 (the gap to held-out images); Xiao et al. 2022 (one shot against many steps).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import study_cells
import study_text
from comparison import cli, studies
from comparison.report import study_page
from comparison.studies import Lab
from study_cells import PHOTOS, STUDIES, Cell


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}; all unless given")
    studies.add_options(parser, seconds=300, num_samples=2000)
    add("--images", type=cli.positive_int, metavar="N", help="training images of each cell, instead of --seconds")
    add("--image_size", type=cli.pixels, default=32, help="pixels of all images")
    add("--data_note", metavar="TEXT", help="a sentence on the data for the pages, e.g. that it is JPEG CIFAR-10")
    parser.set_defaults(data="cifar10", seeds=3)
    args = parser.parse_args(argv)
    for name in args.studies:
        if name not in STUDIES:
            parser.error(f"argument STUDY: {name} is not among {', '.join(STUDIES)}")
    if args.image_size < 16 or args.image_size & (args.image_size - 1):
        parser.error(f"argument --image_size: must be a power of two of at least 16, not {args.image_size}")
    args.studies = [name for name in STUDIES if name in args.studies or not args.studies]
    return args


def main(args: argparse.Namespace) -> None:
    """Judge, train, draw, score, and write each study's page."""
    lab = Lab.open("gan", args)
    lab = replace(lab, out=(args.out or cli.repo_root() / "results" / "studies").resolve())
    lab = replace(lab, preset={**lab.preset, "GAN_FLAGS": []})  # the cells name both presets' flags themselves
    if args.page:
        for name in args.studies:
            write(lab, name)
        return
    cells = study_cells.all_cells(args.studies, args.seeds)
    names = studies.choose(args.cells, [cell.name for cell in cells])
    chosen = {cell: needed_by for cell, needed_by in cells.items() if cell.name in names}
    if args.plan:
        jobs = study_cells.plan(chosen, args)
        print(studies.plan_table(jobs, rest=study_cells.evaluation_seconds(chosen)))
        return
    run(lab, args, chosen, [cell.name for cell in cells if cell not in chosen])


def run(lab: Lab, args: argparse.Namespace, chosen: Mapping[Cell, Sequence[str]], left_out: Sequence[str]) -> None:
    """Train and draw every cell, and write each study as soon as it has all of its own."""
    import study_runs

    total = study_runs.count_photos(lab, args.image_size) if any(cell.source == PHOTOS for cell in chosen) else 0
    found: dict[str, list[dict[str, Any]]] = {}
    for name in args.studies:
        for cell in (cell for cell, needed_by in chosen.items() if name in needed_by and cell.name not in found):
            found[cell.name] = study_runs.run_cell(lab, cell, args, total)
            facts = found[cell.name][0]["training"]
            print(
                f"[{len(found)}/{len(chosen)}] {cell.name}: {facts['seconds']:.0f} s of training, "
                f"{facts['images_seen']:,} images seen",
                flush=True,
            )
        needed = study_cells.cells_of(name, args.seeds)
        parts = [dict(part) for cell in needed for part in found.get(cell.name, [])]
        if not parts:
            print(f"{name}: none of its cells is among --cells")
            continue
        if name == "overfitting":
            parts = study_cells.by_share(parts)
        scores = study_runs.score(lab, parts, args)
        if name == "overfitting":
            study_runs.add_copies(lab, parts, args, total)
        for part in parts:
            del part["folder"]
            part["metrics"] |= {k: v for k, v in part.get("along", {}).items() if isinstance(v, dict)}
        missing = [cell.name for cell in needed if cell.name in left_out]
        write(lab, name, {"options": kept_options(args), **scores, "cells": parts, "left_out": missing})


def kept_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that study.json keeps; no path of the machine is among them."""
    names = ("seconds", "images", "seeds", "num_samples", "preset", "precision", "image_size", "data_note")
    return {name: getattr(args, name) for name in names}


def write(lab: Lab, name: str, study: dict[str, Any] | None = None) -> None:
    """Write a study's page and picture, from `study` or from the study.json that is there."""
    import study_pictures

    place = replace(lab, study=f"gan-{name}", out=lab.out / f"gan-{name}")
    if study is None:
        study_page.rewrite(place.out, place.study, study_text.page, study_pictures.DRAW[name])
    else:
        study_page.write(place, study, study_text.page, study_pictures.DRAW[name])


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
