"""Running the cells of study.py by the models' own scripts, and what is read from the files that these leave."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import study_cells
from comparison import studies
from comparison.checkpoints import newest
from comparison.cli import UserError
from comparison.report.tradeoffs import QUALITY
from comparison.runs import read_progress
from comparison.studies import Lab
from gan.files import BEST
from study_cells import PERCENTS, PHOTOS, Cell

LEAST_COVERAGE = 0.05  # a best coverage below it is not worth halving
BLOCKS = 5  # stretches of the end of a training whose means give an interval
LEAST_IMAGES = 64  # of the smallest share: a batch
Found = dict[str, Any]


def count_photos(lab: Lab, image_size: int) -> int:
    """Return how many images of --data a training with held-out images sees.

    Raises:
        UserError: too few for the smallest share.
    """
    from comparison.data.held_out import load_data

    total = len(load_data(lab.data, image_size, 0, study_cells.HELD_OUT)[0])
    if total * min(PERCENTS) // 100 < LEAST_IMAGES:
        raise UserError(f"--data: {total} images; {min(PERCENTS)}% of them must be at least {LEAST_IMAGES}")
    return total


def source_of(lab: Lab, cell: Cell) -> str:
    """Return the data source of a cell as the scripts take it."""
    return lab.data if cell.source == PHOTOS else cell.source


def run_cell(lab: Lab, cell: Cell, args: argparse.Namespace, total: int) -> list[Found]:
    """Train and draw one cell; return its part of study.json, `folder` that of the samples.

    Where a training with the preset as it is kept its best checkpoint beside the last one, that is drawn too, as a
    second part.
    """
    folder = lab.folder(cell.model, cell.name)
    budget = study_cells.budget_flags(args.images, args.seconds)
    flags = study_cells.training_flags(cell, args, total)
    config = studies.train(lab, cell.model, folder, budget, flags, data=source_of(lab, cell))
    samples = folder / "settings" / "default"
    common = ["--num_samples", str(args.num_samples), "--seed", str(cell.seed), "--precision", args.precision]
    drawn = studies.draw(lab, cell.model, folder, samples, common)
    found = {"name": cell.row, "label": cell.label, "variant": cell.variant, "model": cell.model}
    found |= {"source": cell.source, "percent": cell.percent, "augment": cell.augment, "seed": cell.seed}
    found |= {key: drawn[key] for key in ("nfe", "seconds_per_image", "sampler")}
    found |= {"training": studies.training_facts(config), "folder": samples}
    if cell.model == "gans":
        found["curve"] = score_curve(folder)
        found["along"] = along(found["curve"])
        found["gap"] = held_out_gap(folder)
    best = newest(folder, BEST) if cell.scored and cell.percent == 100 and cell.augment else None
    if best is None:
        return [found]
    place = folder / "settings" / "best"
    studies.draw(lab, cell.model, folder, place, [*common, "--checkpoint", str(best)])
    kept = {"name": f"{cell.row}-best", "label": f"{cell.label}, best checkpoint", "variant": f"{cell.variant}-best"}
    return [found, {**found, **kept, "folder": place, "curve": [], "along": {}, "gap": None}]


def score_curve(run: Path) -> list[list[float]]:
    """Return [images seen, Frechet distance, coverage] of each score along a training."""
    return [[row["images_seen"], row[QUALITY], row["coverage"]] for row in _having(run / "scores.csv", QUALITY)]


def _having(path: Path, column: str) -> list[dict[str, float]]:
    return [row for row in read_progress(path) if column in row] if path.is_file() else []


def along(curve: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Measure how steadily a training went.

    Args:
        curve: of `score_curve`.

    Returns:
        worsened: the last distance over the best; swing: mean factor between neighbouring distances in the second
        half; collapsed_at: images seen when coverage first fell below half of its best so far, None where it never
        did. Empty for fewer than four scores.
    """
    if len(curve) < 4:
        return {}
    distances = [max(point[1], 1e-9) for point in curve]
    late = distances[len(distances) // 2 :]
    steps = [abs(math.log(b / a)) for a, b in pairwise(late)]
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
    rows = _having(run / "progress.csv", "gap")
    late = [row["gap"] for row in rows if row["images_seen"] > rows[-1]["images_seen"] / 2]
    if len(late) < BLOCKS:
        return None
    size = len(late) / BLOCKS
    parts = [late[round(i * size) : round((i + 1) * size)] for i in range(BLOCKS)]
    entry = studies.pool([{"value": sum(part) / len(part), "n": len(part)} for part in parts])
    return {"value": entry["value"], "interval": entry["interval"], "n": len(late)}


def score(lab: Lab, cells: Sequence[Found], args: argparse.Namespace) -> Found:
    """Score the sample sets of each source against it; return `scoring` and `floors` of study.json."""
    found: Found = {"floors": {}, "scoring": {}}
    for source in dict.fromkeys(cell["source"] for cell in cells):
        mine = [cell for cell in cells if cell["source"] == source]
        place = replace(lab, data=lab.data if source == PHOTOS else source)
        anchors = lab.runs / "studies" / lab.study / f"anchors-{source.replace(':', '')}.json"
        folders = [cell["folder"] for cell in mine]
        controls = studies.evaluate(place, folders, args.image_size, args.num_samples, anchors)
        for cell in mine:
            cell["metrics"] = studies.scores(cell["folder"])
        found["floors"][source] = controls["anchors"]["floor"]["metrics"]
        found["scoring"][source] = {name: controls[name] for name in ("reference", "extractor", "n")}
    return found


def add_copies(lab: Lab, cells: Sequence[Found], args: argparse.Namespace, total: int) -> None:
    """Replace the memorised share of each cell by that among the images its training saw, with a floor.

    The floor, `held_out`, is the same share of real images that the training did not see.
    """
    from comparison.data.held_out import load_data
    from comparison.data.images import load_npz
    from comparison.scores import features
    from comparison.scores.evaluation import find_samples
    from comparison.scores.neighbours import memorised, nearest_training
    from comparison.scores.reference import Reference

    reference = Reference.load(lab.data, args.image_size, args.num_samples, 0, "auto")
    known: dict[int, Any] = {}
    for cell in cells:
        if cell["percent"] not in known:
            limit = 0 if cell["percent"] == 100 else total * cell["percent"] // 100
            data, unseen = load_data(lab.data, args.image_size, limit, study_cells.HELD_OUT)
            pool, others = (
                reference.scale(features.embed(images, reference.extractor, desc=f"embed {len(images)} images"))
                for images in (data.images, unseen)
            )
            known[cell["percent"]] = pool, memorised(nearest_training(others, pool)).as_json(), len(data)
        pool, floor, count = known[cell["percent"]]
        images = load_npz(find_samples(cell["folder"]))[0]
        x = reference.scale(features.embed(images, reference.extractor, desc="embed samples"))
        cell["metrics"]["memorised"] = memorised(nearest_training(x, pool)).as_json()
        cell["held_out"], cell["training_images"] = floor, count


def passes(row: Mapping[str, Any]) -> float:
    """Return how often a training saw its images on average."""
    return row["training"]["images_seen"] / row["training_images"]
