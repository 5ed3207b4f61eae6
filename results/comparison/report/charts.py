"""The picture that a report opens with: quality against time per image and training time, samples in equal time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparison.formatting import format_number, half_width, seconds
from comparison.report.plots import CONTROL, DPI, INK, colours, save, tidy
from comparison.report.tradeoffs import QUALITY, pareto_front, training_points

Row = Mapping[str, Any]
MARKERS = "osD^v"
COLUMNS = 16  # most samples in a strip
PATIENCE = 4  # images that the slowest model draws in the time of the strips
TIMES = (1, 3, 10, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200, 18000, 36000, 86400, 259200)  # ticks, seconds
PLOTS, STRIP, WIDTH = 3.9, 0.95, 10.6  # inches: height of the plots and of a strip with its title, width


class Strip(NamedTuple):
    """Samples of a row: its label and colour, seconds per image, and (N, H, W, 3) uint8 images."""

    label: str
    colour: str
    seconds_per_image: float
    images: np.ndarray


def draw_answer(
    rows: Sequence[Row], controls: Mapping[str, Any], frechet: str, strips: Sequence[Strip], path: Path
) -> bool:
    """Draw the Frechet distance against time per image, with earlier checkpoints against training time too, and strips.

    Args:
        rows: rows of the report.
        controls: controls of the report; floor and blur are dashed lines.
        frechet: name of the distance.
        strips: samples of the models, of which each shows as many as it makes in the same time at full throughput.
        path: the PNG to write.

    Returns:
        False if there is nothing to draw.
    """
    timed = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]
    if not timed:
        return False
    height = PLOTS + STRIP * len(strips)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(1 + len(strips), 2, height_ratios=[PLOTS, *[STRIP] * len(strips)])
    with_history = any(row["history"] for row in rows)
    speed = figure.add_subplot(grid[0, 0] if with_history else grid[0, :])
    _draw_speed(speed, timed, rows)
    plots = [speed]
    if with_history:
        plots.append(figure.add_subplot(grid[0, 1]))
        _draw_training(plots[1], rows)
    for axes in plots:
        _finish(axes, controls)
    speed.set_ylabel(f"{frechet}\n(log, lower is better)")
    handles: dict[str, Any] = {}
    for axes in plots:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    for number, (title, strip, images) in enumerate(in_equal_time(strips), start=1):
        axes = figure.add_subplot(grid[number, :])
        axes.imshow(images, interpolation="nearest")
        axes.set_title(title, loc="left", fontsize=9.5, color=strip.colour, weight="bold")
        axes.set_axis_off()
    save(figure, path)
    return True


def in_equal_time(strips: Sequence[Strip]) -> list[tuple[str, Strip, np.ndarray]]:
    """Return title, strip and (H, W, 3) picture of what each model makes in the time of `PATIENCE` of the slowest.

    The times are those of full throughput, so of large batches; few images alone take longer.
    """
    if not strips:
        return []
    patience = PATIENCE * max(strip.seconds_per_image for strip in strips)
    drawn = []
    for strip in strips:
        count = max(1, math.floor(patience / strip.seconds_per_image + 1e-9))
        shown = min(count, COLUMNS, len(strip.images))
        high, wide = strip.images.shape[1:3]
        canvas = np.full((high, COLUMNS * (wide + 2) - 2, 3), 255, np.uint8)
        for i, image in enumerate(strip.images[:shown]):
            canvas[:, i * (wide + 2) : i * (wide + 2) + wide] = image
        plural, part = "" if count == 1 else "s", "" if shown == count else f", {shown} shown"
        title = f"{strip.label}: {format_number(count)} image{plural} per {seconds(patience)}{part}"
        drawn.append((title, strip, canvas))
    return drawn


def _series(rows: Sequence[Row]) -> list[tuple[str, str, str, list[Row]]]:
    """Return name, colour, marker and rows of each line: a training's own sampler, then others of the same training.

    Lines of one model share the colour.
    """
    groups: dict[tuple[str, str], tuple[str, str, str, list[Row]]] = {}
    seen: dict[str, int] = {}
    for row, colour in zip(rows, colours(rows), strict=True):
        sampler = str(row["sampler"] or row["setting"]).partition(",")[0]
        if (row["series"], sampler) not in groups:
            turn = seen[row["model"]] = seen.get(row["model"], -1) + 1
            name = row["label"] if row["setting"] is None else f"{row['series']}, {sampler}"
            groups[row["series"], sampler] = (name, colour, MARKERS[turn % len(MARKERS)], [])
        groups[row["series"], sampler][3].append(row)
    return list(groups.values())


def _draw_line(axes: Axes, name: str, colour: str, marker: str, x: Sequence[float], entries: Sequence[Any]) -> None:
    """Draw Frechet distances with their intervals as connected points, and small points of several trainings."""
    y = [entry["value"] for entry in entries]
    error = [half_width(entry) for entry in entries]
    below = [min(e, 0.9 * value) for e, value in zip(error, y, strict=True)]  # a logarithmic axis ends above 0
    look = {"color": colour, "markersize": 7, "capsize": 3, "linewidth": 1.5}
    axes.errorbar(x, y, [below, error], fmt=f"{marker}-", label=name, **look)  # type: ignore[arg-type]
    for place, entry in zip(x, entries, strict=True):
        trainings = entry.get("trainings", ())
        axes.plot([place] * len(trainings), trainings, "_", color=colour, markersize=9)


def _draw_speed(axes: Axes, timed: Sequence[Row], rows: Sequence[Row]) -> None:
    """Draw a line per training and sampler, with the number of evaluations at its points, and the Pareto front."""
    axes.set_xscale("log")
    times = [row["seconds_per_image"] for row in timed]
    axes.set_xlim(min(times) / 4, max(times) * 4)
    labels: list[tuple[float, tuple[float, float]]] = []  # evaluations, and where they stand
    for name, colour, marker, group in _series(rows):
        points = sorted((row for row in group if row in timed), key=lambda row: row["seconds_per_image"])
        x, entries = [row["seconds_per_image"] for row in points], [row["metrics"][QUALITY] for row in points]
        if points:
            _draw_line(axes, name, colour, marker, x, entries)
        for row in (row for row in points if row["nfe"]):
            nfe, point = row["nfe"], (row["seconds_per_image"], row["metrics"][QUALITY]["value"])
            if any(nfe == other and _overlap(point, place) for other, place in labels):
                continue
            labels.append((nfe, point))
            look: dict[str, Any] = {"textcoords": "offset points", "color": colour, "fontsize": 9, "ha": "center"}
            axes.annotate(f"{nfe:g}", point, (0, 7), **look)
    front = pareto_front(rows)
    x = [*(row["seconds_per_image"] for row in front), axes.get_xlim()[1]]
    y = [row["metrics"][QUALITY]["value"] for row in front]
    axes.step(
        x, [*y, y[-1]], where="post", color=INK, linestyle=":", linewidth=1.8, label="best up to each time", zorder=1
    )
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.set_xlabel("time per image (log; numbers: network evaluations)")


def _overlap(point: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether the labels of two points would lie on each other."""
    return all(max(pair) < 1.2 * min(pair) for pair in zip(point, other, strict=True))


def _draw_training(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw a line per training: earlier checkpoints and the last."""
    axes.set_xscale("log")
    every = []
    for name, colour, marker, group in _series(rows):
        if group[0]["setting"] is None and (points := training_points(group[0])):
            x, entries = zip(*points, strict=True)
            _draw_line(axes, name, colour, marker, x, entries)
            every += x
    low, high = (min(every) / 1.6, max(every) * 1.6) if every else (1.0, 3600.0)
    axes.set_xlim(low, high)
    axes.set_xticks([time for time in TIMES if low <= time <= high])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.set_xlabel("training time (log)")


def _finish(axes: Axes, controls: Mapping[str, Any]) -> None:
    """Make the axis of Frechet distances logarithmic, and add dashed lines for two controls."""
    for control in (controls[name] for name in ("floor", "blur") if name in controls):
        value = control["metrics"].get(QUALITY, {}).get("value", 0)
        if value > 0:
            axes.axhline(value, color=CONTROL, linestyle="--", linewidth=1)
            where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom"}
            axes.text(0.01, value, control["label"], fontsize=8.5, color="#666666", **where)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(lambda value, _: format_number(value))
    tidy(axes)
