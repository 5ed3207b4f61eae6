"""Sample sets that are read in batches, so that a million images need no more memory than a thousand."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from comparison.cli import UserError
from comparison.data.images import load_images
from comparison.files import digest

FINGERPRINT_BATCH = 4096


class Samples(Protocol):
    """A sample set that can be read repeatedly.

    Attributes:
        name: name of the file or folder, without its path.
        shape: (N, 3, H, W).
    """

    name: str
    shape: tuple[int, int, int, int]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield (n, 3, H, W) uint8 in the order of the set; n = size except for the last batch."""


class LoadedSamples:
    """A sample set in memory, from a folder, a .zip file or a tensor."""

    def __init__(self, name: str, images: Tensor):
        self.name, self.images = name, images
        self.shape = (len(images), images.shape[1], images.shape[2], images.shape[3])

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images in order."""
        yield from self.images.split(size)


class NpzSamples:
    """The arr_0 of an .npz file, (N, H, W, 3) uint8, read batch by batch.

    Raises:
        UserError: the file is missing, truncated or has no such array.
    """

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
                shape, in_fortran_order, dtype = _header(member)
        except KeyError:
            raise UserError(f"{path}: holds no arr_0 with images") from None
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{path}: not readable as an .npz file ({error})") from None
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or not shape[0] or in_fortran_order:
            raise UserError(f"{path}: arr_0 is {dtype} {shape}, not uint8 (N, H, W, 3)")
        self.shape = (shape[0], 3, shape[1], shape[2])

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images in order; raise UserError if the file is damaged."""
        count, _, height, width = self.shape
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as member:
                _header(member)
                for start in range(0, count, size):
                    n = min(size, count - start)
                    raw = member.read(n * height * width * 3)
                    if len(raw) < n * height * width * 3:
                        raise ValueError(f"ends after {start} of {count} images")
                    images = np.frombuffer(raw, np.uint8).reshape(n, height, width, 3).transpose(0, 3, 1, 2)
                    yield torch.from_numpy(np.ascontiguousarray(images))
        except Exception as error:  # zipfile, zlib, struct and NumPy each raise their own on a damaged file
            raise UserError(f"{self.path}: not readable as an .npz file ({error})") from None


def _header(member) -> tuple[tuple[int, ...], bool, np.dtype]:  # type: ignore[no-untyped-def]
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def open_samples(path: Path, image_size: int) -> Samples:
    """Open an .npz file of that image size, a .zip file or a folder of images.

    Raises:
        UserError: the samples are not readable, or an .npz has another size.
    """
    if path.suffix != ".npz":
        return LoadedSamples(path.name, load_images(str(path), image_size).images)
    samples = NpzSamples(path)
    if samples.shape[2:] != (image_size, image_size):
        size = f"{samples.shape[3]} x {samples.shape[2]}"
        raise UserError(f"{path}: images of {size} pixels, --image_size {image_size}; compare at one size")
    return samples


def fingerprint(samples: Samples) -> str:
    """Return the hash of the pixels, equal to `comparison.data.images.fingerprint` of the whole tensor."""
    return digest(repr(tuple(samples.shape)), *(p.contiguous().numpy() for p in samples.batches(FINGERPRINT_BATCH)))
