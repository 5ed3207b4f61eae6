"""The main job: data -> train -> sample -> evaluate -> report, the same budget and protocol for every model.

  bash results/compare.sh --data shapes --preset quick --name quick
  bash results/compare.sh --data path/to/images --preset cpu --budget seconds=2160 --name mine

Writes results/runs/<model>/<name>/ for each model and results/reports/<name>/. What is finished is reused:
call it again after an interruption and it continues where it stopped; --fresh starts over.
"""

import argparse
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from comparison import cli, jobs
from comparison.cli import UserError
from comparison.data.sources import KINDS, check_source, find_images, is_database, is_name, source_name, stored_images
from comparison.models import MODELS, Model, preset_flags, value_of, with_steps
from comparison.runs import read_config

DEFAULTS = {  # preset -> what is not given
    "quick": {
        "budget": "seconds=150",
        "num_samples": "1000",
        "sweep": "10",
        "history": "0",
        "benchmark_seconds": "0.3",
    },
    "cpu": {"budget": "seconds=2160", "num_samples": "2000", "sweep": "10", "history": "3", "benchmark_seconds": "2"},
    "gpu": {"budget": "images=2500000", "num_samples": "50000", "sweep": "10,25,100,250", "history": "4"},
    "paper": {"budget": "recipe", "num_samples": "50000", "sweep": "10,25,100,250", "history": "0"},
}
MIN_SAMPLES, MIN_IMAGES = 64, 16
LARGEST_BATCH = 128  # of the presets that are meant for small machines
SIZES = ("16", "32", "64", "128", "256")


class Parser(cli.Parser):
    """Reports an option without a value, and an unknown one, in one short sentence."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): expected one argument$", r"\1: a value is missing", message)
        message = re.sub(r"^unrecognized arguments: (\S+).*", r"\1: no such option; see --help", message)
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; values that depend on each other are validated by `Plan.of`."""
    parser = Parser(description=(__doc__ or "").strip(), allow_abbrev=False, formatter_class=cli.Formatter)
    add = parser.add_argument
    add("--data", default="shapes", metavar="D", help=KINDS)
    add("--preset", default="quick", metavar="P", help=f"{listed(DEFAULTS)}: sizes and settings, see flags.sh")
    add(
        "--budget",
        metavar="B",
        help="training budget of each model: seconds=N of wall time, images=N, or recipe (each model's own length, "
        "unequal; preset paper); for each model another: gans:images=N,improved-diffusion:...; by default "
        + ", ".join(f"{name} {values['budget']}" for name, values in DEFAULTS.items()),
    )
    add("--models", default=",".join(MODELS), metavar="M,M", help="models to compare")
    add("--name", metavar="NAME", help="name of the runs and the report; <data>-<preset> unless given")
    add("--num_samples", metavar="N", help="images sampled and scored for each model; quick 1000, cpu 2000, else 50000")
    add("--image_size", default="32", metavar="S", help="pixels, all models")
    add("--seed", default="0", metavar="N", help="seed of training and sampling")
    add(
        "--sweep",
        metavar="N,N",
        help="numbers of steps at which the diffusion model is sampled besides its default, '' for none; quick and cpu "
        "10, else 10,25,100,250",
    )
    add(
        "--history",
        metavar="K",
        help="pause training K times at equal distances and sample, 0 for none; cpu 3, gpu 4, else 0",
    )
    add("--benchmark", default="true", metavar="B", help="true measures speed and memory of every sampler")
    add("--benchmark_seconds", metavar="S", help="time spent on each batch size; quick 0.3, else 2")
    add(
        "--compile",
        default="false",
        metavar="B",
        help="true compiles the denoising models' networks in training (torch.compile): minutes of waiting, for GPUs",
    )
    add(
        "--features", default="auto", metavar="F", help="features of the scores: auto, cifar or random, see evaluate.py"
    )
    add("--inception_weights", metavar="FILE", help="also score with the standard network, see evaluate.py")
    add("--data_note", default="", metavar="TEXT", help="a sentence on the data for the report")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps")
    add("--fresh", action="store_true", help="train and sample again from the start")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Validate everything, then train, sample, score and report."""
    plan = Plan.of(args)
    for model, (bound, limit) in zip(plan.models, plan.limits, strict=True):
        train_in_parts(plan, model, bound, limit)
        folder = plan.run_folder(model)
        announce(f"{model.name}: sample")
        sample(plan, model, folder, ["--interpolation"])
        benchmark(plan, model, folder)
        for steps in plan.sweep if model.any_steps else ():
            setting, words = with_steps(plan.flags(model.sample_flags), steps)
            announce(f"{model.name}: sample in {steps} steps")
            sample(plan, model, folder / "settings" / setting, words)
            benchmark(plan, model, folder / "settings" / setting, words)
    folders = [plan.run_folder(model) for model in plan.models]
    anchors = cli.repo_root() / "results" / "reports" / plan.name / "anchors.json"
    announce("evaluate")
    words = [
        "--image_size",
        args.image_size,
        "--num_images",
        args.num_samples,
        "--features",
        args.features,
        *plan.common,
    ]
    if args.inception_weights:
        words += ["--inception_weights", os.path.abspath(args.inception_weights)]
    jobs.evaluate(folders, plan.data, anchors, words)
    announce("report")
    words = ["--name", plan.name, "--anchors", jobs.relative(anchors), "--budget", args.budget]
    jobs.run(["results/report.py", *words, f"--data_note={args.data_note}", *map(jobs.relative, folders)])


def announce(stage: str) -> None:
    """Print a heading with the time."""
    print(f"\n== {stage} ({time.strftime('%H:%M:%S')})", flush=True)


@dataclass(frozen=True)
class Plan:
    """What the options mean.

    Attributes:
        args: the options, defaults of the preset filled in.
        models: in the order in which they are trained.
        limits: of each model's training: (`seconds` or `images`, number), or ("", 0) for its own recipe.
        sweep: further numbers of sampling steps.
        data: as the scripts take it, from the repository's root.
        name: of the runs and the report.
        batch: flags for images that are fewer than a batch.
        preset: variables of flags.sh.
    """

    args: argparse.Namespace
    models: list[Model]
    limits: list[tuple[str, int]]
    sweep: list[int]
    data: str
    name: str
    batch: list[str]
    preset: dict[str, list[str]]

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Plan":
        """Validate the options.

        Raises:
            UserError: one sentence on the first option that is wrong.
        """
        one_of("--preset", args.preset, DEFAULTS)
        for name, value in {"benchmark_seconds": "2", **DEFAULTS[args.preset]}.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        if not re.fullmatch(r"\d*\.?\d+", args.benchmark_seconds) or not float(args.benchmark_seconds):
            raise UserError(f"--benchmark_seconds {args.benchmark_seconds}: must be a number above 0")
        for name in ("num_samples", "image_size", "seed", "history"):
            whole(f"--{name}", getattr(args, name))
        if int(args.history) >= 100:
            raise UserError(f"--history {args.history}: must be below 100")
        if int(args.num_samples) < MIN_SAMPLES:
            raise UserError(f"--num_samples {args.num_samples}: at least {MIN_SAMPLES} are needed for a score")
        sweep = steps_of(args.sweep)
        one_of("--benchmark", args.benchmark, ("true", "false"))
        one_of("--compile", args.compile, ("true", "false"))
        one_of("--features", args.features, ("auto", "cifar", "random"))
        if args.inception_weights and not Path(args.inception_weights).is_file():
            raise UserError(f"--inception_weights {args.inception_weights}: no such file")
        one_of("--image_size", args.image_size, SIZES)
        models = models_of(args.models)
        limits = [limit_of(args.budget, model.name, args.preset) for model in models]
        for _, limit in limits if int(args.history) else ():
            if not limit:
                raise UserError(
                    f"--history {args.history}: --budget recipe cannot be divided; use seconds=N or images=N"
                )
            if limit <= int(args.history):
                parts = int(args.history) + 1
                raise UserError(f"--history {args.history}: --budget {args.budget} is too small for {parts} parts")
        check_source(args.data, "--data")
        batch = batch_of(args.data)
        made = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{source_name(args.data)}-{args.preset}").lstrip("-.")
        name = args.name or made
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"--name {name}: letters, digits, '.', '_' and '-' only")
        preset = preset_flags(args.preset)
        for steps in sweep:
            check_steps(steps, args.preset, preset)
        data = args.data if is_name(args.data) else jobs.relative(args.data)
        return cls(args, models, limits, sweep, data, name, batch, preset)

    @property
    def common(self) -> list[str]:
        """Flags of every script."""
        return ["--seed", self.args.seed, "--device", self.args.device]

    def flags(self, names: tuple[str, ...]) -> list[str]:
        """Return the words of variables of flags.sh."""
        return [word for name in names for word in self.preset[name]]

    def run_folder(self, model: Model) -> Path:
        """Return where a model's run lies."""
        return cli.default_run_folder(model.name, self.name)


def listed(names: Iterable[str]) -> str:
    """Write names as `a, b or c`."""
    return re.sub(", ([^,]+)$", r" or \1", ", ".join(names))


def one_of(flag: str, value: str, names: Iterable[str]) -> None:
    """Refuse a value that is not among the accepted ones."""
    if value not in names:
        raise UserError(f"{flag} {value}: must be {listed(names)}")


def whole(flag: str, value: str) -> int:
    """Read a whole number of 0 or more."""
    if not re.fullmatch(r"[0-9]+", value):
        raise UserError(f"{flag} {value}: must be a whole number")
    return int(value)


def steps_of(text: str) -> list[int]:
    """Read --sweep."""
    if not re.fullmatch(r"([1-9][0-9]*(,[1-9][0-9]*)*)?", text):
        raise UserError(f"--sweep {text}: must be numbers of steps like 10,50, or ''")
    steps = [int(part) for part in text.split(",") if part]
    if len(set(steps)) < len(steps):
        raise UserError(f"--sweep {text}: name each number once")
    return steps


def check_steps(steps: int, preset: str, flags: dict[str, list[str]]) -> None:
    """Refuse a number of sampling steps that the preset cannot take or takes by default."""
    most = value_of(flags["DIFFUSION_FLAGS"], "--diffusion_steps")
    if most and steps > int(most):
        raise UserError(f"--sweep {steps}: the {preset} preset has {most} steps")
    default = (value_of(flags["SAMPLE_FLAGS"], f) for f in ("--timestep_respacing", "--num_sampling_steps"))
    if {str(steps), f"ddim{steps}"} & set(default):
        raise UserError(f"--sweep {steps}: what the {preset} preset draws anyway")


def models_of(text: str) -> list[Model]:
    """Read --models."""
    names = [name for name in text.split(",") if name]
    if not names:
        raise UserError("--models: name at least one model")
    if len(set(names)) < len(names):
        raise UserError(f"--models {text}: name each model once")
    for name in names:
        if name not in MODELS:
            raise UserError(f"--models {name}: must be among {','.join(MODELS)}")
    return [MODELS[name] for name in names]


def limit_of(budget: str, model: str, preset: str) -> tuple[str, int]:
    """Read what --budget says of a model: (`seconds` or `images`, number), ("", 0) for its recipe."""
    own = budget
    if ":" in budget:
        mine = [part.partition(":")[2] for part in budget.split(",") if part.partition(":")[0] == model]
        if not mine:
            raise UserError(f"--budget {budget}: names no bound for {model}")
        if len(mine) > 1:
            raise UserError(f"--budget {budget}: names {model} twice")
        own = mine[0]
    if own == "recipe":
        if preset != "paper":
            raise UserError("--budget recipe: only the paper preset says how long each model trains")
        return "", 0
    unit, _, number = own.partition("=")
    if unit not in ("seconds", "images"):
        every = "seconds=N, images=N or recipe, or one such for each model as gans:images=N,..."
        raise UserError(f"--budget {budget}: must be {every}")
    if not whole("--budget", number):
        raise UserError(f"--budget {budget}: must be above 0")
    return unit, int(number)


def batch_of(data: str) -> list[str]:
    """Return --batch_size for a folder with fewer images than a batch, the largest power of two that it holds."""
    place = stored_images(data)
    if place is None or not place.path.is_dir() or is_database(place.path):
        return []
    count = sum(1 for _ in find_images(place.path))
    if count < MIN_IMAGES:
        raise UserError(f"--data {data}: {count} images; at least {MIN_IMAGES} are needed")
    return ["--batch_size", str(2 ** (count.bit_length() - 1))] if count < LARGEST_BATCH else []


def train_in_parts(plan: Plan, model: Model, unit: str, limit: int) -> None:
    """Train a model, with pauses for samples of --history."""
    args, folder, parts = plan.args, plan.run_folder(model), int(plan.args.history) + 1
    words = [*plan.flags(model.train_flags), "--image_size", args.image_size, *model.fixed, *plan.common, *plan.batch]
    words += model.compile if args.compile == "true" else ()
    if unit:
        words += ["--max_steps", "0", f"--max_{unit}", str(limit)]  # a preset's own length gives way
    fresh = args.fresh
    for part in range(1, parts):
        until, percent = limit * part // parts, (200 * part + parts) // (2 * parts)
        announce(f"{model.name}: train, {unit} {until} of {limit}")
        jobs.train(model, folder, plan.data, [*words, "--stop_after", str(until)], fresh=fresh)
        fresh = False
        # a later call finds the run, and its newest checkpoint, past this part
        if read_config(folder / "config.json")["finished"]["reason"] == f"max_{unit} {until}":
            announce(f"{model.name}: sample at {percent}%")
            sample(plan, model, folder / "history" / str(percent))
        elif not (folder / "history" / str(percent) / "sampling.json").is_file():
            print(f"{folder}: trained past {percent}% before; no samples of that stage", flush=True)
    announce(f"{model.name}: train, {f'{unit} {limit}' if unit else 'its recipe'}")
    jobs.train(model, folder, plan.data, words, fresh=fresh)


def sample(plan: Plan, model: Model, folder: Path, words: Sequence[str] = (), *, benchmark: bool = False) -> None:
    """Sample a model's newest checkpoint into a folder, or time that."""
    flags = [*plan.flags(model.sample_flags), "--num_samples", plan.args.num_samples, *plan.common, *words]
    jobs.sample(model, plan.run_folder(model), folder, flags, benchmark=benchmark)


def benchmark(plan: Plan, model: Model, folder: Path, words: Sequence[str] = ()) -> None:
    """Measure a sampler's speed and memory, unless --benchmark is false."""
    if plan.args.benchmark == "true":
        announce(f"{model.name}: benchmark" + (f", {folder.name}" if words else ""))
        sample(plan, model, folder, [*words, "--benchmark_seconds", plan.args.benchmark_seconds], benchmark=True)


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
