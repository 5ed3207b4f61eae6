"""Study: which solver gives images as good as 250 ancestral steps do in far fewer evaluations, on a trained model.

  python results/studies/solvers.py --run results/runs/improved-diffusion/mine --data data/train --plan
  python results/studies/solvers.py --run results/runs/improved-diffusion/mine --data data/train

Samples the same images, from the same starting noise, by 250 ancestral steps and by each solver of the table SOLVERS in
this script with 20 network evaluations, and compares each solver's Frechet distance with the ancestral one: their
ratio, with the interval of a paired bootstrap. A call that was cut short goes on when it is repeated. Writes README.md,
study.json and solvers.png into results/studies/solvers/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.data.sources import source_name
from comparison.models import DDPM, MODELS
from comparison.report import study_page
from comparison.report.tradeoffs import QUALITY
from comparison.runs import read_config
from comparison.studies import Job, Study, add_options, sampling_seconds, training_facts

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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=None, num_samples=2000)
    parser.add_argument("--run", type=Path, help="trained run folder of improved-diffusion")
    parser.add_argument("--evaluations", type=cli.positive_int, default=20, metavar="N", help="of each solver")
    parser.add_argument("--baseline", type=cli.positive_int, default=250, metavar="N", help="ancestral steps")
    parser.add_argument("--features", default="auto", choices=["auto", "cifar", "random"], help="see evaluate.py")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Judge, sample, score, write."""
    study = Study("solvers", args, sampler=False)
    if args.page:
        return study.rewrite(page, draw_pictures)
    config = given_run(args.run, args.data)
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
    content = {
        "options": study.options("evaluations", "baseline", "num_samples", "precision"),
        "scoring": score(args, cells),
        "training": training_facts(config),
        "cells": cells,
    }
    return study.write(content, page, draw_pictures)


def given_run(run: Path | None, data: str) -> dict[str, Any]:
    """Return the config.json of the run.

    Raises:
        UserError: not a finished run of improved DDPM on these data.
    """
    if run is None:
        raise UserError("--run: name a trained run folder of improved-diffusion")
    config = read_config(run / "config.json")
    if config.get("model") != DDPM or not config.get("finished"):
        raise UserError(f"--run {run}: not a finished run of {DDPM}")
    if config["data"]["name"] != source_name(data):
        raise UserError(f"--run {run}: trained on {config['data']['name']}, --data is {source_name(data)}")
    return config


def plan(args: argparse.Namespace, image_size: int) -> list[Job]:
    """Return the sample sets, the baseline first."""
    sets = [(f"{BASELINE}-{args.baseline}", "ancestral", args.baseline)]
    sets += [(f"{name}-{args.evaluations}", label, args.evaluations) for name, (label, _) in SOLVERS.items()]
    return [
        Job(name, f"{label}, {count} evaluations", sampling_seconds(MODEL, args.num_samples, count, image_size))
        for name, label, count in sets
    ]


def sample(study: Study, name: str) -> dict[str, Any]:
    """Sample a set of the run, always from the same noise."""
    args, run = study.args, study.args.run.resolve()
    solver, _, count = name.rpartition("-")
    label, flags = SOLVERS[solver]
    folder = study.folder(MODEL, run.name) / "settings" / name
    drawn = study.sample(MODEL, run, folder, 0, [*flags.split(), "--num_sampling_steps", count])
    facts = {key: drawn[key] for key in ("nfe", "sampler", "batch_size", "device", "checkpoint")}
    baseline = name == f"{BASELINE}-{args.baseline}"
    return {"name": name, "label": label, "solver": solver, "baseline": baseline, "folder": folder, **facts}


def score(args: argparse.Namespace, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put the distance into each cell, and its ratio to the baseline's, the first; return what they were scored by."""
    from comparison import device as devices
    from comparison.data.images import load_npz
    from comparison.scores.bootstrap import METHOD, paired_ratio
    from comparison.scores.evaluation import find_samples
    from comparison.scores.features import embed
    from comparison.scores.metrics import frechet_estimate, frechet_from, moments
    from comparison.scores.reference import Reference

    device = devices.pick_device(args.device)
    devices.set_threads(args.threads)
    images = [load_npz(find_samples(cell["folder"]))[0] for cell in cells]
    reference = Reference.load(
        args.data, images[0].shape[-1], args.num_samples, 0, args.features, device=device, whole=True
    )
    real = reference.scale(embed(reference.data.images[reference.chosen], reference.extractor))
    distance = frechet_from(*moments(real))
    features = [reference.scale(embed(part, reference.extractor)) for part in images]
    for cell, mine in zip(cells, features, strict=True):
        cell["metrics"] = {QUALITY: frechet_estimate(distance, mine).as_json()}
        if not cell["baseline"]:
            cell["ratio"] = paired_ratio(distance, mine, features[0])
    return {**reference.describe(), "ratio": METHOD}


def ranked(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the solvers, the best ratio first."""
    return sorted(study["cells"][1:], key=lambda cell: cell["ratio"]["value"])


def verdict(cell: dict[str, Any]) -> str:
    """Say whether a solver is as good as the baseline."""
    if "ratio" not in cell:
        return formatting.MISSING
    low, high = cell["ratio"]["interval"]
    if high < 1:
        return "better"
    return "as good" if low <= BOUND else "worse"


def ratio(cell: dict[str, Any]) -> str:
    """Write the ratio to the baseline with its interval."""
    if "ratio" not in cell:
        return "1"
    low, high = cell["ratio"]["interval"]
    return f"{cell['ratio']['value']:.3f} ({low:.3f} to {high:.3f})"


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    options, score, training, baseline = study["options"], study["scoring"], study["training"], study["cells"][0]
    network = training["options"]
    columns = {
        "": lambda cell: cell["label"],
        "evaluations": lambda cell: f"{cell['nfe']:g}",
        "Frechet": lambda cell: formatting.metric(QUALITY, cell["metrics"][QUALITY]),
        "ratio": ratio,
        "beside the baseline": verdict,
    }
    return study_page.page(
        study,
        "solvers",
        f"How good are {options['evaluations']} evaluations of a solver beside {options['baseline']} ancestral steps "
        "of the same network, from the same starting noise?",
        f"One run of improved DDPM: {network['num_channels']} channels, {network['num_res_blocks']} blocks per level, "
        f"{formatting.count(training['images_seen'])} training images seen; {baseline['checkpoint']}. Steps are "
        "uniform in log-SNR, from a noise of 80 times the signal down, unless the name says otherwise. Sampled on "
        f"{baseline['device']}.",
        [
            "![Ratio of the Frechet distances](solvers.png)",
            study_page.table([baseline, *ranked(study)], columns),
            f"`better`: the interval of the ratio lies below 1; `as good`: it reaches down to {BOUND}; else `worse`.",
        ],
        cells=[{"training": training}],
        intervals=f"of distances: {score['intervals'].removeprefix('95%, ')}; of ratios: "
        f"{score['ratio'].removeprefix('95%, ')}.",
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw solvers.png: the ratio of each solver with its interval."""
    from comparison.report.study_plots import Bar, Bars, draw

    bars = [Bar(cell["label"], cell["ratio"], MODEL.colour) for cell in ranked(study)]
    axis = f"Frechet, ratio to {study['options']['baseline']} ancestral steps"
    draw([Bars(axis, bars, base=1, marks=(1, BOUND))], out / "solvers.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
