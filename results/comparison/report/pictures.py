"""Pictures made of images: grids of samples, and labelled strips."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from comparison.report.plots import save

GRID_BUDGET = 100  # images in all panels of samples.png: keeps the file below 300 kB
GAP = 2  # pixels between images


def draw_samples(panels: Sequence[tuple[str, np.ndarray, str]], path: Path) -> bool:
    """Draw grids in a square of panels, one screen pixel or more per image pixel.

    Args:
        panels: title, (n, S, S, 3) uint8 images, colour of the title.
        path: of the picture.

    Returns:
        Whether there was anything to draw.
    """
    if not panels:
        return False
    size = max(images.shape[1] for _, images, _ in panels)
    side = max(2, int((GRID_BUDGET / len(panels)) ** 0.5 / max(1, size / 48)))
    scale = max(1, round(64 / size))
    edge = side * (size * scale + 2) + 2
    gap, title = 14, 26
    columns = math.ceil(len(panels) ** 0.5)
    rows = math.ceil(len(panels) / columns)
    width, height = columns * (edge + gap) - gap, rows * (edge + title)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for i, (name, images, colour) in enumerate(panels):
        canvas = np.full((edge, edge, 3), 255, np.uint8)
        for k, image in enumerate(images[: side * side]):
            top, left = (2 + j * (size * scale + 2) for j in divmod(k, side))
            tile = image.repeat(scale, 0).repeat(scale, 1)
            canvas[top : top + len(tile), left : left + len(tile)] = tile
        row, column = divmod(i, columns)
        left, top = column * (edge + gap), row * (edge + title)
        axes = figure.add_axes((left / width, 1 - (top + title + edge) / height, edge / width, edge / height))
        axes.imshow(canvas, interpolation="nearest")
        axes.set_axis_off()
        middle, upper = (left + edge / 2) / width, 1 - (top + 8) / height
        figure.text(middle, upper, name, ha="center", va="top", fontsize=10, color=colour, fontweight="bold")
    save(figure, path)
    return True


def draw_strips(panels: Sequence[tuple[str, str, Sequence[np.ndarray]]], path: Path, edge: int = 48) -> bool:
    """Draw rows of images, each panel below its title.

    Args:
        panels: title, its colour, and rows of (n, S, S, 3) uint8 images.
        path: of the picture.
        edge: screen pixels of an image, roughly.

    Returns:
        Whether there was anything to draw.
    """
    if not panels:
        return False
    title, gap = 22, 8
    blocks = [_paste(strips, max(1, round(edge / strips[0].shape[1]))) for _, _, strips in panels]
    width = max(block.shape[1] for block in blocks)
    height = sum(title + block.shape[0] + gap for block in blocks) - gap
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    top = 0
    for (name, colour, _), block in zip(panels, blocks, strict=True):
        figure.text(
            GAP / width, 1 - (top + title / 2) / height, name, va="center", fontsize=10, color=colour, fontweight="bold"
        )
        top += title
        bottom = 1 - (top + block.shape[0]) / height
        axes = figure.add_axes((0, bottom, block.shape[1] / width, block.shape[0] / height))
        axes.imshow(block, interpolation="nearest")
        axes.set_axis_off()
        top += block.shape[0] + gap
    save(figure, path)
    return True


def _paste(strips: Sequence[np.ndarray], scale: int) -> np.ndarray:
    """Paste rows of (n, S, S, 3) uint8 images, enlarged, on white."""
    step = strips[0].shape[1] * scale + GAP
    canvas = np.full((len(strips) * step, max(map(len, strips)) * step, 3), 255, np.uint8)
    for i, strip in enumerate(strips):
        for k, image in enumerate(strip):
            tile = image.repeat(scale, 0).repeat(scale, 1)
            canvas[i * step : i * step + len(tile), k * step : k * step + len(tile)] = tile
    return canvas
