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
from pathlib import Path
from typing import Any

from comparison import cli
from comparison.files import read_json, write_json
from comparison.report import study_page
from comparison.runs import git_commit, versions
from comparison.studies import SCHEMA
from ddgan.options import below_one
from ddgan.toy_page import STUDY, draw_pictures, page

SETTINGS = (
    *("max_steps", "batch_size", "lr_g", "lr_d", "r1_gamma", "lazy_reg", "ema_decay", "width", "nz", "eval_every"),
    *("beta_min", "beta_max", "use_geometric"),
)
LEAST_SAMPLES = 1000
SHOWN = 1500  # points of a panel


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
    study = {"schema": SCHEMA, "study": STUDY, "options": options, "real": real_points(args), "cells": cells}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "study.json", study)
    study_page.rewrite(out, STUDY, page, draw_pictures)


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


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
