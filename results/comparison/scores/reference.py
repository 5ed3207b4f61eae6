"""The reference set, and the features of sample sets, computed in one pass over the images."""

from collections.abc import Iterator
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
PAIRWISE = 10_000  # images of each set in kernel distance, nearest neighbours and sliced distance
CACHED = 100_000  # limit of images whose features are kept on disk


@dataclass(frozen=True)
class Reference:
    """The training set, the part of it that serves as reference, and what is computed of it once.

    Attributes:
        source: value of --reference; not written to files, since it may be a path of this machine.
        data: the training set, or a part of a large one.
        chosen: (N,) int64, the reference's images.
        others: (O,) int64, all other images, in random order.
        seed: seed of this choice.
        total: images of the whole training set.
        scale: z-scores features by the reference.
        training: (T, D) float32 z-scored features of `data`.
        extractor: feature extractor.
        modes: mode counter, None for data without known modes.
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
    ) -> "Reference":
        """Load the training images of `source` and choose the reference at random.

        Args:
            source: data source of the training images.
            image_size: pixels.
            num_images: images of the reference; at most half of the training set, since the floor needs other images.
            seed: seed of the choice.
            features: cifar, random, or auto for cifar on images of its ten classes.
            device: device of the extractor.
            whole: allow all training images as reference, for scores without controls.

        Raises:
            UserError: the source is unusable or has fewer than 2 * MIN_IMAGES images.
        """
        data = load_images(source, image_size, split="train")
        if len(data) < 2 * MIN_IMAGES:
            raise UserError(f"--reference {source}: {len(data)} images; at least {2 * MIN_IMAGES} are needed")
        total = len(data)
        num_images = min(num_images, total if whole else total // 2)
        extractor = feature_sets.make_extractor(feature_sets.choose_key(features, data), device)
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
        """Return True if the images show the ten classes that the classifier was trained on."""
        return self.data.class_names == CIFAR10_CLASSES

    def describe(self) -> dict[str, Any]:
        """Return the facts that must agree between scores that are compared."""
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
class SampleFeatures:
    """What the metrics need of a sample set: moments of all N images, features and pixels of the first PAIRWISE.

    Attributes:
        moments: moments of the z-scored features, by the groups of the jackknife.
        features: (min(N, PAIRWISE), D) float32, z-scored, in random order.
        images: (min(N, PAIRWISE), 3, S, S) uint8, the same images.
        classes: (groups, classes) int64 counts; None if the extractor or the data do not have the ten classes.
        modes: (N,) int64 matched modes, -1 for none; None for data without known modes.
        residuals: (N,) float32 residuals of the fits that matched the modes; None without fits.
    """

    moments: GroupMoments
    features: Tensor
    images: Tensor
    classes: Tensor | None
    modes: Tensor | None
    residuals: Tensor | None


def embed_samples(
    samples: Samples, positions: Tensor, count: int, reference: Reference, *, key: str | None, desc: str
) -> SampleFeatures:
    """Read a sample set once and keep what the metrics need.

    Args:
        samples: the sample set.
        positions: (total,) int64 from `random_positions`.
        count: images that have a position.
        reference: source of extractor, scale and modes.
        key: name of the features in the cache, None for no cache.
        desc: label of the progress bar.
    """
    extractor, counter = reference.extractor, reference.modes
    groups = split_groups(count)
    group_of = torch.cat([torch.full((g.stop - g.start,), i) for i, g in enumerate(groups)])
    kept = min(count, PAIRWISE)
    moments = GroupMoments(len(groups), extractor.dimensions)
    features = torch.empty(kept, extractor.dimensions)
    images = torch.empty((kept, *samples.shape[1:]), dtype=torch.uint8)
    matched = torch.empty(count, dtype=torch.int64) if counter else None
    residuals: Tensor | None = None
    classes: Tensor | None = None
    batch = feature_sets.batch_size(extractor, samples.shape[-1])
    cache = None
    if key is not None and count <= CACHED:

        def embed_all() -> Tensor:
            everything = torch.empty(count, extractor.dimensions)
            with bar(count, 0, desc, "images") as progress:
                for part, numbers in _chosen_batches(samples, positions, batch):
                    everything[numbers] = extractor(part)
                    progress.update(len(part))
            return everything

        cache = feature_sets.cached(key, count, extractor, embed_all)
    with bar(count if cache is None else None, 0, desc, "images") as progress:
        for part, numbers in _chosen_batches(samples, positions, batch):
            raw = extractor(part) if cache is None else cache[numbers]
            x = reference.scale(raw)
            for group in group_of[numbers].unique().tolist():
                moments.add(x[group_of[numbers] == group], group)
            predicted = extractor.classes(raw) if reference.ten_classes else None
            if predicted is not None:
                counts = torch.zeros(len(groups), CLASSES, dtype=torch.int64)
                counts.index_put_((group_of[numbers], predicted), torch.ones_like(predicted), accumulate=True)
                classes = counts if classes is None else classes + counts
            first = numbers < kept
            features[numbers[first]], images[numbers[first]] = x[first], part[first]
            if counter is not None and matched is not None:
                matched[numbers], residual = counter.fit(part)
                if residual is not None:
                    residuals = torch.empty(count) if residuals is None else residuals
                    residuals[numbers] = residual
            progress.update(len(part) if cache is None else 0)
    return SampleFeatures(moments, features, images, classes, matched, residuals)


def _chosen_batches(samples: Samples, positions: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, batch by batch, the images that have a position, and these (n,) int64 positions."""
    start = 0
    for part in samples.batches(size):
        numbers = positions[start : start + len(part)]
        start += len(part)
        chosen = numbers >= 0
        if chosen.any():
            yield part[chosen], numbers[chosen]


def random_positions(total: int, count: int, seed: int) -> Tensor:
    """Choose `count` of `total` images at random, in random order, since samples may be sorted by class.

    Returns:
        (total,) int64, the position of each image in that order, -1 if it is not chosen.
    """
    order = np.random.Generator(np.random.PCG64([seed, 2])).permutation(total)[:count]
    positions = torch.full((total,), -1)
    positions[torch.from_numpy(order)] = torch.arange(len(order))
    return positions


def shuffled(images: Tensor, seed: int) -> Tensor:
    """Return the images in the random order of `random_positions`."""
    return images[random_positions(len(images), len(images), seed).argsort()]


def chosen_images(samples: Samples, positions: Tensor, count: int) -> Tensor:
    """Return the (count, 3, S, S) uint8 images that have a position, in the order of the positions."""
    images = torch.empty((count, *samples.shape[1:]), dtype=torch.uint8)
    for part, numbers in _chosen_batches(samples, positions, 1000):
        images[numbers] = part
    return images
