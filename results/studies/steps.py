"""Study: quality and time against the number of network evaluations, for each sampler, and for DDGAN's T.

  python results/studies/steps.py --plan
  python results/studies/steps.py --seconds 45
  python results/studies/steps.py --data data/train --runs improved-diffusion=results/runs/improved-diffusion/mine

One training of improved DDPM is sampled with every sampler of the table SAMPLERS in this script at 5 to 50 steps; DDGAN
is trained once for each T; DCGAN is the point of one evaluation. --runs takes trained run folders of the same data
instead of training (a DDGAN run stands for its own T). A call that was cut short goes on when it is repeated. About
a quarter of an hour on two CPU cores. Writes README.md, study.json and steps.png into results/studies/steps/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.cli import UserError
from comparison.data.sources import source_name
from comparison.models import DDGAN, DDPM, GAN, MODELS
from comparison.report import study_page
from comparison.report.tradeoffs import QUALITY
from comparison.runs import read_config
from comparison.studies import START_SECONDS, Job, Study, add_options, sampling_facts, sampling_seconds, training_facts

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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add_options(parser, seconds=45, num_samples=500)
    parser.add_argument("--runs", default="", metavar="MODEL=RUN,...", help="trained run folders to use instead")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Judge, train, sample, score, write."""
    study = Study("steps", args, sampler=False)
    if args.page:
        return study.rewrite(page, draw_pictures)
    given = find_runs(args.runs, args.data)
    if given and args.seeds > 1:
        raise UserError(f"--runs: has no seeds; leave out --seeds {args.seeds}")
    jobs = study.choose(plan(args, given), rest=20)
    if not jobs:
        return None
    cells = study.run(jobs, lambda name, seed: run_cell(study, name, seed, given.get(name)))
    content, anchors = study.score_all(cells, IMAGE_SIZE)
    return study.write({**content, "floor": anchors["floor"]}, page, draw_pictures)


def plan(args: argparse.Namespace, given: dict[str, Path]) -> list[Job]:
    """Return the cells with what they cost; those in `given` are not trained."""
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
    """Return cell -> given run folder.

    Raises:
        UserError: not a finished run of that model on these data.
    """
    found = {}
    for part in filter(None, text.split(",")):
        model, _, place = part.partition("=")
        path = Path(place)
        if model not in MODELS or not place:
            raise UserError(f"--runs {part}: must be MODEL=RUN with a MODEL among {', '.join(MODELS)}")
        config = read_config(path / "config.json")
        if config.get("model") != model or not config.get("finished"):
            raise UserError(f"--runs {part}: not a finished run of {model}")
        trained_on = config.get("data") or {}
        if trained_on.get("name") != source_name(data) or trained_on.get("image_size") != IMAGE_SIZE:
            there = f"{trained_on.get('name')} at {trained_on.get('image_size')} pixels"
            raise UserError(f"--runs {part}: trained on {there}; --data is {source_name(data)}, at {IMAGE_SIZE}")
        name = {DDPM: "ddpm", GAN: "dcgan"}.get(model) or f"ddgan-T{config['options'].get('num_timesteps')}"
        if name not in CELLS:
            raise UserError(f"--runs {part}: {name} is not a cell of this study")
        found[name] = path.resolve()
    return found


def run_cell(study: Study, name: str, seed: int, given: Path | None) -> list[dict[str, Any]]:
    """Train one cell, or take the given run, and sample it; return the cells of study.json."""
    model = MODELS[CELLS[name]]
    if given is not None:
        folder, config = study.folder(model, f"{name}-given-{given.name}"), read_config(given / "config.json")
    else:
        folder = study.folder(model, f"{name}-s{seed}")
        words = ["--num_timesteps", name.removeprefix("ddgan-T")] if model.name == DDGAN else []
        config = study.train(model, folder, seed, ["--image_size", str(IMAGE_SIZE), *words])
    settings = {"default": (model.label, "")}
    if model.name == DDPM:
        settings = {f"{key}{n}": (text, flags.format(n=n)) for key, (text, flags) in SAMPLERS.items() for n in STEPS}
    cells = []
    for setting, (text, flags) in settings.items():
        samples = folder / "settings" / setting
        drawn = study.sample(model, given or folder, samples, seed, flags.split())
        series = {DDGAN: "DDGAN over T", DDPM: f"improved DDPM, {text}"}.get(model.name, text)
        label = {DDGAN: f"DDGAN, T = {drawn['nfe']:g}", DDPM: f"improved DDPM, {drawn['sampler']}"}.get(
            model.name, text
        )
        cell = {"name": f"{name}-{setting}", "model": model.name, "label": label, "series": series, "seed": seed}
        cell |= {"folder": samples, "training": training_facts(config), "given": given is not None}
        cells.append({**cell, **sampling_facts(drawn)})
    return cells


def by_series(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each line of the picture, fewest evaluations first."""
    names = dict.fromkeys(row["series"] for row in rows)
    return {name: sorted((r for r in rows if r["series"] == name), key=lambda r: r["nfe"]) for name in names}


def enough(series: str, rows: Sequence[dict[str, Any]]) -> str:
    """Name the fewest evaluations of a series whose distance is not significantly worse than its least."""
    best = min(rows, key=lambda row: row["metrics"][QUALITY]["value"])
    fewest = next(row for row in rows if not formatting.apart(row["metrics"][QUALITY], best["metrics"][QUALITY]))
    told = [f"{row['nfe']:g} ({formatting.metric(QUALITY, row['metrics'][QUALITY])})" for row in (fewest, best)]
    return f"{series}: {told[0]}, the best" if fewest is best else f"{series}: {told[0]}; the best: {told[1]}"


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    rows, options = study_page.pooled(study), study["options"]
    extra = {
        "NFE": lambda row: f"{row['nfe']:g}",
        "time per image": lambda row: formatting.seconds(row["seconds_per_image"]),
        "training": lambda row: formatting.seconds(row["training"]["seconds"]),
        "images seen": lambda row: formatting.count(row["training"]["images_seen"]),
    }
    given = sorted({row["name"].split("-")[0] for row in rows if row["given"]})
    setup = [f"{options['seconds']:g} s of training per cell"] if not all(row["given"] for row in rows) else []
    setup += [f"taken from earlier runs: {formatting.listed(given)}"] if given else []
    text = "; ".join([*setup, f"settings of `{options['preset']}` in flags.sh."])
    series = by_series(rows)
    fewest = [enough(name, mine) for name, mine in series.items() if len(mine) > 1]
    known = {name.removeprefix("improved DDPM, ") for name in series}
    later = [label for label, _ in SAMPLERS.values() if label not in known and DDPM in {row["model"] for row in rows}]
    asked = [item for item in study["left_out"] if item["reason"] == study_page.NOT_ASKED]
    return study_page.page(
        {**study, "left_out": [*asked, *({"name": name, "reason": "added later"} for name in later)]},
        "steps",
        "How do quality and time change with the number of network evaluations per image (NFE), and which sampler "
        "needs fewest? For improved DDPM the samplers share one training; DDGAN is trained for each T.",
        f"{text[0].upper()}{text[1:]}",
        [
            "![Frechet distance against evaluations and against time per image](steps.png)",
            "The fewest evaluations whose Frechet distance is not significantly worse than the best of the same line:"
            if fewest
            else None,
            fewest,
            study_page.score_table(rows, study["floor"], extra),
        ],
        [study_page.unequal(list({row["name"].split("-default")[0]: row for row in rows}.values()))],
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw steps.png: the distance against evaluations and against seconds per image."""
    from comparison.report.study_plots import STYLES, Line, Lines, draw

    series = by_series(study_page.pooled(study))
    seen: list[str] = []
    looks = {}
    for name, rows in series.items():
        model = rows[0]["model"]
        looks[name] = {"colour": MODELS[model].colour, **STYLES[seen.count(model)]}
        seen.append(model)
    panels = []
    for key, axis in (("nfe", "network evaluations per image (log)"), ("seconds_per_image", "seconds per image (log)")):
        lines = [
            Line(name, [(row[key], row["metrics"][QUALITY]) for row in rows], **looks[name])
            for name, rows in series.items()
        ]
        ticks = sorted({row[key] for rows in series.values() for row in rows}) if key == "nfe" else ()
        panels.append(Lines(axis, "Frechet distance (log, lower is better)", lines, log="xy", ticks=ticks))
    draw(panels, out / "steps.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
