"""Train DDGAN on 25 Gaussians in the plane, for several numbers of denoising steps, and count the modes it covers.

    python3 denoising-diffusion-gan/toy_gaussians.py
    python3 denoising-diffusion-gan/toy_gaussians.py --num_timesteps 1 4 --seeds 1 --max_steps 2000 --out toy

T = 1 is a GAN that makes points from noise. Process, losses, penalty, average and training update are those of the
image model; the networks are small. A training takes one to four minutes on one CPU thread, by what else the machine
does. A call that was cut short keeps the trainings that ended and goes on when it is repeated. Writes README.md,
study.json, samples.png and progress.png into results/studies/gaussians/.

Xiao, Kreis and Vahdat 2022 (https://arxiv.org/abs/2112.07804) show such a mixture; the code of it was never
published.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.files import read_json, write_json
from comparison.report import study_page
from comparison.runs import git_commit, versions
from ddgan.options import below_one

STUDY = "gaussians"
MODES = 25

SETTINGS = (
    *("max_steps", "batch_size", "lr_g", "lr_d", "r1_gamma", "lazy_reg", "ema_decay", "width", "nz", "eval_every"),
    *("beta_min", "beta_max", "use_geometric"),
)
LEAST_SAMPLES = 1000
SHOWN = 1500  # points of a panel
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008
INK = "#333333"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--num_timesteps", type=cli.positive_int, nargs="+", default=[1, 2, 4, 8], metavar="T", help="a model for each")
    add("--max_steps", type=cli.positive_int, default=4000, metavar="N", help="updates of each training")
    add("--seeds", type=cli.positive_int, default=3, metavar="K", help="trainings for each T")
    add("--seed", type=cli.non_negative_int, default=0, help="of the first of them; the others follow")
    add("--batch_size", type=cli.positive_int, default=256, help="points per update")
    add("--lr_g", type=cli.positive_float, default=5e-4, help="generator's learning rate; a cosine over --max_steps")
    add("--lr_d", type=cli.positive_float, default=1e-3, help="discriminator's learning rate")
    add("--r1_gamma", type=cli.non_negative_float, default=0.02, help="weight of the R1 penalty, 0 for none")
    add("--lazy_reg", type=cli.positive_int, default=1, help="updates from one R1 penalty to the next")
    add("--ema_decay", type=below_one, default=0.995, help="share of the old average per update")
    add("--width", type=cli.positive_int, default=256, help="features of each of the three hidden layers")
    add("--nz", type=cli.positive_int, default=2, help="length of the latent")
    add("--beta_min", type=cli.positive_float, default=0.01, help="variance at the start; noise rate without geometric")
    add("--beta_max", type=cli.positive_float, default=0.99, help="the same at the end")
    add("--use_geometric", type=cli.str2bool, default=True, metavar="BOOL", help="as in train_ddgan.py")
    add("--eval_every", type=cli.positive_int, default=500, metavar="N", help="updates between counts of the modes")
    add("--num_samples", type=sample_count, default=10000, metavar="N", help="points counted at the end")
    add("--out", type=cli.local_path, metavar="DIR", help="results; results/studies/gaussians unless given")
    add("--runs_dir", type=cli.local_path, metavar="DIR", help="finished trainings; below results/runs unless given")
    add("--page", action="store_true", help="write README.md and the pictures anew from study.json, and run nothing")
    add("--fresh", action="store_true", help="train everything again")
    add("--device", type=cli.device_name, default="cpu", help="auto, cpu, cuda, cuda:N or mps")
    add("--threads", type=cli.thread_count, default=1, help="CPU threads; more than 1 do not help here")
    return parser.parse_args(argv)


def sample_count(text: str) -> int:
    """Read --num_samples, an argparse type."""
    value = cli.positive_int(text)
    if value < LEAST_SAMPLES:
        raise argparse.ArgumentTypeError(f"must be at least {LEAST_SAMPLES}, not {text}")
    return value


def main(args: argparse.Namespace) -> None:
    """Judge, train, count, write."""
    results = cli.repo_root() / "results"
    out, runs = args.out or results / "studies" / STUDY, args.runs_dir or results / "runs" / "studies" / STUDY
    for flag, folder in (("--out", out), ("--runs_dir", runs)):
        cli.check_folder(folder, flag)
    low, high = args.beta_min, args.beta_max
    if low >= high or (args.use_geometric and high >= 1):
        limit = " < 1" if args.use_geometric else ""
        raise cli.UserError(f"--beta_min {low:g}, --beta_max {high:g}: beta_min < beta_max{limit} must hold")
    if args.page:
        study_page.rewrite(out, STUDY, page, draw_pictures)
        return
    plan = [(t, args.seed + k) for t in sorted(set(args.num_timesteps)) for k in range(args.seeds)]
    cells = []
    for number, (timesteps, seed) in enumerate(plan, start=1):
        cells.append(run_cell(timesteps, seed, args, runs))
        end = cells[-1]["end"]
        print(
            f"[{number}/{len(plan)}] T = {timesteps}, seed {seed}: {end['modes']} of 25 modes, "
            f"{end['high_quality']:.1%} of high quality, {cells[-1]['seconds']:.0f} s",
            flush=True,
        )
    options = {name: getattr(args, name) for name in (*SETTINGS, "seed", "seeds", "num_samples")}
    content = {"options": options, "real": real_points(args), "cells": cells}
    study_page.write(out, STUDY, content, page, draw_pictures)


def run_cell(timesteps: int, seed: int, args: argparse.Namespace, runs: Path) -> dict[str, Any]:
    """Train one model and count its modes, unless the same was done before; the first seed keeps points to show."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    asked = {"timesteps": timesteps, "seed": seed, "num_samples": args.num_samples, "settings": settings}
    record = runs / f"T{timesteps}-s{seed}.json"
    if not args.fresh and record.is_file() and (found := read_json(record)).get("asked") == asked:
        return found["cell"]
    from comparison.device import describe_device, pick_device, set_threads
    from ddgan.toy import ToySettings, draw_samples, measure, train

    device = pick_device(args.device)
    set_threads(args.threads)
    began = time.perf_counter()
    generator, process, history = train(timesteps, seed, ToySettings(**settings), device)
    seconds = time.perf_counter() - began
    points = draw_samples(generator, process, args.num_samples, seed)
    cell = {"timesteps": timesteps, "seed": seed, "end": measure(points), "history": history, "seconds": seconds}
    cell |= {"device": describe_device(device), "versions": versions(), "git_commit": git_commit()}
    cell |= {"parameters": sum(p.numel() for p in generator.parameters())}
    cell |= {"points": rounded(points) if seed == args.seed else []}
    runs.mkdir(parents=True, exist_ok=True)
    write_json(record, {"asked": asked, "cell": cell})
    return cell


def real_points(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the mixture itself gives by the same count."""
    from ddgan.toy import draw_data, measure

    points = draw_data(args.num_samples, args.seed, "real").flatten(1)
    return {"end": measure(points), "points": rounded(points)}


def rounded(points: Any) -> list[list[float]]:
    """Return the first finite points of (N, 2), to a twentieth of a mode's standard deviation."""
    kept = points[points.isfinite().all(1)][:SHOWN].tolist()
    return [[round(x, 3), round(y, 3)] for x, y in kept]


def by_timesteps(study: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Return T -> its cells, ascending."""
    every = sorted({cell["timesteps"] for cell in study["cells"]})
    return {t: [cell for cell in study["cells"] if cell["timesteps"] == t] for t in every}


def shown(cells: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0) -> str:
    """Write the mean of a measure over seeds with its interval, a dash where a seed lacks it."""
    values = [cell["end"][name] for cell in cells]
    if None in values:
        return formatting.MISSING
    entry = study_page.pool([{"value": scale * value} for value in values])
    return formatting.metric(name, entry)


def reached(cell: Mapping[str, Any]) -> str:
    """Return the update from which on every count found all modes, a dash where the last did not."""
    step = None
    for row in reversed(cell["history"]):
        if row["modes"] < MODES:
            break
        step = row["step"]
    return f"{step:,}" if step else formatting.MISSING


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    options = study["options"]
    rows: list[dict[str, Any]] = [{"label": "the mixture itself", "cells": [study["real"]]}]
    rows += [{"label": f"DDGAN, T = {t}", "t": t, "cells": cells} for t, cells in by_timesteps(study).items()]

    def trained(column: Any) -> Any:
        return lambda row: column(row) if "t" in row else formatting.MISSING

    columns = {
        "": lambda row: row["label"],
        "NFE": trained(lambda row: str(row["t"])),
        "modes, each seed": lambda row: ", ".join(str(cell["end"]["modes"]) for cell in row["cells"]),
        "all from update": trained(lambda row: ", ".join(map(reached, row["cells"]))),
        "high quality, %": lambda row: shown(row["cells"], "high_quality", 100),
        "KL": lambda row: shown(row["cells"], "kl"),
        "training": trained(
            lambda row: formatting.seconds(sum(cell["seconds"] for cell in row["cells"]) / len(row["cells"]))
        ),
    }
    seeds = f"{options['seeds']} seeds" if options["seeds"] > 1 else "1 seed"
    schedule = (  # studies from before the choice have the image model's
        f"The variance of the noise grows geometrically from {options['beta_min']:g} to {options['beta_max']:g}, so "
        "that the first step's noise is narrower than the spacing of the modes. The image model's schedule has wider "
        "noise in every step: in many dimensions it still shows an image, in two it leaves little to denoise."
    )
    return study_page.page(
        study,
        "25 Gaussians",
        "Does the model cover every mode of a distribution whose modes can be counted, and do more denoising steps "
        "help? T = 1 is a GAN that makes points from noise.",
        f"{formatting.count(options['max_steps'])} updates of {options['batch_size']} points each; {seeds} for each T.",
        [
            "![Samples of the mixture and of each model](samples.png)",
            study_page.table(rows, columns),
            "`modes`: those with at least a quarter of their equal share of the samples of high quality. `all from "
            f"update`: from when on every count found all {MODES}. `high quality`: samples within 3 standard "
            "deviations of a mode's centre. `KL`: divergence of the modes' frequencies among these from equal ones, in "
            f"nats. {formatting.count(options['num_samples'])} samples of each training are counted; ± is the 95% "
            "interval over the seeds (Student's t).",
            "![Modes covered and share of high quality against updates; dotted: the mixture itself](progress.png)",
        ],
        [
            "The mixture: 25 equally likely Gaussians at -2, -1, 0, 1, 2 in both directions, standard deviation 0.05, "
            "all divided by the square root of 2. [Xiao et al. 2022](https://arxiv.org/abs/2112.07804) show such a "
            "toy; these numbers are usual for it, theirs are not known.",
            "Process, losses, R1 penalty, average and update are those of the image model; generator and discriminator "
            f"have three hidden layers of {options['width']} features, and see sines and cosines along random "
            "directions beside the coordinates.",
            schedule if options.get("use_geometric") else None,
        ],
        cells=[{"training": cell} for cell in study["cells"]],
    )


def draw_pictures(study: dict[str, Any], out: Path) -> None:
    """Draw samples.png and progress.png."""
    from comparison.report.plots import DPI, save
    from comparison.report.study_plots import Line, Lines, draw
    from matplotlib.figure import Figure

    found = by_timesteps(study)
    colours = {t: COLOURS[index % len(COLOURS)] for index, t in enumerate(found)}
    panels = [("the mixture", study["real"]["points"], INK)]
    for t, cells in found.items():
        first = next((cell for cell in cells if cell["points"]), cells[0])
        panels.append((f"T = {t}: {first['end']['modes']} modes", first["points"], colours[t]))
    figure = Figure(figsize=(2.9 * len(panels), 3.2), dpi=DPI, layout="constrained")
    for number, (title, points, colour) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.scatter([x for x, _ in points], [y for _, y in points], s=4, color=colour, alpha=0.5, linewidths=0)
        axes.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), aspect="equal", title=title)
        axes.set_xticks([])
        axes.set_yticks([])
    save(figure, out / "samples.png")

    progress = []
    for name, axis in (("modes", f"modes covered, of {MODES}"), ("high_quality", "share of high quality")):
        lines = [
            Line(f"T = {t}", [(row["step"], {"value": row[name]}) for row in cell["history"]], colours[t])
            for t, cells in found.items()
            for cell in cells
        ]
        progress.append(Lines("updates", axis, lines, level=study["real"]["end"][name]))
    draw(progress, out / "progress.png")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
