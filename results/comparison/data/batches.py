"""Training batches as a pure function of (seed, step), from a data set in memory; `streaming` reads from disk."""

from typing import Any, Self

import torch
from torch import Tensor

from comparison import rng
from comparison.cli import UserError
from comparison.data.images import ImageSet, from_uint8


class BatchOrder:
    """The image numbers of each batch: a new permutation per epoch, without an incomplete last batch.

    The batch of a step depends on (seed, step) alone, so a resumed run equals an uninterrupted one, and each rank takes
    its rows of the same global batch.

    Args:
        name, count: name of the data set and its number of images.
        batch_size: size of the global batch, a multiple of world_size.
        seed: seed of order and flips.
        rank, world_size: this process and the number of processes that share the batch.

    Attributes:
        rows: this rank's rows of the global batch.
        steps_per_epoch: batches per epoch.

    Raises:
        UserError: the set has fewer images than a batch, or the batch does not divide among the ranks.
    """

    def __init__(self, name: str, count: int, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1):
        if count < batch_size:
            raise UserError(f"--batch_size {batch_size}: {name} holds only {count} images")
        if batch_size % world_size:
            raise UserError(f"--batch_size {batch_size}: not a multiple of the {world_size} processes")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        share = batch_size // world_size
        self.rows = slice(rank * share, (rank + 1) * share)
        self.steps_per_epoch = count // batch_size
        self._epoch: tuple[int, Tensor] | None = None

    def numbers(self, step: int) -> Tensor:
        """Return the (n,) int64 numbers of this rank's images of update `step` (0, 1, ...)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(self.count, generator=rng.generator("cpu", self.seed, epoch, "order"))
            self._epoch = (epoch, order)
        return self._epoch[1][position * self.batch_size : (position + 1) * self.batch_size][self.rows]

    def normalise(self, images: Tensor, step: int, *, flip: bool) -> Tensor:
        """Map (n, 3, S, S) uint8, on any device, to float32 in [-1, 1]; `flip` mirrors each with probability 1/2."""
        if not flip:
            return from_uint8(images)
        flipped = rng.randint(2, (self.batch_size,), self.seed, step, "flip", rows=self.rows)
        chosen = torch.arange(len(images)) + len(images) * flipped  # index into images, then mirror images
        both = torch.cat([images, images.flip(-1)])
        return from_uint8(both.index_select(0, chosen.to(images.device, non_blocking=True)))


class Stream:
    """Batches of a set in the order of `BatchOrder`, normalised and flipped on `device`.

    Args:
        images: data set in memory or on disk.
        batch_size, seed, rank, world_size: see `BatchOrder`, as for the attributes and errors.
        flip: mirror each image with probability 1/2.
        device: device of the batches.
    """

    def __init__(
        self,
        images: Any,
        batch_size: int,
        seed: int,
        *,
        flip: bool = True,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        self.order = BatchOrder(images.name, len(images), batch_size, seed, rank=rank, world_size=world_size)
        self.rows, self.steps_per_epoch = self.order.rows, self.order.steps_per_epoch
        self.flip, self.device = flip, torch.device(device)

    def __enter__(self) -> Self:
        return self


class BatchStream(Stream):
    """Batches of an `ImageSet`, whose uint8 images move to the device once; arguments of `Stream`."""

    def __init__(self, image_set: ImageSet, batch_size: int, seed: int, **options: Any):
        super().__init__(image_set, batch_size, seed, **options)
        self.images = image_set.images.to(self.device)
        self.labels = None if image_set.labels is None else image_set.labels.to(self.device)

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the batch of update `step` (0, 1, ...): (n, 3, S, S) float32 in [-1, 1], (n,) int64 labels or None."""
        numbers = self.order.numbers(step).to(self.device, non_blocking=True)
        x = self.order.normalise(self.images.index_select(0, numbers), step, flip=self.flip)
        return x, None if self.labels is None else self.labels[numbers]

    def __exit__(self, *exc: object) -> None:
        """Do nothing; a stream from disk ends its processes."""
