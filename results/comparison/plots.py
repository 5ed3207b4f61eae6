"""The pictures of a report: loss, samples, quality against time, bars with controls."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comparison.curves import running_mean
from comparison.tables import half_width, metric, plain, seconds
from comparison.verdicts import FRECHET

# Okabe and Ito 2008: told apart by the colour-blind, and in grey by lightness
COLOURS = {"gans": "#D55E00", "improved-diffusion": "#0072B2", "denoising-diffusion-gan": "#009E73"}
SPARE = ("#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
CONTROL = "#9A9A9A"
INK = "#333333"
GRID_BUDGET = 100  # images in all panels of samples.png: keeps the file below 300 kB
DPI = 110

Row = Mapping[str, Any]


def colours(rows: Sequence[Row]) -> list[str]:
    """Return a colour per row: fixed for the three models, the spare ones in turn for others."""
    others = list(dict.fromkeys(row["model"] for row in rows if row["model"] not in COLOURS))
    table = COLOURS | {model: SPARE[i % len(SPARE)] for i, model in enumerate(others)}
    return [table[row["model"]] for row in rows]


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
    FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None})
    os.replace(temporary, path)


def _tidy(axes: Axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, alpha=0.25, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def draw_loss(rows: Sequence[Row], curves: Sequence[Sequence[Mapping[str, float]]], path: Path) -> bool:
    """Draw each model's losses against images seen, one panel per model; they are different quantities.

    Args:
        rows: of the report.
        curves: rows of progress.csv for each of them.
        path: of the picture.

    Returns:
        Whether there was anything to draw.
    """
    shown = [(row, c, colour) for row, c, colour in zip(rows, curves, colours(rows), strict=True) if loss_names(c)]
    if not shown:
        return False
    figure = Figure(figsize=(3.4 * len(shown) + 0.6, 3.1), dpi=DPI, layout="constrained")
    for i, (row, curve, colour) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        for name, line, shade in zip(
            loss_names(curve), ("-", "--", ":", "-."), (colour, INK, colour, INK), strict=False
        ):
            points = [(entry["images_seen"], entry[name]) for entry in curve if name in entry]
            x, y = (np.array(side) for side in zip(*points, strict=True))
            if len(y) >= 40:
                axes.plot(x, y, color=shade, alpha=0.2, linewidth=0.7)
                y = np.array(running_mean(tuple(y), max(2, len(y) // 25)))
            axes.plot(x, y, line, color=shade, linewidth=1.7, label=name, marker="o" if len(y) == 1 else None)
        _bound(axes, curve)
        axes.set_title(row["label"], fontsize=10, color=colour, fontweight="bold")
        axes.set_xlabel("training images seen", fontsize=9)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g} k" if value >= 1000 else f"{value:g}")
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(labelsize=8)
        axes.legend(frameon=False, fontsize=8)
        _tidy(axes)
        if i == 0:
            axes.set_ylabel("training loss (each model's own)", fontsize=9)
    _save(figure, path)
    return True


def _bound(axes: Axes, curve: Sequence[Mapping[str, float]]) -> None:
    """Keep the first steps, which may be far off, from flattening the rest."""
    values = np.array([entry[name] for entry in curve for name in loss_names(curve) if name in entry])
    values = values[np.isfinite(values)]
    if len(values) >= 40:
        low, high = np.quantile(values, [0.005, 0.985])
        margin = 0.08 * max(high - low, 1e-9)
        axes.set_ylim(min(low - margin, 0 if 0 < low < 0.3 * high else low - margin), high + margin)


def loss_names(curve: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the columns that are losses; parts of a loss (`loss_d_real`, `loss_q0`) give way to the whole."""
    names = sorted({name for entry in curve for name in entry if name.startswith("loss")})
    return [name for name in names if not any(name.startswith(f"{other}_") for other in names)][:4]


def draw_samples(panels: Sequence[tuple[str, np.ndarray, str]], path: Path) -> bool:
    """Draw grids side by side, one screen pixel or more per image pixel.

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
    width, height = len(panels) * (edge + gap) - gap, edge + title
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for i, (name, images, colour) in enumerate(panels):
        canvas = np.full((edge, edge, 3), 255, np.uint8)
        for k, image in enumerate(images[: side * side]):
            top, left = (2 + j * (size * scale + 2) for j in divmod(k, side))
            tile = image.repeat(scale, 0).repeat(scale, 1)
            canvas[top : top + len(tile), left : left + len(tile)] = tile
        axes = figure.add_axes((i * (edge + gap) / width, 0, edge / width, edge / height))
        axes.imshow(canvas, interpolation="nearest")
        axes.set_axis_off()
        middle = (i * (edge + gap) + edge / 2) / width
        figure.text(middle, 1 - 8 / height, name, ha="center", va="top", fontsize=9.5, color=colour, fontweight="bold")
    _save(figure, path)
    return True


def draw_speed(rows: Sequence[Row], controls: Mapping[str, Any], path: Path) -> bool:
    """Draw the Frechet distance against seconds per image, both logarithmic; settings of one model are connected."""
    name = "frechet_distance"
    shown = [
        (row, colour)
        for row, colour in zip(rows, colours(rows), strict=True)
        if row["seconds_per_image"] and name in row["metrics"]
    ]
    if not shown:
        return False
    figure = Figure(figsize=(6.6, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for model in dict.fromkeys(row["model"] for row, _ in shown):
        mine = sorted(((r, c) for r, c in shown if r["model"] == model), key=lambda rc: rc[0]["seconds_per_image"])
        x = [row["seconds_per_image"] for row, _ in mine]
        y = [row["metrics"][name]["value"] for row, _ in mine]
        error = [half_width(row["metrics"][name]) for row, _ in mine]
        below = [min(e, 0.9 * value) for e, value in zip(error, y, strict=True)]  # the axis ends above 0
        axes.errorbar(x, y, [below, error], fmt="o-", color=mine[0][1], markersize=8, capsize=3, linewidth=1.4)
    times = [row["seconds_per_image"] for row, _ in shown]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(times) / 4, max(times) * 20)
    by_time = sorted(shown, key=lambda shown_row: shown_row[0]["seconds_per_image"])
    for number, (row, colour) in enumerate(by_time):
        above = number % 2 == 0  # neighbours' words do not touch
        nfe = "" if row["nfe"] is None else f"\n{row['nfe']:g} evaluation{'' if row['nfe'] == 1 else 's'}"
        point = (row["seconds_per_image"], row["metrics"][name]["value"])
        words: dict[str, Any] = {"va": "bottom" if above else "top", "color": colour, "fontsize": 9}
        axes.annotate(f"{row['label']}{nfe}", point, (9, 5 if above else -5), textcoords="offset points", **words)
    for anchor in ("floor", "blur"):
        value = controls[anchor]["metrics"][name]["value"]
        axes.axhline(value, color=CONTROL, linestyle="--", linewidth=1)
        place: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": 8, "color": "#666666"}
        axes.text(0.01, value, controls[anchor]["label"], transform=axes.get_yaxis_transform(), **place)
    axes.margins(y=0.15)
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))
    axes.set_xlabel("time per image (log scale; protocol in the report)")
    axes.set_ylabel(f"{FRECHET}\n(lower is better)")
    _tidy(axes)
    _save(figure, path)
    return True


def draw_bars(rows: Sequence[Row], controls: Mapping[str, Any], path: Path) -> bool:
    """Draw Frechet distance (logarithmic) and coverage of controls and models, with intervals."""
    scored = [(row, colour) for row, colour in zip(rows, colours(rows), strict=True) if row["metrics"]]
    bars = [(row["label"], row["metrics"], colour) for row, colour in scored]
    bars += [(control["label"], control["metrics"], CONTROL) for control in controls.values()]
    figure = Figure(figsize=(9.4, 0.36 * len(bars) + 1.1), dpi=DPI, layout="constrained")
    for i, (name, title) in enumerate(
        (("frechet_distance", f"{FRECHET} (log scale, lower is better)"), ("coverage", "coverage (higher is better)"))
    ):
        axes = figure.add_subplot(1, 2, i + 1)
        values = [metrics[name]["value"] for _, metrics, _ in bars]
        errors = [half_width(metrics[name]) for _, metrics, _ in bars]
        places = np.arange(len(bars))
        axes.barh(places, values, color=[c for _, _, c in bars], height=0.68)
        if i == 0:
            positive = [value for value in values if value > 0]
            axes.set_xscale("log")
            axes.set_xlim(min(positive) / 3, max(positive) * 40)
        else:
            axes.set_xlim(0, 1.28)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        low = axes.get_xlim()[0]
        for place, value, error, (_, metrics, _) in zip(places, values, errors, bars, strict=True):
            axes.errorbar(max(value, low), place, xerr=[[min(error, max(value, low) - low)], [error]], color=INK, lw=1)
            text = metric(name, metrics[name])
            axes.annotate(
                text, (max(value, low) + error, place), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(places, [label for label, _, _ in bars] if i == 0 else [""] * len(bars), fontsize=9)
        for tick, (_, _, colour) in zip(axes.get_yticklabels(), bars, strict=True):
            tick.set_color("#666666" if colour == CONTROL else colour)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(title, fontsize=9.5)
        _tidy(axes, "x")
    _save(figure, path)
    return True


def draw_strips(labels: Sequence[str], strips: Sequence[np.ndarray], path: Path) -> bool:
    """Draw one labelled row of (n, S, S, 3) uint8 images for each label."""
    size, columns = strips[0].shape[1], len(strips[0])
    scale = max(1, round(48 / size))
    step = size * scale + 2
    margin = 170
    width, height = margin + columns * step, len(strips) * step
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = np.full((height, columns * step, 3), 255, np.uint8)
    for i, (label, strip) in enumerate(zip(labels, strips, strict=True)):
        for k, image in enumerate(strip):
            tile = image.repeat(scale, 0).repeat(scale, 1)
            canvas[i * step : i * step + len(tile), k * step : k * step + len(tile)] = tile
        y = 1 - (i + 0.5) * step / height
        figure.text((margin - 10) / width, y, label, ha="right", va="center", fontsize=9, color=INK)
    axes = figure.add_axes((margin / width, 0, columns * step / width, 1))
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    _save(figure, path)
    return True
