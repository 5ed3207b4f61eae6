"""Training batches as a pure function of (seed, step), from a data set in memory."""

import torch
from torch import Tensor

from comparison import rng
from comparison.cli import UserError
from comparison.images import ImageSet, from_uint8


class BatchStream:
    """Batches of an image set: every epoch a new permutation, the incomplete last batch left out.

    The batch of a step depends on (seed, step) alone, so a resumed run sees what an unbroken one sees, and every
    rank takes its own rows of the same global batch. Normalising and flipping happen on `device`.

    Args:
        image_set: the data.
        batch_size: of the global batch; a multiple of world_size.
        seed: of order and flips.
        flip: mirror each image with probability 1/2.
        device: where the batches are wanted; the uint8 images move there once.
        rank, world_size: this process among those that share the batch.

    Raises:
        UserError: the set holds fewer images than a batch, or the batch does not divide among the ranks.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        seed: int,
        *,
        flip: bool = True,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(image_set) < batch_size:
            raise UserError(f"--batch_size {batch_size}: {image_set.name} holds only {len(image_set)} images")
        if batch_size % world_size:
            raise UserError(f"--batch_size {batch_size}: not a multiple of the {world_size} processes")
        self.images = image_set.images.to(device)
        self.labels = None if image_set.labels is None else image_set.labels.to(device)
        self.batch_size, self.seed, self.flip, self.device = batch_size, seed, flip, device
        share = batch_size // world_size
        self.rows = slice(rank * share, (rank + 1) * share)
        self.steps_per_epoch = len(image_set) // batch_size
        self._order: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the batch of update `step` (0, 1, ...): (n, 3, S, S) float32 in [-1, 1], (n,) int64 labels or None."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.images), generator=rng.generator("cpu", self.seed, epoch, "order"))
            self._order = (epoch, order)
        chosen = self._order[1][position * self.batch_size : (position + 1) * self.batch_size][self.rows]
        chosen = chosen.to(self.device, non_blocking=True)
        x = from_uint8(self.images[chosen])
        if self.flip:
            flipped = rng.randint(2, (self.batch_size,), self.seed, step, "flip", rows=self.rows).bool()
            flipped = flipped.to(self.device, non_blocking=True)
            x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
        return x, None if self.labels is None else self.labels[chosen]
