"""The runner of all studies: options, plan, trainings and sample sets by the models' own scripts, study.json.

A cell is one training of one model and its sample sets, or one sample set of a given run. The scripts recognise what
is finished, so a call that was cut short goes on when it is repeated. Standard library only.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from comparison import cli, formatting, jobs
from comparison.cli import UserError
from comparison.data.sources import KINDS, check_source, is_name
from comparison.files import read_json
from comparison.models import SUPER_RESOLUTION, Model, preset_flags, value_of
from comparison.report import study_page
from comparison.report.study_page import Page, Pictures

SHORT = {"dcgan": "gans", "ddpm": "improved-diffusion", "ddgan": "denoising-diffusion-gan"}  # in names of cells
LEAST_SAMPLES = 64
START_SECONDS = 5.0  # until a script works, for plans

Cell = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, seconds: float | None, num_samples: int | None) -> None:
    """Add the options of all studies; None in place of a default leaves out --seconds and --seeds, or --num_samples."""
    add = parser.add_argument
    add("--data", default="shapes", help=KINDS)
    if seconds is not None:
        add("--seconds", type=cli.positive_float, default=seconds, metavar="S", help="of training, each cell")
        add("--seeds", type=cli.positive_int, default=1, metavar="K", help="trainings of each cell, seeds 0 to K - 1")
    if num_samples is not None:
        add("--num_samples", type=cli.positive_int, default=num_samples, metavar="N", help="images sampled and scored")
    add("--cells", metavar="NAME,NAME", help="only these, of those that --plan lists")
    add("--preset", default="quick", choices=["quick", "cpu", "gpu"], help="networks and settings, see flags.sh")
    add("--out", type=cli.local_path, metavar="DIR", help="small results; results/studies/<study> unless given")
    add("--runs_dir", type=cli.local_path, metavar="DIR", help="working runs; results/runs unless given, not in git")
    add("--plan", action="store_true", help="list the cells and their minutes, and run nothing")
    add("--page", action="store_true", help="write README.md and the pictures anew from study.json, and run nothing")
    add("--fresh", action="store_true", help="train anew, deleting what the cells' run folders hold")
    cli.add_device_options(parser)


@dataclass(frozen=True)
class Job:
    """A cell of the plan: its name for --cells, what it is, seconds of one training and its samples, trainings."""

    name: str
    text: str
    seconds: float
    seeds: int = 1


def sampling_seconds(model: Model, images: int, evaluations: float = 0, image_size: int = 32) -> float:
    """Estimate for a plan how long a sampling script runs; `evaluations` per image, the model's default for 0."""
    evaluation = model.evaluation_seconds * (image_size / 32) ** 2
    return START_SECONDS + images * (evaluations or model.evaluations) * evaluation


class Study:
    """A study that is being run.

    Attributes:
        name: of the study.
        args: of its script, with what `add_options` added.
        data: data source of training, a known name or an absolute path.
        runs, out: folders of the working runs and of the small results.
        preset: variables of flags.sh.
        left_out: cells that --cells does not ask for.
    """

    def __init__(self, name: str, args: argparse.Namespace, *, sampler: bool = True) -> None:
        """Judge the options of all studies; `sampler` False drops the preset's sampler of improved DDPM.

        Raises:
            UserError: the data cannot be read, a folder is a file, or --num_samples is too small.
        """
        if not args.page:
            check_source(args.data, "--data")
        if getattr(args, "num_samples", LEAST_SAMPLES) < LEAST_SAMPLES:
            raise UserError(f"--num_samples {args.num_samples}: at least {LEAST_SAMPLES} are needed for a score")
        results = cli.repo_root() / "results"
        out, runs = args.out or results / "studies" / name, args.runs_dir or results / "runs"
        cli.check_folder(out, "--out")
        cli.check_folder(runs, "--runs_dir")
        self.name, self.args, self.out, self.runs = name, args, out.resolve(), runs.resolve()
        self.data = args.data if is_name(args.data) else str(Path(args.data).resolve())
        self.preset = preset_flags(args.preset)
        if not sampler:
            batch = value_of(self.preset["SAMPLE_FLAGS"], "--batch_size")
            self.preset["SAMPLE_FLAGS"] = ["--batch_size", batch] if batch else []
        self.left_out: list[str] = []
        self._device = ["--device", args.device, "--threads", str(args.threads)]
        self._begun: set[Path] = set()  # run folders that this call has trained in

    def choose(self, plan: Sequence[Job], rest: float = 0.0) -> list[Job]:
        """Return the jobs that --cells asks for; for --plan print them, with `rest` further seconds, and return none.

        Raises:
            UserError: --cells names an unknown cell.
        """
        known = [job.name for job in plan]
        wanted = known if self.args.cells is None else self.args.cells.split(",")
        for name in wanted:
            if name not in known:
                raise UserError(f"--cells {name}: must be among {', '.join(known)}")
        self.left_out = [name for name in known if name not in wanted]
        chosen = [job for job in plan if job.name in wanted]
        if not self.args.plan:
            return chosen
        rows = [[job.name, job.text, f"{job.seeds * job.seconds / 60:.1f}"] for job in chosen]
        minutes = (sum(job.seeds * job.seconds for job in chosen) + rest) / 60
        print(formatting.console_table(["cell", "what", "minutes"], rows))
        print(f"\n{len(chosen)} cells, about {minutes:.0f} minutes on two CPU cores")
        return []

    def run(self, plan: Sequence[Job], cells_of: Callable[[str, int], list[Cell]]) -> list[Cell]:
        """Run jobs one after the other by `cells_of(name, seed)`; return all their cells of study.json."""
        cells = []
        for number, job in enumerate(plan, start=1):
            for seed in range(job.seeds):
                mine = cells_of(job.name, seed)
                text = "" if job.seeds == 1 else f", seed {seed}"
                if facts := mine[0].get("training"):
                    text += f": {facts['seconds']:.0f} s of training, {facts['images_seen']:,} images seen"
                print(f"[{number}/{len(plan)}] {job.name}{text}", flush=True)
                cells += mine
        return cells

    def folder(self, model: Model, cell: str) -> Path:
        """Return the run folder of a cell."""
        return self.runs / model.name / f"study-{self.name}-{cell}"

    def subset(self, name: str, count: int, image_size: int) -> str:
        """Return the .npz file of so many of the training images, evenly spread; write it where it is missing."""
        from comparison.data.images import load_images, save_npz

        path = self.runs / "studies" / self.name / f"{name}.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_npz(path, load_images(self.data, image_size, limit=count).images.permute(0, 2, 3, 1).numpy())
        return str(path)

    def train(self, model: Model, folder: Path, seed: int, words: Iterable[str], data: str = "") -> dict[str, Any]:
        """Train a model in a folder, by --fresh anew where this call has not yet; return its config.json.

        `words` come after the flags of the preset and the study's --precision and --seconds.

        Raises:
            UserError: the training fails, or the folder holds a longer one.
        """
        fresh = self.args.fresh and folder not in self._begun
        self._begun.add(folder)
        budget = ["--max_seconds", f"{self.args.seconds:g}"] if "seconds" in self.args else []
        every = [*self._flags(model, model.train_flags), *model.fixed, *model.quiet, *self._common(seed), *budget]
        every += [*words, *self._device]
        console = folder / "console.txt"
        config = jobs.train(model, folder, data or self.data, every, fresh=fresh, console=console)
        seconds, limit = config["finished"]["wall_seconds"], float(dict(pairwise(every)).get("--max_seconds", 0))
        if limit and seconds > 1.1 * limit + 30:
            raise UserError(f"{folder}: trained for {seconds:g} s, more than --seconds {limit:g}; --fresh starts over")
        return config

    def sample(
        self, model: Model, run: Path, folder: Path, seed: int, words: Iterable[str] = (), **options: bool
    ) -> dict[str, Any]:
        """Sample a run's newest checkpoint into a folder, by flags after those of the preset; see `jobs.sample`."""
        count = ["--num_samples", str(self.args.num_samples)] if "num_samples" in self.args else []
        every = [*self._flags(model, model.sample_flags), *self._common(seed), *count, *words, *self._device]
        return jobs.sample(model, run, folder, every, console=folder / "console.txt", **options)

    def train_and_sample(
        self, model: Model, name: str, seed: int, words: Iterable[str], data: str = "", sampling: Iterable[str] = ()
    ) -> Cell:
        """Train and sample a cell by further flags; return what study.json says of it, and its `folder` of samples."""
        run = self.folder(model, f"{name}-s{seed}")
        config = self.train(model, run, seed, words, data)
        samples = run / "settings" / "default"
        drawn = self.sample(model, run, samples, seed, sampling)
        cell = {"name": name, "model": model.name, "label": model.label, "seed": seed, "folder": samples}
        return {**cell, "training": training_facts(config), **sampling_facts(drawn)}

    def _common(self, seed: int) -> list[str]:
        return ["--seed", str(seed), "--precision", self.args.precision]

    def _flags(self, model: Model, names: Sequence[str]) -> list[str]:
        """Return the words of variables of flags.sh, for super-resolution without the size of its family."""
        words = [word for name in names for word in self.preset[name]]
        if model is SUPER_RESOLUTION and "--image_size" in words:
            start = words.index("--image_size")
            del words[start : start + 2]
        return words

    def score(self, cells: Sequence[Cell], image_size: int, data: str | None = None, part: str = "") -> dict[str, Any]:
        """Score the samples in the cells' `folder` into their `metrics`; return the controls' file of this `part`."""
        anchors = self.runs / "studies" / self.name / f"anchors{part and '-'}{part}.json"
        words = ["--image_size", str(image_size), "--num_images", str(self.args.num_samples), *self._device]
        folders = [cell["folder"] for cell in cells]
        controls = jobs.evaluate(folders, data or self.data, anchors, words, console=anchors.parent / "console.txt")
        for cell in cells:
            cell["metrics"] = read_json(cell["folder"] / "metrics.json")["metrics"]
        return controls

    def score_all(self, cells: Sequence[Cell], image_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Score cells that were trained on the study's data; return what study.json says of that, and the controls.

        Raises:
            UserError: a cell was trained on other images than the reference is drawn from.
        """
        controls = self.score(cells, image_size)
        for cell in cells:
            if cell["training"]["data"]["fingerprint"] != controls["reference"]["training_fingerprint"]:
                name, data = cell["name"], self.args.data
                raise UserError(f"{name}: trained on other images than --data {data}; --fresh starts over")
        scoring = {name: controls[name] for name in ("reference", "extractor", "n", "image_size")}
        anchors = {name: entry["metrics"] for name, entry in controls["anchors"].items()}
        return {"options": self.options(), "scoring": scoring, "cells": cells}, anchors

    def options(self, *names: str) -> dict[str, Any]:
        """Return options for study.json; no path of the machine may be among them."""
        usual = ("seconds", "seeds", "num_samples", "preset", "precision")
        return {name: getattr(self.args, name) for name in names or usual}

    def rewrite(self, page: Page, pictures: Pictures) -> None:
        """Write the page and the pictures anew from study.json."""
        study_page.rewrite(self.out, self.name, page, pictures)

    def write(self, content: dict[str, Any], page: Page, pictures: Pictures) -> None:
        """Write study.json, with what --cells left out and without the folders of its cells, page and pictures."""
        cells = [{key: value for key, value in cell.items() if key != "folder"} for cell in content["cells"]]
        left_out = [{"name": name, "reason": study_page.NOT_ASKED} for name in self.left_out]
        content = {**content, "cells": cells, "left_out": content.get("left_out", left_out)}
        study_page.write(self.out, self.name, content, page, pictures)


def add_copies(study: Study, cells: Sequence[Cell], image_size: int, images_of: Callable[[int, Any], Any]) -> None:
    """Replace `memorised` of cells by the share among the images that a training saw; add `held_out`, its floor.

    Args:
        study: of the cells.
        cells: scored, with `percent` of the images.
        image_size: pixels.
        images_of: (percent, reference) -> images that a training saw, and real images to be the floor, which do not
            count where it saw them; both (N, 3, S, S) uint8.
    """
    from comparison.data.images import load_npz
    from comparison.scores import features
    from comparison.scores.evaluation import find_samples
    from comparison.scores.neighbours import memorised, nearest_training, squared_distances
    from comparison.scores.reference import Reference

    reference = Reference.load(study.data, image_size, study.args.num_samples, 0, "auto")

    def embed(images: Any) -> Any:
        return reference.scale(features.embed(images, reference.extractor, desc=f"embed {len(images)} images"))

    known: dict[int, Any] = {}
    for cell in cells:
        if cell["percent"] not in known:
            seen, real = map(embed, images_of(cell["percent"], reference))
            nearest = squared_distances(real, seen).min(1).indices
            same = nearest[(real - seen[nearest]).norm(dim=1) < 1e-4].unique()
            known[cell["percent"]] = seen, memorised(nearest_training(real, seen, same)).as_json()
        seen, cell["held_out"] = known[cell["percent"]]
        x = embed(load_npz(find_samples(cell["folder"]))[0])
        cell["metrics"]["memorised"] = memorised(nearest_training(x, seen)).as_json()


def sampling_facts(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return what study.json says of a sample set, from its sampling.json."""
    return {name: drawn[name] for name in ("nfe", "seconds_per_image", "sampler", "batch_size")}


def training_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what study.json says of a training, from its config.json; no path of the machine is in it."""
    done = config["finished"]
    kept = {name: config.get(name) for name in ("parameters", "device", "precision", "versions", "git_commit")}
    paths = ("run_dir", "exp", "data", "data_dir", "dataset", "fresh", "resume_checkpoint")
    found = {"seconds": done["wall_seconds"], "images_seen": done["images_seen"], "steps": done["steps"]}
    found |= {"peak_memory_bytes": done.get("peak_memory_bytes"), "data": config.get("data"), **kept}
    return {**found, "options": {name: value for name, value in config["options"].items() if name not in paths}}
