"""`shapes`: the embedded data set, drawn by code, with known modes.

Each image shows one flat figure with a soft shadow on a bright background. Its mode is the combination of shape,
colour, position and size; small shifts, size changes and the brightness are free. `match_modes` fits every mode to an
image and returns the best one, or none if the fit is too poor, as for noise and mixtures.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

NAME = "shapes"
COUNTS = {"train": 20_000, "test": 5_000}
SHAPES = ("disc", "square", "triangle", "ring", "cross")
COLOURS = {  # RGB in [0, 1]; the first five differ most
    "red": (0.86, 0.20, 0.18),
    "blue": (0.13, 0.36, 0.78),
    "green": (0.10, 0.60, 0.32),
    "yellow": (0.98, 0.75, 0.10),
    "violet": (0.49, 0.22, 0.65),
    "black": (0.12, 0.13, 0.16),
    "orange": (0.96, 0.46, 0.10),
    "turquoise": (0.10, 0.70, 0.72),
    "pink": (0.95, 0.45, 0.65),
    "brown": (0.48, 0.30, 0.18),
}
POSITIONS = {  # centre as a fraction of the image, x then y
    "upper left": (0.28, 0.28),
    "upper right": (0.72, 0.28),
    "lower left": (0.28, 0.72),
    "lower right": (0.72, 0.72),
    "centre": (0.5, 0.5),
}
RADII = {1: (0.19,), 2: (0.13, 0.21), 4: (0.09, 0.13, 0.17, 0.22)}  # fractions of the image
FACTORS = {10: (2, 1, 1), 100: (5, 4, 1), 200: (5, 4, 2), 1000: (10, 5, 4)}  # colours, positions, sizes; times 5 shapes
TINT = np.array([1.0, 0.985, 0.955])  # background, a warm white
SHIFT, STRETCH, BRIGHTNESS = 0.03, 0.06, (0.78, 1.0)  # free part: centre, relative radius, background level
# Largest accepted residual of `fit_modes`. All test images of up to 200 modes pass at 0.08, 99.9% of those of 1,000
# modes at 0.10; at 0.35 nine of ten two-coloured blobs would pass too.
ACCEPT = 0.10


@dataclass(frozen=True)
class Mode:
    """A combination of the factors; lengths are fractions of the image."""

    shape: str
    colour: str
    position: str
    size: int
    centre: tuple[float, float]
    radius: float


@lru_cache
def modes(count: int = 200) -> tuple[Mode, ...]:
    """Return the modes of `shapes:count` in label order.

    Raises:
        ValueError: count is none of 10, 100, 200, 1000.
    """
    if count not in FACTORS:
        raise ValueError(f"count must be one of {sorted(FACTORS)}, not {count}")
    colours, positions, sizes = FACTORS[count]
    names = list(POSITIONS)[:positions] if positions > 1 else ["centre"]
    return tuple(
        Mode(shape, colour, position, size, POSITIONS[position], radius)
        for shape in SHAPES
        for colour in list(COLOURS)[:colours]
        for position in names
        for size, radius in enumerate(RADII[sizes])
    )


def mode_names(count: int = 200) -> tuple[str, ...]:
    """Return a readable name for each mode, in label order."""
    return tuple(f"{m.colour} {m.shape}, {m.position}, size {m.size}" for m in modes(count))


def _distance(shape: str, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return the signed distance to the outline, negative inside; y points down."""
    if shape == "disc":
        return np.hypot(x, y) - r
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.88 * r
    if shape == "triangle":
        y = y - 0.12 * r
        return np.maximum(y, 0.866 * abs(x) - 0.5 * y) - 0.6 * r
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.74 * r) - 0.26 * r
    bar_x = np.maximum(abs(x) - r, abs(y) - 0.36 * r)
    bar_y = np.maximum(abs(y) - r, abs(x) - 0.36 * r)
    return np.minimum(bar_x, bar_y)


def _layers(
    shape: str, cx: np.ndarray, cy: np.ndarray, r: np.ndarray, image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the (N, S, S) coverage of the figure and weight of the background, both in [0, 1]."""
    grid = (np.arange(image_size) + 0.5) / image_size
    x = grid[None, None, :] - cx[:, None, None]
    y = grid[None, :, None] - cy[:, None, None]
    r = r[:, None, None]
    cover = np.clip(0.5 - _distance(shape, x, y, r) * image_size, 0, 1)
    shadow = 0.22 * np.clip(0.5 - _distance(shape, x - 0.02, y - 0.04, r) / 0.08, 0, 1)
    light = 1 - 0.14 * grid[None, :, None] ** 2  # slightly darker towards the bottom
    return cover, (1 - cover) * (1 - shadow) * light


def render(labels: np.ndarray, image_size: int, generator: np.random.Generator, count: int = 200) -> np.ndarray:
    """Draw one image per label, (N, 3, S, S) uint8.

    Args:
        labels: (N,) modes in [0, count).
        image_size: S, pixels.
        generator: source of the free part.
        count: number of modes.
    """
    table = modes(count)
    free = generator.uniform(-1, 1, (len(labels), 4))
    images = np.empty((len(labels), 3, image_size, image_size), np.uint8)
    for shape in SHAPES:
        (numbers,) = np.nonzero([table[label].shape == shape for label in labels])
        for part in np.array_split(numbers, max(1, len(numbers) * image_size**2 // 2_000_000)):
            chosen = [table[label] for label in labels[part]]
            centre = np.array([m.centre for m in chosen]).reshape(-1, 2) + SHIFT * free[part, :2]
            radius = np.array([m.radius for m in chosen]) * (1 + STRETCH * free[part, 2])
            cover, back = _layers(shape, centre[:, 0], centre[:, 1], radius, image_size)
            colour = np.array([COLOURS[m.colour] for m in chosen]).reshape(-1, 3, 1, 1)
            low, high = BRIGHTNESS
            level = low + (high - low) * (free[part, 3, None, None, None] + 1) / 2
            picture = cover[:, None] * colour + level * TINT[:, None, None] * back[:, None]
            images[part] = np.rint(picture * 255)
    return images


def blobs(count: int, image_size: int, generator: np.random.Generator) -> Tensor:
    """Draw soft spots of two colours, which a mode counter must reject, on backgrounds of the data set.

    Returns:
        (count, 3, S, S) uint8.
    """
    size = max(1, 2_000_000 // image_size**2)  # images drawn at a time
    parts = [_blobs(min(size, count - start), image_size, generator) for start in range(0, count, size)]
    return torch.from_numpy(np.concatenate(parts))


def _blobs(count: int, image_size: int, generator: np.random.Generator) -> np.ndarray:
    grid = (np.arange(image_size) + 0.5) / image_size
    colours = np.array(list(COLOURS.values()))[:5]
    chosen = np.array([generator.choice(5, 2, replace=False) for _ in range(count)])
    centres = np.array(list(POSITIONS.values()))[generator.integers(0, 4, count)]
    angle = generator.uniform(0, 2 * np.pi, count)
    offset = 0.10 * np.stack([np.cos(angle), np.sin(angle)], 1)
    spots = [
        weight * np.exp(-((grid[None, None, :] - x) ** 2 + (grid[None, :, None] - y) ** 2) / (2 * 0.1**2))
        for weight, at in ((1.0, centres), (0.9, centres + offset))
        for x, y in [at.T[:, :, None, None]]
    ]
    cover = np.minimum(spots[0] + spots[1], 1)[:, None] ** 2
    share = (spots[0] / (spots[0] + spots[1] + 1e-9))[:, None]
    colour = [colours[chosen[:, i]][:, :, None, None] for i in range(2)]
    figure = share * colour[0] + (1 - share) * colour[1]
    level = generator.uniform(*BRIGHTNESS, (count, 1, 1, 1))
    light = (1 - 0.14 * grid**2)[None, None, :, None]
    picture = cover * figure + (1 - cover) * level * light * TINT[:, None, None]
    return np.rint(picture * 255).astype(np.uint8)


def dataset(count: int, image_size: int, *, split: str = "train", limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the data set, or its first `limit` images: (N, 3, S, S) uint8 and (N,) int64 modes.

    The whole set has equally many images of each mode, in random order.
    """
    generator = np.random.Generator(np.random.PCG64([count, split == "train"]))
    labels = generator.permutation(np.arange(COUNTS[split]) % count)[:limit]
    return torch.from_numpy(render(labels, image_size, generator, count)), torch.from_numpy(labels.astype(np.int64))


class _Fit:
    """Least-squares fit of every mode to images: a grid of shifts and sizes, colour and brightness in closed form."""

    SIZE = 32  # pixels; images of other sizes are resized by area

    def __init__(self, count: int):
        table = modes(count)
        self.colours = list(dict.fromkeys(m.colour for m in table))
        figures = list(dict.fromkeys((m.shape, m.centre, m.radius) for m in table))
        steps = [(dx, dy, dr) for dx in (-0.02, 0, 0.02) for dy in (-0.02, 0, 0.02) for dr in (-0.035, 0.035)]
        cover, back = [], []
        for shape, (cx, cy), radius in figures:
            dx, dy, dr = np.array(steps).T
            layers = _layers(shape, cx + dx, cy + dy, radius * (1 + dr), self.SIZE)
            cover.append(layers[0].reshape(len(steps), -1))
            back.append(layers[1].reshape(len(steps), -1))
        self.variants = len(steps)
        self.cover = torch.from_numpy(np.concatenate(cover)).float()  # (G, P)
        self.back = torch.from_numpy(np.concatenate(back)).float()
        empty = 1 - 0.14 * ((np.arange(self.SIZE) + 0.5) / self.SIZE) ** 2
        self.empty = torch.from_numpy(np.repeat(empty, self.SIZE)).float()  # (P,)
        number = {figure: i for i, figure in enumerate(figures)}
        self.mode = torch.tensor([[number[m.shape, m.centre, m.radius], self.colours.index(m.colour)] for m in table])
        self.rgb = torch.tensor([COLOURS[c] for c in self.colours])  # (K, 3)
        self.tint = torch.from_numpy(TINT).float()

    def _level(self, fit: Tensor, norm: Tensor) -> Tensor:
        return (fit / norm).clamp(BRIGHTNESS[0] - 0.05, BRIGHTNESS[1] + 0.05)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N,) residuals and the (N,) best modes of (N, 3, 32, 32) float images in [0, 1]."""
        x = images.flatten(2)  # (N, 3, P)
        x_cover, x_back = x @ self.cover.T, x @ self.back.T  # (N, 3, G)
        power = x.square().sum((1, 2))[:, None]
        cc, bb = self.cover.square().sum(1), self.back.square().sum(1)
        cb = (self.cover * self.back).sum(1)
        tt = self.tint.square().sum()
        best = torch.full((len(x), len(self.mode)), float("inf"))
        for k, rgb in enumerate(self.rgb):
            tinted = torch.einsum("c,ncg->ng", self.tint, x_back) - (rgb @ self.tint) * cb
            level = self._level(tinted, tt * bb)
            error = power + rgb.square().sum() * cc - 2 * torch.einsum("c,ncg->ng", rgb, x_cover)
            error = error + level.square() * tt * bb - 2 * level * tinted
            # squared difference between the figure and an empty image, which the error is divided by
            gain = cc * rgb.square().sum() + level.square() * tt * ((self.back - self.empty).square().sum(1))
            gain = gain + 2 * level * (rgb @ self.tint) * (self.cover * (self.back - self.empty)).sum(1)
            score = (error / gain).unflatten(1, (-1, self.variants)).amin(2)  # (N, figures)
            columns = (self.mode[:, 1] == k).nonzero()[:, 0]
            best[:, columns] = score[:, self.mode[columns, 0]]
        residual, mode = best.min(1)
        return residual, mode


@lru_cache
def _fit(count: int) -> _Fit:
    return _Fit(count)


def fit_modes(images: Tensor, count: int = 200) -> tuple[Tensor, Tensor]:
    """Fit every mode to each of (N, 3, S, S) uint8 images, by least squares over the free part.

    Returns:
        (N,) float32 residual, the squared error of the best mode relative to the squared difference between its figure
        and an empty image: 0 for a perfect fit, about 1 for an empty image; and (N,) int64, that mode.
    """
    fits = []
    for part in images.split(500):
        x = part.float() / 255
        if x.shape[-1] != _Fit.SIZE:
            x = torch.nn.functional.interpolate(x, size=(_Fit.SIZE, _Fit.SIZE), mode="area")
        fits.append(_fit(count)(x))
    residuals, best = zip(*fits, strict=True)
    return torch.cat(residuals), torch.cat(best)


def match_modes(images: Tensor, count: int = 200) -> tuple[Tensor, Tensor]:
    """Return the (N,) int64 mode of each of (N, 3, S, S) uint8 images, -1 for none, and the residual of `fit_modes`."""
    residual, mode = fit_modes(images, count)
    return torch.where(residual < ACCEPT, mode, -1), residual
