"""Study: quality against the number of network evaluations per image, and what distillation to few of them brings.

  python results/studies/few_steps.py --plan
  python results/studies/few_steps.py --seconds 150 --tuning_seconds 120 --seeds 3
  python results/studies/few_steps.py --data data/train --preset cpu --runs improved-diffusion=R,few-step=R

Trains improved DDPM, and samples it by DDIM, DPM-Solver++ and UniPC in 1 to 20 evaluations; tunes it to 1, 2 and 4 by
distill_train.py. DDGAN and DCGAN are trained once, for as long as both together. --runs takes trained run folders of
the same data instead. Repeat the command to resume. Takes about 20 minutes on two CPU cores, and 8 more for each
further seed. Writes README.md, study.json and few-steps.png into results/studies/few-steps/.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.models import DDGAN, DDPM, GAN, MODELS, label_of, newest_checkpoint
from comparison.report import study_page
from comparison.report.panels import STYLES, Line, Lines
from comparison.report.tradeoffs import QUALITY
from comparison.runs import read_config
from comparison.studies import (
    START_SECONDS,
    Job,
    Study,
    add_options,
    given_config,
    sampling_facts,
    sampling_seconds,
    training_facts,
)

IMAGE_SIZE = 32
EVALUATIONS = (1, 2, 3, 4, 6, 10, 20)
SOLVERS = {"ddim": "DDIM", "dpmpp": "DPM-Solver++", "unipc": "UniPC"}  # --sampler -> label
MODES = "modes_matched"
BEST = "dpmpp-20"  # what the tuned network is measured against
TUNED, TUNED_COUNTS = "few-step", (1, 2, 4)
CELLS = {"ddpm": DDPM, TUNED: DDPM, "ddgan": DDGAN, "dcgan": GAN}  # cell -> model
LABELS = {**SOLVERS, TUNED: "tuned to few evaluations"}
COLOURS = {TUNED: "#CC79A7", "ddgan": MODELS[DDGAN].colour, "dcgan": MODELS[GAN].colour}
Row = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=150, num_samples=1000)
    tuning = "time of the tuning; DDGAN and DCGAN train for --seconds and this"
    parser.add_argument("--tuning_seconds", type=cli.positive_float, default=120, metavar="S", help=tuning)
    runs = f"trained run folders to use instead of training, by model or {TUNED}"
    parser.add_argument("--runs", default="", metavar="MODEL=RUN,...", help=runs)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Validate, train, tune, sample, score, write."""
    study = Study("few-steps", args, sampler=False)
    if args.page:
        return study.rewrite(page, draw_pictures)
    given = find_runs(args.runs, args.data)
    if given and args.seeds > 1:
        raise UserError(f"--runs: given runs have one seed; remove --seeds {args.seeds}")
    jobs = study.choose(plan(args, given), rest=20)
    if not jobs:
        return None
    cells = study.run(jobs, lambda name, seed: run_cell(study, name, seed, given))
    content, anchors = study.score_all(cells, IMAGE_SIZE)
    content["options"] |= study.options("tuning_seconds")
    return study.write({**content, "floor": anchors["floor"]}, page, draw_pictures)


def find_runs(text: str, data: str) -> dict[str, Path]:
    """Return cell -> given run folder; raise UserError for one that is not a finished run of its model on the data."""
    cells = {DDPM: "ddpm", TUNED: TUNED, DDGAN: "ddgan", GAN: "dcgan"}
    runs = {}
    for part in filter(None, text.split(",")):
        key, _, path = part.partition("=")
        if key not in cells or not path:
            raise UserError(f"--runs {part}: must be MODEL=RUN with a MODEL among {', '.join(cells)}")
        config = given_config(Path(path), CELLS[cells[key]], data, f"--runs {part}")
        if (pixels := config["data"].get("image_size")) != IMAGE_SIZE:
            raise UserError(f"--runs {part}: trained at {pixels} pixels, not {IMAGE_SIZE}")
        if (key == TUNED) != ("few_step" in config["options"]):
            raise UserError(f"--runs {part}: {'not ' if key == TUNED else ''}a run of distill_train.py")
        runs[cells[key]] = Path(path).resolve()
    return runs


def plan(args: argparse.Namespace, given: dict[str, Path]) -> list[Job]:
    """Return the cells with their times; those in `given` are not trained."""
    jobs = []
    for name, model in CELLS.items():
        seconds = {"ddpm": args.seconds, TUNED: args.tuning_seconds}.get(name, args.seconds + args.tuning_seconds)
        text = "a given run" if name in given else f"{'tuned' if name == TUNED else 'trained'} for {seconds:g} s"
        counts = {"ddpm": EVALUATIONS * len(SOLVERS), TUNED: TUNED_COUNTS}.get(name, [MODELS[model].evaluations])
        if model == DDPM:
            text += f"; {', '.join(map(str, dict.fromkeys(counts)))} evaluations"
            text += f" by {', '.join(SOLVERS.values())}" if name == "ddpm" else ""
        seconds = 0.0 if name in given else START_SECONDS + seconds
        seconds += sum(sampling_seconds(MODELS[model], args.num_samples, count) for count in counts)
        jobs.append(Job(name, text, seconds, args.seeds if model == DDPM else 1))
    return jobs


def run_cell(study: Study, name: str, seed: int, given: dict[str, Path]) -> list[Row]:
    """Train one cell, or take the given run, and sample it; return its cells of study.json."""
    model, run = MODELS[CELLS[name]], trained_run(study, name, seed, given)
    training = training_facts(read_config(run / "config.json"))
    if teacher := training["options"].get("teacher"):
        costs = {"seconds": "wall_seconds", "images_seen": "images_seen", "steps": "step"}
        training |= {key: training[key] + teacher[of] for key, of in costs.items()}
    series = SOLVERS if name == "ddpm" else {name: ""}
    flags = "--sampler {series} --num_sampling_steps {count}" if model.name == DDPM else ""
    cells = []
    for key in series:
        for count in {"ddpm": EVALUATIONS, TUNED: TUNED_COUNTS}.get(name, [model.evaluations]):
            samples = study.folder(model, f"{name}-s{seed}") / "settings" / f"{key}-{count}"
            sampling = study.sample(model, run, samples, seed, flags.format(series=key, count=count).split())
            label = label_of(model.name, training["options"].get("preset"))
            label += f", {LABELS[key]}, {count}" if key in LABELS else ""
            cell = {"name": f"{key}-{count}", "model": model.name, "label": label, "series": key, "seed": seed}
            cell |= {"folder": samples, "training": training, "given": name in given, **sampling_facts(sampling)}
            cells.append(cell)
    return cells


def trained_run(study: Study, name: str, seed: int, given: dict[str, Path]) -> Path:
    """Return the run folder of a cell, trained unless given."""
    if name in given:
        return given[name]
    model, folder = MODELS[CELLS[name]], study.folder(MODELS[CELLS[name]], f"{name}-s{seed}")
    seconds = study.args.tuning_seconds + (0 if name == TUNED else study.args.seconds)
    if name == "ddpm":
        study.train(model, folder, seed, ["--image_size", str(IMAGE_SIZE)])
    elif name == TUNED:
        teacher = trained_run(study, "ddpm", seed, given)
        tuning = replace(model, train=model.distill, train_flags=model.distill_flags)
        checkpoint = str(newest_checkpoint(model, teacher))
        study.train(tuning, folder, seed, ["--model_path", checkpoint, "--max_seconds", f"{seconds:g}"])
    else:
        study.train(model, folder, seed, ["--image_size", str(IMAGE_SIZE), "--max_seconds", f"{seconds:g}"])
    return folder


def ratios(study: Row) -> list[str]:
    """Return a sentence for each number of evaluations of the tuned network: its score next to the others'.

    The score is the fraction that shows a mode where modes are known, else the Frechet distance.
    """
    rows = {row["name"]: row for row in study_page.pooled(study)}
    score, text = QUALITY, "Frechet distance"
    if all(MODES in row["metrics"] for row in rows.values()):
        score, text = MODES, "fraction that shows a mode"
    cells: dict[str, list[Row]] = {}
    for cell in study["cells"]:
        cells.setdefault(cell["name"], []).append(cell)
    sentences = []
    for count in TUNED_COUNTS:
        name = f"{TUNED}-{count}"
        if name not in rows or BEST not in rows:
            continue
        values = [[cell["metrics"][score]["value"] for cell in cells[of]] for of in (name, BEST)]
        times = ""
        if all(values[1]):
            ratio = study_page.pool([{"value": tuned / best} for tuned, best in zip(*values, strict=True)])
            times = f", {formatting.metric(QUALITY, ratio)} times that of DPM-Solver++ with 20"
        solvers = [rows[f"{solver}-{count}"] for solver in SOLVERS if f"{solver}-{count}" in rows]
        others = [f"{LABELS[row['series']]} {formatting.metric(score, row['metrics'][score])}" for row in solvers]
        tuned = f"{text} {formatting.metric(score, rows[name]['metrics'][score])} after tuning{times}"
        plural = "" if count == 1 else "s"
        sentences.append(f"{count} evaluation{plural}: {tuned}; without tuning {', '.join(others)}.")
    return sentences


def page(study: Row) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]
    extra = {
        "NFE": lambda row: f"{row['nfe']:g}",
        "training": lambda row: formatting.seconds(row["training"]["seconds"]),
        "images seen": lambda row: formatting.count(row["training"]["images_seen"]),
    }
    given = list(dict.fromkeys(row["label"].partition(", ")[0] for row in rows if row["given"]))
    tuned = next((row for row in rows if row["series"] == TUNED), None)
    setup = [f"Runs trained earlier: {formatting.join_words(given)}."] if given else []
    if tuned:
        seconds = tuned["training"]["seconds"] - tuned["training"]["options"]["teacher"]["wall_seconds"]
        setup.append(f"The tuning took {formatting.seconds(seconds)}, which its training time includes.")
    return study_page.page(
        study,
        "one to twenty network evaluations per image",
        "How does quality depend on the number of network evaluations per image (NFE), and how few are enough after "
        "distillation? The solvers share one training of improved DDPM; the tuned network starts from it.",
        f"{' '.join(setup)} Settings: `{options['preset']}` in flags.sh.".strip(),
        [
            "![Frechet distance against network evaluations](few-steps.png)",
            ratios(study),
            study_page.score_table(rows, study["floor"], extra),
        ],
    )


def draw_pictures(study: Row, out: Path) -> None:
    """Draw few-steps.png: the distance, and on shapes the fraction that shows a mode, against evaluations."""
    from comparison.report.study_plots import draw

    rows = study_page.pooled(study)
    panels = []
    texts = {QUALITY: "Frechet distance (log, lower is better)", MODES: "fraction that shows a mode"}
    for metric, text in texts.items():
        lines = []
        for i, series in enumerate(dict.fromkeys(row["series"] for row in rows)):
            points = [row for row in rows if row["series"] == series and metric in row["metrics"]]
            look = {"colour": COLOURS.get(series, MODELS[DDPM].colour), **STYLES[i % len(STYLES)]}
            label = LABELS.get(series) or next((row["label"] for row in points), "")
            lines.append(Line(label, [(row["nfe"], row["metrics"][metric]) for row in points], **look))
        level = study["floor"][metric]["value"] if metric in study["floor"] else None
        x = "network evaluations per image (log)"
        log = "xy" if metric == QUALITY else "x"
        panels.append(Lines(x, text, lines, log=log, ticks=EVALUATIONS, level=level))
    draw(panels, out / "few-steps.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
