"""Drawing a sample set: the same loop, timing protocol and files for every model."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from comparison.cli import UserError
from comparison.device import describe_device, peak_memory_bytes, reset_peak_memory, synchronize
from comparison.images import save_grid, save_npz, to_uint8
from comparison.progress import bar
from comparison.runs import agrees, read_json, write_json

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

    Args:
        draw: maps image numbers to (n, 3, S, S) float in [-1, 1]; a pure function of them.
        networks: whose evaluations are counted.
        num_samples: images wanted, exactly.
        batch_size: images drawn at a time.
        out: the .npz to write; samples.png and sampling.json appear beside it.
        image_size: S, pixels.
        device: that the drawing keeps busy.
        facts: what sampling.json also says and a continued call must match: sampler, seed, checkpoint, dtype.
        trained: what `runs.trained_facts` says of the checkpoint, for sampling.json.
        labels: (num_samples,) int64 for arr_1.
        warm_up: draw one batch untimed first.

    Returns:
        `out`.

    Raises:
        UserError: the network gives values that are not finite.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = {"file": out.name, "images": num_samples, **facts, "batch_size": batch_size}
    if out.is_file() and agrees(out.parent / "sampling.json", drawn):
        print(f"{out}: drawn already", flush=True)
        return out
    part = _Part(out, num_samples, image_size, {**facts, "batch_size": batch_size})
    counter = EvaluationCounter(networks)
    done, seconds, evaluations = part.done, part.seconds, part.evaluations
    try:
        with torch.inference_mode(), bar(num_samples, done, "sample", "images") as progress:
            if warm_up and done < num_samples:
                draw(range(done, min(done + batch_size, num_samples)))
            synchronize(device)
            reset_peak_memory(device)
            while done < num_samples:
                indices = range(done, min(done + batch_size, num_samples))
                counter.images = 0
                start = time.perf_counter()
                x = draw(indices)
                synchronize(device)
                seconds += time.perf_counter() - start
                evaluations += counter.images
                if not torch.isfinite(x).all():
                    raise UserError("the network gives values that are not finite: the training has diverged")
                done = indices.stop
                part.write(indices, to_uint8(x).permute(0, 2, 3, 1).cpu().numpy(), seconds, evaluations)
                progress.update(len(indices))
    finally:
        counter.close()
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
            "device": describe_device(device),
            "peak_memory_bytes": peak_memory_bytes(device),
            "parameters": sum(p.numel() for network in networks for p in network.parameters()),
            "protocol": PROTOCOL,
        },
    )
    part.remove()
    return out


class _Part:
    """The images drawn so far: raw bytes beside `out`, and a small file that says how many of them count."""

    def __init__(self, out: Path, num_samples: int, image_size: int, key: dict[str, Any]):
        self._data, self._state = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")
        self._shape = (num_samples, image_size, image_size, 3)
        self._key = json.loads(json.dumps({**key, "shape": self._shape}, default=str))
        self.done, self.seconds, self.evaluations = 0, 0.0, 0
        if self._state.is_file() and self._data.is_file():
            state = read_json(self._state)
            if state.get("key") == self._key and self._data.stat().st_size >= self._bytes(state["done"]):
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
