"""Feature extraction over several processes, started by torchrun, mpiexec or srun; the numbers stay the same.

The first process runs the program. The others wait in `serve`: they take their part of every batch, embed it and give
the features back, until the first one is done.
"""

from typing import Any

import torch
from torch import Tensor, distributed

from comparison.distributed import world_size
from comparison.scores.features import Extractor, make_extractor


class Sharded:
    """An extractor whose work is shared among all processes; used in the first one."""

    def __init__(self, inner: Extractor):
        self._inner = inner
        self.key, self.dimensions, self.batch_pixels = inner.key, inner.dimensions, inner.batch_pixels * world_size()

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, 3, S, S) uint8 to (N, D) float32, each process a part of the N."""
        parts = [part.clone() for part in images.tensor_split(world_size())]  # a view would send all images
        mine = _scatter([(self.key, part) for part in parts])[1]
        gathered: list[Any] = [None] * world_size()
        distributed.gather_object(self._inner(mine) if len(mine) else None, gathered)
        return torch.cat([features for features in gathered if features is not None])

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the extractor."""
        return self._inner.describe()

    def classes(self, features: Tensor) -> Tensor | None:
        """Return the classes that the extractor sees."""
        return self._inner.classes(features)


def share(extractor: Extractor) -> Extractor:
    """Return an extractor, with its work shared where there are several processes."""
    return Sharded(extractor) if world_size() > 1 else extractor


def serve(device: torch.device) -> None:
    """Embed for the first process until it calls `dismiss`; for all other processes."""
    extractors: dict[str, Extractor] = {}
    while (work := _scatter(None)) is not None:
        key, images = work
        if key not in extractors:
            extractors[key] = make_extractor(key, device)
        distributed.gather_object(extractors[key](images) if len(images) else None)


def dismiss() -> None:
    """Let the other processes return from `serve`."""
    if world_size() > 1:
        _scatter([None] * world_size())


def _scatter(parts: list[Any] | None) -> Any:
    received: list[Any] = [None]
    distributed.scatter_object_list(received, parts)
    return received[0]
