"""One trial of a search: train to each rung, draw, score; by the functions of the training and sampling scripts."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import UserError
from comparison.files import read_json, write_json
from comparison.runs import read_config

from ddgan.tuning import locked, try_lock

if TYPE_CHECKING:
    import torch
    from optuna.trial import Trial

    from ddgan.tuning import Search

SCORES = "scores.json"  # in a trial's run folder: its values and seed, and scores: images -> entry of the distance
LARGE = ("*.pth", "*.npz")
Entry = dict[str, Any]


class DivergedError(Exception):
    """The training gave values that are not finite."""


class Scorer:
    """The offline Frechet distance of sample files to the training images; they are read and embedded once.

    Args:
        source: of the training images.
        image_size: pixels.
        num_images: of each sample set and of the reference; half of the training images at most.
        features: of the distance: auto, cifar or random, as in evaluate.py.
        device: of the extractor.
    """

    def __init__(
        self, source: str, image_size: int, num_images: int, features: str, device: "torch.device | str" = "cpu"
    ):
        from comparison.scores.metrics import frechet_from, moments
        from comparison.scores.reference import Reference

        self.reference = Reference.load(source, image_size, num_images, 0, features, device=device)
        self.count = len(self.reference.chosen)
        self._distance = frechet_from(*moments(self.reference.training[self.reference.chosen]))

    def __call__(self, path: Path) -> Entry:
        """Return value, interval and n of an .npz file with at least `count` images."""
        import torch
        from comparison.data.images import load_npz
        from comparison.data.samples import LoadedSamples
        from comparison.scores.metrics import frechet_estimate
        from comparison.scores.reference import embed_samples

        images = load_npz(path)[0][: self.count]
        places = torch.arange(self.count)
        samples = LoadedSamples("samples", images)
        embedded = embed_samples(samples, places, self.count, self.reference, key=None, desc="score")
        return frechet_estimate(self._distance, embedded.moments).as_json()

    def floor(self) -> Entry:
        """Return the distance of as many other training images: what a perfect generator would get."""
        from comparison.scores.metrics import frechet_estimate

        others = self.reference.training[self.reference.others[: self.count]]
        return frechet_estimate(self._distance, others).as_json()

    def describe(self) -> dict[str, Any]:
        """Return what the page says of the scores."""
        found = self.reference.describe()
        return {name: found[name] for name in ("reference", "extractor", "n", "image_size")}


@dataclass
class Bench:
    """What all trainings of a study share.

    Attributes:
        train, draw: run a training or drawing from a command line and return the exit status.
        base: flags of every training.
        device: flags of device, precision and threads, for both.
        load_scorer: called at the first use.
        total: training images of a full trial, over which learning rates are planned; 0 for those of each training.
    """

    train: Callable[[list[str]], int]
    draw: Callable[[list[str]], int]
    base: Sequence[str]
    device: Sequence[str]
    load_scorer: Callable[[], Scorer]
    total: int = 0
    _scorer: Scorer | None = field(default=None, init=False)

    @property
    def scorer(self) -> Scorer:
        """The one scorer."""
        if self._scorer is None:
            self._scorer = self.load_scorer()
        return self._scorer

    def measure(self, folder: Path, values: Mapping[str, float], seed: int, images: int) -> Entry:
        """Train a run up to so many images seen, going on with what it holds, and score samples of it.

        Args:
            folder: of the run.
            values: flags after those of the base.
            seed: of the training.
            images: training images, repetitions counted.

        Returns:
            The entry of the distance, with images_seen and the run's seconds of training.

        Raises:
            DivergedError: values are not finite.
            KeyboardInterrupt: the training was asked to stop, and has saved its state.
            UserError: the training fails, its own flags end it earlier, or the folder holds other values.
        """
        known = read_scores(folder, values, seed)
        if str(images) in known:
            return known[str(images)]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "console.txt", "a", encoding="utf-8") as console, contextlib.redirect_stdout(console):
            try:
                self._train(folder, values, seed, images)
                entry = self._draw(folder)
            except UserError as error:
                if "diverged" in str(error):
                    raise DivergedError(str(error)) from None
                raise
        if not math.isfinite(entry["value"]):
            raise DivergedError("the distance of the samples is not finite")
        write_scores(folder, values, seed, {**known, str(images): entry})
        return entry

    def _train(self, folder: Path, values: Mapping[str, float], seed: int, images: int) -> None:
        own = ["--exp", f"{folder}/", "--seed", str(seed), "--keep", "1"]
        own += ["--max_images", str(max(images, self.total)), "--stop_after", str(images)]
        status = self.train([*self.base, *flag_words(values), *own, *self.device])
        if status == 130:
            raise KeyboardInterrupt
        if status:
            raise UserError(f"{folder}: the training ended with status {status}; see console.txt there")
        done = read_config(folder / "config.json").get("finished") or {}
        if done.get("images_seen", 0) < images:
            raise UserError(
                f"{folder}: the training ended at {done.get('images_seen', 0)} images ({done.get('reason')}), before "
                f"{images}; pass --num_epoch 0, or a smaller --max_images"
            )

    def _draw(self, folder: Path) -> Entry:
        count = self.scorer.count
        words = ["--exp", f"{folder}/", "--num_samples", str(count), "--batch_size", str(min(count, 100))]
        if status := self.draw([*words, *self.device]):
            raise UserError(f"{folder}: the drawing ended with status {status}; see console.txt there")
        done = read_config(folder / "config.json")["finished"]
        entry = self.scorer(folder / "samples.npz")
        return {**entry, "images_seen": done["images_seen"], "seconds": done["wall_seconds"]}


def read_scores(folder: Path, values: Mapping[str, float], seed: int) -> dict[str, Entry]:
    """Return images -> entry of what a run folder has measured.

    Raises:
        UserError: with other values or another seed.
    """
    if not (folder / SCORES).is_file():
        return {}
    known = read_json(folder / SCORES)
    if known.get("values") != dict(values) or known.get("seed") != seed:
        raise UserError(f"{folder}: left by another search; delete {folder.parent}, or name another --study")
    return known["scores"]


def write_scores(folder: Path, values: Mapping[str, float], seed: int, scores: Mapping[str, Entry]) -> None:
    """Write what `read_scores` returns."""
    write_json(folder / SCORES, {"values": dict(values), "seed": seed, "scores": dict(scores)})


def flag_words(values: Mapping[str, float]) -> list[str]:
    """Return the flags of a command line for these values."""
    return [word for name, value in values.items() for word in (f"--{name}", f"{value:.10g}")]


def replace_flags(base: Sequence[str], values: Mapping[str, float]) -> list[str]:
    """Return the base flags with these values in their places, those that the base lacks at the end."""
    words, rest = list(base), dict(values)
    for place, word in enumerate(words):
        name = word.removeprefix("--")
        if word.startswith("--") and name in values:
            words[place + 1] = f"{values[name]:.10g}"
            rest.pop(name, None)
    return [*words, *flag_words(rest)]


def remove_large_files(folder: Path) -> None:
    """Delete checkpoints and samples of a run; what it says of itself stays."""
    for pattern in LARGE:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def run_trial(study: "Search", trial: "Trial", bench: Bench, seed: int, rungs: Sequence[int]) -> None:
    """Measure a trial at each rung until the last one, or until it is pruned, and tell the study.

    A trial that is interrupted is put back; one that diverges counts as pruned, which the sampler takes for the worst;
    one that breaks otherwise is recorded as failed.
    """
    values, default = trial.user_attrs["values"], bool(trial.user_attrs.get("default"))
    folder = study.folder / "trials" / trial.user_attrs["folder"]
    state, entry, scores = "COMPLETE", Entry(), {}
    try:
        for images in rungs:
            entry = bench.measure(folder, values, seed, images)
            scores[str(images)] = entry
            trial.set_user_attr("scores", scores)
            trial.report(entry["value"], images)
            if images < rungs[-1] and not default and trial.should_prune():
                state = "PRUNED"
                break
    except DivergedError as error:
        state, entry = "PRUNED", {"reason": str(error), "diverged": True}
    except RuntimeError as error:  # such as too little memory for these flags
        state, entry = "FAIL", {"reason": str(error).split("\n")[0]}
    except BaseException:
        study.interrupt(trial)
        raise
    if "reason" in entry:
        trial.set_user_attr("reason", entry["reason"])
        trial.set_user_attr("diverged", bool(entry.get("diverged")))
    study.finish(trial, state, entry["value"] if state == "COMPLETE" else None)
    said = f"{entry['value']:.4g} at {images} images" if "value" in entry else entry["reason"]
    words = {"COMPLETE": "", "PRUNED": ", ended there" if "value" in entry else ", ended", "FAIL": ", failed"}[state]
    print(f"trial {trial.number} ({' '.join(flag_words(values))}): {said}{words}", flush=True)


def confirm(study: "Search", bench: Bench, seeds: Sequence[int], images: int, *, keep: bool) -> list[dict[str, Any]]:
    """Train the winner and the base flags with other seeds; several workers share the trainings.

    Returns:
        Nothing where no trial is better than the base flags, else a dictionary per training with role ("winner" or
        "default"), seed, and the entry's value, interval and n; the value is None, and a reason is there, where the
        training diverged.
    """
    best = study.best()
    if best is None or best.user_attrs.get("default"):
        return []
    jobs = [
        (role, seed, values, study.folder / "trials" / f"{name}-seed{seed}")
        for seed in seeds
        for role, values, name in (
            ("default", study.default, "default"),
            ("winner", best.user_attrs["values"], best.user_attrs["folder"]),
        )
    ]
    rest = []
    for job in jobs:
        lock = try_lock(study.locks / job[3].name)
        if lock is None:
            rest.append(job)
            continue
        with lock:
            _confirm_one(bench, *job, images, keep)
    for job in rest:
        with locked(study.locks / job[3].name):  # another worker has it, or left it
            _confirm_one(bench, *job, images, keep)
    return [
        {"role": role, "seed": seed, **read_scores(folder, values, seed)[str(images)]}
        for role, seed, values, folder in jobs
    ]


def _confirm_one(
    bench: Bench, role: str, seed: int, values: Mapping[str, float], folder: Path, images: int, keep: bool
) -> None:
    if str(images) in read_scores(folder, values, seed):
        return
    try:
        entry = bench.measure(folder, values, seed, images)
    except DivergedError as error:
        entry = {"value": None, "reason": str(error)}
        write_scores(folder, values, seed, {str(images): entry})
    if not keep:
        remove_large_files(folder)
    said = entry.get("reason") or f"{entry['value']:.4g}"
    print(f"{role}, seed {seed}: {said} at {images} images", flush=True)
