"""Drawing a sample set: the same loop, timing protocol and files for every model."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from comparison.cli import UserError
from comparison.data.images import save_npz, to_uint8
from comparison.device import describe_device, peak_memory_bytes, reset_peak_memory, synchronize
from comparison.files import agrees, read_json, write_json
from comparison.png import save_grid
from comparison.progress import bar

T = TypeVar("T")

PROTOCOL = (
    "wall time of drawing, eval and inference mode, after one warm-up batch, device synchronised, batch size as "
    "stated; loading, conversion to uint8 and disk writes excluded"
)


class EvaluationCounter:
    """Count network evaluations by forward hooks: images passed through any of `networks`."""

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
    """Draw a sample set to disk; a call cut short is continued by the same call, a finished one costs nothing.

    Several processes of torch.distributed all call it alike and share the images; the first one writes. Another
    number of processes continues what some have begun.

    Args:
        draw: maps image numbers to (n, 3, S, S) float in [-1, 1]; a pure function of them.
        networks: whose evaluations are counted.
        num_samples: images wanted, exactly.
        batch_size: images that a process draws at a time.
        out: the .npz to write; samples.png and sampling.json appear beside it.
        image_size: S, pixels.
        device: that the drawing keeps busy.
        facts: what sampling.json also says and a continued call must match: sampler, seed, checkpoint, dtype.
        trained: what `checkpoints.trained_facts` says of the checkpoint, for sampling.json.
        labels: (num_samples,) int64 for arr_1.
        warm_up: draw one batch untimed first.

    Returns:
        `out`.

    Raises:
        UserError: the network gives values that are not finite.
    """
    team = _Team()
    drawn = {"file": out.name, "images": num_samples, **facts, "batch_size": batch_size}
    if team.agree(out.is_file() and agrees(out.parent / "sampling.json", drawn)):
        print(f"{out}: drawn already", flush=True)
        return out
    part = _Part(out, num_samples, image_size, {**facts, "batch_size": batch_size}) if team.rank == 0 else None
    seconds, evaluations = _draw_rest(draw, networks, part, team, num_samples, batch_size, device, warm_up)
    if part:
        images = part.images()
        save_npz(out, images, labels)
        save_grid(torch.from_numpy(images[:64]).permute(0, 3, 1, 2), out.parent / "samples.png")
        write_json(
            out.parent / "sampling.json",
            {
                **drawn,
                "trained": trained,
                "nfe": round(evaluations / num_samples, 3),
                "seconds": round(seconds, 3),
                "seconds_per_image": seconds / num_samples,
                "processes": team.size,
                "device": describe_device(device),
                "peak_memory_bytes": peak_memory_bytes(device),
                "parameters": sum(p.numel() for network in networks for p in network.parameters()),
                "protocol": PROTOCOL,
            },
        )
        part.remove()
    team.agree(None)  # all return when the files are there
    return out


def _draw_rest(
    draw: Callable[[range], Tensor],
    networks: Sequence[nn.Module],
    part: "_Part | None",
    team: "_Team",
    num_samples: int,
    batch_size: int,
    device: torch.device,
    warm_up: bool,
) -> tuple[float, int]:
    """Draw the images that `part`, which the first process has, lacks; return seconds and evaluations of all images."""
    counter = EvaluationCounter(networks)
    done, seconds, evaluations = team.agree((part.done, part.seconds, part.evaluations) if part else (0, 0.0, 0))
    try:
        with torch.inference_mode(), bar(num_samples, done, "sample", "images") as progress:
            reset_peak_memory(device)  # before the warm-up: what is recorded there allocates nothing later
            if warm_up and (indices := team.share(done, batch_size, num_samples)):
                draw(indices)
            synchronize(device)
            while done < num_samples:
                indices = team.share(done, batch_size, num_samples)
                counter.images = 0
                start = time.perf_counter()
                x = draw(indices) if indices else None
                synchronize(device)
                took = time.perf_counter() - start
                finite = x is None or bool(torch.isfinite(x).all())
                found = team.gather((len(indices), took, counter.images, finite))
                if not all(finite for *_, finite in found):
                    raise UserError("the network gives values that are not finite: the training has diverged")
                seconds += max(took for _, took, *_ in found)  # the slowest process's
                evaluations += sum(images for *_, images, _ in found)
                drawn = range(done, done + sum(count for count, *_ in found))
                images = team.collect(None if x is None else to_uint8(x).permute(0, 2, 3, 1).cpu().numpy())
                if part:
                    part.write(drawn, np.concatenate([i for i in images if i is not None]), seconds, evaluations)
                done = drawn.stop
                progress.update(len(drawn))
    finally:
        counter.close()
    return seconds, evaluations


class _Team:
    """The processes that draw together: those of torch.distributed, where it is set up, else this one alone."""

    def __init__(self) -> None:
        connected = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if connected else (0, 1)

    def share(self, done: int, batch_size: int, num_samples: int) -> range:
        """Return this process's images of the next round, in which each one draws a batch; perhaps none at the end."""
        start = min(done + self.rank * batch_size, num_samples)
        return range(start, min(start + batch_size, num_samples))

    def agree(self, value: T) -> T:
        """Return the first process's value."""
        return self.gather(value)[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by way of the hosts."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes in the first one, nothing in the others."""
        values = [value] * self.size if self.rank == 0 else []
        if self.size > 1:
            distributed.gather_object(value, values or None)
        return values


class _Part:
    """The images drawn so far: raw bytes beside `out`, and a small file that says how many of them count."""

    def __init__(self, out: Path, num_samples: int, image_size: int, key: dict[str, Any]):
        out.parent.mkdir(parents=True, exist_ok=True)
        self._data, self._state = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")
        self._shape = (num_samples, image_size, image_size, 3)
        self._key = json.loads(json.dumps({**key, "shape": self._shape}, default=str))
        self.done, self.seconds, self.evaluations = 0, 0.0, 0
        if self._state.is_file() and self._data.is_file():
            state = read_json(self._state)
            if not all(isinstance(state.get(name), int | float) for name in ("done", "seconds", "evaluations")):
                raise UserError(f"{self._state}: damaged; remove it to draw all images anew")
            whole = 0 <= state["done"] <= num_samples and self._data.stat().st_size >= self._bytes(state["done"])
            if state.get("key") == self._key and whole:
                self.done, self.seconds, self.evaluations = state["done"], state["seconds"], state["evaluations"]
        with open(self._data, "r+b" if self.done else "wb") as file:
            file.truncate(self._bytes(self.done))

    def _bytes(self, images: int) -> int:
        return images * int(np.prod(self._shape[1:]))

    def write(self, indices: range, images: np.ndarray, seconds: float, evaluations: int) -> None:
        with open(self._data, "r+b") as file:
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
