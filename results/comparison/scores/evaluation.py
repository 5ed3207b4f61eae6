"""Scoring sample sets against a reference set: who is compared with whom, and the files that say so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comparison.cli import UserError
from comparison.data.images import fingerprint
from comparison.data.samples import LoadedSamples, open_samples
from comparison.data.samples import fingerprint as stream_fingerprint
from comparison.data.sources import shapes_modes
from comparison.files import read_json, write_json
from comparison.png import save_grid
from comparison.runs import versions
from comparison.scores.controls import Anchor, check_anchors, figure_anchors, make_anchors
from comparison.scores.kernel import kernel_estimate, kernel_self
from comparison.scores.metrics import (
    Estimate,
    class_entropy,
    frechet_estimate,
    frechet_from,
    frechet_infinite,
    moments,
)
from comparison.scores.modes import modes_estimates
from comparison.scores.neighbours import Nearest, memorised, nearest_training, prdc, radii
from comparison.scores.reference import PAIRWISE, Embedded, Reference, chosen_images, embed_samples, places, shuffled
from comparison.scores.sliced import SlicedWasserstein
from comparison.scores.statistics import Statistics

# Rises whenever a metric, a control or an expectation changes, so that older files are not reused; how modes are
# counted is in the identity by itself, as mode_counter.
SCHEMA = 3
STRIP = 12  # samples shown beside their nearest training images
STRIP_FILE = "neighbours.png"

Entries = dict[str, dict[str, Any]]  # metric -> value, interval, n


@dataclass(frozen=True)
class Standard:
    """How the standard metrics are taken.

    Attributes:
        weights: file of the standard Inception.
        digest: its SHA-256, checked.
        statistics: of the reference; None takes the training images.
        device: of the Inception passes.
    """

    weights: Path
    digest: str
    statistics: Statistics | None
    device: torch.device | str = "cpu"

    def __call__(self, images: Tensor, reference: Reference) -> dict[str, Any]:
        """Return the section `standard` of metrics.json for (N, 3, S, S) uint8 images in random order."""
        from comparison.scores.standard import score

        against = reference.data.images if self.statistics is None else self.statistics
        expected = self.digest  # judged already
        return score(images, against, weights=self.weights, expected=expected, device=self.device, seed=reference.seed)

    def is_in(self, metrics: dict[str, Any], reference: Reference) -> bool:
        """Tell whether a metrics.json holds these scores."""
        there = metrics.get("standard") or {}
        against = (there.get("reference") or {}).get("fingerprint")
        wanted = fingerprint(reference.data.images) if self.statistics is None else self.statistics.fingerprint
        return (there.get("weights") or {}).get("sha256") == self.digest and against == wanted


class Evaluator:
    """Computes every metric of a sample set against one reference.

    Args:
        reference: the training data.
        extrapolate: also extrapolate the Frechet distance to infinitely many images.
        standard: adds the standard metrics, where it is given.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        extrapolate: bool = False,
        standard: Standard | None = None,
    ):
        self.reference, self.extrapolate, self.standard = reference, extrapolate, standard
        features = reference.training[reference.chosen]
        self._distance = frechet_from(*moments(features))
        self._features = features[:PAIRWISE]
        self._kernel_self = kernel_self(self._features)
        self._radii = radii(self._features)
        self._sliced = SlicedWasserstein(self._features)

    def __call__(self, images: Tensor, made_from: Tensor | None = None, *, desc: str = "embed") -> Entries:
        """Return metric -> entry of metrics.json for (N, 3, S, S) uint8 images in random order."""
        positions = torch.arange(len(images))
        samples = LoadedSamples(desc, images)
        embedded = embed_samples(samples, positions, len(images), self.reference, key=None, desc=desc)
        return self.score(embedded, made_from)[0]

    def score(self, embedded: Embedded, made_from: Tensor | None = None) -> tuple[Entries, Nearest]:
        """Return metric -> entry of metrics.json, and the nearest training images of the first PAIRWISE."""
        x = embedded.features
        nearest = nearest_training(x, self.reference.training, made_from)
        found: dict[str, Estimate] = {"frechet_distance": frechet_estimate(self._distance, embedded.moments)}
        if self.extrapolate:
            found["frechet_infinite"] = frechet_infinite(self._distance, embedded.moments)
        found |= {
            "kernel_distance": kernel_estimate(self._features, self._kernel_self, x),
            "sliced_wasserstein": self._sliced(x),
            **prdc(self._features, self._radii, x),
        }
        if embedded.classes is not None:
            found["class_entropy"] = class_entropy(embedded.classes)
        found["memorised"] = memorised(nearest)
        counter = self.reference.modes
        if embedded.modes is not None and counter is not None:
            found |= modes_estimates(embedded.modes, counter.total, embedded.residuals)
        entries = {name: estimate.as_json() for name, estimate in found.items()}
        if counter is not None and "modes_covered" in entries:
            entries["modes_covered"]["total"] = counter.total
        return entries, nearest


# Files


def find_samples(path: Path) -> Path:
    """Return the samples that a run folder, a folder of images, an .npz or a .zip file stands for.

    In a run folder that is the file that sampling.json names, or the newest samples*.npz.

    Raises:
        UserError: there are none.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run folder, folder of images, .npz or .zip file")
    if path.is_file():
        if path.suffix not in (".npz", ".zip"):
            raise UserError(f"{path}: neither a folder nor an .npz or .zip file")
        return path
    found = sorted(path.glob("samples*.npz"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    record = path / "sampling.json"
    named = path / str(read_json(record).get("file", "")) if record.is_file() else None
    if named in found:
        return named  # type: ignore[return-value]
    if found:
        return found[-1]
    if (path / "config.json").is_file() or (path / "progress.csv").is_file():
        raise UserError(f"{path}: a run without samples*.npz; draw samples first")
    return path


def scored_folders(path: Path) -> list[Path]:
    """Return the folders that a RUN stands for: a run folder and its settings/* and history/*, or `path` alone."""
    if not path.is_dir():
        return [path]
    extra = [folder for name in ("settings", "history") for folder in sorted((path / name).glob("*/"))]
    return [path, *(folder for folder in extra if next(folder.glob("samples*.npz"), None))]


def evaluate_samples(evaluator: Evaluator, path: Path, target: Path | None) -> dict[str, Any]:
    """Score the samples in `path`; with `target`, a metrics.json, reuse what it holds of the same, and write it.

    Beside `target` a picture appears, neighbours.png: the samples that are nearest to training images, by the ratio of
    `memorised`, and below them those training images.

    Raises:
        UserError: fewer samples than the reference has images, or unreadable ones.
    """
    reference = evaluator.reference
    protocol = reference.describe()
    samples = open_samples(path, protocol["image_size"])
    total, count = samples.shape[0], protocol["n"]
    if total < count:
        raise UserError(f"{path}: {total} images, fewer than --num_images {count}")
    hashed = stream_fingerprint(samples)
    identity = {
        "schema": SCHEMA,
        **protocol,
        "samples": {"file": path.name, "images": total, "fingerprint": hashed},
    }
    there = _known(target, identity)
    standard = there.get("standard") if there else None
    if there is not None and target is not None:
        extrapolated = not evaluator.extrapolate or "frechet_infinite" in there["metrics"]
        scored = evaluator.standard is None or evaluator.standard.is_in(there, reference)
        if extrapolated and scored and target.with_name(STRIP_FILE).is_file():
            return there
    seed = protocol["seed"]
    positions = places(total, count, seed)
    embedded = embed_samples(
        samples, positions, count, reference, key=f"{hashed}-{seed}-{count}", desc=f"embed {path.name}"
    )
    found, nearest = evaluator.score(embedded)
    if there is not None:
        found = {**there["metrics"], **found}  # an extrapolation that this call did not ask for stays
    result = {**identity, "metrics": found, "versions": versions()}
    if evaluator.standard is not None:
        standard = evaluator.standard(chosen_images(samples, positions, count), reference)
    if standard is not None:
        result["standard"] = standard
    if target is not None:
        closest = nearest.ratio.argsort()[:STRIP]
        pairs = torch.cat([embedded.images[closest], reference.data.images[nearest.index[closest]]])
        save_grid(pairs, target.with_name(STRIP_FILE), columns=len(closest))
        write_json(target, result)
    return result


def _known(target: Path | None, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return what `target` holds of the same samples, reference and settings, or None."""
    if target is None or not target.is_file():
        return None
    there = read_json(target)
    same = isinstance(there, dict) and all(there.get(name) == value for name, value in identity.items())
    return there if same else None


def evaluate_anchors(evaluator: Evaluator, target: Path) -> dict[str, Any]:
    """Score the controls, or reuse `target` where it holds them for the same reference; write it and two pictures.

    The pictures, beside it: `<stem>-real.png`, the first 64 real images, and `<stem>-controls.png`, a row of each.
    """
    reference = evaluator.reference
    identity = {"schema": SCHEMA, **reference.describe()}
    there = _known(target, identity)
    if there is not None and (not evaluator.extrapolate or "frechet_infinite" in there["anchors"]["floor"]["metrics"]):
        return there
    data = reference.data
    anchors = make_anchors(
        data.images, data.labels, reference.training, reference.chosen, reference.others, reference.seed
    )
    if shapes_modes(reference.source):
        anchors |= figure_anchors(anchors["floor"], reference.seed)
    rows, metrics = {}, {}
    for name, anchor in anchors.items():
        images = shuffled(anchor.images, reference.seed)
        metrics[name] = evaluator(images, anchor.made_from, desc=f"embed {anchor.label}")
        rows[name] = {"label": anchor.label, "note": anchor.note, "metrics": metrics[name]}
    result = {**identity, "anchors": rows, "checks": check_anchors(metrics), "versions": versions()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_grid(anchors["floor"].images[:64], target.with_name(f"{target.stem}-real.png"))
    _save_controls(anchors, target.with_name(f"{target.stem}-controls.png"))
    write_json(target, result)
    return result


def _save_controls(anchors: dict[str, Anchor], path: Path) -> None:
    columns = min(10, len(anchors["floor"].images))
    save_grid(torch.cat([anchor.images[:columns] for anchor in anchors.values()]), path, columns=columns)
