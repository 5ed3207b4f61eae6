"""Train, sample, score and report all models under the same budget and protocol.

  bash results/compare.sh --data shapes --preset quick --name quick
  bash results/compare.sh --data path/to/images --preset cpu --budget seconds=2160 --name mine

Writes results/runs/<model>/<name>/ for each model and results/reports/<name>/. Finished work is reused: repeat the
command after an interruption to resume. --fresh starts over.
"""

import argparse
import copy
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from comparison import cli, jobs
from comparison.cli import UserError
from comparison.data.sources import (
    DATA_HELP,
    check_source,
    find_images,
    is_database,
    is_name,
    source_name,
    stored_images,
)
from comparison.models import GAN, GANS, MODELS, Model, newest_checkpoint, preset_flags, value_of, with_steps
from comparison.runs import read_config

DEFAULTS = {  # preset -> values of the options that are not given
    "quick": {"budget": "seconds=150", "num_samples": 1000, "sweep": [10], "history": 0, "benchmark_seconds": 0.3},
    "cpu": {"budget": "seconds=2160", "num_samples": 2000, "sweep": [10], "history": 3, "few_step": "true"},
    "gpu": {
        **{"budget": "images=2500000", "num_samples": 50000, "sweep": [10, 25, 100, 250], "history": 4},
        "few_step": "true",
    },
    "paper": {"budget": "recipe", "num_samples": 50000, "sweep": [10, 25, 100, 250], "history": 0},
}
MIN_SAMPLES, MIN_IMAGES = 64, 16
LARGEST_BATCH = 128  # of the presets for small machines
FEW_STEP_SHARE = 5  # --few_step: one part in so many of a model's budget tunes it to few evaluations
FEW_STEPS = (1, 2, 4)  # evaluations that it is tuned for
SOLVERS = ("dpmpp", "unipc")  # what it is compared with: samplers of the network before tuning, at 2 and 4 steps


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `Plan` validates the values that depend on each other."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--data", default="shapes", metavar="D", help=DATA_HELP)
    add("--preset", default="quick", choices=DEFAULTS, help="networks and settings, see flags.sh")
    budgets = ", ".join(f"{name} {values['budget']}" for name, values in DEFAULTS.items())
    add(
        "--budget",
        metavar="B",
        help="training budget of each model: seconds=N of wall-clock time, images=N, or recipe (each model's own "
        f"length, unequal; preset paper); MODEL:images=N,MODEL:... for unequal budgets; by default {budgets}",
    )
    add("--models", type=read_models, default=",".join(MODELS), metavar="M,M", help="models to compare")
    gans = [name for name, (_, variable) in GANS.items() if variable]
    add("--gan", choices=gans, help="preset of the GAN; unless given the one of GAN_FLAGS in flags.sh")
    add("--name", type=cli.run_name, metavar="NAME", help="name of runs and report; <data>-<preset> unless given")
    samples = "samples generated and scored per model; quick 1000, cpu 2000, else 50000"
    add("--num_samples", type=cli.non_negative_int, metavar="N", help=samples)
    add("--image_size", type=int, default=32, choices=(16, 32, 64, 128, 256), help="pixels, all models")
    add("--seed", type=cli.non_negative_int, default=0, metavar="N", help="seed of training and sampling")
    seeds = "trainings of each model, by this seed and the next ones; the report states the range of their scores"
    add("--seeds", type=cli.positive_int, default=1, metavar="K", help=seeds)
    sweep = "more numbers of steps to sample the diffusion model in, '' for none; quick and cpu 10, else 10,25,100,250"
    add("--sweep", type=read_steps, metavar="N,N", help=sweep)
    history = "sample K earlier checkpoints of each training, equally spaced; 0 for none; cpu 3, gpu 4, else 0"
    add("--history", type=cli.non_negative_int, metavar="K", help=history)
    few_step = "spend a fifth of the diffusion model's budget on tuning it to 1, 2 and 4 evaluations; cpu, gpu: true"
    add("--few_step", choices=["true", "false"], help=few_step)
    add("--benchmark", default="true", choices=["true", "false"], help="measure speed and memory of every sampler")
    seconds = "seconds spent on each batch size; quick 0.3, else 2"
    add("--benchmark_seconds", type=cli.positive_float, metavar="S", help=seconds)
    compiled = "compile the denoising models' networks for training (torch.compile); slow to start, for GPUs"
    add("--compile", default="false", choices=["true", "false"], help=compiled)
    add("--features", default="auto", choices=["auto", "cifar", "random"], help="feature extractor, see evaluate.py")
    add("--inception_weights", metavar="FILE", help="also score with the standard network, see evaluate.py")
    add("--data_note", default="", metavar="TEXT", help="a sentence on the data for the report")
    add("--device", type=cli.device_name, default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps")
    add("--fresh", action="store_true", help="train and sample again from the start")
    args = parser.parse_args(argv)
    for name, value in {"benchmark_seconds": 2, "few_step": "false", **DEFAULTS[args.preset]}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def read_models(text: str) -> list[Model]:
    """Read --models, an argparse type."""
    names = text.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(MODELS)}, not {unknown[0]!r}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must name each model once, not {text}")
    return [MODELS[name] for name in names]


def read_steps(text: str) -> list[int]:
    """Read --sweep, an argparse type."""
    steps = text.split(",") if text else []
    if len(set(steps)) < len(steps) or not all(re.fullmatch("[1-9][0-9]*", part) for part in steps):
        raise argparse.ArgumentTypeError(f"must be different numbers of steps like 10,50, or '', not {text!r}")
    return [int(part) for part in steps]


def main(args: argparse.Namespace) -> None:
    """Validate everything, then train, sample, score and report."""
    plans = Plan(args).of_each_seed()
    for plan in plans:
        for model, (unit, limit) in zip(args.models, plan.limits, strict=True):
            make_run(plan, model, unit, limit)
    plan = plans[0]
    folders = [each.run_folder(model) for model in args.models for each in plans]
    anchors = cli.repo_root() / "results" / "reports" / plan.name / "anchors.json"
    announce("evaluate")
    flags = ["--image_size", str(args.image_size), "--num_images", str(args.num_samples)]
    flags += ["--features", args.features, *plan.common]
    if args.inception_weights:
        flags += ["--inception_weights", os.path.abspath(args.inception_weights)]
    jobs.evaluate(folders, plan.data, anchors, flags)
    announce("report")
    flags = ["--name", plan.name, "--anchors", jobs.relative(anchors), "--budget", args.budget]
    jobs.run(["results/report.py", *flags, f"--data_note={args.data_note}", *map(jobs.relative, folders)])


def make_run(plan: "Plan", model: Model, unit: str, limit: int) -> None:
    """Train a model, and sample it in all ways."""
    args, folder = plan.args, plan.run_folder(model)
    tuning = limit // FEW_STEP_SHARE if args.few_step == "true" and model.distill else 0
    train_in_parts(plan, model, unit, limit - tuning)
    announce(f"{model.name}: sample")
    sample(plan, model, folder, ["--interpolation"])
    benchmark(plan, model, folder)
    for steps in args.sweep if model.any_steps else ():
        setting, flags = with_steps(plan.flags(model.sample_flags), steps)
        announce(f"{model.name}: sample in {steps} steps")
        sample(plan, model, folder / "settings" / setting, flags)
        benchmark(plan, model, folder / "settings" / setting, flags)
    if tuning:
        tune_to_few_steps(plan, model, unit, tuning)


def announce(stage: str) -> None:
    """Print a heading with the time."""
    print(f"\n== {stage} ({time.strftime('%H:%M:%S')})", flush=True)


class Plan:
    """The validated options and what follows from them.

    Attributes:
        limits: training budget of each model, (`seconds` or `images`, number); ("", 0) for the model's own recipe.
        data: data source; a path is relative to the repository's root.
        name: name of runs and report.
        suffix: end of the runs' name, "" for the first seed.
        batch: flags for fewer images than a batch.
        preset: variables of flags.sh.
        common: flags of every script.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """Validate the options; raise UserError on the first that is wrong."""
        self.args = args
        if args.history >= 100:
            raise UserError(f"--history {args.history}: must be below 100")
        if args.num_samples < MIN_SAMPLES:
            raise UserError(f"--num_samples {args.num_samples}: a score needs at least {MIN_SAMPLES}")
        if args.inception_weights and not Path(args.inception_weights).is_file():
            raise UserError(f"--inception_weights {args.inception_weights}: no such file")
        self.limits = [limit_of(args.budget, model.name, args.preset) for model in args.models]
        for model, (_, limit) in zip(args.models, self.limits, strict=True):
            few = FEW_STEP_SHARE if args.few_step == "true" and model.distill else 0
            for option, parts in (("history", args.history), ("few_step", few)):
                given = f"--{option} {getattr(args, option)}"
                if parts and not limit:
                    raise UserError(f"{given}: needs --budget seconds=N or images=N, not recipe")
                if parts and limit <= parts:
                    raise UserError(f"{given}: --budget {args.budget} is too small for as many parts")
        check_source(args.data, "--data")
        self.batch = batch_of(args.data)
        self.name = args.name or re.sub(r"[^A-Za-z0-9._-]+", "-", f"{source_name(args.data)}-{args.preset}").lstrip(
            "-."
        )
        self.preset = preset_flags(args.preset)
        if args.gan:
            self.preset["GAN_FLAGS"] = self.preset[GANS[args.gan][1]]
            if not self.preset["GAN_FLAGS"]:
                raise UserError(f"--gan {args.gan}: the preset {args.preset} has no {GANS[args.gan][1]}, see flags.sh")
            if GAN not in [model.name for model in args.models]:
                raise UserError(f"--gan {args.gan}: {GAN} is not among --models")
        for steps in args.sweep:
            check_steps(steps, args.preset, self.preset)
        self.data = args.data if is_name(args.data) else jobs.relative(args.data)
        self.suffix = ""
        self.common = ["--seed", str(args.seed), "--device", args.device]

    def of_each_seed(self) -> list["Plan"]:
        """Return this plan and those of the further seeds, whose runs end in -s1, -s2, ..."""
        plans = [copy.copy(self) for _ in range(self.args.seeds)]
        for number, plan in enumerate(plans[1:], start=1):
            plan.suffix = f"-s{number}"
            plan.common = ["--seed", str(self.args.seed + number), "--device", self.args.device]
        return plans

    def flags(self, names: tuple[str, ...]) -> list[str]:
        """Return the words of variables of flags.sh."""
        return [word for name in names for word in self.preset[name]]

    def run_folder(self, model: Model) -> Path:
        """Return a model's run folder."""
        return cli.default_run_folder(model.name, self.name + self.suffix)


def check_steps(steps: int, preset: str, flags: dict[str, list[str]]) -> None:
    """Raise UserError for a number of sampling steps that the preset does not support, or has as its default."""
    most = value_of(flags["DIFFUSION_FLAGS"], "--diffusion_steps")
    if most and steps > int(most):
        raise UserError(f"--sweep {steps}: the {preset} preset has {most} steps")
    default = (value_of(flags["SAMPLE_FLAGS"], f) for f in ("--timestep_respacing", "--num_sampling_steps"))
    if {str(steps), f"ddim{steps}"} & set(default):
        raise UserError(f"--sweep {steps}: the default of the {preset} preset, which is sampled anyway")


def limit_of(budget: str, model: str, preset: str) -> tuple[str, int]:
    """Return a model's part of --budget: (`seconds` or `images`, number), ("", 0) for its recipe."""
    parts = [part.partition(":")[2] for part in budget.split(",") if part.partition(":")[0] == model]
    if ":" not in budget:
        parts = [budget]
    if len(parts) != 1:
        raise UserError(f"--budget {budget}: must name {model} once")
    if parts == ["recipe"]:
        if preset != "paper":
            raise UserError("--budget recipe: only the preset paper defines how long each model trains")
        return "", 0
    if not (match := re.fullmatch("(seconds|images)=([0-9]+)", parts[0])):
        raise UserError(f"--budget {budget}: must be seconds=N, images=N, recipe or MODEL:images=N,MODEL:...")
    if not int(match[2]):
        raise UserError(f"--budget {budget}: must be above 0")
    return match[1], int(match[2])


def batch_of(data: str) -> list[str]:
    """Return --batch_size for a folder with fewer images than a batch: the largest power of two that fits."""
    source = stored_images(data)
    if source is None or not source.path.is_dir() or is_database(source.path):
        return []
    count = sum(1 for _ in find_images(source.path))
    if count < MIN_IMAGES:
        raise UserError(f"--data {data}: {count} images; at least {MIN_IMAGES} are needed")
    return ["--batch_size", str(2 ** (count.bit_length() - 1))] if count < LARGEST_BATCH else []


def train_in_parts(plan: Plan, model: Model, unit: str, limit: int) -> None:
    """Train a model; pause to sample the checkpoints of --history."""
    args, folder, parts = plan.args, plan.run_folder(model), plan.args.history + 1
    flags = [*plan.flags(model.train_flags), "--image_size", str(args.image_size), *model.fixed, *plan.common]
    flags += [*plan.batch, *(model.compile if args.compile == "true" else ())]
    if unit:
        flags += ["--max_steps", "0", f"--max_{unit}", str(limit)]  # replaces the preset's own length
    fresh = args.fresh
    for part in range(1, parts):
        until, percent = limit * part // parts, (200 * part + parts) // (2 * parts)
        announce(f"{model.name}: train, {unit} {until} of {limit}")
        jobs.train(model, folder, plan.data, [*flags, "--stop_after", str(until)], fresh=fresh)
        fresh = False
        # a later call finds the run, and its newest checkpoint, past this part
        if read_config(folder / "config.json")["finished"]["reason"] == f"max_{unit} {until}":
            announce(f"{model.name}: sample at {percent}%")
            sample(plan, model, folder / "history" / str(percent))
        elif not (folder / "history" / str(percent) / "sampling.json").is_file():
            print(f"{folder}: already trained past {percent}%, which was not sampled", flush=True)
    announce(f"{model.name}: train, {f'{unit} {limit}' if unit else 'its recipe'}")
    jobs.train(model, folder, plan.data, flags, fresh=fresh)


def tune_to_few_steps(plan: Plan, model: Model, unit: str, limit: int) -> None:
    """Tune a trained network to few evaluations; sample it, and the network before by the solvers of SOLVERS."""
    run, args = plan.run_folder(model), plan.args
    tuned = run / "few-step"
    announce(f"{model.name}: tune to few evaluations, {unit} {limit}")
    own = plan.flags(model.distill_flags)
    flags = ["--model_path", jobs.relative(newest_checkpoint(model, run)), *own, *plan.common]
    if plan.batch and int(plan.batch[1]) < int(value_of(own, "--batch_size")):
        flags += plan.batch
    flags += [*(model.compile if args.compile == "true" else ()), "--max_steps", "0", f"--max_{unit}", str(limit)]
    jobs.train(replace(model, train=model.distill), tuned, plan.data, flags, fresh=args.fresh)
    cells = {f"few-step-{steps}": (tuned, "few-step", steps) for steps in FEW_STEPS}
    cells |= {f"{solver}{steps}": (run, solver, steps) for solver in SOLVERS for steps in FEW_STEPS if steps > 1}
    for setting, (trained, sampler, steps) in cells.items():
        folder, flags = run / "settings" / setting, ["--sampler", sampler, "--num_sampling_steps", str(steps)]
        announce(f"{model.name}: sample, {setting}")
        sample(plan, model, folder, flags, trained=trained)
        benchmark(plan, model, folder, flags, trained=trained)


def sample(
    plan: Plan,
    model: Model,
    folder: Path,
    extra: Sequence[str] = (),
    *,
    benchmark: bool = False,
    trained: Path | None = None,
) -> None:
    """Sample a model's newest checkpoint into a folder, or measure its speed.

    Args:
        plan: the plan.
        model: row of the table.
        folder: folder of the samples.
        extra: further flags.
        benchmark: True to measure the speed instead.
        trained: run folder of another network than the model's own, without the preset's sampler.
    """
    own = plan.flags(model.sample_flags)
    if trained:
        own = ["--batch_size", value_of(own, "--batch_size")]
    flags = [*own, "--num_samples", str(plan.args.num_samples), *plan.common, *extra]
    jobs.sample(model, trained or plan.run_folder(model), folder, flags, benchmark=benchmark)


def benchmark(
    plan: Plan, model: Model, folder: Path, extra: Sequence[str] = (), *, trained: Path | None = None
) -> None:
    """Measure a sampler's speed and memory, unless --benchmark is false; see `sample`."""
    if plan.args.benchmark == "true":
        announce(f"{model.name}: benchmark" + (f", {folder.name}" if extra else ""))
        flags = [*extra, "--benchmark_seconds", f"{plan.args.benchmark_seconds:g}"]
        sample(plan, model, folder, flags, benchmark=True, trained=trained)


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
