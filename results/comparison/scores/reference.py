"""The reference set of the scores."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comparison.cli import UserError
from comparison.data.images import CIFAR10_CLASSES, ImageSet, fingerprint, load_images
from comparison.scores import features as feature_sets
from comparison.scores.features import Extractor, Scale
from comparison.scores.metrics import INTERVAL, MIN_IMAGES
from comparison.scores.modes import ModeCounter, mode_counter

MEMORY_POOL = 50_000  # training images among which the nearest is sought
PAIRWISE = 10_000  # images of each set in kernel distance, nearest neighbours and sliced distance


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


def shuffled(images: Tensor, seed: int, count: int | None = None) -> Tensor:
    """Return `count` images, by default all, chosen at random and in random order; they may be sorted by class."""
    order = np.random.Generator(np.random.PCG64([seed, 2])).permutation(len(images))[:count]
    return images[torch.from_numpy(order)]
