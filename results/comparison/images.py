"""Image sets: reading any source into one uint8 tensor, the rounding rule, grids and .npz files."""

import hashlib
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from comparison import shapes
from comparison.cli import UserError, data_root
from comparison.progress import bar
from comparison.sources import check_source, find_images, is_cifar_batches, shapes_modes, source_name, zip_images

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEMORY_LIMIT = 8 * 2**30  # bytes of decoded images
CACHE_FROM = 1000  # images; smaller folders are decoded faster than a cache is worth


@dataclass(frozen=True)
class ImageSet:
    """A whole data set in memory.

    Attributes:
        images: (N, 3, S, S) uint8 on the CPU.
        labels: (N,) int64 in [0, len(class_names)), or None.
        class_names: one name per class.
        name: of the source, for titles and folders.
        fingerprint: 16 hexadecimal digits of the SHA-256 of the pixels.
    """

    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    name: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> dict[str, object]:
        """Return what config.json and reports say of the data."""
        return {
            "name": self.name,
            "images": len(self),
            "image_size": self.images.shape[-1],
            "fingerprint": self.fingerprint,
        }


def to_uint8(x: Tensor) -> Tensor:
    """Round [-1, 1] float to uint8, the one rule of this project (truncation would darken by half a level)."""
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Map uint8 to float32 in [-1, 1]; `to_uint8` inverts it exactly."""
    return images.float().div(127.5).sub(1)


def fingerprint(images: Tensor) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of (N, 3, S, S) uint8 pixels and their shape."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in images.split(4096):
        digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:16]


def load_images(source: str, image_size: int, *, split: str = "train", limit: int | None = None) -> ImageSet:
    """Read a data source whole.

    Args:
        source: `shapes`, `shapes:N`, `cifar10`, a folder of images (searched recursively), a folder of CIFAR-10's
            Python batches, a .zip file of images, or an .npz file with arr_0 (N, H, W, 3) uint8 and perhaps arr_1
            labels.
        image_size: pixels; other sizes are reduced to it by area, or enlarged, and cropped to the centre.
        split: `train` or `test`, for the sources that know both; a folder is taken whole.
        limit: keep only so many images, evenly spread over the source (of `shapes` the first, which are random).

    Raises:
        UserError: the source is missing, empty, corrupt or larger than memory allows.
    """
    check_source(source)
    path = Path(source)
    modes = shapes_modes(source)
    class_names: tuple[str, ...] = ()
    if modes:
        images, labels = shapes.dataset(modes, image_size, split=split, limit=limit)
        class_names = shapes.mode_names(modes)
    elif source == "cifar10" or (path.is_dir() and is_cifar_batches(path)):
        images, labels = _read_cifar(None if source == "cifar10" else path, split)
        images, labels = _spread(images, limit), _spread(labels, limit)
        images, class_names = resize(images, image_size), CIFAR10_CLASSES
    elif path.suffix == ".npz":
        images, labels = load_npz(path)
        images, labels = _spread(images, limit), None if labels is None else _spread(labels, limit)
        images = resize(images, image_size)
        class_names = () if labels is None else tuple(str(i) for i in range(int(labels.max()) + 1))
    elif path.suffix == ".zip" and path.is_file():
        images, labels, class_names = _read_zip(path, image_size, limit)
    else:
        images, labels, class_names = _read_folder(path, image_size, limit)
    return ImageSet(images, labels, class_names, source_name(source), fingerprint(images))


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize (N, 3, H, W) uint8 to image_size x image_size pixels, as single files are: area, bicubic, centre crop."""
    if images.shape[-2:] == (image_size, image_size):
        return images
    arrays = [fit(Image.fromarray(image), image_size) for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def fit(image: Image.Image, image_size: int) -> np.ndarray:
    """Return an image as (S, S, 3) uint8: transparency on white, halved by area, then bicubic, centre crop."""
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


def _spread(values: Tensor, limit: int | None) -> Tensor:
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
                batch = _CifarUnpickler(file, encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
            labels += batch[b"labels"]
        except (OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{folder / name}: not readable as a CIFAR-10 batch ({error})") from None
    return torch.from_numpy(np.concatenate(images)), torch.tensor(labels)


class _CifarUnpickler(pickle.Unpickler):
    """Loads NumPy arrays and plain types only: a batch file runs no code of its own."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"holds {module}.{name}")


def _read_folder(folder: Path, image_size: int, limit: int | None) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    paths = sorted(find_images(folder))
    if limit is not None and limit < len(paths):
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, limit).round().astype(int)]
    need = len(paths) * 3 * image_size**2
    if need > MEMORY_LIMIT:
        raise UserError(
            f"{folder}: {len(paths)} images of {image_size} pixels need {need / 2**30:.0f} GiB; name a smaller folder"
        )
    labels, class_names = _folder_labels(paths)
    cache = _cache_file(folder, paths, image_size)
    shape = (len(paths), 3, image_size, image_size)
    if (cached := read_cache(cache, shape)) is not None:
        return torch.from_numpy(cached), labels, class_names
    images = np.empty(shape, np.uint8)

    def read(i: int) -> None:
        images[i] = _read_file(paths[i], image_size, str(paths[i])).transpose(2, 0, 1)

    with (
        ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool,
        bar(len(paths), 0, "read images", "images") as progress,
    ):
        for _ in pool.map(read, range(len(paths))):
            progress.update()
    if len(paths) >= CACHE_FROM:
        write_cache(cache, images)
    return torch.from_numpy(images), labels, class_names


def _read_zip(path: Path, image_size: int, limit: int | None) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    names = zip_images(path)
    if limit is not None and limit < len(names):
        names = [names[i] for i in np.linspace(0, len(names) - 1, limit).round().astype(int)]
    images = np.empty((len(names), 3, image_size, image_size), np.uint8)
    with zipfile.ZipFile(path) as archive, bar(len(names), 0, "read images", "images") as progress:
        for i, name in enumerate(names):
            try:
                picture = io.BytesIO(archive.read(name))
            except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                raise UserError(f"{path}: {name} is not readable ({error})") from None
            images[i] = _read_file(picture, image_size, f"{path}: {name}").transpose(2, 0, 1)
            progress.update()
    return torch.from_numpy(images), *_folder_labels([PurePath(name) for name in names])


def _read_file(file: Path | BinaryIO, image_size: int, name: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return fit(image, image_size)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: not readable as an image ({error}); mend or remove it") from None


def _folder_labels(paths: Sequence[PurePath]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Label by parent folder where there are several, else by the file name before the first `_`."""
    for names in ([p.parent.name for p in paths], [p.name.split("_")[0] if "_" in p.name else "" for p in paths]):
        classes = sorted(set(names))
        if 1 < len(classes) <= 1000 and "" not in classes:
            index = {name: i for i, name in enumerate(classes)}
            return torch.tensor([index[name] for name in names]), tuple(classes)
    return None, ()


def _cache_file(folder: Path, paths: Sequence[Path], image_size: int) -> Path:
    digest = hashlib.sha256(f"v1 {image_size}".encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return data_root() / "cache" / f"{digest.hexdigest()[:24]}.npy"


def read_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the array that `write_cache` kept, or None where it is missing, damaged or of another shape."""
    try:
        found = np.load(cache)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape else None


def write_cache(cache: Path, array: np.ndarray) -> None:
    """Keep an array as .npy for the next call, atomically; on a full or read-only disk there is just no cache."""
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.save(file, array)
        os.replace(temporary, cache)
    except OSError:
        temporary.unlink(missing_ok=True)


def load_npz(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read samples: (N, 3, H, W) uint8 from arr_0 (N, H, W, 3), and int64 labels from arr_1 if there.

    Raises:
        UserError: the file is missing, truncated, or holds no such array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["arr_0"]
            labels = torch.from_numpy(archive["arr_1"].astype(np.int64)) if "arr_1" in archive else None
    except KeyError:
        raise UserError(f"{path}: holds no arr_0 with images") from None
    except Exception as error:  # zipfile, zlib, struct and NumPy raise each their own on a damaged file
        raise UserError(f"{path}: not readable as an .npz file ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise UserError(f"{path}: arr_0 is {images.dtype} {images.shape}, not uint8 (N, H, W, 3)")
    if labels is not None and labels.shape != (len(images),):
        raise UserError(f"{path}: arr_1 holds {tuple(labels.shape)} labels for {len(images)} images")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def save_npz(path: Path, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Write samples atomically: arr_0 uint8 (N, H, W, 3), arr_1 int64 labels if given."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    arrays = {"arr_0": images} if labels is None else {"arr_0": images, "arr_1": labels}
    with open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)


def save_grid(images: Tensor, path: Path, columns: int = 8, padding: int = 2) -> None:
    """Write (N, 3, S, S) uint8 images as one PNG, row by row, on white."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + padding) + padding, columns * (width + padding) + padding, 3), 255, np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = padding + (i // columns) * (height + padding), padding + (i % columns) * (width + padding)
        canvas[top : top + height, left : left + width] = image
    temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
    Image.fromarray(canvas).save(temporary)
    os.replace(temporary, path)
