"""The training images of a run, and held-out images like them."""

from pathlib import Path

import torch
from torch import Tensor

from comparison.data.images import ImageSet, fingerprint, load_images
from comparison.data.sources import STACKED, find_images, is_cifar_batches, shapes_modes

TEST_FOLDERS = ("test", "val")  # beside a folder `train`


def load_data(
    source: str, image_size: int, limit: int = 0, held_out: int = 0, at_least: int = 0
) -> tuple[ImageSet, Tensor]:
    """Load the training images of a source, and held-out images like them.

    Held-out images come from the test split of shapes, cifar10, stackmnist and CIFAR-10's batches, or the folder `test`
    or `val` beside a folder `train`. For other sources they are evenly spread training images, at most a tenth, which
    are removed from training.

    Args:
        source: value of --data.
        image_size: pixels.
        limit: number of training images, evenly spread over the source; 0 for all.
        held_out: number of held-out images.
        at_least: minimum of training images that holding out must leave.

    Returns:
        The training images, and (M, 3, S, S) uint8 held-out images, M <= held_out.

    Raises:
        UserError: the source is missing, empty or corrupt.
    """
    none = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
    split = test_split(source) if held_out else None
    if split is not None:
        test = load_images(split[0], image_size, split=split[1], limit=held_out)
        return load_images(source, image_size, limit=limit or None), test.images
    data = load_images(source, image_size)
    count = min(held_out, len(data) // 10, max(0, len(data) - at_least))
    if not count and not limit:
        return data, none
    kept = torch.ones(len(data), dtype=torch.bool)
    if count:
        kept[_spread(len(data), count)] = False
    numbers = kept.nonzero()[:, 0]
    if limit and limit < len(numbers):
        numbers = numbers[_spread(len(numbers), limit)]
    images = data.images[numbers]
    labels = None if data.labels is None else data.labels[numbers]
    return ImageSet(images, labels, data.class_names, data.name, fingerprint(images)), data.images[~kept]


def test_split(source: str) -> tuple[str, str] | None:
    """Return the source and split of a source's test images, None if it has none."""
    path = Path(source)
    batches = is_cifar_batches(path) and (path / "test_batch").is_file()
    if source in ("cifar10", *STACKED) or shapes_modes(source) or batches:
        return source, "test"
    beside = [path.parent / name for name in TEST_FOLDERS] if path.name == "train" else []
    test = next((folder for folder in beside if next(find_images(folder), None)), None)
    return None if test is None else (str(test), "train")


def _spread(total: int, count: int) -> Tensor:
    return torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()
