"""Study: which loss and which gradient penalty keep a GAN stable, and all modes.

  python results/studies/gan_losses.py --plan
  python results/studies/gan_losses.py --seeds 3
  python results/studies/gan_losses.py --data stackmnist:5k --seeds 3

Trains the preset's r3gan-tiny with the non-saturating loss or relativistic pairs, without a penalty, with R1, and with
R1 and R2; all else, also the time, is equal. On StackedMNIST the discriminator has half of the generator's channels,
and further cells of the non-saturating loss have a quarter and as many. Repeat the command to resume. Writes README.md,
study.json, gan-losses.png and samples.png into results/studies/gan-losses-<data>/.

Goodfellow et al. 2014 (non-saturating); Mescheder et al. 2018 (R1, R2); Huang et al. 2024 (pairs and both penalties).
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.data.sources import STACKED, source_name
from comparison.models import GAN, GANS, MODELS
from comparison.report import study_page
from comparison.report.panels import Bar, Bars
from comparison.report.tradeoffs import QUALITY
from comparison.studies import START_SECONDS, Job, Study, add_options, sampling_seconds

MODEL = MODELS[GAN]
PRESET = "r3gan-tiny"
LOSSES = {"ns": "non-saturating", "relativistic": "relativistic pairs"}
PENALTIES = {"none": "no penalty", "r1": "R1", "r1r2": "R1 and R2"}
COLOURS = {"none": "#E69F00", "r1": "#56B4E9", "r1r2": "#0072B2"}
SHOWN = ("modes_covered", "modes_matched", "modes_kl", QUALITY)
PUBLISHED_COUNT = 26_000  # samples of the published counts of StackedMNIST's modes (Lin et al. 2018)
# On StackedMNIST small discriminators as in Metz et al. 2017, with a third of the preset's weight
STACKED_FLAGS = ("--ndf", "16", "--r1_gamma", "10")
FURTHER = (("ns", "none", 8), ("ns", "r1r2", 8), ("ns", "none", 32), ("ns", "r1r2", 32))  # loss, penalty, ndf
GRID = 16  # samples of each cell in samples.png
Row = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=150, num_samples=1000)
    args = parser.parse_args(argv)
    if args.data in STACKED and args.num_samples == parser.get_default("num_samples"):
        args.num_samples = PUBLISHED_COUNT
    name = "stackmnist" if args.data in STACKED else source_name(args.data)
    args.out = args.out or cli.repo_root() / "results" / "studies" / f"gan-losses-{name}"
    return args


def main(args: argparse.Namespace) -> None:
    """Validate, train, sample, score, write."""
    study = Study("gan-losses", args)
    if args.page:
        return study.rewrite(page, draw_pictures)
    study.preset["GAN_FLAGS"] = study.preset[GANS[PRESET][1]]
    jobs = study.choose(plan(args), rest=60)
    if not jobs:
        return None
    content, anchors = study.score_all(study.run(jobs, lambda name, seed: [run_cell(study, name, seed)]), 32)
    from comparison.study_images import draw_samples  # torch

    first = {cell["label"]: cell["folder"] for cell in content["cells"] if cell["seed"] == 0}
    study.out.mkdir(parents=True, exist_ok=True)
    draw_samples(list(first.values()), GRID, study.out / "samples.png")
    return study.write({**content, "floor": anchors["floor"], "grid": list(first)}, page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return a cell for each loss with each penalty."""
    seconds = START_SECONDS + args.seconds + sampling_seconds(MODEL, args.num_samples)
    cells = [*product(LOSSES, PENALTIES, (0,)), *(FURTHER if args.data in STACKED else ())]
    names = ["-".join([loss, penalty, *([f"ndf{ndf}"] if ndf else [])]) for loss, penalty, ndf in cells]
    return [Job(name, label_of(*cell), seconds, args.seeds) for name, cell in zip(names, cells, strict=True)]


def label_of(loss: str, penalty: str, ndf: int = 0) -> str:
    """Return the label of a cell; `ndf` 0 for the study's discriminator."""
    return f"{LOSSES[loss]}, {PENALTIES[penalty]}" + (f", {ndf}-channel D" if ndf else "")


def run_cell(study: Study, name: str, seed: int) -> Row:
    """Train and sample one cell."""
    loss, penalty, *further = name.split("-")
    ndf = int(further[0].removeprefix("ndf")) if further else 0
    flags = [*(STACKED_FLAGS if study.data in STACKED else ()), *(("--ndf", str(ndf)) if ndf else ())]
    # a training that diverges is sampled from its last checkpoint, so there are many
    flags += ["--loss", loss, "--penalty", penalty, "--image_size", "32", "--save_minutes", "0.2"]
    cell = study.train_and_sample(MODEL, name, seed, flags)
    return {**cell, "label": label_of(loss, penalty, ndf), "loss": loss, "penalty": penalty, "ndf": ndf}


def effects(study: Row) -> list[str]:
    """Return sentences: what pairs and each penalty change, the best and the worst cell, and divergences."""
    rows = study_page.pooled(study)
    counted = "modes_covered" if all("modes_covered" in row["metrics"] for row in rows) else QUALITY
    sentences = []
    cells = {
        (c["loss"], c["penalty"], c.get("ndf", 0), c["seed"]): c["metrics"][QUALITY]["value"] for c in study["cells"]
    }

    def compare(topic: str, at: int, without: str, with_: str, chosen: list[int]) -> None:
        pairs = [(key, (*key[:at], without, *key[at + 1 :])) for key in cells if key[at] == with_ and key[2] in chosen]
        found = [(cells[key], cells[other]) for key, other in pairs if other in cells]
        sentences.extend(study_page.paired(topic, found))

    compare("Relativistic pairs instead of the non-saturating loss", 0, "ns", "relativistic", [0])
    compare("R1 instead of no penalty", 1, "none", "r1", [0])
    compare("R1 and R2 instead of R1", 1, "r1", "r1r2", [0])
    for ndf in sorted({key[2] for key in cells} - {0}):
        compare(f"R1 and R2 instead of no penalty, {ndf}-channel D", 1, "none", "r1r2", [ndf])
    order = sorted(rows, key=lambda row: row["metrics"][counted]["value"])
    order = order if formatting.METRICS[counted][1] == "lower" else order[::-1]
    heading = formatting.METRICS[counted][0]

    def score(row: Row) -> str:
        return f"{row['label']}, {heading} {formatting.metric(counted, row['metrics'][counted])}"

    first = order[0]["metrics"][counted]
    equal = [r["label"] for r in order[1:] if not formatting.differ_significantly(first, r["metrics"][counted])]
    same = (
        f"; not significantly different: {'; '.join(equal) if len(equal) < 4 else f'{len(equal)} others'}"
        if equal
        else ""
    )
    fallen = sum(cell["training"].get("diverged", False) for cell in study["cells"])
    best_and_worst = f"Best: {score(order[0])}{same}. Worst: {score(order[-1])}."
    return [*sentences, best_and_worst, f"{fallen} of {len(study['cells'])} trainings diverged."]


def page(study: Row) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]
    for row in rows:
        cells = [cell["training"] for cell in study["cells"] if cell["name"] == row["name"]]
        row["steps"] = sum(cell["steps"] for cell in cells) / len(cells)
        row["diverged"] = f"{sum(cell.get('diverged', False) for cell in cells)} of {len(cells)}"
    floor = {"label": "real images (floor)", "metrics": study["floor"]}
    columns = {
        "": lambda row: row["label"],
        "updates": lambda row: formatting.count(row["steps"]) if "steps" in row else formatting.MISSING,
        "diverged": lambda row: row.get("diverged", formatting.MISSING),
        **study_page.scores([name for name in SHOWN if name in study["floor"]]),
    }
    gan = rows[0]["training"]["options"]
    networks = "residual" if gan.get("network") == "residual" else "DCGAN's"
    return study_page.page(
        study,
        f"losses and penalties of a GAN on {study['scoring']['reference']['name']}",
        "Which loss and which gradient penalty keep a GAN stable, and all modes?",
        f"Each GAN ({networks} networks, {gan.get('ngf')} channels at the finest stage of the generator and "
        f"{gan.get('ndf')} of the discriminator D, which has no normalization; batches of {gan.get('batch_size')}) was "
        f"trained for {options['seconds']:g} s. All other settings: `{PRESET}` of `{options['preset']}` in flags.sh.",
        [
            effects(study),
            "![Modes and distance of each cell, with a dot for each training](gan-losses.png)",
            study_page.table([floor, *rows], columns),
            "Samples of the first training of each configuration, in the order of the table.",
            "![Samples, a row for each cell](samples.png)",
        ],
        [study_page.unequal_time_note(study["cells"])],
    )


def draw_pictures(study: Row, out: Path) -> None:
    """Draw gan-losses.png, a bar for each cell and metric."""
    from comparison.report.study_plots import draw

    panels: list[Bars] = []
    for name in SHOWN:
        bars = []
        for row in (row for row in study_page.pooled(study) if name in row["metrics"]):
            dots = [cell["metrics"][name]["value"] for cell in study["cells"] if cell["name"] == row["name"]]
            bars.append(Bar(row["label"], row["metrics"][name], COLOURS[row["penalty"]], dots))
        heading, better = formatting.METRICS[name]
        panels.append(Bars(f"{heading}\n({better} is better)", bars, log=name == QUALITY, labelled=not panels))
    draw([panel for panel in panels if not panel.is_empty()], out / "gan-losses.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
