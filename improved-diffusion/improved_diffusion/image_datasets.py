"""Images from a folder, local or in cloud storage, as endless batches for training scripts.

The class of an image is the text of its file's name before the first `_`, as `cat_00001.png`; classes are numbered
in the order of their sorted names.
"""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import blob
from .dist_util import broadcast_object, get_rank, get_world_size

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

Batch = tuple[Tensor, dict[str, Tensor]]


def load_data(
    *,
    data_dir: str,
    batch_size: int,
    image_size: int,
    class_cond: bool = False,
    deterministic: bool = False,
    seed: int | None = None,
    num_workers: int = 2,
) -> Iterator[Batch]:
    """Return an endless generator of batches from a folder of images.

    With several ranks each gets its own part of every epoch: the whole set is shuffled again and split, so that
    every rank sees every image. The last images of an epoch that fill no batch are left out.

    Args:
        data_dir: searched recursively; local, or gs://, az:// or https:// by the package blobfile.
        batch_size: images per batch of each process.
        image_size: S, pixels; see `ImageDataset`.
        class_cond: yield classes.
        deterministic: the order of the sorted paths in every epoch.
        seed: seed of the order; None for a random one, so that a restarted job does not begin with the same images
            again.
        num_workers: processes that read images, 0 to read them in this one.

    Yields:
        (N, 3, S, S) float32 in [-1, 1], and {"y": (N,) int64 classes}, empty without `class_cond`.

    Raises:
        ValueError: no folder, no image in it, or fewer images for each process than a batch has; and, when it is
            decoded, a file that is not an image.
        ImportError, OSError: see `blob.open_file`.
    """
    if batch_size < 1 or image_size < 1:
        raise ValueError(f"batch_size and image_size must be at least 1, not {batch_size} and {image_size}")
    paths = list_images(data_dir)
    classes = class_numbers(paths) if class_cond else None
    processes = get_world_size()
    if len(paths) // processes < batch_size:
        each = "" if processes == 1 else f" for each of {processes} processes"
        raise ValueError(
            f"{data_dir}: {len(paths)} images are too few for batches of {batch_size}{each}; lower batch_size"
        )
    dataset = ImageDataset(image_size, paths, classes)
    if seed is None:
        seed = broadcast_object(secrets.randbits(31))
    order = epoch_batches(len(paths), batch_size, get_rank(), processes, None if deterministic else seed)
    loader = DataLoader(dataset, batch_sampler=order, num_workers=num_workers, persistent_workers=num_workers > 0)
    return ((images, dict(cond)) for images, cond in loader)


class ImageDataset(Dataset[tuple[np.ndarray, dict[str, Any]]]):
    """Images by number, each halved by area while it is twice too large, then resized bicubically, and cropped.

    An item is (3, S, S) float32 in [-1, 1], and {"y": class} or {}.

    Args:
        resolution: S, pixels.
        image_paths: local or remote.
        classes: the class of each path; None for none.
        shard: only every `num_shards`-th image, from this one on.
        num_shards: see `shard`.
    """

    def __init__(
        self,
        resolution: int,
        image_paths: Sequence[str],
        classes: Sequence[int] | None = None,
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.local_images = list(image_paths[shard::num_shards])
        self.local_classes = None if classes is None else list(classes[shard::num_shards])

    def __len__(self) -> int:
        return len(self.local_images)

    def __getitem__(self, idx: int) -> tuple[np.ndarray, dict[str, Any]]:
        path = self.local_images[idx]
        with blob.open_file(path, "rb") as file:
            try:
                with Image.open(file) as image:
                    pixels = center_crop(image.convert("RGB"), self.resolution)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"{path}: not readable as an image ({error}); fix or delete the file") from None
        classes = {} if self.local_classes is None else {"y": np.array(self.local_classes[idx], dtype=np.int64)}
        return np.moveaxis(pixels.astype(np.float32) / 127.5 - 1, 2, 0), classes


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Return an RGB image as (size, size, 3) uint8: halved by area, then bicubic, then its centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def list_images(data_dir: str) -> list[str]:
    """Return the paths of all images below a folder, sorted.

    Raises:
        ValueError: no folder, or no image in it.
    """
    if not data_dir:
        raise ValueError("data_dir must be a folder of images, not ''")
    data_dir = os.fspath(data_dir)
    files = blob.backend(data_dir)
    if not files.isdir(data_dir):
        raise ValueError(f"data_dir {data_dir}: no such folder")
    below = (os.path.join(root, name) for root, _, names in files.walk(data_dir) for name in names)
    hidden = re.compile(r"/\.")  # below the folder
    start, local = len(data_dir.rstrip("/")), not blob.is_remote(data_dir)
    paths = sorted(p for p in below if p.lower().endswith(SUFFIXES) and not hidden.search(p, start))
    paths = [path for path in paths if not local or os.path.exists(path)]  # no links to missing files
    if not paths:
        raise ValueError(f"data_dir {data_dir}: no image found in this folder")
    return paths


def class_numbers(paths: Sequence[str]) -> list[int]:
    """Return the class of each path, by the text of its name before the first `_`.

    Raises:
        ValueError: a name without `_`.
    """
    names = [os.path.basename(path) for path in paths]
    unnamed = next((path for path, name in zip(paths, names, strict=True) if "_" not in name[1:]), None)
    if unnamed:
        raise ValueError(f"{unnamed}: class_cond takes the class from the name before the first _, as cat_00001.png")
    prefixes = [name.split("_")[0] for name in names]
    number = {prefix: i for i, prefix in enumerate(sorted(set(prefixes)))}
    return [number[prefix] for prefix in prefixes]


def epoch_batches(
    num_images: int, batch_size: int, rank: int, world_size: int, seed: int | None
) -> Iterator[list[int]]:
    """Yield the batches of one process, epoch after epoch, without end.

    Args:
        num_images: images of the whole set.
        batch_size: images per batch of each rank.
        rank: this rank.
        world_size: number of ranks.
        seed: seed of the order; None for the order of the numbers.
    """
    share = num_images // world_size  # equal for all, or their batches would part
    for epoch in count():
        order = np.arange(num_images)
        if seed is not None:
            np.random.default_rng((seed, epoch)).shuffle(order)
        own = order[rank : share * world_size : world_size]
        for start in range(0, share - batch_size + 1, batch_size):
            yield own[start : start + batch_size].tolist()
