"""Feature extraction by several ranks, started by torchrun, mpiexec or srun, with the results of a single process.

Rank 0 runs the program. The others wait in `serve`, embed their part of every batch and return the features.
"""

from typing import Any

import torch
from torch import Tensor, distributed

from comparison.distributed import world_size
from comparison.scores.features import Extractor, make_extractor


class Sharded:
    """An extractor on rank 0 whose work is shared among all ranks."""

    def __init__(self, inner: Extractor):
        self._inner = inner
        self.key, self.dimensions, self.batch_pixels = inner.key, inner.dimensions, inner.batch_pixels * world_size()

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, 3, S, S) uint8 to (N, D) float32, a part of the images on each rank."""
        parts = [part.clone() for part in images.tensor_split(world_size())]  # a view would send all images
        mine = _scatter([(self.key, part) for part in parts])[1]
        gathered: list[Any] = [None] * world_size()
        distributed.gather_object(self._inner(mine) if len(mine) else None, gathered)
        return torch.cat([features for features in gathered if features is not None])

    def describe(self) -> dict[str, Any]:
        """Return the facts of the extractor for reports."""
        return self._inner.describe()

    def classes(self, features: Tensor) -> Tensor | None:
        """Return the classes predicted from features."""
        return self._inner.classes(features)


def share(extractor: Extractor) -> Extractor:
    """Return an extractor whose work is shared if there are several ranks."""
    return Sharded(extractor) if world_size() > 1 else extractor


def serve(device: torch.device) -> None:
    """Embed images for rank 0 until it calls `dismiss`; called on all other ranks."""
    extractors: dict[str, Extractor] = {}
    while (work := _scatter(None)) is not None:
        key, images = work
        if key not in extractors:
            extractors[key] = make_extractor(key, device)
        distributed.gather_object(extractors[key](images) if len(images) else None)


def dismiss() -> None:
    """Make the other ranks return from `serve`."""
    if world_size() > 1:
        _scatter([None] * world_size())


def _scatter(parts: list[Any] | None) -> Any:
    received: list[Any] = [None]
    distributed.scatter_object_list(received, parts)
    return received[0]
