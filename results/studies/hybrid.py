"""Study: why the hybrid is hard to train, and what lifts it: each part of the recipe with and without the others.

  python results/studies/hybrid.py --plan
  python results/studies/hybrid.py --seconds 150 --seeds 3 --longer 3,9

Trains DDGAN for the same --seconds with the discriminator judging x_t, as published, or x_0; with the generator
trained as a denoiser first and kept near it by a reconstruction term, or by the adversarial loss alone; on pixels or
their Haar coefficients. Two more cells are the preset as it is, and its generator trained as a denoiser alone. All
else is the preset's. --longer trains these two with seed 0 for multiples of the time as well. A call that was cut short
goes on when it is repeated. Writes README.md, study.json, hybrid.png and time.png into results/studies/hybrid/.

The parts: Xiao et al. 2022 (x_t), Phung et al. 2023 (reconstruction, Haar), see denoising-diffusion-gan/README.md.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from typing import Any

from comparison import cli, formatting, studies
from comparison.report import study_page
from comparison.report.tradeoffs import QUALITY
from comparison.runs import read_progress
from comparison.studies import Job, Lab

MODEL = "denoising-diffusion-gan"
IMAGE_SIZE = 32
INPUTS, RECONSTRUCTIONS, DOMAINS = ("x_t", "x_0"), ("none", "decay"), ("pixel", "haar")
WHOLE, ALONE = "preset", "denoiser"  # cells without further parts
LONGER = "@"  # before the multiple of the time in the name of a longer training
DETAIL_SCALE = "2"  # of the Haar coefficients, whose details are small
COLOURS = {
    ("x_t", "none"): "#D55E00",
    ("x_t", "decay"): "#E69F00",
    ("x_0", "none"): "#56B4E9",
    ("x_0", "decay"): "#0072B2",
}
SHOWN = (QUALITY, "modes_matched", "modes_covered")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    studies.add_options(parser, seconds=150, num_samples=1000)
    words = "multiples of --seconds for which the preset and its denoiser alone are trained too"
    parser.add_argument("--longer", type=multiples, default=(), metavar="K,K", help=words)
    return parser.parse_args(argv)


def multiples(text: str) -> tuple[int, ...]:
    """Read whole numbers from 2, divided by commas, an argparse type."""
    found = tuple(sorted({cli.positive_int(part) for part in text.split(",")}))
    if 1 in found:
        raise argparse.ArgumentTypeError(f"must be whole numbers of at least 2, divided by commas, not {text}")
    return found


def main(args: argparse.Namespace) -> None:
    """Judge, train, draw, score, write."""
    lab = Lab.open("hybrid", args)
    if args.page:
        study_page.rewrite(lab.out, lab.study, page, draw_pictures)
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
        for seed in range(1 if LONGER in job.name else args.seeds):
            cells.append(run_cell(lab, args, job.name, seed))
            facts = cells[-1]["training"]
            print(f"[{number}/{len(jobs)}] {job.name}, seed {seed}: {facts['steps']:,} updates", flush=True)
    controls = studies.evaluate(lab, [cell["folder"] for cell in cells], IMAGE_SIZE, args.num_samples)
    study_page.write(lab, describe(args, cells, controls, left_out), page, draw_pictures)


def plan(args: argparse.Namespace) -> list[Job]:
    """Return a cell for each combination and two more, with what its trainings of all seeds cost."""
    seconds = studies.START_SECONDS + args.seconds + studies.drawing_seconds(MODEL, args.num_samples, 4)
    names = ["-".join(parts) for parts in product(DOMAINS, INPUTS, RECONSTRUCTIONS)] + [WHOLE, ALONE]
    jobs = [Job(name, words(name), args.seeds * seconds) for name in names]
    for times, name in product(args.longer, (WHOLE, ALONE)):
        longer = f"{name}{LONGER}{times}"
        jobs.append(Job(longer, words(longer), seconds + (times - 1) * args.seconds))
    return jobs


def words(name: str) -> str:
    """Say what a cell is."""
    name, _, times = name.partition(LONGER)
    if times:
        return f"{words(name)}, {times} times as long"
    if name in (WHOLE, ALONE):
        return "the preset" if name == WHOLE else "its denoiser alone"
    domain, judged, reconstruction = name.split("-")
    return f"D sees {judged}, {'denoiser first' if reconstruction == 'decay' else 'adversarial alone'}, {domain}"


def cell_flags(name: str) -> list[str]:
    """Return what distinguishes a cell from the preset, but for its time."""
    name = name.partition(LONGER)[0]
    if name in (WHOLE, ALONE):
        return [] if name == WHOLE else ["--denoiser_fraction", "1", "--denoiser_d_every", "0"]
    domain, judged, reconstruction = name.split("-")
    flags = ["--domain", domain, "--discriminator_input", judged, "--reconstruction", reconstruction]
    if domain == "haar":
        flags += ["--detail_scale", DETAIL_SCALE]
    return flags if reconstruction == "decay" else [*flags, "--denoiser_fraction", "0"]


def run_cell(lab: Lab, args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train one pair of networks and draw samples."""
    folder = lab.folder(MODEL, f"{name}-s{seed}")
    common = ["--seed", str(seed), "--precision", args.precision]
    flags = ["--image_size", str(IMAGE_SIZE), *cell_flags(name), *common]
    seconds = args.seconds * int(name.partition(LONGER)[2] or 1)
    config = studies.train(lab, MODEL, folder, ["--max_seconds", f"{seconds:g}"], flags)
    place = folder / "settings" / "default"
    drawn = studies.draw(lab, MODEL, folder, place, [*common, "--num_samples", str(args.num_samples)])
    facts = {key: drawn[key] for key in ("nfe", "seconds_per_image", "sampler", "batch_size")}
    cell = {"name": name, "model": MODEL, "label": words(name), "seed": seed, "accuracy": late_accuracy(folder)}
    return {**cell, "folder": place, "training": studies.training_facts(config), **facts}


def late_accuracy(folder: Any) -> list[float]:
    """Return how often the discriminator was right at t = 0, 1, ... in the second half of the adversarial updates."""
    rows = [row for row in read_progress(folder / "progress.csv") if "loss_g" in row]
    rows = rows[len(rows) // 2 :]
    found: list[float] = []
    while rows and f"accuracy_real_t{len(found)}" in rows[0]:
        columns = [f"accuracy_{side}_t{len(found)}" for side in ("real", "fake")]
        found.append(round(sum(row[name] for row in rows for name in columns) / (2 * len(rows)), 4))
    return found


def describe(
    args: argparse.Namespace, cells: list[dict[str, Any]], controls: dict[str, Any], left_out: Sequence[str]
) -> dict[str, Any]:
    """Return the content of study.json."""
    options = {name: getattr(args, name) for name in ("seconds", "seeds", "num_samples", "preset", "precision")}
    anchors = {name: entry["metrics"] for name, entry in controls["anchors"].items() if name in ("floor", "noise")}
    return {"options": options, "anchors": anchors, **studies.with_scores(cells, controls, args.data, left_out)}


def accuracies(study: dict[str, Any], name: str) -> list[float]:
    """Return a cell's accuracies of the discriminator at t = 0, 1, ..., mean over the seeds; empty without one."""
    mine = [cell["accuracy"] for cell in study["cells"] if cell["name"] == name]
    return [sum(values) / len(values) for values in zip(*mine, strict=True)]


def sentences(study: dict[str, Any]) -> list[str]:
    """Return what each part of the recipe changes with the others held, and whether the hybrid beats its denoiser."""
    rows = {row["name"]: row for row in study_page.pooled(study) if LONGER not in row["name"]}
    said = []
    factors = {
        "the discriminator's input x_0 in place of x_t": (INPUTS, "{domain}-{}-{reconstruction}"),
        "the denoiser's phase and the reconstruction term": (RECONSTRUCTIONS, "{domain}-{judged}-{}"),
        "Haar coefficients in place of pixels": (DOMAINS, "{}-{judged}-{reconstruction}"),
    }
    for topic, (values, pattern) in factors.items():
        better, worse, open_ = 0, 0, 0
        for domain, judged, reconstruction in product(DOMAINS, INPUTS, RECONSTRUCTIONS):
            held = {"domain": domain, "judged": judged, "reconstruction": reconstruction}
            without, with_ = (pattern.format(value, **held) for value in values)
            if with_ != f"{domain}-{judged}-{reconstruction}" or not {without, with_} <= rows.keys():
                continue  # each pair once, at the cell that has the part
            a, b = (rows[name]["metrics"][QUALITY] for name in (without, with_))
            if not formatting.apart(a, b):
                open_ += 1
            elif b["value"] < a["value"]:
                better += 1
            else:
                worse += 1
        total = better + worse + open_
        if total:
            counts = [(better, "better"), (worse, "worse"), (open_, "not distinguishable")]
            told = formatting.listed([f"{verdict} in {count}" for count, verdict in counts if count])
            said.append(f"{topic[0].upper()}{topic[1:]}: of {total} comparisons with all else equal, {told}")
    if ALONE in rows:
        hybrids = [row for name, row in rows.items() if name != ALONE]
        if hybrids:
            best = min(hybrids, key=lambda row: row["metrics"][QUALITY]["value"])
            both = (best["metrics"][QUALITY], rows[ALONE]["metrics"][QUALITY])
            told = study_page.against(f"the best hybrid ({best['label']})", both[0], "its denoiser alone", both[1])
            said.append(f"Against the denoiser: {told}")
    said.append(study_page.unequal(list(rows.values())) or "")
    return [line if line.endswith(".") else f"{line}." for line in said if line]


def by_time(study: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the preset and of its denoiser alone, each by the seconds of training."""
    rows = [row for row in study_page.pooled(study) if row["name"].partition(LONGER)[0] in (WHOLE, ALONE)]
    rows.sort(key=lambda row: row["training"]["seconds"])
    return {name: [row for row in rows if row["name"].partition(LONGER)[0] == name] for name in (WHOLE, ALONE)}


def crossing(study: dict[str, Any]) -> list[str]:
    """Return for each metric after which times of training the hybrid is better than its denoiser alone."""
    said = []
    pairs = [
        (hybrid, alone)
        for hybrid in by_time(study)[WHOLE]
        for alone in by_time(study)[ALONE]
        if hybrid["name"].partition(LONGER)[2] == alone["name"].partition(LONGER)[2]
    ]
    for name in SHOWN:
        told = []
        for hybrid, alone in pairs:
            if name not in hybrid["metrics"] or name not in alone["metrics"]:
                continue
            a, b = hybrid["metrics"][name], alone["metrics"][name]
            better = (a["value"] < b["value"]) == (formatting.METRICS[name][1] == "lower")
            verdict = ("better" if better else "worse") if formatting.apart(a, b) else "not distinguishable"
            told.append(f"{verdict} after {formatting.seconds(hybrid['training']['seconds'])}")
        if told:
            said.append(f"{formatting.METRICS[name][0]}: the hybrid is {formatting.listed(told)}.")
    return said


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    options = study["options"]
    every = study_page.pooled(study)
    rows = [row for row in every if LONGER not in row["name"]]
    longer = by_time(study) if len(rows) < len(every) else {}
    accuracy = {row["name"]: " ".join(f"{value:.2f}" for value in accuracies(study, row["name"])) for row in every}
    extra = {
        "updates": lambda row: formatting.count(row["training"]["steps"]),
        "D right at t = 0, 1, ...": lambda row: accuracy[row["name"]] or formatting.MISSING,
    }
    return study_page.join(
        "# Study: what makes the hybrid learn",
        "A denoising diffusion GAN as published learns little within minutes. Which part of the recipe of "
        f"`{options['preset']}` lifts it: what the discriminator judges, the denoiser that the generator starts as and "
        "is kept near, or the folded image?",
        f"Each pair of networks trained for {options['seconds']:g} s; all else as in `{options['preset']}` of "
        f"flags.sh. {study_page.machine(rows)}",
        study_page.scoring(study),
        '"D right": share of right answers of the discriminator in the second half of the adversarial updates, mean '
        "of real and generated pairs; 0.5 is chance.",
        "## What the numbers say",
        sentences(study),
        "![Frechet distance, modes and the discriminator's accuracy of each cell](hybrid.png)",
        "## Numbers",
        study_page.score_table(rows, study["anchors"]["floor"], extra),
        "## With more time" if longer else None,
        crossing(study) if longer else None,
        "![Frechet distance and modes against the seconds of training](time.png)" if longer else None,
        study_page.score_table([*longer[WHOLE], *longer[ALONE]], None, extra) if longer else None,
        "## Left out" if study["left_out"] else None,
        [f"{item['name']}: {item['reason']}." for item in study["left_out"]],
    )


def draw_pictures(study: dict[str, Any], out: Any) -> None:
    """Draw hybrid.png, a bar for each cell and metric and the discriminator's accuracy against t, and time.png."""
    from comparison.report.plots import DPI, save, tidy
    from matplotlib.figure import Figure

    every = study_page.pooled(study)[::-1]
    rows = [row for row in every if LONGER not in row["name"]]
    if len(rows) < len(every):
        draw_times(study, out)
    names = [name for name in SHOWN if all(name in row["metrics"] for row in rows)]
    figure = Figure(figsize=(3.2 + 2.9 * (len(names) + 1), 0.45 * len(rows) + 1.3), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(1, len(names) + 1)
    for number, name in enumerate(names):
        axes = figure.add_subplot(grid[number])
        entries = [row["metrics"][name] for row in rows]
        values = [entry["value"] for entry in entries]
        spread = [
            [abs(bound - value) for bound, value in zip(side, values, strict=True)]
            for side in zip(*(entry["interval"] for entry in entries), strict=True)
        ]
        axes.barh(range(len(rows)), values, xerr=spread, color=[colour(row["name"]) for row in rows], ecolor="#333333")
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows] if number == 0 else [])
        axes.set_xlabel(formatting.METRICS[name][0])
        axes.set_xlim(left=0)
        tidy(axes)
    axes = figure.add_subplot(grid[-1])
    for row in rows[::-1]:
        if found := accuracies(study, row["name"]):
            style = "--" if row["name"].startswith("pixel") else "-"
            axes.plot(range(len(found)), found, style, marker="o", markersize=3, color=colour(row["name"]))
    axes.axhline(0.5, color="#333333", linestyle=":", linewidth=1)
    axes.set(xlabel="t (dashed: pixels)", ylabel="D's right answers", ylim=(0.4, 1.0))
    axes.locator_params(axis="x", integer=True)
    tidy(axes)
    save(figure, out / "hybrid.png")


def draw_times(study: dict[str, Any], out: Any) -> None:
    """Draw time.png: each metric of the preset and of its denoiser alone against the seconds of training."""
    panels: list[dict[str, Any]] = []
    for name in SHOWN:
        lines = []
        for cell, rows in by_time(study).items():
            points = [(row["training"]["seconds"], row["metrics"][name]) for row in rows if name in row["metrics"]]
            lines.append({"label": words(cell), "model": MODEL if cell == WHOLE else "", "points": points})
        panels.append({"x": "training, s", "y": formatting.METRICS[name][0], "log": "x", "lines": lines})
    study_page.draw_lines(panels, out / "time.png")


def colour(name: str) -> str:
    """Return a cell's colour: its input and reconstruction; the domain is told by label or line style."""
    if name in (WHOLE, ALONE):
        return "#009E73" if name == WHOLE else "#333333"
    _, judged, reconstruction = name.split("-")
    return COLOURS[judged, reconstruction]


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
