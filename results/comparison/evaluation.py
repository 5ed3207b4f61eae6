"""Scoring sample sets against a reference set: who is compared with whom, and the files that say so."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comparison import features as extractor
from comparison import shapes
from comparison.anchors import Anchor, check_anchors, make_anchors
from comparison.cli import UserError
from comparison.images import ImageSet, fingerprint, load_images, load_npz, save_grid
from comparison.metrics import (
    INTERVAL,
    MIN_IMAGES,
    Estimate,
    frechet_estimate,
    frechet_from,
    jackknife,
    kernel_estimate,
    kernel_self,
    moments,
    share,
    split_groups,
)
from comparison.neighbours import memorised, nearest_training, prdc, radii
from comparison.runs import read_json, versions, write_json
from comparison.sources import shapes_modes

SCHEMA = 1  # rises whenever a metric, a control or an expectation changes, so that older files are not reused
MEMORY_POOL = 50_000  # training images among which the nearest is sought

Entries = dict[str, dict[str, Any]]  # metric -> value, interval, n


@dataclass(frozen=True)
class Reference:
    """The training set, the part of it that serves as reference, and everything about it that is computed once.

    Attributes:
        source: as named on the command line; not written to files, it may be a path of this machine.
        data: the training set.
        chosen: (N,) int64, the reference's images.
        others: the remaining ones, in random order.
        seed: that drew them.
        scale: z-scores features by the reference.
        total: images of the whole training set, also where `data` is a part of it.
        training: (T, D) float32 z-scored features of the training set, or of MEMORY_POOL of its images.
    """

    source: str
    data: ImageSet
    chosen: Tensor
    others: Tensor
    seed: int
    total: int
    scale: extractor.Scale = field(repr=False)
    training: Tensor = field(repr=False)

    @classmethod
    def load(
        cls, source: str, image_size: int, num_images: int, seed: int, device: torch.device | str = "cpu"
    ) -> "Reference":
        """Read the training images of `source` and draw the reference from them: num_images, at most half of them.

        The other half is for the floor, which must not share images with the reference.

        Raises:
            UserError: the source is unusable or has fewer than 2 * MIN_IMAGES images.
        """
        data = load_images(source, image_size, split="train")
        if len(data) < 2 * MIN_IMAGES:
            raise UserError(f"--reference {source}: {len(data)} images; at least {2 * MIN_IMAGES} are needed")
        total = len(data)
        num_images = min(num_images, total // 2)
        order = torch.from_numpy(np.random.Generator(np.random.PCG64([seed, 0])).permutation(len(data)))
        if len(data) > MEMORY_POOL + 2 * num_images:
            order = order[: MEMORY_POOL + 2 * num_images]
            keep = order.sort().values
            labels = None if data.labels is None else data.labels[keep]
            data = ImageSet(data.images[keep], labels, data.class_names, data.name, data.fingerprint)
            order = torch.searchsorted(keep, order)
        features = extractor.embed_cached(
            data.images, fingerprint(data.images), device=device, desc="embed training images"
        )
        chosen, others = order[:num_images], order[num_images:]
        scale = extractor.Scale.of(features[chosen])
        return cls(source, data, chosen, others, seed, total, scale, scale(features))

    def describe(self) -> dict[str, Any]:
        """Return what must agree between numbers that are compared."""
        return {
            "reference": {
                "name": self.data.name,
                "training_images": self.total,
                "training_fingerprint": self.data.fingerprint,
                "fingerprint": fingerprint(self.data.images[self.chosen]),
            },
            "extractor": extractor.describe(),
            "n": len(self.chosen),
            "image_size": self.data.images.shape[-1],
            "seed": self.seed,
            "intervals": INTERVAL,
        }


class Evaluator:
    """Computes every metric of a sample set against one reference."""

    def __init__(self, reference: Reference, device: torch.device | str = "cpu"):
        self.reference, self.device = reference, device
        self.features = reference.training[reference.chosen]
        mean, covariance = moments(self.features)
        self._distance = frechet_from(mean, covariance)
        self._kernel_self = kernel_self(self.features)
        self._radii = radii(self.features)
        self._modes = shapes_modes(reference.source)

    def __call__(self, images: Tensor, made_from: Tensor | None = None, *, desc: str = "embed") -> Entries:
        """Return metric -> entry of metrics.json for (N, 3, S, S) uint8 images in random order."""
        x = self.reference.scale(extractor.embed(images, device=self.device, desc=desc))
        found: dict[str, Estimate] = {
            "frechet_distance": frechet_estimate(self._distance, x),
            "kernel_distance": kernel_estimate(self.features, self._kernel_self, x),
            **prdc(self.features, self._radii, x),
            "memorised": memorised(nearest_training(x, self.reference.training, made_from)),
        }
        if self._modes:
            found |= modes_estimates(shapes.match_modes(images, self._modes), self._modes)
        entries = {name: estimate.as_json() for name, estimate in found.items()}
        if self._modes:
            entries["modes_covered"]["total"] = self._modes
        return entries


def modes_estimates(found: Tensor, count: int) -> dict[str, Estimate]:
    """Estimate the covered modes and the share of images that show one from (N,) matched modes, -1 for none."""
    groups = split_groups(len(found))
    hits = torch.stack([torch.bincount(found[g][found[g] >= 0], minlength=count) for g in groups])
    total = hits.sum(0)
    parts = [float((total > hits[g]).sum()) for g in range(len(groups))]
    covered = jackknife(float((total > 0).sum()), parts, len(found), low=0, high=count)
    return {"modes_covered": covered, "modes_matched": share(found >= 0)}


def choose(images: Tensor, count: int, seed: int) -> Tensor:
    """Draw `count` images at random: samples may lie in the order of their classes."""
    order = np.random.Generator(np.random.PCG64([seed, 2])).permutation(len(images))[:count]
    return images[torch.from_numpy(order)]


# Files


def find_samples(path: Path) -> Path:
    """Return the samples that a run folder, an .npz file or a folder of images stands for.

    In a run folder that is the file that sampling.json names, or the newest samples*.npz.

    Raises:
        UserError: there are none.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run folder, .npz file or folder of images")
    if path.is_file():
        if path.suffix != ".npz":
            raise UserError(f"{path}: neither an .npz file nor a folder")
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


def load_samples(path: Path, image_size: int) -> Tensor:
    """Read samples as (N, 3, S, S) uint8; an .npz must have the size that is asked for.

    Raises:
        UserError: unreadable, or of another size.
    """
    if path.suffix != ".npz":
        return load_images(str(path), image_size).images
    images = load_npz(path)[0]
    if images.shape[2:] != (image_size, image_size):
        size = f"{images.shape[3]} x {images.shape[2]}"
        raise UserError(f"{path}: images of {size} pixels, --image_size {image_size}; compare at one size")
    return images


def evaluate_samples(evaluator: Evaluator, path: Path, target: Path | None) -> dict[str, Any]:
    """Score the samples in `path`; with `target`, a metrics.json, reuse what it holds of the same, and write it.

    Raises:
        UserError: fewer samples than the reference has images, or unreadable ones.
    """
    protocol = evaluator.reference.describe()
    images = load_samples(path, protocol["image_size"])
    if len(images) < protocol["n"]:
        raise UserError(f"{path}: {len(images)} images, fewer than --num_images {protocol['n']}")
    identity = {
        "schema": SCHEMA,
        **protocol,
        "samples": {"file": path.name, "images": len(images), "fingerprint": fingerprint(images)},
    }
    if target is not None and target.is_file():
        there = read_json(target)
        if isinstance(there, dict) and all(there.get(name) == value for name, value in identity.items()):
            return there
    found = evaluator(choose(images, protocol["n"], protocol["seed"]), desc=f"embed {path.name}")
    result = {**identity, "metrics": found, "versions": versions()}
    if target is not None:
        write_json(target, result)
    return result


def evaluate_anchors(evaluator: Evaluator, target: Path) -> dict[str, Any]:
    """Score the controls, or reuse `target` where it holds them for the same reference; write it and two pictures.

    The pictures, beside it: `<stem>-real.png`, the first 64 real images, and `<stem>-controls.png`, a row of each.
    """
    reference = evaluator.reference
    identity = {"schema": SCHEMA, **reference.describe()}
    if target.is_file():
        there = read_json(target)
        if isinstance(there, dict) and all(there.get(name) == value for name, value in identity.items()):
            return there
    data = reference.data
    anchors = make_anchors(
        data.images, data.labels, reference.training, reference.chosen, reference.others, reference.seed
    )
    rows, metrics = {}, {}
    for name, anchor in anchors.items():
        images = choose(anchor.images, len(anchor.images), reference.seed)
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
