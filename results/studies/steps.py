"""Study: quality and time against the number of network evaluations, for each sampler and for DDGAN's T.

  python results/studies/steps.py --plan
  python results/studies/steps.py --seconds 45
  python results/studies/steps.py --data data/train --runs improved-diffusion=results/runs/improved-diffusion/mine

Samples one training of improved DDPM with each sampler of the table SAMPLERS in this script at 5 to 50 steps, and
trains DDGAN once for each T and DCGAN once. --runs takes trained run folders of the same data instead of training (a
DDGAN run counts for its own T). Repeat the command to resume. Takes about 15 minutes on two CPU cores. Writes
README.md, study.json and steps.png into results/studies/steps/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.models import DDGAN, DDPM, GAN, MODELS
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
STEPS = (5, 10, 20, 50)
TIMESTEPS = (1, 2, 4, 8)
SAMPLERS = {  # name -> label, flags of image_sample.py with {n} for the steps
    "ancestral": ("ancestral", "--timestep_respacing {n}"),
    "ddim": ("DDIM (eta 0)", "--use_ddim True --timestep_respacing ddim{n}"),
    "ddim-eta1": ("DDIM (eta 1)", "--use_ddim True --eta 1 --timestep_respacing ddim{n}"),
    "dpmpp": ("DPM-Solver++ 2M", "--sampler dpmpp --num_sampling_steps {n}"),
    "dpmpp-sde": ("DPM-Solver++ 2M SDE", "--sampler dpmpp-sde --num_sampling_steps {n}"),
    "unipc": ("UniPC", "--sampler unipc --num_sampling_steps {n}"),
}
CELLS = {"ddpm": DDPM, **{f"ddgan-T{t}": DDGAN for t in TIMESTEPS}, "dcgan": GAN}  # name -> model
Row = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=45, num_samples=500)
    parser.add_argument("--runs", default="", metavar="MODEL=RUN,...", help="trained run folders to use instead")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Validate, train, sample, score, write."""
    study = Study("steps", args, sampler=False)
    if args.page:
        return study.rewrite(page, draw_pictures)
    given = find_runs(args.runs, args.data)
    if given and args.seeds > 1:
        raise UserError(f"--runs: given runs have one seed; remove --seeds {args.seeds}")
    jobs = study.choose(plan(args, given), rest=20)
    if not jobs:
        return None
    cells = study.run(jobs, lambda name, seed: run_cell(study, name, seed, given.get(name)))
    content, anchors = study.score_all(cells, IMAGE_SIZE)
    return study.write({**content, "floor": anchors["floor"]}, page, draw_pictures)


def plan(args: argparse.Namespace, given: dict[str, Path]) -> list[Job]:
    """Return the cells with their times; those in `given` are not trained."""
    jobs = []
    for name, model in CELLS.items():
        text = "a given run" if name in given else f"trained for {args.seconds:g} s"
        counts = [1 if model == GAN else int(name.removeprefix("ddgan-T"))] if model != DDPM else STEPS * len(SAMPLERS)
        if model == DDPM:
            text += f"; {len(SAMPLERS)} samplers at {', '.join(map(str, STEPS))} steps"
        seconds = 0.0 if name in given else START_SECONDS + args.seconds
        seconds += sum(sampling_seconds(MODELS[model], args.num_samples, count) for count in counts)
        jobs.append(Job(name, text, seconds, args.seeds))
    return jobs


def find_runs(text: str, data: str) -> dict[str, Path]:
    """Return cell -> given run folder; raise UserError for one that is not a finished run of its model on the data."""
    runs = {}
    for part in filter(None, text.split(",")):
        model, _, path = part.partition("=")
        if model not in MODELS or not path:
            raise UserError(f"--runs {part}: must be MODEL=RUN with a MODEL among {', '.join(MODELS)}")
        config = given_config(Path(path), model, data, f"--runs {part}")
        if (pixels := config["data"].get("image_size")) != IMAGE_SIZE:
            raise UserError(f"--runs {part}: trained at {pixels} pixels, not {IMAGE_SIZE}")
        name = {DDPM: "ddpm", GAN: "dcgan"}.get(model) or f"ddgan-T{config['options'].get('num_timesteps')}"
        if name not in CELLS:
            raise UserError(f"--runs {part}: {name} is not a cell of this study")
        runs[name] = Path(path).resolve()
    return runs


def run_cell(study: Study, name: str, seed: int, given: Path | None) -> list[Row]:
    """Train one cell, or take the given run, and sample it; return its cells of study.json."""
    model = MODELS[CELLS[name]]
    if given is not None:
        folder, config = study.folder(model, f"{name}-given-{given.name}"), read_config(given / "config.json")
    else:
        folder = study.folder(model, f"{name}-s{seed}")
        training_flags = ["--num_timesteps", name.removeprefix("ddgan-T")] if model.name == DDGAN else []
        config = study.train(model, folder, seed, ["--image_size", str(IMAGE_SIZE), *training_flags])
    settings = {"default": (model.label, "")}
    if model.name == DDPM:
        settings = {f"{key}{n}": (text, flags.format(n=n)) for key, (text, flags) in SAMPLERS.items() for n in STEPS}
    cells = []
    for setting, (series, flags) in settings.items():
        samples, label = folder / "settings" / setting, series
        sampling = sampling_facts(study.sample(model, given or folder, samples, seed, flags.split()))
        if model.name == DDPM:
            series, label = f"improved DDPM, {series}", f"improved DDPM, {sampling['sampler']}"
        if model.name == DDGAN:
            series, label = "DDGAN over T", f"DDGAN, T = {sampling['nfe']:g}"
        cell = {"name": f"{name}-{setting}", "model": model.name, "label": label, "series": series, "seed": seed}
        cell |= {"folder": samples, "training": training_facts(config), "given": given is not None, **sampling}
        cells.append(cell)
    return cells


def by_series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each line of the picture, fewest evaluations first."""
    names = dict.fromkeys(row["series"] for row in rows)
    return {name: sorted((r for r in rows if r["series"] == name), key=lambda r: r["nfe"]) for name in names}


def best_value_sentence(series: str, rows: Sequence[Row]) -> str:
    """Return the fewest evaluations whose distance is not significantly worse than the lowest of the series."""
    best = min(rows, key=lambda row: row["metrics"][QUALITY]["value"])
    fewest = next(
        row for row in rows if not formatting.differ_significantly(row["metrics"][QUALITY], best["metrics"][QUALITY])
    )
    texts = [f"{row['nfe']:g} ({formatting.metric(QUALITY, row['metrics'][QUALITY])})" for row in (fewest, best)]
    return f"{series}: {texts[0]}, the best" if fewest is best else f"{series}: {texts[0]}; the best is {texts[1]}"


def page(study: Row) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]
    extra = {
        "NFE": lambda row: f"{row['nfe']:g}",
        "time per image": lambda row: formatting.seconds(row["seconds_per_image"]),
        "training": lambda row: formatting.seconds(row["training"]["seconds"]),
        "images seen": lambda row: formatting.count(row["training"]["images_seen"]),
    }
    given = sorted({row["name"].split("-")[0] for row in rows if row["given"]})
    setup = [f"Each cell was trained for {options['seconds']:g} s."] if not all(row["given"] for row in rows) else []
    setup += [f"Runs trained earlier: {formatting.join_words(given)}."] if given else []
    series = by_series(rows)
    fewest = [best_value_sentence(name, points) for name, points in series.items() if len(points) > 1]
    shown = {name.removeprefix("improved DDPM, ") for name in series}
    later = [label for label, _ in SAMPLERS.values() if label not in shown and DDPM in {row["model"] for row in rows}]
    asked = [item for item in study["left_out"] if item["reason"] == study_page.NOT_ASKED]
    return study_page.page(
        {**study, "left_out": [*asked, *({"name": name, "reason": "added later"} for name in later)]},
        "samplers and number of steps",
        "How do quality and time depend on the number of network evaluations per image (NFE), and which sampler needs "
        "the fewest? The samplers of improved DDPM share one training. DDGAN is trained for each T.",
        f"{' '.join(setup)} Settings: `{options['preset']}` in flags.sh.",
        [
            "![Frechet distance against evaluations and against time per image](steps.png)",
            "Fewest evaluations whose Frechet distance is not significantly worse than the best of the same series:"
            if fewest
            else None,
            fewest,
            study_page.score_table(rows, study["floor"], extra),
        ],
        [study_page.unequal_time_note(list({row["name"].split("-default")[0]: row for row in rows}.values()))],
    )


def draw_pictures(study: Row, out: Path) -> None:
    """Draw steps.png: the distance against evaluations and against seconds per image."""
    from comparison.report.study_plots import draw

    series = by_series(study_page.pooled(study))
    models = [rows[0]["model"] for rows in series.values()]
    looks = [{"colour": MODELS[model].colour, **STYLES[models[:i].count(model)]} for i, model in enumerate(models)]
    panels = []
    for key, axis in (("nfe", "network evaluations per image (log)"), ("seconds_per_image", "seconds per image (log)")):
        lines = [
            Line(name, [(row[key], row["metrics"][QUALITY]) for row in rows], **look)
            for (name, rows), look in zip(series.items(), looks, strict=True)
        ]
        ticks = sorted({row[key] for rows in series.values() for row in rows}) if key == "nfe" else ()
        panels.append(Lines(axis, "Frechet distance (log, lower is better)", lines, log="xy", ticks=ticks))
    draw(panels, out / "steps.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
