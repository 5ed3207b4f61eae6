"""The reference set, and sample sets as the metrics need them: embedded once, in one pass over the images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comparison.cli import UserError
from comparison.data.images import CIFAR10_CLASSES, ImageSet, fingerprint, load_images
from comparison.data.samples import Samples
from comparison.progress import bar
from comparison.scores import features as feature_sets
from comparison.scores.classifier import CLASSES
from comparison.scores.features import Extractor, Scale
from comparison.scores.metrics import INTERVAL, MIN_IMAGES, GroupMoments, split_groups
from comparison.scores.modes import ModeCounter, mode_counter

MEMORY_POOL = 50_000  # training images among which the nearest is sought
PAIRWISE = 10_000  # images of each set in measures that look at pairs: kernel, neighbours, sliced distance
CACHED = 100_000  # images whose features are kept on disk; more are embedded anew


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
        extractor: gave the features.
        modes: counts the modes, where the data have known ones.
    """

    source: str
    data: ImageSet
    chosen: Tensor
    others: Tensor
    seed: int
    total: int
    scale: Scale = field(repr=False)
    training: Tensor = field(repr=False)
    extractor: Extractor = field(repr=False)
    modes: ModeCounter | None = field(repr=False)

    @classmethod
    def load(
        cls,
        source: str,
        image_size: int,
        num_images: int,
        seed: int,
        features: str = "random",
        *,
        device: torch.device | str = "cpu",
        whole: bool = False,
        share: Callable[[Extractor], Extractor] = lambda extractor: extractor,
    ) -> "Reference":
        """Read the training images of `source` and draw the reference from them.

        Args:
            source: of the training images.
            image_size: pixels.
            num_images: of the reference, at most half of the training set: the other half is for the floor, which
                must not share images with the reference.
            seed: of the draw.
            features: cifar, random, or auto for cifar on images of its ten classes.
            device: of the extractor.
            whole: allow the reference to be the whole training set, where no floor is wanted.
            share: makes the extractor work in several processes.

        Raises:
            UserError: the source is unusable or has fewer than 2 * MIN_IMAGES images.
        """
        data = load_images(source, image_size, split="train")
        if len(data) < 2 * MIN_IMAGES:
            raise UserError(f"--reference {source}: {len(data)} images; at least {2 * MIN_IMAGES} are needed")
        total = len(data)
        num_images = min(num_images, total if whole else total // 2)
        extractor = share(feature_sets.make_extractor(feature_sets.choose_key(features, data), device))
        order = torch.from_numpy(np.random.Generator(np.random.PCG64([seed, 0])).permutation(len(data)))
        if len(data) > MEMORY_POOL + 2 * num_images:
            order = order[: MEMORY_POOL + 2 * num_images]
            keep = order.sort().values
            labels = None if data.labels is None else data.labels[keep]
            data = ImageSet(data.images[keep], labels, data.class_names, data.name, data.fingerprint)
            order = torch.searchsorted(keep, order)
        raw = feature_sets.cached(
            fingerprint(data.images),
            len(data),
            extractor,
            lambda: feature_sets.embed(data.images, extractor, desc="embed training images"),
        )
        chosen, others = order[:num_images], order[num_images:]
        scale = Scale.of(raw[chosen])
        return cls(
            source, data, chosen, others, seed, total, scale, scale(raw), extractor, mode_counter(source, device)
        )

    @property
    def ten_classes(self) -> bool:
        """Whether the images show the classes that the classifier knows; on others its classes mean nothing."""
        return self.data.class_names == CIFAR10_CLASSES

    def describe(self) -> dict[str, Any]:
        """Return what must agree between numbers that are compared."""
        counted = {"mode_counter": self.modes.facts} if self.modes and self.modes.facts else {}
        return {
            "reference": {
                "name": self.data.name,
                "training_images": self.total,
                "training_fingerprint": self.data.fingerprint,
                "fingerprint": fingerprint(self.data.images[self.chosen]),
            },
            "extractor": self.extractor.describe(),
            "n": len(self.chosen),
            "pairwise_images": min(PAIRWISE, len(self.chosen)),
            "image_size": self.data.images.shape[-1],
            "seed": self.seed,
            "intervals": INTERVAL,
            **counted,
        }


@dataclass(frozen=True)
class Embedded:
    """What is kept of a sample set: moments of all images, features and pixels of the first PAIRWISE.

    Attributes:
        moments: of the z-scored features of all N images, in the groups of the jackknife.
        features: (min(N, PAIRWISE), D) float32, z-scored, in random order.
        images: (min(N, PAIRWISE), 3, S, S) uint8, the same ones.
        classes: (groups, classes) int64 counts; None for an extractor, or images, without those classes.
        modes: (N,) int64 matched modes, -1 for none; None where they are not known.
        residuals: (N,) float32 of the fits that matched them; None without fits.
    """

    moments: GroupMoments
    features: Tensor
    images: Tensor
    classes: Tensor | None
    modes: Tensor | None
    residuals: Tensor | None


def embed_samples(
    samples: Samples, positions: Tensor, count: int, reference: Reference, *, key: str | None, desc: str
) -> Embedded:
    """Read a sample set once and keep what the metrics need.

    Args:
        samples: the set.
        positions: (total,) int64, the place of each image in the random order, -1 for those left out.
        count: images that have a place.
        reference: gives extractor, scale and modes.
        key: under which the features are cached, None for not at all.
        desc: beside the progress bar.
    """
    extractor, counter = reference.extractor, reference.modes
    groups = split_groups(count)
    group_of = torch.cat([torch.full((g.stop - g.start,), i) for i, g in enumerate(groups)])
    kept = min(count, PAIRWISE)
    found = GroupMoments(len(groups), extractor.dimensions)
    features = torch.empty(kept, extractor.dimensions)
    images = torch.empty((kept, *samples.shape[1:]), dtype=torch.uint8)
    matched = torch.empty(count, dtype=torch.int64) if counter else None
    residuals: Tensor | None = None
    classes: Tensor | None = None
    cache = None
    if key is not None and count <= CACHED:
        cache = feature_sets.cached(
            key, count, extractor, lambda: _embed_chosen(samples, positions, count, extractor, desc)
        )
    batch = feature_sets.batch_size(extractor, samples.shape[-1])
    start = 0
    with bar(count if cache is None else None, 0, desc, "images") as progress:
        for part in samples.batches(batch):
            places = positions[start : start + len(part)]
            start += len(part)
            part, places = part[places >= 0], places[places >= 0]
            if not len(part):
                continue
            raw = extractor(part) if cache is None else cache[places]
            x = reference.scale(raw)
            for group in group_of[places].unique().tolist():
                found.add(x[group_of[places] == group], group)
            seen = extractor.classes(raw) if reference.ten_classes else None
            if seen is not None:
                counts = torch.zeros(len(groups), CLASSES, dtype=torch.int64)
                counts.index_put_((group_of[places], seen), torch.ones_like(seen), accumulate=True)
                classes = counts if classes is None else classes + counts
            first = places < kept
            features[places[first]], images[places[first]] = x[first], part[first]
            if counter is not None and matched is not None:
                matched[places], residual = counter.fit(part)
                if residual is not None:
                    residuals = torch.empty(count) if residuals is None else residuals
                    residuals[places] = residual
            progress.update(len(part) if cache is None else 0)
    return Embedded(found, features, images, classes, matched, residuals)


def _embed_chosen(samples: Samples, positions: Tensor, count: int, extractor: Extractor, desc: str) -> Tensor:
    """Return (count, D) features in the order of the places."""
    features, start = torch.empty(count, extractor.dimensions), 0
    with bar(count, 0, desc, "images") as progress:
        for part in samples.batches(feature_sets.batch_size(extractor, samples.shape[-1])):
            places = positions[start : start + len(part)]
            start += len(part)
            chosen = places >= 0
            if chosen.any():
                features[places[chosen]] = extractor(part[chosen])
                progress.update(int(chosen.sum()))
    return features


def places(total: int, count: int, seed: int) -> Tensor:
    """Draw `count` of `total` images at random, in random order: samples may lie in the order of their classes.

    Returns:
        (total,) int64, each image's place in that order, -1 for those left out.
    """
    order = np.random.Generator(np.random.PCG64([seed, 2])).permutation(total)[:count]
    positions = torch.full((total,), -1)
    positions[torch.from_numpy(order)] = torch.arange(len(order))
    return positions


def shuffled(images: Tensor, seed: int) -> Tensor:
    """Return the images in the random order of `places`."""
    return images[places(len(images), len(images), seed).argsort()]


def chosen_images(samples: Samples, positions: Tensor, count: int) -> Tensor:
    """Return the (count, 3, S, S) uint8 images that have a place, in the order of the places."""
    images, start = torch.empty((count, *samples.shape[1:]), dtype=torch.uint8), 0
    for part in samples.batches(1000):
        numbers = positions[start : start + len(part)]
        start += len(part)
        images[numbers[numbers >= 0]] = part[numbers >= 0]
    return images
