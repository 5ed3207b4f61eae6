"""Interpolation between pairs of latents, written to interpolation.png in the same way for all models."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from comparison.cli import UserError
from comparison.data.images import to_uint8
from comparison.files import json_matches, read_json, write_json
from comparison.png import save_grid
from comparison.rng import Key, SampleNoise

WALKS, COLUMNS = 4, 8
FILE = "interpolation.png"


def slerp(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Interpolate on the arc between two latents of equal shape, which keeps their length; Shoemake 1985, section 3.3.

    Args:
        start, end: latents of the same shape.
        fractions: (N,) positions in [0, 1]; 0 and 1 return the ends exactly.

    Returns:
        (N, *shape).
    """
    a, b = start.double().flatten(), end.double().flatten()
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    f = fractions.to(a)[:, None]
    if angle.sin() < 1e-6:  # equal or opposite directions define no arc
        points = (1 - f) * a + f * b
    else:
        points = (((1 - f) * angle).sin() * a + (f * angle).sin() * b) / angle.sin()
    return points.to(start.dtype).reshape(-1, *start.shape)


class WalkNoise(SampleNoise):
    """Noise of the COLUMNS images of one walk, from sample 2 x walk of a seed to the next sample.

    Args:
        seed: seed of the sample set.
        walk: number of the walk, from 0.
        device: device of the noise.
        walked: the draw that is interpolated; all other draws are those of the first sample.
    """

    def __init__(self, seed: int, walk: int, device: torch.device | str, walked: Key):
        super().__init__(seed, range(2 * walk, 2 * walk + 2), device)
        self.walked = walked

    def normal(self, shape: Sequence[int], draw: Key) -> Tensor:
        """Return (COLUMNS, *shape) float32."""
        ends = super().normal(shape, draw)
        if draw == self.walked:
            return slerp(ends[0], ends[1], torch.linspace(0, 1, COLUMNS))
        return ends[:1].repeat(COLUMNS, *(1 for _ in shape))

    def randint(self, high: int, draw: Key) -> Tensor:
        """Return (COLUMNS,) int64, all equal."""
        return super().randint(high, draw)[:1].repeat(COLUMNS)


def draw_interpolation(folder: Path, draw_walk: Callable[[int], Tensor], *, latent: str, sampler: str) -> None:
    """Write interpolation.png, one walk per row, and its entry in sampling.json, unless both exist.

    Args:
        folder: folder of sampling.json.
        draw_walk: maps a walk's number to (COLUMNS, 3, S, S) float in [-1, 1].
        latent: name of the interpolated latent.
        sampler: description of the sampler.

    Raises:
        UserError: a value is not finite.
    """
    record, path = folder / "sampling.json", folder / FILE
    note = {"file": FILE, "latent": latent, "sampler": sampler, "walks": WALKS, "columns": COLUMNS}
    if path.is_file() and json_matches(record, {"interpolation": note}):
        print(f"{path}: drawn already", flush=True)
        return
    with torch.inference_mode():
        images = torch.cat([draw_walk(walk) for walk in range(WALKS)])
    if not torch.isfinite(images).all():
        raise UserError("the network gives values that are not finite: the training has diverged")
    save_grid(to_uint8(images), path, columns=COLUMNS)
    write_json(record, {**read_json(record), "interpolation": note})
