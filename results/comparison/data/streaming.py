"""Training batches from a data set on disk, decoded by worker processes; equal to those of `BatchStream`."""

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

MAX_WORKERS = 16  # maximum of the default
PREFETCH = 2  # batches that each worker decodes ahead


def open_stream(
    images: ImageSet | FileSet,
    batch_size: int,
    seed: int,
    *,
    num_workers: int | None = None,
    local_processes: int = 1,
    **options: Any,
) -> "BatchStream | FileStream":
    """Return the batches of a set from `comparison.data.images.open_images`, in memory or on disk.

    Args:
        images, batch_size, seed, options: see `Stream`.
        num_workers: processes that decode files; None for `default_workers`.
        local_processes: training processes on this machine.
    """
    if isinstance(images, ImageSet):
        return BatchStream(images, batch_size, seed, **options)
    workers = default_workers(local_processes) if num_workers is None else num_workers
    return FileStream(images, batch_size, seed, num_workers=workers, **options)


def default_workers(local_processes: int = 1) -> int:
    """Return the number of workers per training process on this machine, which leaves it one core."""
    return max(1, min(MAX_WORKERS, usable_cores() // local_processes - 1))


class FileStream(Stream):
    """Batches of files on disk; arguments as in `Stream`, and `num_workers`, 0 to decode in this process.

    The workers start with the first batch and read ahead, also over the end of an epoch; a batch other than the next
    restarts them. They end with the `with` block, or by `close`.
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
            generator=torch.Generator(),  # keeps the default one, which dropout uses, unchanged
        )
        self._batches: Any = None
        self._next: int | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the batch of update `step` (0, 1, ...): (n, 3, S, S) float32 in [-1, 1], (n,) int64 labels or None.

        Raises:
            UserError: a file is not readable as an image.
        """
        if self._batches is None or step != self._next:
            self._sampler.start = step
            with _signals_held():  # the workers inherit the block until they ignore the signals
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
        """End the workers; the next batch restarts them."""
        workers = self._workers()
        try:
            if workers:
                self._batches._shutdown_workers()  # __del__ would come too late after an exception
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
            self._loader._iterator = None
            self._batches = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End the workers; raise UserError instead of torch's error if one of them was killed."""
        workers = self._workers()
        if workers and isinstance(error, RuntimeError | EOFError | ConnectionError):
            with contextlib.suppress(RuntimeError):  # torch's SIGCHLD handler may raise here
                ending = wait([worker.sentinel for worker in workers], timeout=0.5)
                for worker in workers:
                    if worker.sentinel in ending:
                        worker.join()  # its connections break before it has an exit code
        killed = next((worker.exitcode for worker in workers if worker.exitcode), None)
        try:
            self.close()
        except RuntimeError:
            if killed is None:
                raise
        if killed is not None and isinstance(error, Exception):
            raise UserError(
                f"{self.name}: a data worker was killed (status {killed}), possibly out of memory or shared memory; "
                "lower --num_workers, 0 reads in the training process"
            ) from None

    def _workers(self) -> list[Any]:
        return list(getattr(self._batches, "_workers", ()))


class _Steps:
    """Endless iterable of the image numbers of each batch, from the step `start`."""

    def __init__(self, order: BatchOrder):
        self.order, self.start = order, 0

    def __iter__(self) -> Iterator[list[int]]:
        return (self.order.numbers(step).tolist() for step in itertools.count(self.start))


class _Batches(Dataset[Any]):
    """Decodes a whole batch: its numbers, and (n, 3, S, S) uint8 or the error text."""

    def __init__(self, files: FileSet):
        self.files = files

    def __getitems__(self, numbers: list[int]) -> tuple[np.ndarray, Tensor | str]:
        array = np.array(numbers)
        try:
            return array, self.files.pick(torch.from_numpy(array))
        except UserError as error:
            return array, str(error)


def _unchanged(batch: Any) -> Any:
    return batch


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM in this thread, and in processes started inside the `with` block, until its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM in a worker; the training process saves and ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
