"""Image files in a folder or a .zip file, decoded one by one, for data sets that do not fit in memory."""

import functools
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from comparison.cli import UserError
from comparison.data.sources import find_images, source_name, zip_images
from comparison.files import digest

DATA_MEMORY = 8  # GiB of decoded images; the environment variable of this name overrides it


def memory_limit() -> int:
    """Return the limit of decoded images in memory, in bytes.

    Raises:
        UserError: the environment variable DATA_MEMORY is not a number of GiB.
    """
    text = os.environ.get("DATA_MEMORY") or str(DATA_MEMORY)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 2**30:
        raise UserError(f"DATA_MEMORY must be the GiB that images may take in memory, not {text!r}")
    return int(limit * 2**30)


def check_memory(name: str, count: int, image_size: int, advice: str, least: float = 0) -> None:
    """Raise UserError if `count` RGB images of `image_size` pixels exceed both the memory limit and `least` GiB."""
    needed = count * 3 * image_size**2
    if needed > max(memory_limit(), least * 2**30):
        raise UserError(
            f"{name}: {count} images of {image_size} pixels need {needed / 2**30:.0f} GiB; "
            f"{advice}, or let DATA_MEMORY allow so many GiB"
        )


class FileSet:
    """A data set on disk, with the order, labels and pixels of `comparison.data.images.load_images`.

    Args:
        path: folder of images, searched recursively, or .zip file of images.
        image_size: S, pixels.
        limit: number of images to keep, evenly spread over the sorted names.

    Attributes:
        labels: (N,) int64 in [0, len(class_names)), or None.
        class_names: one name per class.
        name: short name of the source, for titles and folders.
        names: file names relative to the folder, sorted.
    """

    def __init__(self, path: Path, image_size: int, limit: int | None = None):
        self.path, self.image_size, self.name = path, image_size, source_name(str(path))
        self.in_zip = path.is_file()
        if self.in_zip:
            names = zip_images(path)
        else:
            names = [str(p.relative_to(path)) for p in sorted(find_images(path), key=lambda p: p.parts)]
        if limit is not None and limit < len(names):
            names = [names[i] for i in np.linspace(0, len(names) - 1, limit).round().astype(int)]
        self.labels, self.class_names = folder_labels(
            [PurePath(name) if self.in_zip else path / name for name in names]
        )
        self.names = Names(names)
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}

    @property
    def nbytes(self) -> int:
        """Return the size of all decoded images in bytes."""
        return len(self) * 3 * self.image_size**2

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return `files-` and 16 hexadecimal digits of the SHA-256 of the files' names and sizes, without decoding."""
        files = (f"{name}\0{size}\n" for name, size in zip(self.names, self._sizes(), strict=True))
        return f"files-{digest(*files)}"

    def describe(self) -> dict[str, object]:
        """Return the description of the data for config.json, with a hash of names and sizes instead of pixels."""
        hashed = self.fingerprint.removeprefix("files-")
        return {"name": self.name, "images": len(self), "image_size": self.image_size, "names_and_sizes": hashed}

    def pixels(self, number: int) -> np.ndarray:
        """Decode an image to (3, S, S) uint8; raise UserError with the file name if it is not readable."""
        name = self.names[number]
        if not self.in_zip:
            return decode(self.path / name, self.image_size, str(self.path / name)).transpose(2, 0, 1)
        try:
            picture = io.BytesIO(self._open_zip().read(name))
        except Exception as error:  # zipfile and its decompressors each raise their own; encryption RuntimeError
            raise UserError(f"{self.path}: {name} is not readable ({error})") from None
        return decode(picture, self.image_size, f"{self.path}: {name}").transpose(2, 0, 1)

    def pick(self, numbers: Tensor) -> Tensor:
        """Decode images to (n, 3, S, S) uint8 by their (n,) int64 numbers; raises as `pixels`."""
        images = np.empty((len(numbers), 3, self.image_size, self.image_size), np.uint8)
        for image, number in zip(images, numbers.tolist(), strict=True):
            image[:] = self.pixels(number)
        return torch.from_numpy(images)

    def stamps(self) -> Iterator[str] | None:
        """Return lines that identify the decoded images in the cache; None for a .zip file, which is not cached."""
        return None if self.in_zip else map(self._stamp, self.names)

    def _stamp(self, name: str) -> str:
        stat = os.stat(self.path / name)
        return f"{name} {stat.st_size} {stat.st_mtime_ns}"

    def _sizes(self) -> Iterator[int]:
        if self.in_zip:
            sizes = {info.filename: info.file_size for info in self._open_zip().infolist()}
            return (sizes[name] for name in self.names)
        return (os.stat(self.path / name).st_size for name in self.names)

    def _open_zip(self) -> zipfile.ZipFile:
        """Open the .zip file once per process, since forked processes would share the file position."""
        if self._archive is None or self._archive[0] != os.getpid():
            self._archive = os.getpid(), zipfile.ZipFile(self.path)
        return self._archive[1]


class Names(Sequence[str]):
    """Strings in one block of memory: reference counts of a million objects would copy them into every worker."""

    def __init__(self, names: Iterable[str]):
        encoded = [name.encode(errors="surrogateescape") for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: Any) -> Any:
        start, end = self._ends[number], self._ends[number + 1]
        return self._text[start:end].decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))


def fit(image: Image.Image, image_size: int) -> np.ndarray:
    """Return an image as (S, S, 3) uint8: white behind transparency, halved by area, bicubic, centre crop."""
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if image.size != (image_size, image_size):
        while min(image.size) >= 2 * image_size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = image_size / min(image.size)
        size = (max(round(image.width * scale), image_size), max(round(image.height * scale), image_size))
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)


def decode(file: Path | BinaryIO, image_size: int, name: str) -> np.ndarray:
    """Decode an image file to (S, S, 3) uint8; raise UserError with `name` if it is not readable."""
    try:
        with Image.open(file) as image:
            return fit(image, image_size)
    except UnidentifiedImageError:  # its text is the file object's
        raise UserError(f"{name}: not readable as an image (of no known format); fix or delete it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: not readable as an image ({error}); fix or delete it") from None


def folder_labels(paths: Sequence[PurePath]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return labels and class names: parent folders if there are several, else the file names up to the first `_`."""
    for names in ([p.parent.name for p in paths], [p.name.split("_")[0] if "_" in p.name else "" for p in paths]):
        classes = sorted(set(names))
        if 1 < len(classes) <= 1000 and "" not in classes:
            index = {name: i for i, name in enumerate(classes)}
            return torch.tensor([index[name] for name in names]), tuple(classes)
    return None, ()
