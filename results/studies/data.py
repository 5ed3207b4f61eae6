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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison import cli, formatting, studies
from comparison.cli import UserError
from comparison.report import study_page
from comparison.report.tradeoffs import QUALITY
from comparison.studies import Job, Lab

if TYPE_CHECKING:
    from comparison.data.images import ImageSet

SMALL, LARGE = 32, 64
PERCENTS = (10, 30, 100)
LEAST_IMAGES = 128  # of a subset: the largest batch of the sets for small machines
SUPER_RESOLUTION = "64-from-32-super-resolution"
BASE = "ddpm-100"  # whose samples it enlarges
SHORT = {"dcgan": "gans", "ddpm": "improved-diffusion", "ddgan": "denoising-diffusion-gan"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    studies.add_options(parser, seconds=75, num_samples=500)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Judge, train, draw, enlarge, score, write."""
    lab = Lab.open("data", args)
    if args.page:
        study_page.rewrite(lab.out, lab.study, page, draw_pictures)
        return
    jobs = plan(args.seconds, args.num_samples, args.seeds)
    names = studies.choose(args.cells, [job.name for job in jobs])
    jobs = [job for job in jobs if job.name in names]
    if args.plan:
        print(studies.plan_table(jobs, rest=40))
        return
    data, cells = read_data(lab), []
    for number, job in enumerate(jobs, start=1):
        do = run_super_resolution if job.name == SUPER_RESOLUTION else run_job
        found = [cell for seed in range(args.seeds) for cell in do(lab, job.name, args, seed, data)]
        facts = found[0]["training"]
        print(
            f"[{number}/{len(jobs)}] {job.name}: {facts['seconds']:.0f} s of training, {facts['images_seen']:,} images "
            f"seen, of {facts['data']['images']:,}",
            flush=True,
        )
        cells += found
    scoring = score(lab, cells, args.num_samples)
    add_memorised(lab, [cell for cell in cells if cell["size"] == SMALL], args.num_samples)
    for cell in cells:
        del cell["folder"]
    missing = [{"name": name, "reason": "not among --cells"} for name in all_names() if name not in names]
    options = {name: getattr(args, name) for name in ("seconds", "seeds", "num_samples", "preset", "precision")}
    study = {"options": options, **scoring, "cells": cells, "left_out": missing}
    study_page.write(lab, study, page, draw_pictures)


def all_names() -> list[str]:
    """Return the names of all cells: <model>-<percent> at 32 pixels, <model>-64px, and super-resolution."""
    names = [f"{short}-{part}" for short in SHORT for part in (*(str(p) for p in PERCENTS), f"{LARGE}px")]
    return [*names, SUPER_RESOLUTION]


def plan(seconds: float, images: int, seeds: int) -> list[Job]:
    """Return the cells with what they cost."""
    jobs = []
    for name in all_names():
        if name == SUPER_RESOLUTION:
            drawing = studies.drawing_seconds("improved-diffusion", images, 20, LARGE)
            what = f"samples of {BASE} enlarged by a network, {seconds:g} s besides {BASE}"
            jobs.append(Job(name, what, seeds * (studies.START_SECONDS + seconds + drawing)))
            continue
        short, part = name.split("-")
        size = LARGE if part == f"{LARGE}px" else SMALL
        model = SHORT[short]
        drawing = studies.drawing_seconds(model, images, studies.DEFAULT_EVALUATIONS[model], size)
        what = f"{size} pixels, {'100' if size == LARGE else part}% of the images, {seconds:g} s"
        jobs.append(Job(name, what, seeds * (studies.START_SECONDS + seconds + drawing)))
    return jobs


def read_data(lab: Lab) -> "ImageSet":
    """Read the training images at 32 pixels.

    Raises:
        UserError: the smallest share of them is too small to train on.
    """
    from comparison.data.images import load_images

    data = load_images(lab.data, SMALL)
    if len(data) * min(PERCENTS) // 100 < LEAST_IMAGES:
        raise UserError(f"--data: {len(data)} images; {min(PERCENTS)}% of them must be at least {LEAST_IMAGES}")
    return data


def subset_file(lab: Lab, data: "ImageSet", percent: int) -> tuple[str, int]:
    """Return the source that holds so many percent of the images, and their number; write it where need be."""
    count = len(data) * percent // 100
    if percent == 100:
        return lab.data, count
    from comparison.data.images import load_images, save_npz

    path = lab.runs / "studies" / lab.study / f"{data.name}-{percent}-{data.fingerprint[:8]}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_npz(path, load_images(lab.data, SMALL, limit=count).images.permute(0, 2, 3, 1).numpy())
    return str(path), count


def run_job(lab: Lab, name: str, args: argparse.Namespace, seed: int, data: "ImageSet") -> list[dict[str, Any]]:
    """Train and draw one cell; the whole data at 32 pixels also gives the enlarged set."""
    short, part = name.split("-")
    model, size = SHORT[short], LARGE if part == f"{LARGE}px" else SMALL
    percent = 100 if size == LARGE else int(part)
    source, count = subset_file(lab, data, percent)
    folder = lab.folder(model, f"{name}-s{seed}")
    flags = ["--image_size", str(size), "--seed", str(seed), "--precision", args.precision]
    config = studies.train(lab, model, folder, ["--max_seconds", f"{args.seconds:g}"], flags, data=source)
    common = ["--num_samples", str(args.num_samples), "--seed", str(seed), "--precision", args.precision]
    samples = folder / "settings" / "default"
    drawn = studies.draw(lab, model, folder, samples, common)
    label = study_page.label_of(model)
    cell = {"name": name, "model": model, "seed": seed, "percent": percent, "training_images": count, "size": size}
    cell |= {"training": studies.training_facts(config), "folder": samples}
    cell |= {key: drawn[key] for key in ("nfe", "seconds_per_image", "sampler")}
    if size == LARGE:
        return [{**cell, "label": f"{label}, {LARGE} pixels"}]
    cells = [{**cell, "label": f"{label}, {percent}%"}]
    if percent == 100:
        enlarged = {"label": f"{label}, {SMALL} enlarged", "name": f"{short}-enlarged", "size": LARGE}
        cells.append({**cell, **enlarged, "folder": enlarge(samples)})
    return cells


def run_super_resolution(
    lab: Lab, name: str, args: argparse.Namespace, seed: int, data: "ImageSet"
) -> list[dict[str, Any]]:
    """Train a super-resolution network and enlarge the samples of BASE, which is trained where it is not there yet.

    The cell's seconds, images seen and costs are those of both networks together.
    """
    from comparison.scores.evaluation import find_samples

    base = run_job(lab, BASE, args, seed, data)[0]
    model, folder = studies.SUPER_RESOLUTION, lab.folder(studies.SUPER_RESOLUTION, f"{name}-s{seed}")
    sizes = ["--small_size", str(SMALL), "--large_size", str(LARGE)]
    common = ["--seed", str(seed), "--precision", args.precision]
    config = studies.train(lab, model, folder, ["--max_seconds", f"{args.seconds:g}"], [*sizes, *common])
    samples = folder / "settings" / "default"
    source = ["--base_samples", str(find_samples(base["folder"])), "--num_samples", str(args.num_samples)]
    drawn = studies.draw(lab, model, folder, samples, [*source, *common])
    training = studies.training_facts(config)
    for fact in ("seconds", "images_seen", "steps"):
        training[fact] += base["training"][fact]
    label = f"{study_page.label_of(base['model'])}, {SMALL} by super-resolution"
    cell = {**base, "name": name, "label": label, "size": LARGE, "training": training, "folder": samples}
    return [{**cell, **{key: base[key] + drawn[key] for key in ("nfe", "seconds_per_image")}}]


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


def score(lab: Lab, cells: Sequence[dict[str, Any]], num_samples: int) -> dict[str, Any]:
    """Score each cell at its size against the whole data; return scoring and floor of study.json."""
    found: dict[str, Any] = {"floors": {}}
    for size in sorted({cell["size"] for cell in cells}):
        mine = [cell for cell in cells if cell["size"] == size]
        anchors = lab.runs / "studies" / lab.study / f"anchors-{size}.json"
        controls = studies.evaluate(lab, [cell["folder"] for cell in mine], size, num_samples, anchors)
        for cell in mine:
            cell["metrics"] = studies.scores(cell["folder"])
        found["floors"][str(size)] = controls["anchors"]["floor"]["metrics"]
        found["scoring"] = {name: controls[name] for name in ("reference", "extractor", "n")}
    return found


def add_memorised(lab: Lab, cells: Sequence[dict[str, Any]], num_samples: int) -> None:
    """Replace the memorised share of each cell by that among the images its training saw, with its own floor.

    The floor, `held_out`, is of real images that are neither in the reference nor among those images.
    """
    from comparison.data.images import load_images, load_npz
    from comparison.scores import features
    from comparison.scores.evaluation import find_samples
    from comparison.scores.neighbours import memorised, nearest_training
    from comparison.scores.reference import Reference

    reference = Reference.load(lab.data, SMALL, num_samples, 0, "auto")
    held_out = reference.others[: len(reference.chosen)]
    known: dict[int, Any] = {}
    for cell in cells:
        count = cell["training_images"]
        if count not in known:
            seen = load_images(lab.data, SMALL, limit=count).images
            pool = reference.scale(features.embed(seen, reference.extractor, desc=f"embed {count} images"))
            known[count] = pool, floor_share(reference.training[held_out], pool)
        pool, floor = known[count]
        images = load_npz(find_samples(cell["folder"]))[0]
        x = reference.scale(features.embed(images, reference.extractor, desc="embed samples"))
        cell["metrics"]["memorised"] = memorised(nearest_training(x, pool)).as_json()
        cell["held_out"] = floor


def floor_share(x: Any, pool: Any) -> dict[str, Any]:
    """Return the memorised share of real images among others: where the pool holds them, they do not count."""
    from comparison.scores.neighbours import memorised, nearest_training, squared_distances

    nearest = squared_distances(x, pool).min(1)
    same = (x - pool[nearest.indices]).norm(dim=1) < 1e-4
    return memorised(nearest_training(x, pool, nearest.indices[same].unique())).as_json()


def sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the numbers say of fewer images, of copies and of the two ways to 64 pixels."""
    from comparison.report.findings import rank

    said: list[str | None] = []
    named = {row["name"]: row for row in rows}
    for model in SHORT.values():
        mine = [row for row in rows if row["model"] == model and row["size"] == SMALL]
        if not mine:
            continue
        label = study_page.label_of(model)
        shares = [{**row, "label": f"{row['percent']}%"} for row in mine]
        said.append(rank(shares, QUALITY, f"{label}, Frechet distance by share of the images", lowest=True))
        few = [f"{row['percent']}% ({passes(row):.2g})" for row in mine if passes(row) < 1]
        if few:
            said.append(
                f"{label}, less than one pass over the images: {formatting.listed(few)}; there their number cannot be "
                "the limit"
            )
        for row in mine:
            entry, floor = row["metrics"]["memorised"], row["held_out"]
            if entry["value"] > floor["value"] and formatting.apart(entry, floor):
                cells = " and ".join(formatting.metric("memorised", e) for e in (entry, floor))
                said.append(f"{row['label']}: more samples close to training images than held-out ones are ({cells})")
    if not any("held-out" in (line or "") for line in said) and any("held_out" in row for row in rows):
        said.append("No cell has significantly more samples close to its training images than held-out images are")
    for short in SHORT:
        direct, enlarged = named.get(f"{short}-{LARGE}px"), named.get(f"{short}-enlarged")
        if direct and enlarged:
            entries = (direct["metrics"][QUALITY], enlarged["metrics"][QUALITY])
            names = (f"{LARGE} pixels directly", f"{SMALL} pixels enlarged")
            verdict = study_page.against(names[0], entries[0], names[1], entries[1])
            said.append(f"{study_page.label_of(direct['model'])} at {LARGE} pixels: {verdict}")
    resolved = named.get(SUPER_RESOLUTION)
    for name, words in (("ddpm-enlarged", "bicubic enlarging"), (f"ddpm-{LARGE}px", f"{LARGE} pixels directly")):
        if resolved and name in named:
            entries = (resolved["metrics"][QUALITY], named[name]["metrics"][QUALITY])
            verdict = study_page.against("super-resolution", entries[0], words, entries[1])
            said.append(f"{study_page.label_of(resolved['model'])} at {LARGE} pixels: {verdict}")
    said.append(study_page.unequal(rows))
    return [line if line.endswith(".") else f"{line}." for line in said if line]


def passes(row: dict[str, Any]) -> float:
    """Return how often a training saw its images on average."""
    return row["training"]["images_seen"] / row["training_images"]


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    rows = study_page.pooled(study)
    small, large = ([row for row in rows if row["size"] == size] for size in (SMALL, LARGE))
    extra = {
        "images": lambda row: formatting.count(row["training_images"]),
        "images seen": lambda row: formatting.count(row["training"]["images_seen"]),
        "passes": lambda row: formatting.plain(passes(row), 2),
        "time per image": lambda row: formatting.seconds(row["seconds_per_image"]),
    }
    held = {"held out": lambda row: formatting.metric("memorised", row["held_out"])}
    floors = study["floors"]
    known = dict.fromkeys(f"{study_page.label_of(row['model'])} {row['sampler']}" for row in rows)
    samplers = "; ".join(known)
    return study_page.join(
        "# Study: resolution and data",
        "What do fewer training images do to each model, and is it better to train at 64 pixels or to enlarge the "
        "samples of a network of 32 pixels, in the same time?",
        f"{study['options']['seconds']:g} s of training per cell, settings of `{study['options']['preset']}` in "
        f"flags.sh. Samplers: {samplers}. {study_page.machine(rows)}",
        study_page.scoring(study),
        "## What the numbers say",
        sentences(rows),
        "![Frechet distance and coverage against the share of the training images](data.png)" if small else None,
        "## Fewer images",
        "`memorised` counts copies among the images that the training saw; `held out` is the same share of real images "
        "that it did not see.",
        study_page.score_table(small, floors.get(str(SMALL)), {**extra, **held}) if small else None,
        f"## {LARGE} pixels",
        study_page.score_table(large, floors.get(str(LARGE)), extra) if large else None,
        "![Frechet distance at 64 pixels](resolution.png)" if large else None,
        "## Left out",
        [f"{item['name']}: {item['reason']}." for item in study["left_out"]],
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw data.png and resolution.png."""
    rows = study_page.pooled(study)
    panels: list[dict[str, Any]] = []
    for metric, words in ((QUALITY, "Frechet distance (log, lower is better)"), ("coverage", "coverage")):
        lines = []
        for model in SHORT.values():
            mine = [row for row in rows if row["model"] == model and row["size"] == SMALL]
            points = [(row["percent"], row["metrics"][metric]) for row in mine]
            lines.append({"label": study_page.label_of(model), "model": model, "points": points})
        log = "xy" if metric == QUALITY else "x"
        panels.append(
            {"x": "share of the training images, % (log)", "y": words, "log": log, "lines": lines, "ticks": True}
        )
    study_page.draw_lines(panels, out / "data.png")
    large = [row for row in rows if row["size"] == LARGE]
    study_page.draw_bars(large, f"Frechet distance at {LARGE} pixels (log, lower is better)", out / "resolution.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
