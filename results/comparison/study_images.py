"""The steps of the studies that compute on images: subsets, rows of samples, copies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comparison.data.images import load_images, load_npz, save_npz
from comparison.png import save_grid
from comparison.scores.evaluation import find_samples
from comparison.scores.features import embed
from comparison.scores.neighbours import median_ratio, memorised, nearest_training, squared_distances
from comparison.scores.reference import Reference
from comparison.studies import Cell, Study


def write_subset(study: Study, name: str, count: int, image_size: int) -> str:
    """Write `count` evenly spaced training images as .npz unless it exists; return its path."""
    path = study.runs / "studies" / study.tag / f"{name}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_npz(path, load_images(study.data, image_size, limit=count).images.permute(0, 2, 3, 1).numpy())
    return str(path)


def draw_samples(folders: Sequence[Path], count: int, path: Path) -> None:
    """Write a picture with a row of the first `count` samples of each folder."""
    images = torch.cat([load_npz(find_samples(folder))[0][:count] for folder in folders])
    save_grid(images, path, columns=count)


def add_copies(
    study: Study, cells: Sequence[Cell], image_size: int, images_of: Callable[[int], tuple[Tensor, Tensor]]
) -> None:
    """Compare cells with the images that each training saw: metrics `memorised` and `nearest_ratio`.

    `held_out` of a cell has the same metrics of real images.

    Args:
        study: study of the cells.
        cells: scored cells with the `count` of their images.
        image_size: pixels.
        images_of: `count` -> images that a training saw, and real images for the floor, which are skipped where the
            training saw them; both (N, 3, S, S) uint8.
    """
    reference = Reference.load(study.data, image_size, study.args.num_samples, 0, "auto")

    def features(images: Tensor) -> Tensor:
        return reference.scale(embed(images, reference.extractor, desc=f"embed {len(images)} images"))

    def compare(x: Tensor, seen: Tensor, same: Tensor | None = None) -> dict[str, Any]:
        nearest = nearest_training(x, seen, same)
        return {"memorised": memorised(nearest).as_json(), "nearest_ratio": median_ratio(nearest).as_json()}

    done: dict[int, tuple[Tensor, dict[str, Any]]] = {}
    for cell in cells:
        if cell["count"] not in done:
            seen, real = map(features, images_of(cell["count"]))
            nearest = squared_distances(real, seen).min(1).indices
            same = nearest[(real - seen[nearest]).norm(dim=1) < 1e-4].unique()
            done[cell["count"]] = seen, compare(real, seen, same)
        seen, cell["held_out"] = done[cell["count"]]
        x = features(load_npz(find_samples(cell["folder"]))[0])
        cell["metrics"] |= compare(x, seen)


def add_brightness(study: Study, cells: Sequence[Cell], image_size: int) -> None:
    """Add the metric `brightness_ratio` to scored cells: the variance of the samples' mean brightness over the data's.

    Args:
        study: study of the cells.
        cells: cells with the `folder` of their samples.
        image_size: pixels.
    """

    def variance(images: Tensor) -> float:
        return float(images.double().mean((1, 2, 3)).var())

    real = variance(load_images(study.data, image_size).images)
    for cell in cells:
        ratio = variance(load_npz(find_samples(cell["folder"]))[0]) / real
        cell["metrics"]["brightness_ratio"] = {"value": float(f"{ratio:.6g}")}
