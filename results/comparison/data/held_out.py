"""The images of a run: those that are trained on, and those that are kept aside."""

from pathlib import Path

import torch
from torch import Tensor

from comparison.data.images import ImageSet, fingerprint, load_images
from comparison.data.sources import find_images, is_cifar_batches, shapes_modes

TEST_FOLDERS = ("test", "val")  # beside a folder that is called train


def load_data(
    source: str, image_size: int, limit: int = 0, held_out: int = 0, at_least: int = 0
) -> tuple[ImageSet, Tensor]:
    """Read the training images of a source, and images like them that no network is trained on.

    The latter come from the test split of shapes, cifar10 and stackmnist, of a folder of CIFAR-10's batches, or from
    the folder `test` or `val` beside a folder `train`. Elsewhere they are taken out of the images, evenly spread, at
    most a tenth of them.

    Args:
        source: as --data.
        image_size: pixels.
        limit: training images, evenly spread over the source; 0 for all.
        held_out: images to keep aside, 0 for none.
        at_least: training images that must be left, where the source has so many.

    Returns:
        The training images, and (M, 3, S, S) uint8 with M <= held_out, 0 where there are none to spare.

    Raises:
        UserError: the source is missing, empty or corrupt.
    """
    none = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
    place = test_split(source) if held_out else None
    if place is not None:
        test = load_images(place[0], image_size, split=place[1], limit=held_out)
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
    """Return the source and split of a source's test images, None where it has none."""
    path = Path(source)
    batches = is_cifar_batches(path) and (path / "test_batch").is_file()
    if source in ("cifar10", "stackmnist") or shapes_modes(source) or batches:
        return source, "test"
    beside = [path.parent / name for name in TEST_FOLDERS] if path.name == "train" else []
    found = next((folder for folder in beside if next(find_images(folder), None)), None)
    return None if found is None else (str(found), "train")


def _spread(total: int, count: int) -> Tensor:
    return torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()
