"""Study: which solver draws images as good as 250 ancestral steps do in far fewer evaluations, on a trained model.

  python results/studies/solvers.py --run results/runs/improved-diffusion/mine --data data/train --plan
  python results/studies/solvers.py --run results/runs/improved-diffusion/mine --data data/train

Draws the same images, from the same starting noise, by 250 ancestral steps and by each solver of the table SOLVERS in
this script with 20 network evaluations, and compares each solver's Frechet distance with the ancestral one: their
ratio, with the interval of a paired bootstrap. A call that was cut short goes on when it is repeated. Writes README.md,
study.json and solvers.png into results/studies/solvers/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import cli, formatting, studies
from comparison.cli import UserError
from comparison.data.sources import source_name
from comparison.report import study_page
from comparison.report.tradeoffs import QUALITY
from comparison.runs import read_config
from comparison.studies import Job, Lab

MODEL = "improved-diffusion"
BASELINE = "ancestral-uniform"
BOUND = 1.05  # a solver whose interval of the ratio reaches down to it counts as good as the baseline
SOLVERS: dict[str, tuple[str, list[str]]] = {  # name -> label, flags of image_sample.py
    "dpmpp": ("DPM-Solver++ 2M", ["--sampler", "dpmpp"]),
    "dpmpp-karras": ("DPM-Solver++ 2M, Karras", ["--sampler", "dpmpp", "--spacing", "karras"]),
    "dpmpp-from20": ("DPM-Solver++ 2M, from 20", ["--sampler", "dpmpp", "--sigma_max", "20"]),
    "dpmpp-sde": ("DPM-Solver++ 2M SDE", ["--sampler", "dpmpp-sde"]),
    "dpmpp-sde-from20": ("DPM-Solver++ 2M SDE, from 20", ["--sampler", "dpmpp-sde", "--sigma_max", "20"]),
    "dpmpp-sde-from10": ("DPM-Solver++ 2M SDE, from 10", ["--sampler", "dpmpp-sde", "--sigma_max", "10"]),
    "unipc": ("UniPC", ["--sampler", "unipc"]),
    "unipc-from20": ("UniPC, from 20", ["--sampler", "unipc", "--sigma_max", "20"]),
    "unipc-from10": ("UniPC, from 10", ["--sampler", "unipc", "--sigma_max", "10"]),
    "ddim-uniform": ("DDIM, uniform", ["--sampler", "ddim", "--spacing", "uniform"]),
    "ddim-eta1-uniform": ("DDIM with eta 1, uniform", ["--sampler", "ddim", "--eta", "1", "--spacing", "uniform"]),
    "ancestral-uniform": ("ancestral, uniform", ["--sampler", "ancestral", "--spacing", "uniform"]),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    studies.add_options(parser, seconds=None, num_samples=2000)
    parser.add_argument("--run", type=Path, help="trained run folder of improved-diffusion")
    parser.add_argument("--evaluations", type=cli.positive_int, default=20, metavar="N", help="of each solver")
    parser.add_argument("--baseline", type=cli.positive_int, default=250, metavar="N", help="ancestral steps")
    parser.add_argument("--features", default="auto", choices=["auto", "cifar", "random"], help="see evaluate.py")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Judge, draw, score, write."""
    lab = Lab.open("solvers", args).without_sampler()
    if args.page:
        study_page.rewrite(lab.out, lab.study, page, draw_pictures)
        return
    config = given_run(args.run, args.data)
    if args.baseline > (steps := config["options"].get("diffusion_steps", args.baseline)):
        raise UserError(f"--baseline {args.baseline}: the run has {steps} diffusion steps")
    if args.evaluations >= args.baseline:
        raise UserError(f"--evaluations {args.evaluations}: must be fewer than --baseline {args.baseline}")
    jobs = plan(args, config["data"]["image_size"])
    names = studies.choose(args.cells, [job.name for job in jobs])
    jobs = [job for job in jobs if job.name in {*names, jobs[0].name}]
    if args.plan:
        print(studies.plan_table(jobs, rest=30))
        return
    cells = []
    for number, job in enumerate(jobs, start=1):
        cells.append(draw(lab, args, job.name))
        print(f"[{number}/{len(jobs)}] {job.name}: {cells[-1]['nfe']:g} evaluations", flush=True)
    scoring = score(args, cells)
    options = {name: getattr(args, name) for name in ("evaluations", "baseline", "num_samples", "precision")}
    study = {"options": options, "scoring": scoring, "training": studies.training_facts(config), "cells": cells}
    study_page.write(lab, study, page, draw_pictures)


def given_run(run: Path | None, data: str) -> dict[str, Any]:
    """Return the config.json of the run.

    Raises:
        UserError: not a finished run of improved DDPM on these data.
    """
    if run is None:
        raise UserError("--run: name a trained run folder of improved-diffusion")
    config = read_config(run / "config.json")
    if config.get("model") != MODEL or not config.get("finished"):
        raise UserError(f"--run {run}: not a finished run of {MODEL}")
    if config["data"]["name"] != source_name(data):
        raise UserError(f"--run {run}: trained on {config['data']['name']}, --data is {source_name(data)}")
    return config


def plan(args: argparse.Namespace, image_size: int) -> list[Job]:
    """Return the sample sets, the baseline first."""

    def job(name: str, label: str, evaluations: int) -> Job:
        seconds = studies.drawing_seconds(MODEL, args.num_samples, evaluations, image_size)
        return Job(name, f"{label}, {evaluations} evaluations", seconds)

    first = job(f"{BASELINE}-{args.baseline}", "ancestral", args.baseline)
    return [
        first,
        *(job(f"{name}-{args.evaluations}", label, args.evaluations) for name, (label, _) in SOLVERS.items()),
    ]


def draw(lab: Lab, args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Draw a sample set of the run, always from the same noise."""
    baseline = f"{BASELINE}-{args.baseline}" == name
    count = args.baseline if baseline else args.evaluations
    solver = name.removesuffix(f"-{count}")
    label, flags = SOLVERS[solver]
    folder = lab.folder(MODEL, args.run.resolve().name) / "settings" / name
    flags = [*flags, "--num_sampling_steps", str(count), "--num_samples", str(args.num_samples), "--seed", "0"]
    drawn = studies.draw(lab, MODEL, args.run.resolve(), folder, [*flags, "--precision", args.precision])
    facts = {key: drawn[key] for key in ("nfe", "sampler", "batch_size", "device", "checkpoint")}
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
    files = [find_samples(cell.pop("folder")) for cell in cells]
    images = [load_npz(file)[0] for file in files]
    reference = Reference.load(
        args.data, images[0].shape[-1], args.num_samples, 0, args.features, device=device, whole=True
    )
    distance = frechet_from(
        *moments(reference.scale(embed(reference.data.images[reference.chosen], reference.extractor)))
    )
    features = [reference.scale(embed(part, reference.extractor)) for part in images]
    for cell, mine in zip(cells, features, strict=True):
        cell["metrics"] = {QUALITY: frechet_estimate(distance, mine).as_json()}
        if not cell["baseline"]:
            cell["ratio"] = paired_ratio(distance, mine, features[0])
    return {**reference.describe(), "ratio": METHOD}


def verdict(cell: dict[str, Any]) -> str:
    """Say whether a solver is as good as the baseline."""
    low, high = cell["ratio"]["interval"]
    if high < 1:
        return "better"
    return "as good" if low <= BOUND else "worse"


def sentences(study: dict[str, Any]) -> list[str]:
    """Return what the numbers say."""
    baseline, *rest = study["cells"]
    ranked = sorted(rest, key=lambda cell: cell["ratio"]["value"])
    said = []
    for cell in ranked:
        ratio, (low, high) = cell["ratio"]["value"], cell["ratio"]["interval"]
        fewer = baseline["nfe"] / cell["nfe"]
        said.append(
            f"{cell['label']}, {cell['nfe']:g} evaluations: {ratio:.2f} times the distance of {baseline['nfe']:g} "
            f"ancestral steps ({low:.2f} to {high:.2f}), {verdict(cell)}, in {fewer:g} times fewer."
        )
    return said


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    baseline, *rest = study["cells"]
    rows = []
    for cell in [baseline, *sorted(rest, key=lambda cell: cell["ratio"]["value"])]:
        ratio = cell.get("ratio")
        told = (
            "1" if ratio is None else f"{ratio['value']:.3f} ({ratio['interval'][0]:.3f} to {ratio['interval'][1]:.3f})"
        )
        distance = formatting.metric(QUALITY, cell["metrics"][QUALITY])
        rows.append([cell["label"], f"{cell['nfe']:g}", distance, told])
    options, score, training = study["options"], study["scoring"], study["training"]
    network = training["options"]
    return study_page.join(
        "# Study: solvers",
        f"How good are {options['evaluations']} evaluations of a solver beside {options['baseline']} ancestral steps "
        "of the same network, from the same starting noise? Spacings are uniform in log-SNR, from a noise of 80 times "
        "the signal down, unless the name says otherwise.",
        f"One run: {network['num_channels']} channels, {network['num_res_blocks']} blocks per level, "
        f"{formatting.count(training['images_seen'])} training images seen; {baseline['checkpoint']}. Device: "
        f"{baseline['device']}. {score['n']} training images of {score['reference']['name']} are the reference "
        f"({score['reference']['fingerprint']}), {options['num_samples']} images of each row are scored in features "
        f"of the {score['extractor']['name']}: relative within this page. Intervals of distances: "
        f"{score['intervals']}; of ratios: {score['ratio']}.",
        "## What the numbers say",
        sentences(study),
        "![Ratio of the Frechet distances](solvers.png)",
        "## Numbers",
        formatting.markdown_table(["", "evaluations", "Frechet", "ratio"], rows),
        f"A solver counts as good where the interval of its ratio reaches down to {BOUND}, as better where it lies "
        "below 1.",
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw solvers.png: the ratio of each solver with its interval."""
    from comparison.report.plots import COLOURS, DPI, INK, save, tidy
    from matplotlib.figure import Figure

    cells = sorted(study["cells"][1:], key=lambda cell: cell["ratio"]["value"])
    if not cells:
        return
    figure = Figure(figsize=(6.2, 0.42 * len(cells) + 1.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    values = [cell["ratio"]["value"] for cell in cells]
    bounds = [cell["ratio"]["interval"] for cell in cells]
    errors = [
        [v - b[0] for v, b in zip(values, bounds, strict=True)],
        [b[1] - v for v, b in zip(values, bounds, strict=True)],
    ]
    axes.errorbar(values, range(len(cells)), xerr=errors, fmt="o", color=COLOURS[MODEL], ecolor=INK, capsize=3)
    axes.axvline(1, color=INK, linewidth=1)
    axes.axvline(BOUND, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(cells)), [cell["label"] for cell in cells])
    axes.invert_yaxis()
    axes.margins(y=0.12)
    options = study["options"]
    axes.set_xlabel(f"Frechet distance, {options['baseline']} ancestral steps = 1")
    tidy(axes, "x")
    save(figure, out / "solvers.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
