"""Trainings of toy_gaussians.py: one for each T and seed, and the numbers of study.json."""

import time
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from comparison.device import describe_device, pick_device, set_threads
from comparison.files import read_json, write_json
from comparison.runs import git_commit, versions
from torch import Tensor

from ddgan import toy

MAX_POINTS = 1500  # points of a panel
SETTINGS = tuple(field.name for field in fields(toy.ToySettings))


def run_study(args: Namespace, runs: Path) -> dict[str, Any]:
    """Train and measure every model that is not in `runs` yet, and return the content of study.json."""
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
    real = toy.draw_data(args.num_samples, args.seed, "real").flatten(1)
    return {
        "options": {name: getattr(args, name) for name in (*SETTINGS, "seed", "seeds", "num_samples")},
        "real": {"end": toy.measure(real), "points": _round_points(real)},
        "cells": cells,
    }


def run_cell(timesteps: int, seed: int, args: Namespace, runs: Path) -> dict[str, Any]:
    """Train and measure one model, or return its saved numbers; the first seed also keeps points for the figure."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    asked = {"timesteps": timesteps, "seed": seed, "num_samples": args.num_samples, "settings": settings}
    path = runs / f"T{timesteps}-s{seed}.json"
    if not args.fresh and path.is_file() and (saved := read_json(path)).get("asked") == asked:
        return saved["cell"]
    device = pick_device(args.device)
    set_threads(args.threads)
    start = time.perf_counter()
    generator, process, history = toy.train(timesteps, seed, toy.ToySettings(**settings), device)
    seconds = time.perf_counter() - start
    points = toy.sample_points(generator, process, args.num_samples, seed)
    cell = {"timesteps": timesteps, "seed": seed, "end": toy.measure(points), "history": history, "seconds": seconds}
    cell |= {"device": describe_device(device), "versions": versions(), "git_commit": git_commit()}
    cell |= {"parameters": sum(p.numel() for p in generator.parameters())}
    cell |= {"points": _round_points(points) if seed == args.seed else []}
    runs.mkdir(parents=True, exist_ok=True)
    write_json(path, {"asked": asked, "cell": cell})
    return cell


def _round_points(points: Tensor) -> list[list[float]]:
    """Return the first finite points of (N, 2), rounded to 0.001."""
    kept = points[points.isfinite().all(1)][:MAX_POINTS].tolist()
    return [[round(x, 3), round(y, 3)] for x, y in kept]
