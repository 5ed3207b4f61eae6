"""Study: what a GAN learns from few images, and what adaptive augmentation changes.

  python results/studies/gan_data.py --plan
  python results/studies/gan_data.py --data cifar10 --seeds 3

Trains the preset's r3gan-tiny on 1,000 and on 5,000 images of --data, with DiffAugment at an adapted probability and
without, and samples it after a quarter, a half and all of the time. Distances are to all of --data, so copies of the
few images do not lower them. Repeat the command to resume. Writes README.md, study.json and gan-data.png into
results/studies/gan-data/.

Karras et al. 2020 (adaptive augmentation); Zhao et al. 2020 (DiffAugment).
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.files import read_json
from comparison.models import GAN, GANS, MODELS
from comparison.report import study_page
from comparison.report.panels import STYLES, Bar, Bars, Line, Lines
from comparison.report.tradeoffs import QUALITY
from comparison.studies import START_SECONDS, Job, Study, add_options, sampling_facts, sampling_seconds, training_facts

MODEL = MODELS[GAN]
PRESET = "r3gan-tiny"
PARTS = (25, 50, 100)  # percent of the time at which samples are drawn
AT = "@"  # separates the percentage in the name of an earlier checkpoint's cell
HELD_OUT = 1000  # real images that are not trained on, for the level of real images
AUGMENT = ("--diffaugment", "color,translation", "--ada_target", "0.6")
COLOURS = {False: "#D55E00", True: "#0072B2"}
RATIO = "nearest_ratio"
Row = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=300, num_samples=2000)
    counts = "numbers of training images"
    parser.add_argument("--counts", type=numbers, default=(1000, 5000), metavar="N,N", help=counts)
    parser.set_defaults(data="cifar10", preset="cpu")
    return parser.parse_args(argv)


def numbers(text: str) -> tuple[int, ...]:
    """Read --counts, an argparse type."""
    return tuple(sorted({cli.positive_int(part) for part in text.split(",")}))


def main(args: argparse.Namespace) -> None:
    """Validate, train, sample, score, write."""
    study = Study("gan-data", args)
    if args.page:
        return study.rewrite(page, draw_pictures)
    study.preset["GAN_FLAGS"] = study.preset[GANS[PRESET][1]]
    jobs = study.choose(plan(args), rest=60)
    if not jobs:
        return None
    from comparison import study_images  # torch
    from comparison.data.held_out import load_data

    total = len(load_data(study.data, 32, 0, HELD_OUT)[0])
    if total < 2 * max(args.counts):
        raise UserError(f"--counts {max(args.counts)}: must be at most half of the {total} images of --data")
    content, anchors = study.score_all(
        study.run(jobs, lambda name, seed: run_cell(study, name, seed)), 32, subsets=True
    )

    def images_of(count: int) -> Any:
        data, unseen = load_data(study.data, 32, count, HELD_OUT)
        return data.images, unseen

    study_images.add_copies(study, content["cells"], 32, images_of)
    return study.write({**content, "floor": anchors["floor"]}, page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return a cell for each number of images, with and without augmentation."""
    seconds = START_SECONDS + args.seconds + len(PARTS) * sampling_seconds(MODEL, args.num_samples)
    cells = product(args.counts, (False, True))
    return [Job(f"{c}{'-augmented' if a else ''}", label_of(c, a), seconds, args.seeds) for c, a in cells]


def label_of(count: int, augment: bool) -> str:
    """Return the label of a cell."""
    return f"{count:,} images, {'adaptive augmentation' if augment else 'no augmentation'}"


def run_cell(study: Study, name: str, seed: int) -> list[Row]:
    """Train one cell in parts; return an entry of study.json for each part that was sampled, the whole last."""
    count, _, augment = name.partition("-")
    folder = study.folder(MODEL, f"{name}-s{seed}")
    flags = ["--limit", count, "--held_out", str(HELD_OUT), "--image_size", "32", *(AUGMENT if augment else ())]
    flags += ["--max_seconds", f"{study.args.seconds:g}"]
    entries = []
    for part in PARTS:
        until = study.args.seconds * part / 100
        samples = folder / "settings" / str(part)
        config = study.train(MODEL, folder, seed, [*flags, *(["--stop_after", f"{until:g}"] if part < 100 else [])])
        # a later call finds the run, and its newest checkpoint, past this part
        if part == 100 or config["finished"]["reason"] == f"max_seconds {until:g}":
            sampling = study.sample(MODEL, folder, samples, seed)
        elif (samples / "sampling.json").is_file():
            sampling = read_json(samples / "sampling.json")
        else:
            continue
        entry = {"name": f"{name}{AT}{part}" if part < 100 else name, "model": MODEL.name, "seed": seed, "part": part}
        entry |= {"label": label_of(int(count), bool(augment)), "count": int(count), "augment": bool(augment)}
        entry |= {"folder": samples, "seconds": until, "training": training_facts(config), **sampling_facts(sampling)}
        entries.append(entry)
    return entries


def effects(study: Row) -> list[str]:
    """Return a sentence for each number of images: what augmentation changes."""
    sentences = []
    for count in sorted({cell["count"] for cell in study["cells"]}):
        cells = [cell for cell in study["cells"] if cell["count"] == count and cell["part"] == 100]
        found = {(cell["augment"], cell["seed"]): cell["metrics"][QUALITY]["value"] for cell in cells}
        seeds = [seed for augment, seed in found if augment and (False, seed) in found]
        pairs = [(found[True, seed], found[False, seed]) for seed in seeds]
        sentences += study_page.paired(f"Adaptive augmentation with {count:,} images", pairs)
    return sentences


def page(study: Row) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]

    def epochs(row: Row) -> str:
        return formatting.format_number(row["training"]["images_seen"] / row["count"], 2)

    columns = {
        "": lambda row: row["label"],
        "epochs": lambda row: epochs(row) if "count" in row else formatting.MISSING,
        **study_page.scores((QUALITY, "coverage", RATIO, "memorised")),
    }
    whole = [row for row in rows if row["part"] == 100]
    unseen = [
        {"label": f"unseen real images, of {count:,}", "metrics": found}
        for count, found in {row["count"]: row["held_out"] for row in whole}.items()
    ]
    return study_page.page(
        study,
        f"few images, a GAN on {study['scoring']['reference']['name']}",
        "What does a GAN learn from few images, does it copy them, and what does adaptive augmentation change?",
        f"Each GAN was trained for {options['seconds']:g} s on part of the images; distances are to all of them. Other "
        f"settings: `{PRESET}` of `{options['preset']}` in flags.sh.",
        [
            effects(study),
            "![Distance along the training, and how close samples are to training images](gan-data.png)",
            study_page.table([{"label": "all images (floor)", "metrics": study["floor"]}, *unseen, *whole], columns),
        ],
        [
            f"`{formatting.METRICS[RATIO][0]}`: median over samples of the distance to the nearest training image, "
            "divided by that image's distance to its nearest other one. `memorised`: fraction of samples below 1/2.",
            study.get("note"),
        ],
    )


def draw_pictures(study: Row, out: Path) -> None:
    """Draw gan-data.png: distance against training time, and a bar for the nearest-neighbor ratio of each cell."""
    from comparison.report.study_plots import draw

    rows = study_page.pooled(study)
    lines, bars = [], []
    cells = sorted({(row["count"], row["augment"]) for row in rows})
    for (count, augment), look in zip(cells, STYLES, strict=False):
        mine = sorted((r for r in rows if (r["count"], r["augment"]) == (count, augment)), key=lambda r: r["part"])
        points = [(row["seconds"], row["metrics"][QUALITY]) for row in mine]
        lines.append(Line(label_of(count, augment), points, COLOURS[augment], **look))
        for row in (row for row in mine if row["part"] == 100):
            dots = [c["metrics"][RATIO]["value"] for c in study["cells"] if c["name"] == row["name"]]
            bars.append(Bar(row["label"], row["metrics"][RATIO], COLOURS[augment], dots))
    ticks = sorted({x for line in lines for x, _ in line.points})
    distance = Lines("training time, s (log)", "Frechet distance\n(log, lower is better)", lines, "xy", ticks=ticks)
    draw([distance, Bars("nearest-neighbor ratio\n(below 1: closer than training images)", bars)], out / "gan-data.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
