"""Study: how close solvers with few network evaluations come to 250 ancestral steps, on a trained improved DDPM.

  python results/studies/solvers.py --run results/runs/improved-diffusion/mine --data data/train --plan
  python results/studies/solvers.py --run results/runs/improved-diffusion/mine --data data/train

Samples the same images, from the same starting noise, by 250 ancestral steps and by each solver of the table SOLVERS in
this script with 20 network evaluations. Reports the ratio of each solver's Frechet distance to the ancestral one, with
the interval of a paired bootstrap. Repeat the command to resume. Writes README.md, study.json and solvers.png into
results/studies/solvers/.
"""

import argparse
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.models import DDPM, MODELS
from comparison.report import study_page
from comparison.report.panels import Bar, Bars
from comparison.report.tradeoffs import QUALITY
from comparison.studies import Job, Study, add_options, given_config, sampling_seconds, training_facts

MODEL = MODELS[DDPM]
BASELINE = "ancestral-uniform"
BOUND = 1.05  # a solver whose interval of the ratio reaches down to it counts as good as the baseline
SOLVERS = {  # name -> label, flags of image_sample.py
    "dpmpp": ("DPM-Solver++ 2M", "--sampler dpmpp"),
    "dpmpp-karras": ("DPM-Solver++ 2M, Karras", "--sampler dpmpp --spacing karras"),
    "dpmpp-from20": ("DPM-Solver++ 2M, from 20", "--sampler dpmpp --sigma_max 20"),
    "dpmpp-sde": ("DPM-Solver++ 2M SDE", "--sampler dpmpp-sde"),
    "dpmpp-sde-from20": ("DPM-Solver++ 2M SDE, from 20", "--sampler dpmpp-sde --sigma_max 20"),
    "dpmpp-sde-from10": ("DPM-Solver++ 2M SDE, from 10", "--sampler dpmpp-sde --sigma_max 10"),
    "unipc": ("UniPC", "--sampler unipc"),
    "unipc-from20": ("UniPC, from 20", "--sampler unipc --sigma_max 20"),
    "unipc-from10": ("UniPC, from 10", "--sampler unipc --sigma_max 10"),
    "ddim-uniform": ("DDIM, uniform", "--sampler ddim --spacing uniform"),
    "ddim-eta1-uniform": ("DDIM with eta 1, uniform", "--sampler ddim --eta 1 --spacing uniform"),
    "ancestral-uniform": ("ancestral, uniform", "--sampler ancestral --spacing uniform"),
}
Row = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=None, num_samples=2000)
    parser.add_argument("--run", type=Path, help="trained run folder of improved-diffusion")
    parser.add_argument("--evaluations", type=cli.positive_int, default=20, metavar="N", help="NFE of each solver")
    parser.add_argument("--baseline", type=cli.positive_int, default=250, metavar="N", help="ancestral steps")
    parser.add_argument("--features", default="auto", choices=["auto", "cifar", "random"], help="see evaluate.py")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Validate, sample, score, write."""
    study = Study("solvers", args, sampler=False)
    if args.page:
        return study.rewrite(page, draw_pictures)
    if args.run is None:
        raise UserError("--run: name a trained run folder of improved-diffusion")
    config = given_config(args.run, DDPM, args.data, f"--run {args.run}")
    if args.baseline > (steps := config["options"].get("diffusion_steps", args.baseline)):
        raise UserError(f"--baseline {args.baseline}: the run has {steps} diffusion steps")
    if args.evaluations >= args.baseline:
        raise UserError(f"--evaluations {args.evaluations}: must be fewer than --baseline {args.baseline}")
    jobs = plan(args, config["data"]["image_size"])
    if args.cells:
        args.cells = f"{jobs[0].name},{args.cells}"  # the baseline is always sampled
    jobs = study.choose(jobs, rest=30)
    if not jobs:
        return None
    cells = study.run(jobs, lambda name, seed: [sample(study, name)])
    from comparison import study_images  # torch

    scoring = study_images.score_ratios(cells, args.data, args.num_samples, args.features, args.device, args.threads)
    options = study.options("evaluations", "baseline", "num_samples", "precision")
    content = {"options": options, "scoring": scoring, "training": training_facts(config), "cells": cells}
    return study.write(content, page, draw_pictures)


def plan(args: argparse.Namespace, image_size: int) -> list[Job]:
    """Return the sample sets, the baseline first."""
    sets = [(f"{BASELINE}-{args.baseline}", "ancestral", args.baseline)]
    sets += [(f"{name}-{args.evaluations}", label, args.evaluations) for name, (label, _) in SOLVERS.items()]
    return [
        Job(name, f"{label}, {count} evaluations", sampling_seconds(MODEL, args.num_samples, count, image_size))
        for name, label, count in sets
    ]


def sample(study: Study, name: str) -> Row:
    """Sample a set of the run, always from the same noise."""
    args, run = study.args, study.args.run.resolve()
    solver, _, count = name.rpartition("-")
    label, flags = SOLVERS[solver]
    folder = study.folder(MODEL, run.name) / "settings" / name
    sampling = study.sample(MODEL, run, folder, 0, [*flags.split(), "--num_sampling_steps", count])
    entries = {key: sampling[key] for key in ("nfe", "sampler", "batch_size", "device", "checkpoint")}
    baseline = name == f"{BASELINE}-{args.baseline}"
    return {"name": name, "label": label, "solver": solver, "baseline": baseline, "folder": folder, **entries}


def ranked(study: Row) -> list[Row]:
    """Return the solvers, the lowest ratio first."""
    return sorted(study["cells"][1:], key=lambda cell: cell["ratio"]["value"])


def verdict(cell: Row) -> str:
    """Return whether a solver is better than the baseline, as good, or worse."""
    if "ratio" not in cell:
        return formatting.MISSING
    low, high = cell["ratio"]["interval"]
    if high < 1:
        return "better"
    return "as good" if low <= BOUND else "worse"


def ratio(cell: Row) -> str:
    """Return the ratio to the baseline with its interval."""
    if "ratio" not in cell:
        return "1"
    low, high = cell["ratio"]["interval"]
    return f"{cell['ratio']['value']:.3f} ({low:.3f} to {high:.3f})"


def page(study: Row) -> str:
    """Return README.md."""
    options, score, training, baseline = study["options"], study["scoring"], study["training"], study["cells"][0]
    network = training["options"]
    columns = {
        "": lambda cell: cell["label"],
        "NFE": lambda cell: f"{cell['nfe']:g}",
        "Frechet": lambda cell: formatting.metric(QUALITY, cell["metrics"][QUALITY]),
        "ratio to the baseline": ratio,
        "verdict": verdict,
    }
    return study_page.page(
        study,
        "solvers with few evaluations",
        f"How do {options['evaluations']} network evaluations of a solver compare with {options['baseline']} ancestral "
        "steps of the same network, from the same starting noise?",
        f"One run of improved DDPM: {network['num_channels']} channels, {network['num_res_blocks']} blocks per level, "
        f"{formatting.count(training['images_seen'])} training images seen; checkpoint {baseline['checkpoint']}. Steps "
        "are uniform in log-SNR and start at a noise of 80 times the signal, unless the name says otherwise. Sampled "
        f"on {baseline['device']}.",
        [
            "![Ratio of the Frechet distances](solvers.png)",
            study_page.table([baseline, *ranked(study)], columns),
            f"Verdict by the interval of the ratio: `better` if it lies below 1, `as good` if it reaches down to "
            f"{BOUND}, else `worse`.",
        ],
        cells=[{"training": training}],
        intervals=f"of distances: {score['intervals'].removeprefix('95%, ')}; of ratios: "
        f"{score['ratio'].removeprefix('95%, ')}.",
    )


def draw_pictures(study: Row, out: Path) -> None:
    """Draw solvers.png: the ratio of each solver with its interval."""
    from comparison.report.study_plots import draw

    bars = [Bar(cell["label"], cell["ratio"], MODEL.colour) for cell in ranked(study)]
    axis = f"Frechet, ratio to {study['options']['baseline']} ancestral steps"
    draw([Bars(axis, bars, base=1, marks=(1, BOUND))], out / "solvers.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
