"""Feature extraction over several processes, started by torchrun or mpiexec; the numbers stay the same.

The first process runs the program. The others wait in `serve`: they take their part of every batch, embed it and give
the features back, until the first one is done.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from comparison.cli import UserError
from comparison.distributed import init_process_group
from comparison.scores.features import Extractor, make_extractor

_RANKS = (("RANK", "WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))


def place() -> tuple[int, int]:
    """Return this process's rank and the number of processes, from what the launcher set; (0, 1) without one."""
    for rank, size in _RANKS:
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def local_device(name: str) -> str:
    """Give each process of a machine its own GPU where --device leaves the choice open."""
    local = os.environ.get("LOCAL_RANK") or os.environ.get("MPI_LOCALRANKID") or str(place()[0])
    if name in ("auto", "cuda") and place()[1] > 1 and torch.cuda.is_available():
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return name


class _Link(Protocol):
    def scatter(self, parts: list[Any] | None) -> Any: ...

    def gather(self, part: Any) -> list[Any] | None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class _Torch:
    """torchrun's processes, over gloo."""

    def __init__(self) -> None:
        init_process_group("gloo")
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def scatter(self, parts: list[Any] | None) -> Any:
        received: list[Any] = [None]
        torch.distributed.scatter_object_list(received, parts)
        return received[0]

    def gather(self, part: Any) -> list[Any] | None:
        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        torch.distributed.gather_object(part, gathered)
        return gathered

    def close(self) -> None:
        torch.distributed.destroy_process_group()

    def abort(self) -> None:
        pass  # torchrun ends the others when one fails


class _Mpi:
    """mpiexec's processes, over mpi4py."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise UserError(f"several processes under mpiexec need mpi4py ({error})") from None
        self._world = MPI.COMM_WORLD

    def scatter(self, parts: list[Any] | None) -> Any:
        return self._world.scatter(parts)

    def gather(self, part: Any) -> list[Any] | None:
        return self._world.gather(part)

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self._world.Abort(1)


class Sharded:
    """An extractor whose work is shared among all processes; used in the first one."""

    def __init__(self, inner: Extractor, link: _Link, size: int):
        self._inner, self._link, self._size = inner, link, size
        self.key, self.dimensions, self.batch_pixels = inner.key, inner.dimensions, inner.batch_pixels * size

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, 3, S, S) uint8 to (N, D) float32, each process a part of the N."""
        parts = list(images.tensor_split(self._size))
        mine = self._link.scatter([(self.key, part.contiguous()) for part in parts])[1]
        gathered = self._link.gather(self._inner(mine) if len(mine) else None)
        assert gathered is not None
        return torch.cat([features for features in gathered if features is not None])

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the extractor."""
        return self._inner.describe()

    def classes(self, features: Tensor) -> Tensor | None:
        """Return the classes that the extractor sees."""
        return self._inner.classes(features)


class Team:
    """The processes of this evaluation."""

    def __init__(self, link: _Link | None, size: int):
        self._link, self.size = link, size

    def share(self, extractor: Extractor) -> Extractor:
        """Return the extractor, with its work shared where there are several processes."""
        return extractor if self._link is None else Sharded(extractor, self._link, self.size)


def _connect() -> _Link:
    return _Torch() if "RANK" in os.environ and "MASTER_ADDR" in os.environ else _Mpi()


@contextmanager
def team() -> Iterator[Team]:
    """Connect the first process with the others, and let them go at the end."""
    _, size = place()
    if size == 1:
        yield Team(None, 1)
        return
    link = _connect()
    try:
        yield Team(link, size)
    finally:
        link.scatter([None] * size)
        link.close()


def serve(device: torch.device, connect: Callable[[], _Link] = _connect) -> None:
    """Embed for the first process until it is done; for all other processes. An error ends them all."""
    link = connect()
    extractors: dict[str, Extractor] = {}
    try:
        while (work := link.scatter(None)) is not None:
            key, images = work
            if key not in extractors:
                extractors[key] = make_extractor(key, device)
            link.gather(extractors[key](images) if len(images) else None)
    except BaseException:
        traceback.print_exc()
        link.abort()  # or the first process would wait for this one
        raise
    link.close()
