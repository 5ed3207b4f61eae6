"""Training batches from a data set on disk, decoded ahead by worker processes: those of `BatchStream`, bit for bit."""

import contextlib
import itertools
import signal
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comparison.cli import UserError
from comparison.data.batches import BatchOrder, BatchStream, Stream
from comparison.data.folders import FileSet
from comparison.data.images import ImageSet
from comparison.device import usable_cores

MAX_WORKERS = 16  # by default; each holds two batches
PREFETCH = 2  # batches that each worker decodes ahead


def open_stream(
    images: ImageSet | FileSet,
    batch_size: int,
    seed: int,
    *,
    flip: bool = True,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    num_workers: int | None = None,
    local_processes: int = 1,
) -> "BatchStream | FileStream":
    """Return the batches of a set, from memory or from disk, wherever `comparison.data.images.open_images` has it.

    Args:
        images: the data.
        batch_size, seed, flip, device, rank, world_size: see `BatchStream`.
        num_workers: processes that decode files; None for `default_workers`.
        local_processes: that share the cores of this machine.

    Raises:
        UserError: see `BatchOrder`.
    """
    ranks = {"rank": rank, "world_size": world_size}
    if isinstance(images, ImageSet):
        return BatchStream(images, batch_size, seed, flip=flip, device=device, **ranks)
    workers = default_workers(local_processes) if num_workers is None else num_workers
    return FileStream(images, batch_size, seed, flip=flip, device=device, num_workers=workers, **ranks)


def default_workers(local_processes: int = 1) -> int:
    """Return how many workers each of the training processes on this machine gets: one core is left for itself."""
    return max(1, min(MAX_WORKERS, usable_cores() // local_processes - 1))


class FileStream(Stream):
    """Batches of files on disk; arguments of `Stream`.

    The workers start with the first batch. They read ahead over the ends of epochs; a batch other than the next one
    makes them begin anew there. They end with the `with` block, or by `close`.

    Args:
        files: the data.
        batch_size, seed, options: see `Stream`.
        num_workers: processes that decode; 0 for this one.
    """

    def __init__(self, files: FileSet, batch_size: int, seed: int, *, num_workers: int = 0, **options: Any):
        super().__init__(files, batch_size, seed, **options)
        self.labels, self.name, self.num_workers = files.labels, files.name, num_workers
        self._sampler = _Steps(self.order)
        self._loader: DataLoader[Any] = DataLoader(
            _Batches(files),
            batch_sampler=self._sampler,
            num_workers=num_workers,
            collate_fn=_unchanged,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals,
            prefetch_factor=PREFETCH if num_workers else None,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else it draws from the default one, which dropout uses
        )
        self._batches: Any = None
        self._next: int | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the batch of update `step` (0, 1, ...): (n, 3, S, S) float32 in [-1, 1], (n,) int64 labels or None.

        Raises:
            UserError: a file is not readable as an image; names it.
        """
        if self._batches is None or step != self._next:
            self._sampler.start = step
            with _signals_held():  # until the workers, which inherit this, ignore them
                self._batches = iter(self._loader)
        self._next = None
        numbers, images = next(self._batches)
        if isinstance(images, str):
            raise UserError(images)
        self._next = step + 1
        x = self.order.normalise(images.to(self.device, non_blocking=True), step, flip=self.flip)
        if self.labels is None:
            return x, None
        return x, self.labels[torch.from_numpy(numbers)].to(self.device, non_blocking=True)

    def close(self) -> None:
        """End the workers; a later batch starts them again."""
        workers = self._workers()
        try:
            if workers:
                self._batches._shutdown_workers()  # __del__ is late after an exception
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
            self._loader._iterator = None
            self._batches = None

    def __enter__(self) -> "FileStream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End the workers.

        Raises:
            UserError: one of them was killed, in place of what torch makes of it, at any place.
        """
        workers = self._workers()
        if workers and isinstance(error, RuntimeError | EOFError | ConnectionError):
            with contextlib.suppress(RuntimeError):  # which torch's handler of the ending may raise just here
                ending = wait([worker.sentinel for worker in workers], timeout=0.5)
                for worker in workers:
                    if worker.sentinel in ending:
                        worker.join()  # its connections break before it has a status
        killed = next((worker.exitcode for worker in workers if worker.exitcode), None)
        try:
            self.close()
        except RuntimeError:
            if killed is None:
                raise
        if killed is not None and isinstance(error, Exception):
            raise UserError(
                f"{self.name}: a process that reads images was killed (status {killed}), perhaps for lack of memory or "
                "of shared memory; lower --num_workers, 0 reads in the training process"
            ) from None

    def _workers(self) -> list[Any]:
        return list(getattr(self._batches, "_workers", ()))


class _Steps:
    """The numbers of the batches' images from a step on, without end."""

    def __init__(self, order: BatchOrder):
        self.order, self.start = order, 0

    def __iter__(self) -> Iterator[list[int]]:
        return (self.order.numbers(step).tolist() for step in itertools.count(self.start))


class _Batches(Dataset[Any]):
    """Decodes a batch at once: its numbers, and (n, 3, S, S) uint8, or the text of the error."""

    def __init__(self, files: FileSet):
        self.files = files

    def __getitems__(self, numbers: list[int]) -> tuple[np.ndarray, Tensor | str]:
        found = np.array(numbers)
        try:
            return found, self.files.pick(torch.from_numpy(found))
        except UserError as error:
            return found, str(error)


def _unchanged(batch: Any) -> Any:
    return batch


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Deliver Ctrl-C and SIGTERM to this thread after the block only; processes started in it inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals(worker: int) -> None:
    """Let the training process alone answer Ctrl-C and SIGTERM, which may go to all: it saves and ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
