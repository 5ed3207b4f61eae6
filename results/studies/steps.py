"""Study: quality and time against the number of network evaluations, for each sampler, and for DDGAN's T.

  python results/studies/steps.py --plan
  python results/studies/steps.py --seconds 45
  python results/studies/steps.py --data data/train --runs improved-diffusion=results/runs/improved-diffusion/mine

One training of improved DDPM is drawn with every sampler of the table SAMPLERS in this script at 5 to 50 steps; DDGAN
is trained once for each T; DCGAN is the point of one evaluation. --runs takes trained run folders of the same data
instead of training (a DDGAN run stands for its own T). A call that was cut short goes on when it is repeated. About
a quarter of an hour on two CPU cores. Writes README.md, study.json and steps.png into results/studies/steps/.
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

IMAGE_SIZE = 32
STEPS = (5, 10, 20, 50)
TIMESTEPS = (1, 2, 4, 8)
DDPM, DDGAN, GAN = "improved-diffusion", "denoising-diffusion-gan", "gans"
SAMPLERS: dict[str, tuple[str, list[str]]] = {  # name -> label, flags of image_sample.py with {n} for the steps
    "ancestral": ("ancestral", ["--timestep_respacing", "{n}"]),
    "ddim": ("DDIM (eta 0)", ["--use_ddim", "True", "--timestep_respacing", "ddim{n}"]),
    "ddim-eta1": ("DDIM (eta 1)", ["--use_ddim", "True", "--eta", "1", "--timestep_respacing", "ddim{n}"]),
    "dpmpp": ("DPM-Solver++ 2M", ["--sampler", "dpmpp", "--num_sampling_steps", "{n}"]),
    "dpmpp-sde": ("DPM-Solver++ 2M SDE", ["--sampler", "dpmpp-sde", "--num_sampling_steps", "{n}"]),
    "unipc": ("UniPC", ["--sampler", "unipc", "--num_sampling_steps", "{n}"]),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    studies.add_options(parser, seconds=45, num_samples=500)
    parser.add_argument("--runs", default="", metavar="MODEL=RUN,...", help="trained run folders to use instead")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Judge, train, draw, score, write."""
    lab = Lab.open("steps", args).without_sampler()
    if args.page:
        study_page.rewrite(lab.out, lab.study, page, draw_pictures)
        return
    given = find_runs(args.runs, args.data)
    trained = len(given) if args.seeds == 1 else 0
    if given and not trained:
        raise UserError(f"--runs: has no seeds; leave out --seeds {args.seeds}")
    jobs = plan(args.seconds, args.num_samples, args.seeds, given)
    names = studies.choose(args.cells, [job.name for job in jobs])
    jobs = [job for job in jobs if job.name in names]
    if args.plan:
        print(studies.plan_table(jobs, rest=20))
        return
    cells = []
    for number, job in enumerate(jobs, start=1):
        found = [c for seed in range(args.seeds) for c in run_job(lab, job.name, args, seed, given.get(job.name))]
        facts = found[0]["training"]
        print(
            f"[{number}/{len(jobs)}] {job.name}: {facts['seconds']:.0f} s of training, {facts['images_seen']:,} images "
            f"seen; {len(found)} sample sets",
            flush=True,
        )
        cells += found
    controls = studies.evaluate(lab, [cell["folder"] for cell in cells], IMAGE_SIZE, args.num_samples)
    study = describe(args, cells, controls, [name for name in all_names() if name not in names])
    study_page.write(lab, study, page, draw_pictures)


def all_names() -> list[str]:
    """Return the names of all cells."""
    return ["ddpm", *(f"ddgan-T{t}" for t in TIMESTEPS), "dcgan"]


def model_of(name: str) -> str:
    """Return the model of a cell."""
    return {"ddpm": DDPM, "dcgan": GAN}.get(name, DDGAN)


def plan(seconds: float, images: int, seeds: int, given: dict[str, Path]) -> list[Job]:
    """Return the cells with what they cost; those in `given` are not trained."""
    jobs = []
    for name in all_names():
        training = 0.0 if name in given else studies.START_SECONDS + seconds
        what = "a given run" if name in given else f"trained for {seconds:g} s"
        if name == "ddpm":
            costs = [studies.drawing_seconds(DDPM, images, n) for n in STEPS]
            what += f"; {len(SAMPLERS)} samplers at {', '.join(map(str, STEPS))} steps"
            jobs.append(Job(name, what, seeds * (training + len(SAMPLERS) * sum(costs))))
        else:
            nfe = 1 if name == "dcgan" else int(name.removeprefix("ddgan-T"))
            job = Job(name, what, seeds * (training + studies.drawing_seconds(model_of(name), images, nfe)))
            jobs.append(job)
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
        if model not in studies.MODELS or not place:
            raise UserError(f"--runs {part}: must be MODEL=RUN with a MODEL among {', '.join(studies.MODELS)}")
        config = read_config(path / "config.json")
        if config.get("model") != model or not config.get("finished"):
            raise UserError(f"--runs {part}: not a finished run of {model}")
        trained_on = config.get("data") or {}
        if trained_on.get("name") != source_name(data) or trained_on.get("image_size") != IMAGE_SIZE:
            raise UserError(
                f"--runs {part}: trained on {trained_on.get('name')} at {trained_on.get('image_size')} pixels; "
                f"--data is {source_name(data)}, at {IMAGE_SIZE}"
            )
        name = {DDPM: "ddpm", GAN: "dcgan"}.get(model) or f"ddgan-T{config['options'].get('num_timesteps')}"
        if name not in all_names():
            raise UserError(f"--runs {part}: {name} is not a cell of this study")
        found[name] = path.resolve()
    return found


def run_job(lab: Lab, name: str, args: argparse.Namespace, seed: int, given: Path | None) -> list[dict[str, Any]]:
    """Train one cell, or take the given run, and draw its sample sets."""
    model = model_of(name)
    seeds = ["--seed", str(seed)]
    if given is not None:
        folder, config = lab.folder(model, f"{name}-given-{given.name}"), read_config(given / "config.json")
    else:
        folder = lab.folder(model, f"{name}-s{seed}")
        timesteps = ["--num_timesteps", name.removeprefix("ddgan-T")] if model == DDGAN else []
        flags = ["--image_size", str(IMAGE_SIZE), *timesteps, *seeds, "--precision", args.precision]
        config = studies.train(lab, model, folder, ["--max_seconds", f"{args.seconds:g}"], flags)
    draws: dict[str, tuple[str, list[str]]] = {"default": (study_page.label_of(model), [])}
    if model == DDPM:
        draws = {
            f"{key}{n}": (label, [flag.format(n=n) for flag in flags])
            for key, (label, flags) in SAMPLERS.items()
            for n in STEPS
        }
    cells = []
    for setting, (label, flags) in draws.items():
        place = folder / "settings" / setting
        common = [*seeds, "--num_samples", str(args.num_samples), "--precision", args.precision]
        drawn = studies.draw(lab, model, given or folder, place, [*flags, *common])
        facts = {key: drawn[key] for key in ("nfe", "seconds_per_image", "sampler", "batch_size")}
        series = {DDGAN: "DDGAN over T", DDPM: f"improved DDPM, {label}"}.get(model, label)
        text = f"improved DDPM, {drawn['sampler']}" if model == DDPM else f"DDGAN, T = {facts['nfe']:g}"
        cells.append(
            {"name": f"{name}-{setting}", "model": model, "label": label if model == GAN else text, "series": series}
            | {"seed": seed, "folder": place, "training": studies.training_facts(config), "given": bool(given), **facts}
        )
    return cells


def describe(
    args: argparse.Namespace, cells: list[dict[str, Any]], controls: dict[str, Any], left: Sequence[str]
) -> dict[str, Any]:
    """Return the content of study.json."""
    options = {name: getattr(args, name) for name in ("seconds", "seeds", "num_samples", "preset", "precision")}
    floor = controls["anchors"]["floor"]["metrics"]
    return {"options": options, "floor": floor, **studies.with_scores(cells, controls, args.data, left)}


def by_series(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each line of the picture, fewest evaluations first."""
    names = dict.fromkeys(row["series"] for row in rows)
    return {name: sorted((r for r in rows if r["series"] == name), key=lambda r: r["nfe"]) for name in names}


def sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the numbers say."""
    from comparison.report.findings import rank

    said: list[str | None] = []
    for series, mine in by_series(rows).items():
        place = "{} evaluations" if mine[0]["model"] != DDGAN else "T = {}"
        said.append(study_page.enough(series, [(row["nfe"], row["metrics"][QUALITY]) for row in mine], place))
    samplers = [row for row in rows if row["model"] == DDPM]
    for nfe in sorted({row["nfe"] for row in samplers}):
        same = [
            {**row, "label": row["series"].removeprefix("improved DDPM, ")} for row in samplers if row["nfe"] == nfe
        ]
        said.append(rank(same, QUALITY, f"Samplers of improved DDPM at {nfe:g} evaluations", lowest=True))
    for series, mine in by_series(rows).items():
        costs = [row["seconds_per_image"] / row["nfe"] for row in mine]
        ends = dict.fromkeys(formatting.seconds(value) for value in (min(costs), max(costs)))
        said.append(f"{series}: {' to '.join(ends)} per image and evaluation")
    said.append(study_page.unequal(list({row["name"].split("-default")[0]: row for row in rows}.values())))
    return [line if line.endswith(".") else f"{line}." for line in said if line]


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    rows = study_page.pooled(study)
    extra = {
        "NFE": lambda row: f"{row['nfe']:g}",
        "time per image": lambda row: formatting.seconds(row["seconds_per_image"]),
        "training": lambda row: formatting.seconds(row["training"]["seconds"]),
        "images seen": lambda row: formatting.count(row["training"]["images_seen"]),
    }
    given = sorted({row["name"].split("-")[0] for row in rows if row["given"]})
    trained = f"{study['options']['seconds']:g} s of training per cell" if not all(row["given"] for row in rows) else ""
    kept = f"taken from earlier runs: {formatting.listed(given)}" if given else ""
    runs = "; ".join(filter(None, (trained, kept, f"settings of `{study['options']['preset']}` in flags.sh")))
    return study_page.join(
        "# Study: steps",
        "How do quality and time change with the number of network evaluations per image (NFE), and which sampler "
        "needs fewest? For improved DDPM the samplers share one training; DDGAN is trained for each T.",
        f"{runs[0].upper()}{runs[1:]}. {study_page.machine(rows)}",
        study_page.scoring(study),
        "## What the numbers say",
        sentences(rows),
        "![Frechet distance against evaluations and against time per image](steps.png)",
        "## Numbers",
        study_page.score_table(rows, study["floor"], extra),
        "## Left out" if study["left_out"] else None,
        [f"{item['name']}: {item['reason']}." for item in study["left_out"]],
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw steps.png: the distance against evaluations and against seconds per image."""
    rows = by_series(study_page.pooled(study))
    panels: list[dict[str, Any]] = []
    for key, words in (
        ("nfe", "network evaluations per image (log)"),
        ("seconds_per_image", "seconds per image (log)"),
    ):
        lines = [
            {
                "label": series,
                "model": mine[0]["model"],
                "points": [(row[key], row["metrics"][QUALITY]) for row in mine],
            }
            for series, mine in rows.items()
        ]
        panels.append({"x": words, "y": "Frechet distance (log, lower is better)", "log": "xy", "lines": lines})
    panels[0]["ticks"] = True
    study_page.draw_lines(panels, out / "steps.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
