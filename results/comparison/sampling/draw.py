"""Generate a sample set: one loop, one timing protocol and the same files for all models."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, distributed, nn

from comparison.cli import UserError
from comparison.data.images import save_npz, to_uint8
from comparison.device import describe_device, peak_memory_bytes, reset_peak_memory, synchronize
from comparison.distributed import gather, world_size
from comparison.files import check_space, json_matches, named_when_full, read_json, remove_stale, write_json
from comparison.png import save_grid
from comparison.progress import bar

PROTOCOL = (
    "wall time of drawing, eval and inference mode, after one warm-up batch, device synchronised, batch size as "
    "stated; loading, conversion to uint8 and disk writes excluded"
)


class EvaluationCounter:
    """Counts network evaluations by forward hooks: images passed through any of `networks`."""

    def __init__(self, networks: Sequence[nn.Module]):
        self.images = 0
        self._handles = [network.register_forward_hook(self._count) for network in networks]

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.images += len(output)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def draw_samples(
    draw: Callable[[range], Tensor],
    networks: Sequence[nn.Module],
    *,
    num_samples: int,
    batch_size: int,
    out: Path,
    image_size: int,
    device: torch.device,
    facts: dict[str, Any],
    trained: dict[str, Any] | None = None,
    labels: np.ndarray | None = None,
    warm_up: bool = True,
) -> Path:
    """Generate a sample set; the same call resumes an interrupted one, and returns at once for a finished one.

    All ranks of torch.distributed make the same call and share the images; rank 0 writes. An interrupted call can be
    resumed with another number of ranks.

    Args:
        draw: maps image numbers to (n, 3, S, S) float in [-1, 1]; a pure function of them.
        networks: modules whose evaluations are counted.
        num_samples: exact number of images.
        batch_size: images that a rank draws at a time.
        out: .npz file to write; samples.png and sampling.json are written beside it.
        image_size: S, pixels.
        device: device that `draw` uses.
        facts: further entries of sampling.json, which a resumed call must match: sampler, seed, checkpoint, dtype.
        trained: result of `checkpoints.trained_facts` for sampling.json.
        labels: (num_samples,) int64 for arr_1.
        warm_up: draw one untimed batch first.

    Returns:
        `out`.

    Raises:
        UserError: a value is not finite.
    """
    rank = distributed.get_rank() if world_size() > 1 else 0
    settings = {"file": out.name, "images": num_samples, **facts, "batch_size": batch_size}
    if gather(out.is_file() and json_matches(out.parent / "sampling.json", settings))[0]:
        if rank == 0:
            _remove_leftovers(out)
        print(f"{out}: drawn already", flush=True)
        return out
    check_sample_space(out, num_samples, image_size)
    part = _Part(out, num_samples, image_size, {**facts, "batch_size": batch_size}) if rank == 0 else None
    try:
        seconds, evaluations = _draw_rest(draw, networks, part, rank, num_samples, batch_size, device, warm_up)
    except BaseException:
        if part:
            part.release() if part.done else part.remove()
        raise
    if part:
        images = part.images()
        save_npz(out, images, labels)
        save_grid(torch.from_numpy(images[:64]).permute(0, 3, 1, 2), out.parent / "samples.png")
        write_json(
            out.parent / "sampling.json",
            {
                **settings,
                "trained": trained,
                "nfe": round(evaluations / num_samples, 3),
                "seconds": round(seconds, 3),
                "seconds_per_image": seconds / num_samples,
                "processes": world_size(),
                "device": describe_device(device),
                "peak_memory_bytes": peak_memory_bytes(device),
                "parameters": sum(p.numel() for network in networks for p in network.parameters()),
                "protocol": PROTOCOL,
            },
        )
        part.remove()
    gather(None)  # all ranks return after the files are written
    return out


def _remove_leftovers(out: Path) -> None:
    """Delete what a process left beside a finished set that was killed at the very end."""
    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    parts = [out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")]
    with contextlib.suppress(OSError, Timeout):  # a folder that cannot be written, or another process in it
        remove_stale(out.parent)
        if any(path.exists() for path in (*parts, Path(lock.lock_file))):
            with lock:
                for path in (*parts, Path(lock.lock_file)):
                    path.unlink(missing_ok=True)


def check_sample_space(out: Path, num_samples: int, image_size: int) -> None:
    """Raise UserError unless the disk has room for the samples twice: as drawn so far, and as the .npz file."""
    drawn = out.with_name(f"{out.name}.part")
    there = drawn.stat().st_size if drawn.is_file() else 0
    check_space(out, 2 * num_samples * image_size**2 * 3 - there)


def _draw_rest(
    draw: Callable[[range], Tensor],
    networks: Sequence[nn.Module],
    part: "_Part | None",
    rank: int,
    num_samples: int,
    batch_size: int,
    device: torch.device,
    warm_up: bool,
) -> tuple[float, int]:
    """Draw the images that rank 0's `part` lacks; return the seconds and network evaluations of all images."""

    def next_indices() -> range:
        """Return this rank's images of the next round, in which every rank draws a batch; perhaps none at the end."""
        start = min(done + rank * batch_size, num_samples)
        return range(start, min(start + batch_size, num_samples))

    counter = EvaluationCounter(networks)
    done, seconds, evaluations = gather((part.done, part.seconds, part.evaluations) if part else (0, 0.0, 0))[0]
    try:
        with torch.inference_mode(), bar(num_samples, done, "sample", "images") as progress:
            reset_peak_memory(device)  # before the warm-up: a graph captured there allocates nothing later
            if warm_up and (indices := next_indices()):
                draw(indices)
            synchronize(device)
            while done < num_samples:
                indices = next_indices()
                counter.images = 0
                start = time.perf_counter()
                x = draw(indices) if indices else None
                synchronize(device)
                took = time.perf_counter() - start
                finite = x is None or bool(torch.isfinite(x).all())
                results = gather((len(indices), took, counter.images, finite))
                counts, times, evaluated, all_finite = zip(*results, strict=True)
                if not all(all_finite):
                    raise UserError("the network gives values that are not finite: the training has diverged")
                seconds += max(times)
                evaluations += sum(evaluated)
                drawn = range(done, done + sum(counts))
                images = _gather_on_first(None if x is None else to_uint8(x).permute(0, 2, 3, 1).cpu().numpy(), rank)
                if part:
                    part.write(drawn, np.concatenate([i for i in images if i is not None]), seconds, evaluations)
                done = drawn.stop
                progress.update(len(drawn))
    finally:
        counter.close()
    return seconds, evaluations


def _gather_on_first(value: np.ndarray | None, rank: int) -> list[np.ndarray | None]:
    """Return the values of all ranks on rank 0, nothing on the others."""
    values = [value] * world_size() if rank == 0 else []
    if world_size() > 1:
        distributed.gather_object(value, values or None)
    return values


class _Part:
    """The images drawn so far, as raw bytes beside `out`, and a JSON file with the number of complete ones."""

    def __init__(self, out: Path, num_samples: int, image_size: int, key: dict[str, Any]):
        out.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"{out}: another process is sampling into this file; wait for it or stop it") from None
        remove_stale(out.parent)
        self._data, self._state = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")
        self._shape = (num_samples, image_size, image_size, 3)
        self._key = json.loads(json.dumps({**key, "shape": self._shape}, default=str))
        self.done, self.seconds, self.evaluations = 0, 0.0, 0
        if self._state.is_file() and self._data.is_file():
            state = read_json(self._state)
            if not all(isinstance(state.get(name), int | float) for name in ("done", "seconds", "evaluations")):
                raise UserError(f"{self._state}: damaged; delete it to draw all images anew")
            whole = 0 <= state["done"] <= num_samples and self._data.stat().st_size >= self._bytes(state["done"])
            if state.get("key") == self._key and whole:
                self.done, self.seconds, self.evaluations = state["done"], state["seconds"], state["evaluations"]
        with open(self._data, "r+b" if self.done else "wb") as file:
            file.truncate(self._bytes(self.done))

    def _bytes(self, images: int) -> int:
        return images * int(np.prod(self._shape[1:]))

    def write(self, indices: range, images: np.ndarray, seconds: float, evaluations: int) -> None:
        with named_when_full(self._data), open(self._data, "r+b") as file:
            file.seek(self._bytes(indices.start))
            file.write(np.ascontiguousarray(images).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.done = indices.stop
        write_json(self._state, {"key": self._key, "done": self.done, "seconds": seconds, "evaluations": evaluations})

    def images(self) -> np.ndarray:
        return np.fromfile(self._data, np.uint8).reshape(self._shape)

    def remove(self) -> None:
        self._data.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let other processes sample into the file."""
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
