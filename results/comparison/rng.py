"""Random numbers as a pure function of a key.

A training step draws for the global batch from (seed, step, purpose) and slices by rank, so that ranks, micro-batches
and restarts change nothing. Samples are drawn in fixed blocks, so that image i of a seed has the same noise at any
batch size. Values differ between device types, which have different generators.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Key = int | str
BLOCK = 16  # images that share a generator: few seedings, and few unused values at batch size 1


def mix(*key: Key) -> int:
    """Hash a key of integers and words into a 63-bit seed."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *key: Key) -> torch.Generator:
    """Return a generator on `device`, seeded by `key` alone."""
    return torch.Generator(device=device).manual_seed(mix(*key))


def normal(shape: Sequence[int], *key: Key, device: torch.device | str = "cpu", rows: slice | None = None) -> Tensor:
    """Return standard normal float32 of the global `shape`, or only its `rows` (the rank's part)."""
    values = torch.randn(tuple(shape), generator=generator(device, *key), device=device)
    return values if rows is None else values[rows]


def randint(
    high: int, shape: Sequence[int], *key: Key, device: torch.device | str = "cpu", rows: slice | None = None
) -> Tensor:
    """Return int64 uniform in [0, high) of the global `shape`, or only its `rows`."""
    values = torch.randint(high, tuple(shape), generator=generator(device, *key), device=device)
    return values if rows is None else values[rows]


def seed_default(*key: Key) -> None:
    """Seed torch's default generators, from which dropout draws."""
    torch.manual_seed(mix(*key))


class SampleNoise:
    """Noise of the images `indices` of a seed, the same at any batch size.

    Args:
        seed: seed of the sample set.
        indices: consecutive image numbers of this batch.
        device: device of the noise.
    """

    def __init__(self, seed: int, indices: range, device: torch.device | str):
        self.seed, self.indices, self.device = seed, indices, device

    def _blocks(self) -> list[tuple[int, slice]]:
        first, last = self.indices.start // BLOCK, (self.indices.stop - 1) // BLOCK
        return [
            (block, slice(max(self.indices.start - block * BLOCK, 0), min(self.indices.stop - block * BLOCK, BLOCK)))
            for block in range(first, last + 1)
        ]

    def normal(self, shape: Sequence[int], draw: Key) -> Tensor:
        """Return (N, *shape) float32 standard normal; `draw` is the number or name of the draw within an image."""
        parts = [
            normal((BLOCK, *shape), self.seed, block, draw, device=self.device, rows=rows)
            for block, rows in self._blocks()
        ]
        return torch.cat(parts)

    def randint(self, high: int, draw: Key) -> Tensor:
        """Return (N,) int64 uniform in [0, high)."""
        parts = [
            randint(high, (BLOCK,), self.seed, block, draw, device=self.device, rows=rows)
            for block, rows in self._blocks()
        ]
        return torch.cat(parts)
