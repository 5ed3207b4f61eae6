"""Image sets: load any source into one uint8 tensor, convert between uint8 and float, read and write .npz files."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from comparison.cli import UserError, data_root
from comparison.data import shapes, stacked_mnist
from comparison.data.databases import DatabaseSet
from comparison.data.folders import DATA_MEMORY, FileSet, check_memory, fit, memory_limit
from comparison.data.sources import STACKED, check_source, is_database, shapes_modes, source_name, stored_images
from comparison.device import usable_cores
from comparison.files import ArraysOnly, atomic, digest
from comparison.progress import bar

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MAX_CLASSES = 1_000_000
SMALLER = "choose a smaller --image_size"
CACHE_FROM = 1000  # smaller folders are not cached
AT_ONCE = 64  # images that a thread decodes at a time


@dataclass(frozen=True)
class ImageSet:
    """A whole data set in memory.

    Attributes:
        images: (N, 3, S, S) uint8 on the CPU.
        labels: (N,) int64 in [0, len(class_names)), or None.
        class_names: one name per class.
        name: short name of the source, for titles and folders.
        fingerprint: 16 hexadecimal digits of the SHA-256 of the pixels.
    """

    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    name: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)

    def pick(self, numbers: Tensor) -> Tensor:
        """Return (n, 3, S, S) uint8 images by their (n,) int64 numbers."""
        return self.images.index_select(0, numbers)  # faster than an index: copies whole images

    def describe(self) -> dict[str, object]:
        """Return the description of the data for config.json and reports."""
        size = self.images.shape[-1]
        return {"name": self.name, "images": len(self), "image_size": size, "fingerprint": self.fingerprint}


def to_uint8(x: Tensor) -> Tensor:
    """Round float images in [-1, 1] to uint8 (truncation would darken them by half a level)."""
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Map uint8 images to float32 in [-1, 1]; `to_uint8` inverts it exactly."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)


def fingerprint(images: Tensor) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of (N, 3, S, S) uint8 pixels and their shape."""
    return digest(repr(tuple(images.shape)), *(part.contiguous().numpy() for part in images.split(4096)))


def open_images(
    source: str, image_size: int, *, split: str = "train", limit: int | None = None, processes: int = 1
) -> ImageSet | FileSet:
    """Load a data source, or return a `FileSet` if its decoded images exceed the memory limit.

    Only a folder, a .zip file or a database of images can stay on disk. `processes` of this machine share the limit;
    other arguments are those of `load_images`.

    Raises:
        UserError: the source is missing, empty or, if it is loaded, corrupt.
    """
    check_source(source)
    files = _open_files(source, image_size, split, limit)
    if files is None:
        return load_images(source, image_size, split=split, limit=limit)
    return files if files.nbytes > memory_limit() / processes else _read_files(files)


def load_images(source: str, image_size: int, *, split: str = "train", limit: int | None = None) -> ImageSet:
    """Load a data source into memory.

    Args:
        source: `shapes`, `shapes:N`, `cifar10`, `stackmnist`, `stackmnist:5k`, `lsun`, `lsun:CATEGORY`, `celeba_256`, a
            folder of images (searched recursively), a folder of CIFAR-10's Python batches or of an LMDB database, a
            .zip file of images, or an .npz file with arr_0 (N, H, W, 3) uint8 and perhaps arr_1 labels.
        image_size: pixels; other sizes are reduced by area or enlarged, and centre-cropped.
        split: `train` or `test`, for sources that have both; a folder is loaded whole.
        limit: number of images to keep, evenly spread over the source (the first of `shapes` and `stackmnist`, which
            are in random order).

    Raises:
        UserError: the source is missing, empty, corrupt or larger than memory allows.
    """
    check_source(source)
    path = Path(source)
    files = _open_files(source, image_size, split, limit)
    if files is not None:
        check_memory(str(files.path), len(files), image_size, "name a smaller folder")
        return _read_files(files)
    class_names: tuple[str, ...] = ()
    labels: Tensor | None
    if modes := shapes_modes(source):
        count = shapes.COUNTS[split] if limit is None else min(limit, shapes.COUNTS[split])
        check_memory(source, count, image_size, SMALLER, DATA_MEMORY)
        images, labels = shapes.dataset(modes, image_size, split=split, limit=limit)
        class_names = shapes.mode_names(modes)
    elif source in STACKED:
        images, labels = stacked_mnist.dataset(image_size, split=split, limit=limit, source=source)
        class_names = stacked_mnist.mode_names()
    elif path.suffix == ".npz":
        images, labels = load_npz(path)
        images, labels = evenly_spread(images, limit), None if labels is None else evenly_spread(labels, limit)
        check_memory(source, len(images), image_size, SMALLER, DATA_MEMORY)
        images = resize(images, image_size)
        class_names = () if labels is None else tuple(str(i) for i in range(int(labels.max()) + 1))
    else:
        images, labels = _read_cifar(None if source == "cifar10" else path, split)
        images, labels = evenly_spread(images, limit), evenly_spread(labels, limit)
        check_memory(source, len(images), image_size, SMALLER, DATA_MEMORY)
        images, class_names = resize(images, image_size), CIFAR10_CLASSES
    return ImageSet(images, labels, class_names, source_name(source), fingerprint(images))


def _open_files(source: str, image_size: int, split: str, limit: int | None) -> FileSet | None:
    """Return the set on disk of an accepted source, None for a source that is not made of image files."""
    location = stored_images(source, split)
    if location is None:
        return None
    if not is_database(location.path):
        return FileSet(location.path, image_size, limit)
    return DatabaseSet(location.path, image_size, limit, name=source_name(source), first=location.first)


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize (N, 3, H, W) uint8 to image_size x image_size pixels, by the rule for files, see `folders.fit`."""
    if images.shape[-2:] == (image_size, image_size):
        return images
    arrays = [fit(Image.fromarray(image), image_size) for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def evenly_spread(values: Tensor, limit: int | None) -> Tensor:
    """Return `limit` of the rows, evenly spread; all if there are no more, or without a limit."""
    if limit is None or limit >= len(values):
        return values
    return values[torch.linspace(0, len(values) - 1, limit).round().long()]


def _read_cifar(folder: Path | None, split: str) -> tuple[Tensor, Tensor]:
    if folder is None:
        from torchvision.datasets import CIFAR10

        try:
            data = CIFAR10(str(data_root()), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cifar10: not in {data_root()} and the download failed ({error}); "
                "put cifar-10-batches-py there, or name a folder of images"
            ) from None
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    images, labels = [], []
    for name in names:
        try:
            with open(folder / name, "rb") as file:
                batch = ArraysOnly(file, encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
            numbers = np.asarray(batch[b"labels"])
        except Exception as error:  # a damaged pickle raises any error
            raise UserError(f"{folder / name}: not readable as a CIFAR-10 batch ({error})") from None
        if not len(pixels) or numbers.shape != (len(pixels),) or numbers.dtype.kind not in "iu":
            raise UserError(f"{folder / name}: {len(pixels)} images, but labels of the shape {numbers.shape}")
        if numbers.min() < 0 or numbers.max() >= len(CIFAR10_CLASSES):
            raise UserError(f"{folder / name}: labels from {numbers.min()} to {numbers.max()}, not from 0 to 9")
        images.append(pixels)
        labels += numbers.tolist()
    return torch.from_numpy(np.concatenate(images)), torch.tensor(labels)


def _read_files(files: FileSet) -> ImageSet:
    """Decode all files, or load them from the cache."""
    shape = (len(files), 3, files.image_size, files.image_size)
    cache = _cache_file(files)
    images = read_cache(cache, shape) if cache else None
    if images is None:
        images = np.empty(shape, np.uint8)
        spans = torch.arange(len(files)).split(AT_ONCE)
        with ThreadPoolExecutor(min(usable_cores(), 16)) as threads, bar(len(files), 0, "read", "images") as progress:
            for span, part in zip(spans, threads.map(files.pick, spans), strict=True):
                images[span] = part
                progress.update(len(span))
        if cache and len(files) >= CACHE_FROM:
            write_cache(cache, images)
    pixels = torch.from_numpy(images)
    return ImageSet(pixels, files.labels, files.class_names, files.name, fingerprint(pixels))


def _cache_file(files: FileSet) -> Path | None:
    """Return the path of the decoded images in the cache, None if the set is not cached."""
    stamps = files.stamps()
    if stamps is None:
        return None
    name = digest(f"v1 {files.image_size}", *(f"{stamp}\n" for stamp in stamps), digits=24)
    return data_root() / "cache" / f"{name}.npy"


def read_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the array that `write_cache` saved, None if it is missing, damaged or of another shape."""
    try:
        array = np.load(cache)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape else None


def write_cache(cache: Path, array: np.ndarray) -> None:
    """Save an array as .npy atomically; do nothing on a full or read-only disk."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic(cache) as temporary:
            np.save(temporary, array)


def load_npz(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read samples: (N, 3, H, W) uint8 from arr_0 (N, H, W, 3), and int64 labels from arr_1 if it exists.

    Raises:
        UserError: the file is missing, truncated or holds other arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["arr_0"]
            labels = archive.get("arr_1")
    except KeyError:
        raise UserError(f"{path}: holds no arr_0 with images") from None
    except Exception as error:  # zipfile, zlib, struct and NumPy each raise their own on a damaged file
        raise UserError(f"{path}: not readable as an .npz file ({error})") from None
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray | None):  # NumPy returns other content
        raise UserError(f"{path}: not readable as an .npz file (a part of it is no array)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise UserError(f"{path}: arr_0 is {images.dtype} {images.shape}, not uint8 (N, H, W, 3)")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    if labels is None:
        return pixels, None
    if labels.shape != (len(images),):
        raise UserError(f"{path}: arr_1 holds {labels.shape} labels for {len(images)} images")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise UserError(f"{path}: arr_1 must hold class numbers, whole and from 0 to {MAX_CLASSES - 1}")
    return pixels, torch.from_numpy(labels.astype(np.int64))


def save_npz(path: Path, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Write samples atomically: arr_0 uint8 (N, H, W, 3), arr_1 int64 labels if given."""
    arrays = {"arr_0": images} if labels is None else {"arr_0": images, "arr_1": labels}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
