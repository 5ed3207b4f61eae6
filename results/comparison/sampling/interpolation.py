"""Walks between two latents: interpolation.png, the same for every model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from comparison.cli import UserError
from comparison.data.images import to_uint8
from comparison.files import agrees, read_json, write_json
from comparison.png import save_grid
from comparison.rng import Key, SampleNoise

WALKS, COLUMNS = 4, 8
FILE = "interpolation.png"


def slerp(start: Tensor, end: Tensor, fractions: Tensor) -> Tensor:
    """Interpolate on the arc between two latents, so that what lies between is as long as they are.

    Shoemake 1985, section 3.3, with the angle between the directions.

    Args:
        start, end: of one shape.
        fractions: (N,) of the way, in [0, 1]; 0 and 1 give the ends exactly.

    Returns:
        (N, *shape).
    """
    a, b = start.double().flatten(), end.double().flatten()
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    f = fractions.to(a)[:, None]
    if angle.sin() < 1e-6:  # the same or the opposite direction: no arc
        points = (1 - f) * a + f * b
    else:
        points = (((1 - f) * angle).sin() * a + (f * angle).sin() * b) / angle.sin()
    return points.to(start.dtype).reshape(-1, *start.shape)


class WalkNoise(SampleNoise):
    """Noise of the COLUMNS images of one walk, which leads from sample 2 x walk of a seed to the one after it.

    Args:
        seed: of the sample set.
        walk: number, from 0.
        device: where the noise is drawn and left.
        walked: the draw that changes along the way; of all others every image has the first sample's.
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
        """Return (COLUMNS,) int64, all the same."""
        return super().randint(high, draw)[:1].repeat(COLUMNS)


def draw_interpolation(folder: Path, draw_walk: Callable[[int], Tensor], *, latent: str, sampler: str) -> None:
    """Write interpolation.png beside samples, one walk a row, and note it in their sampling.json.

    Args:
        folder: that holds sampling.json; where that tells of the picture already, nothing is drawn.
        draw_walk: maps a walk's number to (COLUMNS, 3, S, S) float in [-1, 1].
        latent: what changes along a row.
        sampler: in words.

    Raises:
        UserError: the network gives values that are not finite.
    """
    record, path = folder / "sampling.json", folder / FILE
    note = {"file": FILE, "latent": latent, "sampler": sampler, "walks": WALKS, "columns": COLUMNS}
    if path.is_file() and agrees(record, {"interpolation": note}):
        print(f"{path}: drawn already", flush=True)
        return
    with torch.inference_mode():
        images = torch.cat([draw_walk(walk) for walk in range(WALKS)])
    if not torch.isfinite(images).all():
        raise UserError("the network gives values that are not finite: the training has diverged")
    save_grid(to_uint8(images), path, columns=COLUMNS)
    write_json(record, {**read_json(record), "interpolation": note})
