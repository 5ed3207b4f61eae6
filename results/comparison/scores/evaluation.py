"""Score sample sets and controls against a reference set; write metrics.json, anchors.json and their pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comparison import contract
from comparison.cli import UserError
from comparison.data.images import fingerprint, load_images, load_npz
from comparison.data.sources import shapes_modes
from comparison.files import read_json, write_json
from comparison.png import save_grid
from comparison.runs import versions
from comparison.scores import standard as standard_scores
from comparison.scores.classifier import CLASSES
from comparison.scores.controls import check_controls, figure_controls, make_controls
from comparison.scores.distances import SlicedWasserstein, kernel_estimate, kernel_self
from comparison.scores.features import cached, embed
from comparison.scores.metrics import Estimate, class_entropy, frechet_estimate, frechet_from, moments, split_groups
from comparison.scores.modes import modes_estimates
from comparison.scores.neighbours import Nearest, memorised, nearest_training, prdc, radii
from comparison.scores.reference import PAIRWISE, Reference, shuffled
from comparison.scores.statistics import Statistics

# Raise it when a metric, a control or an expectation changes, so that older files are not reused. The rule that counts
# modes is part of the identity (mode_counter).
SCHEMA = 3
STRIP = 12  # samples shown with their nearest training images
STRIP_FILE = "neighbours.png"

Entries = dict[str, dict[str, Any]]  # metric -> value, interval, n


@dataclass(frozen=True)
class Standard:
    """Settings of the standard metrics.

    Attributes:
        weights: file of the standard Inception.
        digest: its SHA-256, checked.
        statistics: reference statistics; None for the training images.
        device: device of the Inception passes.
    """

    weights: Path
    digest: str
    statistics: Statistics | None
    device: torch.device | str = "cpu"

    def __call__(self, images: Tensor, reference: Reference) -> dict[str, Any]:
        """Return the section `standard` of metrics.json for (N, 3, S, S) uint8 images in random order."""
        real = reference.data.images if self.statistics is None else self.statistics
        return standard_scores.score(
            images, real, weights=self.weights, expected=self.digest, device=self.device, seed=reference.seed
        )

    def is_in(self, metrics: dict[str, Any], reference: Reference) -> bool:
        """Return True if a metrics.json holds these scores."""
        section = metrics.get("standard") or {}
        saved = (section.get("reference") or {}).get("fingerprint")
        wanted = fingerprint(reference.data.images) if self.statistics is None else self.statistics.fingerprint
        return (section.get("weights") or {}).get("sha256") == self.digest and saved == wanted


class Evaluator:
    """Computes every metric of a sample set against one reference.

    Args:
        reference: the training data.
        standard: settings of the standard metrics, None for none.
    """

    def __init__(self, reference: Reference, *, standard: Standard | None = None):
        self.reference, self.standard = reference, standard
        features = reference.training[reference.chosen]
        self._distance = frechet_from(*moments(features))
        self._features = features[:PAIRWISE]
        self._kernel_self = kernel_self(self._features)
        self._radii = radii(self._features)
        self._sliced = SlicedWasserstein(self._features)

    def __call__(self, images: Tensor, made_from: Tensor | None = None, *, desc: str = "embed") -> Entries:
        """Return metric -> entry of metrics.json for (N, 3, S, S) uint8 images in random order."""
        return self.score(images, embed(images, self.reference.extractor, desc=desc), made_from)[0]

    def score(self, images: Tensor, features: Tensor, made_from: Tensor | None = None) -> tuple[Entries, Nearest]:
        """Return metric -> entry of metrics.json, and the nearest training images of the first PAIRWISE samples.

        Args:
            images: (N, 3, S, S) uint8, in random order.
            features: (N, D) float32, theirs, not yet z-scored.
            made_from: training images that they come from, see `Control`.
        """
        scaled = self.reference.scale(features)
        x = scaled[:PAIRWISE]
        nearest = nearest_training(x, self.reference.training, made_from)
        metrics: dict[str, Estimate] = {
            "frechet_distance": frechet_estimate(self._distance, scaled),
            "kernel_distance": kernel_estimate(self._features, self._kernel_self, x),
            "sliced_wasserstein": self._sliced(x),
            **prdc(self._features, self._radii, x),
        }
        classes = self.reference.extractor.classes(features) if self.reference.ten_classes else None
        if classes is not None:
            counts = [torch.bincount(classes[group], minlength=CLASSES) for group in split_groups(len(classes))]
            metrics["class_entropy"] = class_entropy(torch.stack(counts))
        metrics["memorised"] = memorised(nearest)
        counter = self.reference.modes
        if counter is not None:
            modes, residuals = counter.fit(images)
            metrics |= modes_estimates(modes, counter.total, residuals)
        entries = {name: estimate.as_json() for name, estimate in metrics.items()}
        if counter is not None:
            entries["modes_covered"]["total"] = counter.total
        return entries, nearest


def find_samples(path: Path) -> Path:
    """Return the samples that a run folder, a folder of images, an .npz or a .zip file stands for.

    In a run folder they are the file that sampling.json names, or the newest samples*.npz.

    Raises:
        UserError: the samples that sampling.json names are not there.
    """
    if path.is_file():
        return path
    files = sorted(path.glob("samples*.npz"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    record = path / "sampling.json"
    if record.is_file() and "file" in (content := contract.read(record, "sampling.json")):
        named = path / str(content["file"])
        if named not in files:
            raise UserError(f"{record}: names the samples {content['file']!r}, which are not there; draw samples again")
        return named
    return files[-1] if files else path


def load_samples(path: Path, image_size: int) -> Tensor:
    """Load an .npz file of that image size, a .zip file or a folder of images: (N, 3, S, S) uint8.

    Raises:
        UserError: the samples are not readable, or an .npz has another size.
    """
    if path.suffix != ".npz":
        return load_images(str(path), image_size).images
    images = load_npz(path)[0]
    height, width = images.shape[2:]
    if (height, width) != (image_size, image_size):
        raise UserError(f"{path}: images of {width} x {height} pixels, --image_size {image_size}; compare at one size")
    return images


def scored_folders(path: Path) -> list[Path]:
    """Return the folders that RUN stands for: a run folder and its settings/* and history/*, or `path` alone."""
    if not path.is_dir():
        return [path]
    extra = [folder for name in ("settings", "history") for folder in sorted((path / name).glob("*/"))]
    return [path, *(folder for folder in extra if next(folder.glob("samples*.npz"), None))]


def evaluate_samples(evaluator: Evaluator, path: Path, target: Path | None) -> dict[str, Any]:
    """Score the samples in `path`; reuse and write `target`, a metrics.json, unless it is None.

    Also writes neighbours.png beside `target`: the samples nearest to training images, by the ratio of `memorised`,
    and below them those training images.

    Raises:
        UserError: fewer samples than the reference has images, or unreadable ones.
    """
    reference = evaluator.reference
    protocol = reference.describe()
    images = load_samples(path, protocol["image_size"])
    total, count, seed = len(images), protocol["n"], protocol["seed"]
    if total < count:
        raise UserError(f"{path}: {total} images, fewer than --num_images {count}")
    hashed = fingerprint(images)
    file = {"file": path.name, "images": total, "fingerprint": hashed}
    identity = {"schema": SCHEMA, **protocol, "samples": file}
    saved = _read_same(target, identity, "metrics.json")
    if saved is not None and target is not None:
        scored = evaluator.standard is None or evaluator.standard.is_in(saved, reference)
        if scored and target.with_name(STRIP_FILE).is_file():
            return saved
    images, extractor = shuffled(images, seed, count), reference.extractor
    key, desc = f"{hashed}-{seed}-{count}", f"embed {path.name}"
    metrics, nearest = evaluator.score(
        images, cached(key, count, extractor, lambda: embed(images, extractor, desc=desc))
    )
    result = {**identity, "metrics": metrics, "versions": versions()}
    standard = saved.get("standard") if saved else None
    if evaluator.standard is not None:
        standard = evaluator.standard(images, reference)
    if standard is not None:
        result["standard"] = standard
    if target is not None:
        closest = nearest.ratio.argsort()[:STRIP]
        pairs = torch.cat([images[closest], reference.data.images[nearest.index[closest]]])
        save_grid(pairs, target.with_name(STRIP_FILE), columns=len(closest))
        write_json(target, result)
    return result


def _read_same(target: Path | None, identity: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """Return the content of `target`, a `kind` of `contract`, if of the same samples, reference and settings."""
    if target is None or not target.is_file():
        return None
    saved = read_json(target)
    same = all(saved.get(name) == value for name, value in identity.items())
    return contract.check(target, saved, kind) if same else None


def evaluate_controls(evaluator: Evaluator, target: Path) -> dict[str, Any]:
    """Score the controls; reuse `target`, an anchors.json, if it is of the same reference, else write it.

    Also writes `<stem>-real.png`, the first 64 real images, and `<stem>-controls.png`, a row of each control.
    """
    reference = evaluator.reference
    identity = {"schema": SCHEMA, **reference.describe()}
    saved = _read_same(target, identity, "anchors.json")
    if saved is not None:
        return saved
    data, seed = reference.data, reference.seed
    controls = make_controls(data.images, data.labels, reference.training, reference.chosen, reference.others, seed)
    floor = controls["floor"]
    if shapes_modes(reference.source):
        controls |= figure_controls(floor, seed)
    rows, metrics = {}, {}
    for name, control in controls.items():
        images = shuffled(control.images, seed)
        metrics[name] = evaluator(images, control.made_from, desc=f"embed {control.label}")
        rows[name] = {"label": control.label, "note": control.note, "metrics": metrics[name]}
    result = {**identity, "anchors": rows, "checks": check_controls(metrics), "versions": versions()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_grid(floor.images[:64], target.with_name(f"{target.stem}-real.png"))
    columns = min(10, len(floor.images))
    first = torch.cat([control.images[:columns] for control in controls.values()])
    save_grid(first, target.with_name(f"{target.stem}-controls.png"), columns=columns)
    write_json(target, result)
    return result
