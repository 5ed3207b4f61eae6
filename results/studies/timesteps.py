"""Study: how many denoising steps DDGAN should have, T = 1, 2, 4 or 8 trained at the same budget.

  python results/studies/timesteps.py --plan
  python results/studies/timesteps.py --data data/train --preset cpu --images 12800 --seeds 3

A network is trained for each T and seed, for the same --seconds or, independent of what else the machine does, on the
same number of --images: an update costs the same for every T, an image drawn costs T evaluations. A call that was cut
short goes on when it is repeated. Writes README.md, study.json and timesteps.png into results/studies/timesteps/.

Xiao, Kreis and Vahdat 2022 vary T at full size on CIFAR-10.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from comparison import cli, studies, study_pages, tables
from comparison.studies import Job, Lab
from comparison.tradeoffs import QUALITY

MODEL = "denoising-diffusion-gan"
IMAGE_SIZE = 32
TIMESTEPS = (1, 2, 4, 8)
SHARES = ("precision", "recall", "coverage")
# For plans: seconds of training per image on two CPU cores; the networks of the other sets want a GPU.
IMAGE_SECONDS = {"quick": 0.009, "cpu": 0.0239, "gpu": 0.5}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    studies.add_options(parser, seconds=300, num_samples=2000)
    add = parser.add_argument
    add("--images", type=cli.positive_int, metavar="N", help="training images of each cell, instead of --seconds")
    add("--num_timesteps", type=cli.positive_int, nargs="+", default=TIMESTEPS, metavar="T", help="one cell for each")
    add("--data_note", metavar="TEXT", help="a sentence on the data for the page, e.g. that it is JPEG CIFAR-10")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Judge, train, draw, score, write."""
    lab = Lab.open("timesteps", args)
    if args.page:
        study_pages.rewrite(lab.out, lab.study, page, draw_pictures)
        return
    jobs = plan(args)
    names = studies.choose(args.cells, [job.name for job in jobs])
    left_out = [job.name for job in jobs if job.name not in names]
    jobs = [job for job in jobs if job.name in names]
    if args.plan:
        print(studies.plan_table(jobs, rest=60))
        return
    cells = []
    for number, job in enumerate(jobs, start=1):
        for seed in range(args.seeds):
            cells.append(run_cell(lab, args, job.name, seed))
            facts = cells[-1]["training"]
            print(
                f"[{number}/{len(jobs)}] {job.name}, seed {seed}: {facts['seconds']:.0f} s of training, "
                f"{facts['images_seen']:,} images seen, {tables.seconds(cells[-1]['seconds_per_image'])} per sample",
                flush=True,
            )
    controls = studies.evaluate(lab, [cell["folder"] for cell in cells], IMAGE_SIZE, args.num_samples)
    study_pages.write(lab, describe(args, cells, controls, left_out), page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return a cell per T, ascending, with what its trainings of all seeds cost."""
    training = args.images * IMAGE_SECONDS[args.preset] if args.images else args.seconds
    jobs = []
    for timesteps in sorted(set(args.num_timesteps)):
        drawing = studies.drawing_seconds(MODEL, args.num_samples, timesteps)
        seconds = args.seeds * (studies.START_SECONDS + training + drawing)
        what = f"{timesteps} denoising steps, trained {budget_words(args.images, args.seconds)}"
        jobs.append(Job(f"T{timesteps}", f"{what}, {args.seeds} {'seed' if args.seeds == 1 else 'seeds'}", seconds))
    return jobs


def budget_words(images: int | None, seconds: float) -> str:
    """Name the budget of a training."""
    return f"on {tables.count(images)} images" if images else f"for {seconds:g} s"


def run_cell(lab: Lab, args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train one network and draw its samples."""
    timesteps = int(name.removeprefix("T"))
    folder = lab.folder(MODEL, f"{name}-s{seed}")
    common = ["--seed", str(seed), "--precision", args.precision]
    flags = ["--image_size", str(IMAGE_SIZE), "--num_timesteps", str(timesteps), *common]
    budget = ["--max_images", str(args.images)] if args.images else ["--max_seconds", f"{args.seconds:g}"]
    config = studies.train(lab, MODEL, folder, budget, flags)
    place = folder / "settings" / "default"
    drawn = studies.draw(lab, MODEL, folder, place, [*common, "--num_samples", str(args.num_samples)])
    facts = {key: drawn[key] for key in ("nfe", "seconds_per_image", "sampler", "batch_size")}
    cell = {"name": name, "model": MODEL, "label": f"T = {timesteps}", "timesteps": timesteps, "seed": seed}
    return {**cell, "folder": place, "training": studies.training_facts(config), **facts}


def describe(
    args: argparse.Namespace, cells: list[dict[str, Any]], controls: dict[str, Any], left_out: Sequence[str]
) -> dict[str, Any]:
    """Return the content of study.json."""
    options = {name: getattr(args, name) for name in ("images", "seeds", "num_samples", "preset", "precision")}
    options |= {"seconds": None if args.images else args.seconds, "data_note": args.data_note}
    anchors = {name: entry["metrics"] for name, entry in controls["anchors"].items() if name in ("floor", "noise")}
    return {"options": options, "anchors": anchors, **studies.with_scores(cells, controls, args.data, left_out)}


def pooled(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per T, ascending: metrics pooled over the seeds, times as the least of them.

    Whatever else a machine does can only add to a time.
    """
    rows = study_pages.pooled(study)
    for row in rows:
        mine = [cell for cell in study["cells"] if cell["name"] == row["name"]]
        row["seconds_per_image"] = min(cell["seconds_per_image"] for cell in mine)
        row["update_seconds"] = min(cell["training"]["seconds"] / cell["training"]["steps"] for cell in mine)
    return sorted(rows, key=lambda row: row["timesteps"])


def sentences(study: dict[str, Any]) -> list[str]:
    """Return what the numbers say of quality, of diversity and of the two costs."""
    from comparison.verdicts import rank

    rows = pooled(study)
    said = [study_pages.enough("Frechet distance", [(r["timesteps"], r["metrics"][QUALITY]) for r in rows], "T = {}")]
    noise = study["anchors"]["noise"].get(QUALITY)
    if noise:
        like = [row["label"] for row in rows if row["metrics"][QUALITY]["value"] >= 0.9 * noise["value"]]
        if like:
            said.append(f"No better than noise ({tables.metric(QUALITY, noise)}) at this budget: {tables.listed(like)}")
    for name, words in (
        ("precision", "Precision, share of samples among real images"),
        ("recall", "Recall, share of real images among samples"),
        ("coverage", "Coverage, share of real images with a sample nearby"),
    ):
        said.append(rank(rows, name, words, lowest=False))
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        ratio = tables.plain(last["seconds_per_image"] / first["seconds_per_image"], 2)
        said.append(
            f"An image takes {tables.seconds(first['seconds_per_image'])} at T = {first['timesteps']} and {ratio} "
            f"times as long at T = {last['timesteps']}: one evaluation per step"
        )
        updates = [row["update_seconds"] for row in rows]
        ends = dict.fromkeys(tables.seconds(value) for value in (min(updates), max(updates)))
        said.append(f"An update of training takes {' to '.join(ends)}: its arithmetic does not depend on T")
    if not study["options"]["images"]:
        said.append(study_pages.unequal(rows))
    return [line if line.endswith(".") else f"{line}." for line in said if line]


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    rows, options = pooled(study), study["options"]
    network = rows[0]["training"]["options"]
    extra = {
        "NFE": lambda row: f"{row['nfe']:g}",
        "time per image": lambda row: tables.seconds(row["seconds_per_image"]),
        "images seen": lambda row: tables.count(row["training"]["images_seen"]),
        "updates": lambda row: tables.count(row["training"]["steps"]),
    }
    settings = f"settings of `{options['preset']}` in flags.sh"
    if "num_channels_dae" in network:
        settings += (
            f" ({network['num_channels_dae']} channels, {tables.count(rows[0]['training']['parameters']['generator'])} "
            f"parameters in the generator, batches of {network['batch_size']})"
        )
    return study_pages.join(
        "# Study: number of denoising steps",
        "How many denoising steps should DDGAN have? T = 1 is a GAN that sees noise; with more steps each is an easier "
        "task, and drawing costs more.",
        f"Each network trained {budget_words(options['images'], options['seconds'])}; {settings}. Times are the least "
        f"over the seeds. {study_pages.machine(rows)}",
        " ".join(filter(None, (options["data_note"], study_pages.scoring(study)))),
        "## What the numbers say",
        sentences(study),
        "![Frechet distance, precision, recall and coverage, and time per image against T](timesteps.png)",
        "## Numbers",
        study_pages.score_table(rows, study["anchors"]["floor"], extra),
        "The paper's network of 48 M parameters has T = 4 (FID 3.75 on CIFAR-10; "
        "[Xiao et al. 2022](https://arxiv.org/abs/2112.07804)): another size, length of training and score.",
        "## Left out" if study["left_out"] else None,
        [f"{item['name']}: {item['reason']}." for item in study["left_out"]],
    )


def draw_pictures(study: dict[str, Any], out: Any) -> None:
    """Draw timesteps.png: distance, shares and time per image against T."""
    rows = pooled(study)
    x = "denoising steps T (log)"

    def line(label: str, points: list[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
        return {"label": label, "model": MODEL, "points": points}

    shares = [
        line(name, [(row["timesteps"], row["metrics"][name]) for row in rows if name in row["metrics"]])
        for name in SHARES
    ]
    distance = line("DDGAN", [(row["timesteps"], row["metrics"][QUALITY]) for row in rows])
    times = line("DDGAN", [(row["timesteps"], {"value": 1000 * row["seconds_per_image"]}) for row in rows])
    panels = [
        {"x": x, "y": "Frechet distance (log, lower is better)", "log": "xy", "lines": [distance], "ticks": True},
        {"x": x, "y": "share of images", "log": "x", "lines": shares, "ticks": True},
        {"x": x, "y": "milliseconds per image drawn (log)", "log": "xy", "lines": [times], "ticks": True},
    ]
    study_pages.draw_lines(panels, out / "timesteps.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
