"""What the studies of the limits share: training and drawing by the models' own scripts, cell by cell, and plans.

A cell is one training of one model, or one sample set of it. The models are known by their commands and files only.
What a cell has finished is recorded beside its output and not done again. Standard library only.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from comparison import cli, formatting
from comparison.checkpoints import newest
from comparison.cli import UserError
from comparison.data.sources import KINDS, check_source, is_name
from comparison.files import read_json, write_json
from comparison.runs import read_config

SCHEMA = 1
MODELS = ("gans", "improved-diffusion", "denoising-diffusion-gan")
SUPER_RESOLUTION = "improved-diffusion-sr"  # enlarges the samples of another network
TRAIN = {
    "gans": "gans/cifar_gan.py",
    "improved-diffusion": "improved-diffusion/scripts/image_train.py",
    "denoising-diffusion-gan": "denoising-diffusion-gan/train_ddgan.py",
    SUPER_RESOLUTION: "improved-diffusion/scripts/super_res_train.py",
}
DRAW = {
    "gans": "gans/sample_gan.py",
    "improved-diffusion": "improved-diffusion/scripts/image_sample.py",
    "denoising-diffusion-gan": "denoising-diffusion-gan/test_ddgan.py",
    SUPER_RESOLUTION: "improved-diffusion/scripts/super_res_sample.py",
}
CHECKPOINTS = {"gans": "checkpoint_*.pt", "improved-diffusion": "ema_*.pt", "denoising-diffusion-gan": "netG_*.pth"}
FLAGS = {  # variables of flags.sh: of training, of sampling
    "gans": (("GAN_FLAGS",), ()),
    "improved-diffusion": (("MODEL_FLAGS", "DIFFUSION_FLAGS", "TRAIN_FLAGS"), ("SAMPLE_FLAGS",)),
    "denoising-diffusion-gan": (("DDGAN_FLAGS", "DDGAN_TRAIN_FLAGS"), ("DDGAN_SAMPLE_FLAGS",)),
}
# For plans only, the `quick` set on two CPU cores: until a process works, and an image of 32 pixels per evaluation.
START_SECONDS = 5.0
EVALUATION_SECONDS = {"gans": 7e-5, "improved-diffusion": 1.6e-3, "denoising-diffusion-gan": 1.2e-3}
DEFAULT_EVALUATIONS = {"gans": 1, "improved-diffusion": 20, "denoising-diffusion-gan": 4}
LEAST_SAMPLES = 64
SHARES = ("precision", "recall", "coverage", "memorised", "modes_matched")  # metrics that lie in [0, 1]
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5% quantile at 1 to 9 degrees

Entry = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, seconds: float | None, num_samples: int | None) -> None:
    """Add what every study takes; None leaves out what a study has no use for.

    Args:
        parser: of the script.
        seconds: default of --seconds.
        num_samples: default of --num_samples.
    """
    add = parser.add_argument
    add("--data", default="shapes", help=KINDS)
    if seconds is not None:
        add("--seconds", type=cli.positive_float, default=seconds, metavar="S", help="of training, each cell")
        add("--seeds", type=cli.positive_int, default=1, metavar="K", help="trainings of each cell, seeds 0 to K - 1")
    if num_samples is not None:
        add("--num_samples", type=cli.positive_int, default=num_samples, metavar="N", help="images drawn and scored")
    add("--cells", metavar="NAME,NAME", help="only these, of those that --plan lists")
    add("--preset", default="quick", choices=["quick", "cpu", "gpu"], help="networks and settings, see flags.sh")
    add("--out", type=cli.local_path, metavar="DIR", help="small results; results/studies/<study> unless given")
    add("--runs_dir", type=cli.local_path, metavar="DIR", help="working runs; results/runs unless given, not in git")
    add("--plan", action="store_true", help="list the cells and their minutes, and run nothing")
    add("--page", action="store_true", help="write README.md and the pictures anew from study.json, and run nothing")
    add("--fresh", action="store_true", help="start over, deleting what the cells' run folders hold")
    cli.add_device_options(parser)


@dataclass(frozen=True)
class Job:
    """One piece of the plan: a name that --cells takes, what it is in words, and about how long it takes."""

    name: str
    what: str
    seconds: float


def plan_table(jobs: Sequence[Job], rest: float = 0.0) -> str:
    """Lay out a plan and its minutes; `rest` are seconds that belong to no cell."""
    rows = [[job.name, job.what, f"{job.seconds / 60:.1f}"] for job in jobs]
    total = sum(job.seconds for job in jobs) + rest
    table = formatting.console_table(["cell", "what", "minutes"], rows)
    return f"{table}\n\n{len(jobs)} cells, about {total / 60:.0f} minutes on two CPU cores"


def drawing_seconds(model: str, images: int, evaluations: float, image_size: int = 32) -> float:
    """Estimate for a plan how long a sample set takes."""
    return START_SECONDS + images * evaluations * EVALUATION_SECONDS[model] * (image_size / 32) ** 2


def choose(names: str | None, known: Sequence[str]) -> list[str]:
    """Return the cells that --cells asks for in the order of the plan, all for None.

    Raises:
        UserError: a name is unknown.
    """
    wanted = list(known) if names is None else names.split(",")
    for name in wanted:
        if name not in known:
            raise UserError(f"--cells {name}: must be among {', '.join(known)}")
    return [name for name in known if name in wanted]


def preset_flags(preset: str) -> dict[str, list[str]]:
    """Return the variables of flags.sh, split at spaces as the shell does."""
    names = sorted({name for pair in FLAGS.values() for part in pair for name in part})
    script = 'PRESET=$1; source "$2"; shift 2; for name; do printf "%s\\n" "${!name}"; done'
    command = ["bash", "-c", script, "bash", preset, str(cli.repo_root() / "flags.sh"), *names]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"flags.sh: cannot be read by bash ({error})") from None
    return {name: line.split() for name, line in zip(names, found, strict=True)}


@dataclass(frozen=True)
class Lab:
    """Where and with what the cells of a study run.

    Attributes:
        study: its name.
        data: of training, a known name or an absolute path.
        runs: folder of the working runs.
        out: folder of the small results.
        fresh: start every cell over.
        device: flags for every script: --device and the like.
        preset: variables of flags.sh.
        begun: folders that this call has started over already.
    """

    study: str
    data: str
    runs: Path
    out: Path
    fresh: bool
    device: tuple[str, ...]
    preset: Mapping[str, list[str]]
    begun: set[Path] = field(default_factory=set)

    @classmethod
    def open(cls, study: str, args: argparse.Namespace) -> "Lab":
        """Judge the options that every study has.

        Raises:
            UserError: the data cannot be read, or a folder is a file.
        """
        check_source(args.data, "--data")
        if getattr(args, "num_samples", LEAST_SAMPLES) < LEAST_SAMPLES:
            raise UserError(f"--num_samples {args.num_samples}: at least {LEAST_SAMPLES} are needed for a score")
        root = cli.repo_root()
        data = str(Path(args.data).resolve()) if not is_name(args.data) and Path(args.data).exists() else args.data
        runs, out = args.runs_dir or root / "results" / "runs", args.out or root / "results" / "studies" / study
        for flag, path in (("--out", out), ("--runs_dir", runs)):
            cli.check_folder(path, flag)
        device = ["--device", args.device, "--threads", str(args.threads)]
        return cls(study, data, runs.resolve(), out.resolve(), args.fresh, tuple(device), preset_flags(args.preset))

    def without_sampler(self) -> "Lab":
        """Return the same with no sampler in the preset, for cells that name their own: two would contradict."""
        given = self.preset["SAMPLE_FLAGS"]
        kept = given[given.index("--batch_size") :][:2] if "--batch_size" in given else []
        return replace(self, preset={**self.preset, "SAMPLE_FLAGS": kept})

    def folder(self, model: str, cell: str) -> Path:
        """Return the run folder of a cell."""
        return self.runs / model / f"study-{self.study}-{cell}"

    def flags(self, model: str, *, sampling: bool = False) -> list[str]:
        """Return the model's flags of the preset; those of its family, without their size, for super-resolution."""
        found = [flag for name in FLAGS[family(model)][sampling] for flag in self.preset[name]]
        if model == SUPER_RESOLUTION and "--image_size" in found:
            size = found.index("--image_size")
            del found[size : size + 2]
        return found


def family(model: str) -> str:
    """Return the one of MODELS whose options and files a model's scripts have."""
    return "improved-diffusion" if model == SUPER_RESOLUTION else model


def train(
    lab: Lab, model: str, folder: Path, budget: Sequence[str], flags: Iterable[str] = (), *, data: str | None = None
) -> dict[str, Any]:
    """Train a model in `folder` unless that is done; a run that was cut short goes on.

    Args:
        lab: of the study.
        model: one of MODELS, or SUPER_RESOLUTION.
        folder: of the run.
        budget: --max_seconds S or --max_steps N.
        flags: after those of the preset.
        data: instead of the study's.

    Returns:
        Its config.json, with the entry `finished`.

    Raises:
        UserError: the training fails, or the folder holds a longer one.
    """
    kind = family(model)
    source = {"gans": "--data", "improved-diffusion": "--data_dir", "denoising-diffusion-gan": "--dataset"}[kind]
    place = {"gans": "--run_dir", "improved-diffusion": "--run_dir", "denoising-diffusion-gan": "--exp"}[kind]
    quiet = {"gans": ["--num_samples", "0", "--held_out", "0"], "improved-diffusion": ["--grid_images", "0"]}.get(
        kind, []
    )
    command = [TRAIN[model], source, data or lab.data, place, str(folder), *lab.flags(model), *quiet]
    command += [*flags, *budget, *lab.device]
    fresh = lab.fresh and folder not in lab.begun
    lab.begun.add(folder)
    if fresh:
        for record in folder.rglob("study-*.json"):
            record.unlink()
        run_command([*command, "--fresh"], folder)
    elif not recorded(folder / "study-train.json", command):
        run_command(command, folder)
    config = read_config(folder / "config.json")
    done = config.get("finished")
    if not done:
        raise UserError(f"{folder}: the training did not reach its end; see console.txt there")
    record_done(folder / "study-train.json", command)
    if budget[0] == "--max_seconds" and done["wall_seconds"] > 1.1 * float(budget[1]) + 30:
        raise UserError(
            f"{folder}: trained for {done['wall_seconds']:g} s, more than --seconds {budget[1]}; --fresh starts over"
        )
    return config


def draw(lab: Lab, model: str, run: Path, folder: Path, flags: Iterable[str] = (), *, bench: bool = False) -> Entry:
    """Draw the samples of a run's newest checkpoint into `folder` unless they are there.

    Args:
        lab: of the study.
        model: one of MODELS, or SUPER_RESOLUTION.
        run: trained run folder.
        folder: of samples*.npz and sampling.json.
        flags: of the sampler: numbers of images and steps.
        bench: measure into timing.json instead.

    Returns:
        sampling.json, or timing.json.
    """
    kind = family(model)
    checkpoint = newest(run, CHECKPOINTS[kind])
    if checkpoint is None:
        raise UserError(f"{run}: holds no {CHECKPOINTS[kind]} to draw from")
    flag = {"gans": "--checkpoint", "improved-diffusion": "--model_path", "denoising-diffusion-gan": "--checkpoint"}
    out = ["--out_dir", str(folder)] if kind == "improved-diffusion" else ["--out", str(folder / "samples.npz")]
    command = [DRAW[model], flag[kind], str(checkpoint), *out, *lab.flags(model, sampling=True), *flags, *lab.device]
    done = (read_config(run / "config.json").get("finished") or {}).get("steps")
    record = folder / ("study-benchmark.json" if bench else "study-draw.json")
    found = folder / ("timing.json" if bench else "sampling.json")
    if not (found.is_file() and recorded(record, command, done)):
        run_command([*command, *(["--benchmark"] if bench else [])], folder)
        record_done(record, command, done)
    return read_json(found)


def evaluate(
    lab: Lab, folders: Sequence[Path], image_size: int, num_images: int, anchors: Path | None = None
) -> dict[str, Any]:
    """Score sample sets by evaluate.py into their metrics.json; return the controls' file.

    Args:
        lab: of the study.
        folders: each with samples*.npz.
        image_size: pixels.
        num_images: scored of each.
        anchors: file of the controls.
    """
    anchors = anchors or lab.runs / "studies" / lab.study / "anchors.json"
    anchors.parent.mkdir(parents=True, exist_ok=True)
    command = ["results/evaluate.py", *map(str, folders), "--reference", lab.data, "--image_size", str(image_size)]
    command += ["--num_images", str(num_images), "--anchors", str(anchors), *lab.device]
    run_command(command, anchors.parent)
    return read_json(anchors)


def run_command(command: Sequence[str], folder: Path) -> None:
    """Run a script of the repository to its end, its console in console.txt of `folder`; Ctrl-C reaches it once.

    Raises:
        UserError: it fails; the sentence is its own last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    search = os.pathsep.join(filter(None, [str(cli.repo_root() / "results"), os.environ.get("PYTHONPATH")]))
    with open(folder / "console.txt", "w", encoding="utf-8") as console:
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=cli.repo_root(),
            env=os.environ | {"PYTHONPATH": search},
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # or the terminal's Ctrl-C would reach it besides ours
        )
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                process.wait()
            finally:
                process.kill()
            raise
    if status == 130:
        raise KeyboardInterrupt
    if status:
        said = (folder / "console.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), f"exit status {status}")
        raise UserError(f"{last} ({folder / 'console.txt'})")


def recorded(path: Path, command: Sequence[str], steps: int | None = None) -> bool:
    """Tell whether this command was finished here, for a training of so many updates."""
    return path.is_file() and read_json(path) == {"command": list(command), "steps": steps}


def record_done(path: Path, command: Sequence[str], steps: int | None = None) -> None:
    """Record that a command was finished."""
    write_json(path, {"command": list(command), "steps": steps})


def scores(folder: Path) -> dict[str, Entry]:
    """Return metric -> entry of a folder's metrics.json."""
    return read_json(folder / "metrics.json")["metrics"]


def with_scores(
    cells: list[dict[str, Any]], controls: Mapping[str, Any], data: str, left_out: Sequence[str]
) -> dict[str, Any]:
    """Return what study.json says of a study's trained cells and of how they were scored.

    Args:
        cells: each with `name`, `training` and `folder`, in whose place come its `metrics`.
        controls: of `evaluate`.
        data: of the command line.
        left_out: names of the cells that were not wanted.

    Raises:
        UserError: a cell was trained on other images than the reference is drawn from.
    """
    expected = controls["reference"]["training_fingerprint"]
    for cell in cells:
        if cell["training"]["data"]["fingerprint"] != expected:
            raise UserError(f"{cell['name']}: trained on other images than --data {data}; --fresh starts over")
        cell["metrics"] = scores(cell.pop("folder"))
    scoring = {name: controls[name] for name in ("reference", "extractor", "n", "image_size")}
    missing = [{"name": name, "reason": "not among --cells"} for name in left_out]
    return {"scoring": scoring, "cells": cells, "left_out": missing}


def training_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what study.json says of a training, from its config.json; no path of the machine is in it."""
    done = config["finished"]
    kept = {name: config.get(name) for name in ("parameters", "device", "precision", "versions", "git_commit")}
    options = {k: v for k, v in config["options"].items() if k not in ("run_dir", "exp", "data", "data_dir", "dataset")}
    found = {"seconds": done["wall_seconds"], "images_seen": done["images_seen"], "steps": done["steps"]}
    found |= {"peak_memory_bytes": done.get("peak_memory_bytes"), "data": config.get("data"), **kept}
    return {**found, "options": {k: v for k, v in options.items() if k not in ("fresh", "resume_checkpoint")}}


def pool(entries: Sequence[Entry]) -> Entry:
    """Return the entry of several trainings' numbers: their mean, with a 95% interval of Student's t.

    One entry is returned as it is: its interval is of another draw from the same training.
    """
    if len(entries) == 1:
        return dict(entries[0])
    values = [entry["value"] for entry in entries]
    count = len(values)
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = STUDENT[min(count - 1, len(STUDENT)) - 1] * deviation / math.sqrt(count)
    return {**entries[0], "value": mean, "interval": [mean - half, mean + half], "trainings": count}


def pool_metrics(cells: Sequence[Mapping[str, Any]]) -> dict[str, Entry]:
    """Return metric -> pooled entry of the trainings of one cell; intervals of shares end at 0 and 1."""
    shared = set.intersection(*(set(cell["metrics"]) for cell in cells))
    pooled = {name: pool([cell["metrics"][name] for cell in cells]) for name in cells[0]["metrics"] if name in shared}
    for entry in (pooled[name] for name in SHARES if name in pooled):
        entry["interval"] = [min(1.0, max(0.0, bound)) for bound in entry["interval"]]
    return pooled
