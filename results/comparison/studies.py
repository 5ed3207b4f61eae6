"""The runner of all studies: options, plan, trainings and samples by the models' own scripts, study.json.

A cell is one training of one model and its samples, or samples of a given run. The scripts skip what is finished, so a
repeated call resumes. Standard library only.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from comparison import cli, contract, formatting, jobs
from comparison.cli import UserError
from comparison.data.sources import DATA_HELP, check_source, is_name, source_name
from comparison.models import Model, label_of, preset_flags, value_of
from comparison.report import study_page
from comparison.report.study_page import Page, Pictures
from comparison.runs import read_config

SHORT = {"dcgan": "gans", "ddpm": "improved-diffusion", "ddgan": "denoising-diffusion-gan"}  # in names of cells
MIN_SAMPLES = 64
START_SECONDS = 5.0  # until a script works, for plans

Cell = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, seconds: float | None, num_samples: int | None) -> None:
    """Add the options of all studies; None as a default leaves out --seconds and --seeds, or --num_samples."""
    add = parser.add_argument
    add("--data", default="shapes", help=DATA_HELP)
    if seconds is not None:
        add("--seconds", type=cli.positive_float, default=seconds, metavar="S", help="training time of each cell")
        add("--seeds", type=cli.positive_int, default=1, metavar="K", help="trainings of each cell, seeds 0 to K - 1")
    if num_samples is not None:
        add("--num_samples", type=cli.positive_int, default=num_samples, metavar="N", help="samples to score per row")
    add("--cells", metavar="NAME,NAME", help="run only these cells of the --plan")
    add("--preset", default="quick", choices=["quick", "cpu", "gpu"], help="networks and settings, see flags.sh")
    add("--out", type=cli.local_path, metavar="DIR", help="small results; results/studies/<study> unless given")
    add("--runs_dir", type=cli.local_path, metavar="DIR", help="working runs; results/runs unless given, not in git")
    add("--plan", action="store_true", help="list the cells with their minutes and exit")
    add("--page", action="store_true", help="rewrite README.md and the pictures from study.json and exit")
    add("--fresh", action="store_true", help="start the trainings over, deleting the cells' run folders")
    cli.add_device_options(parser)


@dataclass(frozen=True)
class Job:
    """A cell of the plan; `seconds` is the time of one training and its samples, `seeds` the number of trainings."""

    name: str
    description: str
    seconds: float
    seeds: int = 1


def sampling_seconds(model: Model, images: int, evaluations: float = 0, image_size: int = 32) -> float:
    """Estimate the seconds of a sampling script; `evaluations` per image, 0 for the model's default."""
    evaluation = model.evaluation_seconds * (image_size / 32) ** 2
    return START_SECONDS + images * (evaluations or model.evaluations) * evaluation


class Study:
    """A running study.

    Attributes:
        name: name of the study.
        tag: the name and that of the data, in the names of working runs.
        args: options of its script, including those of `add_options`.
        data: data source of the trainings, a name or an absolute path.
        runs, out: folders of the working runs and of the small results.
        preset: variables of flags.sh.
        left_out: cells that --cells excludes.
    """

    def __init__(self, name: str, args: argparse.Namespace, *, sampler: bool = True) -> None:
        """Validate the shared options; `sampler` False drops the preset's sampler of improved DDPM.

        Raises:
            UserError: unreadable data, a folder that is a file, or too few samples.
        """
        if not args.page:
            check_source(args.data, "--data")
        if getattr(args, "num_samples", MIN_SAMPLES) < MIN_SAMPLES:
            raise UserError(f"--num_samples {args.num_samples}: a score needs at least {MIN_SAMPLES}")
        results = cli.repo_root() / "results"
        out, runs = args.out or results / "studies" / name, args.runs_dir or results / "runs"
        cli.check_folder(out, "--out")
        cli.check_folder(runs, "--runs_dir")
        self.name, self.args, self.out, self.runs = name, args, out.resolve(), runs.resolve()
        self.tag = f"{name}-{source_name(args.data)}"
        self.data = args.data if is_name(args.data) else str(Path(args.data).resolve())
        self.preset = preset_flags(args.preset)
        if not sampler:
            batch = value_of(self.preset["SAMPLE_FLAGS"], "--batch_size")
            self.preset["SAMPLE_FLAGS"] = ["--batch_size", batch] if batch else []
        self.left_out: list[str] = []
        self._device = ["--device", args.device, "--threads", str(args.threads)]
        self._started: set[Path] = set()  # run folders that this call has trained in

    def choose(self, plan: Sequence[Job], rest: float = 0.0) -> list[Job]:
        """Return the jobs of --cells; with --plan print them, `rest` seconds added to the sum, and return none.

        Raises:
            UserError: --cells names an unknown cell.
        """
        names = [job.name for job in plan]
        wanted = names if self.args.cells is None else self.args.cells.split(",")
        for name in wanted:
            if name not in names:
                raise UserError(f"--cells {name}: must be among {', '.join(names)}")
        self.left_out = [name for name in names if name not in wanted]
        chosen = [job for job in plan if job.name in wanted]
        if not self.args.plan:
            return chosen
        rows = [[job.name, job.description, f"{job.seeds * job.seconds / 60:.1f}"] for job in chosen]
        minutes = (sum(job.seeds * job.seconds for job in chosen) + rest) / 60
        print(formatting.console_table(["cell", "content", "minutes"], rows))
        print(f"\n{len(chosen)} cells, about {minutes:.0f} minutes on two CPU cores")
        return []

    def run(self, plan: Sequence[Job], cells_of: Callable[[str, int], list[Cell]]) -> list[Cell]:
        """Run each job by `cells_of(name, seed)`; return all cells."""
        cells = []
        for number, job in enumerate(plan, start=1):
            for seed in range(job.seeds):
                made = cells_of(job.name, seed)
                text = "" if job.seeds == 1 else f", seed {seed}"
                if training := made[0].get("training"):
                    text += f": {training['seconds']:.0f} s of training, {training['images_seen']:,} images seen"
                print(f"[{number}/{len(plan)}] {job.name}{text}", flush=True)
                cells += made
        return cells

    def folder(self, model: Model, cell: str) -> Path:
        """Return the run folder of a cell."""
        return self.runs / model.name / f"study-{self.tag}-{cell}"

    def train(self, model: Model, folder: Path, seed: int, extra: Iterable[str], data: str = "") -> dict[str, Any]:
        """Train a model in a folder by flags after those of the preset and the study; return its config.json.

        --fresh starts each folder over once per call.

        Raises:
            UserError: the training fails, or the folder holds a longer one.
        """
        fresh = self.args.fresh and folder not in self._started
        self._started.add(folder)
        budget = ["--max_seconds", f"{self.args.seconds:g}"] if "seconds" in self.args else []
        flags = [*self._flags(model.train_flags), *model.fixed, *model.quiet, *self._common(seed), *budget]
        flags += [*extra, *self._device]
        config = jobs.train(model, folder, data or self.data, flags, fresh=fresh, console=folder / "console.txt")
        seconds, limit = config["finished"]["wall_seconds"], float(dict(pairwise(flags)).get("--max_seconds", 0))
        if limit and seconds > 1.1 * limit + 30:
            raise UserError(f"{folder}: trained for {seconds:g} s, more than --seconds {limit:g}; --fresh starts over")
        return config

    def sample(
        self, model: Model, run: Path, folder: Path, seed: int, extra: Iterable[str] = (), benchmark: bool = False
    ) -> dict[str, Any]:
        """Sample a run's newest checkpoint into a folder, by flags after those of the preset; see `jobs.sample`."""
        count = ["--num_samples", str(self.args.num_samples)] if "num_samples" in self.args else []
        flags = [*self._flags(model.sample_flags), *self._common(seed), *count, *extra, *self._device]
        return jobs.sample(model, run, folder, flags, benchmark=benchmark, console=folder / "console.txt")

    def train_and_sample(
        self, model: Model, name: str, seed: int, extra: Iterable[str], data: str = "", sampling: Iterable[str] = ()
    ) -> Cell:
        """Train and sample a cell by further flags; return its entry of study.json, with the `folder` of samples."""
        run = self.folder(model, f"{name}-s{seed}")
        config = self.train(model, run, seed, extra, data)
        samples = run / "settings" / "default"
        sampling_json = self.sample(model, run, samples, seed, sampling)
        label = label_of(model.name, config["options"].get("preset"))
        cell = {"name": name, "model": model.name, "label": label, "seed": seed, "folder": samples}
        return {**cell, "training": training_facts(config), **sampling_facts(sampling_json)}

    def _common(self, seed: int) -> list[str]:
        return ["--seed", str(seed), "--precision", self.args.precision]

    def _flags(self, names: Sequence[str]) -> list[str]:
        """Return the words of variables of flags.sh."""
        return [word for name in names for word in self.preset[name]]

    def score(self, cells: Sequence[Cell], image_size: int, data: str | None = None) -> dict[str, Any]:
        """Score the samples in the cells' `folder` into their `metrics`; return the controls' file."""
        anchors = self.runs / "studies" / self.tag / f"anchors-{image_size}.json"
        flags = ["--image_size", str(image_size), "--num_images", str(self.args.num_samples), *self._device]
        folders = [cell["folder"] for cell in cells]
        controls = jobs.evaluate(folders, data or self.data, anchors, flags, console=anchors.parent / "console.txt")
        for cell in cells:
            cell["metrics"] = contract.read(cell["folder"] / "metrics.json", "metrics.json")["metrics"]
        return controls

    def score_all(
        self, cells: Sequence[Cell], image_size: int, *, subsets: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Score cells trained on the study's data; return the content of study.json, and the controls' metrics.

        `subsets` is True if they were trained on part of it.

        Raises:
            UserError: a cell was trained on other images than those of the reference.
        """
        controls = self.score(cells, image_size)
        for cell in () if subsets else cells:
            if cell["training"]["data"]["fingerprint"] != controls["reference"]["training_fingerprint"]:
                name, data = cell["name"], self.args.data
                raise UserError(f"{name}: trained on other images than --data {data}; --fresh starts over")
        scoring = {name: controls[name] for name in ("reference", "extractor", "n", "image_size")}
        anchors = {name: entry["metrics"] for name, entry in controls["anchors"].items()}
        return {"options": self.options(), "scoring": scoring, "cells": cells}, anchors

    def options(self, *names: str) -> dict[str, Any]:
        """Return options for study.json, none of them a path of this machine."""
        usual = ("seconds", "seeds", "num_samples", "preset", "precision")
        return {name: getattr(self.args, name) for name in names or usual}

    def rewrite(self, page: Page, pictures: Pictures) -> None:
        """Rewrite the page and the pictures from study.json."""
        study_page.rewrite(self.out, self.name, page, pictures)

    def write(self, content: dict[str, Any], page: Page, pictures: Pictures) -> None:
        """Write study.json, with the cells left out and without the cells' folders, the page and the pictures."""
        cells = [{key: value for key, value in cell.items() if key != "folder"} for cell in content["cells"]]
        left_out = [{"name": name, "reason": study_page.NOT_ASKED} for name in self.left_out]
        content = {**content, "cells": cells, "left_out": content.get("left_out", left_out)}
        study_page.write(self.out, self.name, content, page, pictures)


def given_config(run: Path, model: str, data: str, option: str) -> dict[str, Any]:
    """Return the config.json of a run given by an option; raise UserError unless it finished, on the data."""
    config = read_config(run / "config.json")
    if config.get("model") != model or not config.get("finished"):
        raise UserError(f"{option}: not a finished run of {model}")
    trained_on = (config.get("data") or {}).get("name")
    if trained_on != source_name(data):
        raise UserError(f"{option}: trained on {trained_on}, but --data is {source_name(data)}")
    return config


def sampling_facts(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of study.json that come from sampling.json."""
    return {name: sampling[name] for name in ("nfe", "seconds_per_image", "sampler", "batch_size")}


def training_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry `training` of study.json, from config.json; no path of this machine is in it."""
    done = config["finished"]
    paths = ("run_dir", "exp", "data", "data_dir", "dataset", "fresh", "resume_checkpoint", "model_path")
    return {
        **{"seconds": done["wall_seconds"], "images_seen": done["images_seen"], "steps": done["steps"]},
        **({"diverged": True} if "diverged" in config else {}),
        **{"peak_memory_bytes": done.get("peak_memory_bytes"), "data": config.get("data")},
        **{name: config.get(name) for name in ("parameters", "device", "precision", "versions", "git_commit")},
        "options": {name: value for name, value in config["options"].items() if name not in paths},
    }
