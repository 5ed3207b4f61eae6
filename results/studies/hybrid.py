"""Study: an ablation of DDGAN's training recipe: each part with and without the others.

  python results/studies/hybrid.py --plan
  python results/studies/hybrid.py --seconds 150 --seeds 3 --longer 3,9

Trains DDGAN for the same --seconds in each cell. The discriminator judges x_t, as published, or x_0. The generator is
trained as a denoiser first and kept near it by a reconstruction term, or by the adversarial loss alone. The networks
work on pixels or on their Haar coefficients. Two more cells are the unchanged preset and its generator trained as a
denoiser alone; --longer also trains these two for multiples of the time, with seed 0. Repeat the command to resume.
Writes README.md, study.json, hybrid.png and time.png into results/studies/hybrid/.

The parts: Xiao et al. 2022 (x_t), Phung et al. 2023 (reconstruction, Haar), see denoising-diffusion-gan/README.md.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.models import DDGAN, MODELS
from comparison.report import study_page
from comparison.report.panels import STYLES, Bar, Bars, Line, Lines
from comparison.report.tradeoffs import QUALITY
from comparison.runs import read_progress
from comparison.studies import START_SECONDS, Job, Study, add_options, sampling_seconds

MODEL = MODELS[DDGAN]
IMAGE_SIZE = 32
INPUTS, RECONSTRUCTIONS, DOMAINS = ("x_t", "x_0"), ("none", "decay"), ("pixel", "haar")
FACTORS = {  # what the second value of a part changes -> position of the part in the name of a cell, its values
    "Discriminator input x_0 instead of x_t": (1, INPUTS),
    "Denoiser phase and reconstruction term": (2, RECONSTRUCTIONS),
    "Haar coefficients instead of pixels": (0, DOMAINS),
}
WHOLE, ALONE = "preset", "denoiser"  # the cells that are no combination
LONGER = "@"  # separates the multiple of the time in the name of a longer training
SAME = "not significantly different"
DETAIL_SCALE = "2"  # of the Haar coefficients, whose details are small
COLOURS = {"x_t-none": "#D55E00", "x_t-decay": "#E69F00", "x_0-none": "#56B4E9", "x_0-decay": "#0072B2"}
COLOURS |= {WHOLE: MODEL.colour, ALONE: "#333333"}
SHOWN = (QUALITY, "modes_matched", "modes_covered")
Row = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=150, num_samples=1000)
    longer = "also train the preset and its denoiser alone for these multiples of --seconds"
    parser.add_argument("--longer", type=multiples, default=(), metavar="K,K", help=longer)
    return parser.parse_args(argv)


def multiples(text: str) -> tuple[int, ...]:
    """Read whole numbers of at least 2, separated by commas, an argparse type."""
    values = tuple(sorted({cli.positive_int(part) for part in text.split(",")}))
    if 1 in values:
        raise argparse.ArgumentTypeError(f"must be whole numbers of at least 2, separated by commas, not {text}")
    return values


def main(args: argparse.Namespace) -> None:
    """Validate, train, sample, score, write."""
    study = Study("hybrid", args)
    if args.page:
        return study.rewrite(page, draw_pictures)
    jobs = study.choose(plan(args), rest=60)
    if not jobs:
        return None
    content, anchors = study.score_all(study.run(jobs, lambda name, seed: [run_cell(study, name, seed)]), IMAGE_SIZE)
    content["anchors"] = {name: anchors[name] for name in ("floor", "noise")}
    return study.write(content, page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return a cell for each combination, the two others, and the longer trainings of these two."""
    seconds = START_SECONDS + args.seconds + sampling_seconds(MODEL, args.num_samples)
    names = ["-".join(parts) for parts in product(DOMAINS, INPUTS, RECONSTRUCTIONS)] + [WHOLE, ALONE]
    jobs = [Job(name, label_of(name), seconds, args.seeds) for name in names]
    for times, name in product(args.longer, (WHOLE, ALONE)):
        longer = f"{name}{LONGER}{times}"
        jobs.append(Job(longer, label_of(longer), seconds + (times - 1) * args.seconds))
    return jobs


def label_of(name: str) -> str:
    """Return the label of a cell."""
    name, _, times = name.partition(LONGER)
    if times:
        return f"{label_of(name)}, {times} times as long"
    if name in (WHOLE, ALONE):
        return "preset" if name == WHOLE else "denoiser alone"
    domain, judged, reconstruction = name.split("-")
    training = "denoiser first" if reconstruction == "decay" else "adversarial only"
    return f"D sees {judged}, {training}, {'Haar' if domain == 'haar' else 'pixels'}"


def cell_flags(name: str) -> list[str]:
    """Return the flags in which a cell differs from the preset, except its time."""
    name = name.partition(LONGER)[0]
    if name in (WHOLE, ALONE):
        return [] if name == WHOLE else ["--denoiser_fraction", "1", "--denoiser_d_every", "0"]
    domain, judged, reconstruction = name.split("-")
    flags = ["--domain", domain, "--discriminator_input", judged, "--reconstruction", reconstruction]
    if domain == "haar":
        flags += ["--detail_scale", DETAIL_SCALE]
    return flags if reconstruction == "decay" else [*flags, "--denoiser_fraction", "0"]


def run_cell(study: Study, name: str, seed: int) -> dict[str, Any]:
    """Train one pair of networks and sample it."""
    seconds = study.args.seconds * int(name.partition(LONGER)[2] or 1)
    flags = ["--image_size", str(IMAGE_SIZE), *cell_flags(name), "--max_seconds", f"{seconds:g}"]
    cell = study.train_and_sample(MODEL, name, seed, flags)
    accuracy = late_accuracy(study.folder(MODEL, f"{name}-s{seed}"))
    return {**cell, "label": label_of(name), "accuracy": accuracy}


def late_accuracy(folder: Any) -> list[float]:
    """Return the discriminator's accuracy at t = 0, 1, ... over the second half of the adversarial updates."""
    rows = [row for row in read_progress(folder / "progress.csv") if "loss_g" in row]
    rows = rows[len(rows) // 2 :]
    means: list[float] = []
    while rows and f"accuracy_real_t{len(means)}" in rows[0]:
        columns = [f"accuracy_{side}_t{len(means)}" for side in ("real", "fake")]
        means.append(round(sum(row[name] for row in rows for name in columns) / (2 * len(rows)), 4))
    return means


def effects(rows: dict[str, Row], cells: list[Row]) -> list[str]:
    """Return a sentence per part of the recipe, with the others held, and one on the best hybrid and its denoiser."""
    distances = {(cell["name"], cell["seed"]): cell["metrics"][QUALITY]["value"] for cell in cells}
    sentences = []
    for topic, (position, (without, with_)) in FACTORS.items():
        pairs = []
        for (name, seed), distance in distances.items():
            parts = name.split("-")
            other = ("-".join([*parts[:position], without, *parts[position + 1 :]]), seed)
            if len(parts) == 3 and parts[position] == with_ and other in distances:
                pairs.append((distance, distances[other]))
        sentences += study_page.paired(topic, pairs)
    hybrids = [row for name, row in rows.items() if name != ALONE]
    if ALONE in rows and hybrids:
        best = min(hybrids, key=lambda row: row["metrics"][QUALITY]["value"])
        score, baseline = (formatting.metric(QUALITY, row["metrics"][QUALITY]) for row in (best, rows[ALONE]))
        verdict = compare(best, rows[ALONE], QUALITY)
        verdict += " from" if verdict == SAME else " than"
        sentences.append(f"The best hybrid ({best['label']}; {score}) is {verdict} the {label_of(ALONE)} ({baseline}).")
    return sentences


def compare(row: Row, other: Row, name: str) -> str:
    """Return how a row compares with another in a metric, by the intervals."""
    a, b = row["metrics"][name], other["metrics"][name]
    if not formatting.differ_significantly(a, b):
        return SAME
    return "better" if (a["value"] < b["value"]) == (formatting.METRICS[name][1] == "lower") else "worse"


def by_time(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of the preset and of its denoiser alone, by training time."""
    every = sorted(rows, key=lambda row: row["training"]["seconds"])
    return {name: [row for row in every if row["name"].partition(LONGER)[0] == name] for name in (WHOLE, ALONE)}


def crossing(times: dict[str, list[Row]]) -> list[str]:
    """Return a sentence per metric: how the hybrid compares with its denoiser after each training time."""
    alone = {row["name"].partition(LONGER)[2]: row for row in times[ALONE]}
    pairs = [(row, alone[key]) for row in times[WHOLE] if (key := row["name"].partition(LONGER)[2]) in alone]
    sentences = []
    for name in SHOWN:
        verdicts = [
            f"{compare(hybrid, other, name)} after {formatting.seconds(hybrid['training']['seconds'])}"
            for hybrid, other in pairs
            if name in hybrid["metrics"] and name in other["metrics"]
        ]
        if verdicts:
            text = formatting.join_words(verdicts)
            sentences.append(f"{formatting.METRICS[name][0]}, hybrid against denoiser alone: {text}.")
    return sentences


def read_rows(study: dict[str, Any]) -> tuple[dict[str, Row], list[Row]]:
    """Return name -> row of the cells with the usual time, and all rows, each with its mean accuracies."""
    every = []
    for row in study_page.pooled(study):
        accuracies = [cell["accuracy"] for cell in study["cells"] if cell["name"] == row["name"]]
        means = [sum(values) / len(values) for values in zip(*accuracies, strict=True)]
        every.append({**row, "label": label_of(row["name"]), "accuracy": means})
    return {row["name"]: row for row in every if LONGER not in row["name"]}, every


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    options = study["options"]
    rows, every = read_rows(study)
    extra = {
        "updates": lambda row: formatting.count(row["training"]["steps"]),
        "D accuracy at t = 0, 1, ...": lambda row: " ".join(f"{v:.2f}" for v in row["accuracy"]) or formatting.MISSING,
    }
    body: list[Any] = [
        effects(rows, study["cells"]),
        "![Frechet distance, modes and the discriminator's accuracy of each cell](hybrid.png)",
        "`D accuracy`: accuracy of the discriminator over the second half of the adversarial updates, mean of real and "
        "generated pairs; 0.5 is chance.",
        study_page.score_table([*rows.values()], study["anchors"]["floor"], extra),
    ]
    if len(rows) < len(every):
        times = by_time(every)
        body += [
            "## Longer training",
            crossing(times),
            "![Frechet distance and modes against training time](time.png)",
            study_page.score_table([row for group in times.values() for row in group], None, extra),
        ]
    return study_page.page(
        study,
        "ablation of DDGAN's training recipe",
        "A denoising diffusion GAN as published learns little within minutes. Which part of the recipe of "
        f"`{options['preset']}` changes that: the discriminator's input, the denoiser that the generator starts from "
        "and is kept near, or the Haar coefficients?",
        f"Each pair of networks was trained for {options['seconds']:g} s. Other settings: `{options['preset']}` in "
        "flags.sh.",
        body,
        [study_page.unequal_time_note([*rows.values()]), study.get("note")],
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw hybrid.png, a bar for each cell and metric and the discriminator's accuracy against t, and time.png."""
    from comparison.report.study_plots import draw

    rows, every = read_rows(study)
    panels: list[Bars | Lines] = []
    for name in SHOWN:
        shown = [row for row in rows.values() if name in row["metrics"]]
        bars = [Bar(row["label"], row["metrics"][name], colour(row["name"])) for row in shown]
        panels.append(Bars(axis(name), bars, log=name == QUALITY, labelled=not panels))
    lines = [
        Line("", [(t, {"value": value}) for t, value in enumerate(row["accuracy"])], colour(name), style=style)
        for name, row in rows.items()
        for style in ("--" if name.startswith("pixel") else "-",)
    ]
    panels.append(Lines("t (dashed: pixels)", "accuracy of D", lines, level=0.5, top=1))
    draw(panels, out / "hybrid.png")
    if len(rows) < len(every):
        panels = []
        for name in SHOWN:
            lines = []
            for (cell, group), look in zip(by_time(every).items(), STYLES, strict=False):
                points = [(r["training"]["seconds"], r["metrics"][name]) for r in group if name in r["metrics"]]
                lines.append(Line(label_of(cell), points, colour(cell), **look))
            ticks = sorted({round(x) for line in lines for x, _ in line.points})
            panels.append(Lines("training time, s (log)", axis(name), lines, log="x", ticks=ticks))
        draw(panels, out / "time.png")


def axis(name: str) -> str:
    """Return the label of a metric's axis."""
    heading, better = formatting.METRICS[name]
    return f"{heading} ({better} is better)"


def colour(name: str) -> str:
    """Return a cell's colour, which depends on input and reconstruction, not on the domain."""
    return COLOURS.get(name) or COLOURS[name.partition("-")[2]]


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
