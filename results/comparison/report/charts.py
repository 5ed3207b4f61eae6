"""Plots of trade-offs: quality against time per image; quality, diversity and speed; quality against training time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparison.formatting import format_number, half_width, seconds
from comparison.report.plots import CONTROL, DPI, INK, colours, save, tidy
from comparison.report.tradeoffs import QUALITY, pareto_front, training_points

Row = Mapping[str, Any]
MARKERS = "osD^v"


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


def _legend(figure: Figure, axes: Axes) -> None:
    """Add the legend above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if sum(map(len, labels)) + 4 * len(labels) <= 56 else 2
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _draw_quality(axes: Axes, name: str, colour: str, marker: str, x: Sequence[float], entries: Sequence[Any]) -> None:
    """Draw Frechet distances with their intervals as connected points."""
    y = [entry["value"] for entry in entries]
    error = [half_width(entry) for entry in entries]
    below = [min(e, 0.9 * value) for e, value in zip(error, y, strict=True)]  # a logarithmic axis ends above 0
    look = {"color": colour, "markersize": 7, "capsize": 3, "linewidth": 1.5}
    axes.errorbar(x, y, [below, error], fmt=f"{marker}-", label=name, **look)  # type: ignore[arg-type]


def _finish_quality(figure: Figure, axes: Axes, controls: Mapping[str, Any], frechet: str) -> None:
    """Label the logarithmic axis of Frechet distances, add dashed lines for two controls, and the legend."""
    for control in (controls[name] for name in ("floor", "blur") if name in controls):
        value = control["metrics"].get(QUALITY, {}).get("value", 0)
        if value > 0:
            axes.axhline(value, color=CONTROL, linestyle="--", linewidth=1)
            where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom"}
            axes.text(0.01, value, control["label"], fontsize=8.5, color="#666666", **where)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(lambda value, _: format_number(value))
    axes.set_ylabel(f"{frechet}\n(log scale, lower is better)")
    tidy(axes)
    _legend(figure, axes)


def draw_speed(rows: Sequence[Row], controls: Mapping[str, Any], frechet: str, path: Path) -> bool:
    """Draw Frechet distance against time per image, both logarithmic, a line per training.

    Args:
        rows: rows of the report, a point each.
        controls: controls of the report; floor and blur are dashed lines.
        frechet: name of the distance.
        path: the PNG to write.

    Returns:
        False if there is nothing to draw.
    """
    shown = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]
    if not shown:
        return False
    figure = Figure(figsize=(5.6, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    times = [row["seconds_per_image"] for row in shown]
    axes.set_xlim(min(times) / 4, max(times) * 4)
    for name, colour, marker, group in _series(rows):
        points = sorted((row for row in group if row in shown), key=lambda row: row["seconds_per_image"])
        x, entries = [row["seconds_per_image"] for row in points], [row["metrics"][QUALITY] for row in points]
        if points:
            _draw_quality(axes, name, colour, marker, x, entries)
        for row in points:
            if row["nfe"]:
                point = (row["seconds_per_image"], row["metrics"][QUALITY]["value"])
                look: dict[str, Any] = {"textcoords": "offset points", "color": colour, "fontsize": 9}
                axes.annotate(f"{row['nfe']:g}", point, (6, 5), **look)
    front = pareto_front(rows)
    x = [*(row["seconds_per_image"] for row in front), axes.get_xlim()[1]]
    y = [row["metrics"][QUALITY]["value"] for row in front]
    axes.step(x, [*y, y[-1]], where="post", color=INK, linestyle=":", linewidth=1.8, label="Pareto front", zorder=1)
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.set_xlabel("time per image (log scale; numbers at points: network evaluations)")
    _finish_quality(figure, axes, controls, frechet)
    save(figure, path)
    return True


def draw_trilemma(rows: Sequence[Row], controls: Mapping[str, Any], frechet: str, path: Path) -> bool:
    """Draw quality, coverage and speed as parallel axes on which up is better, a line per row; see `draw_speed`."""
    shown = [row for row in rows if row["seconds_per_image"] and {QUALITY, "coverage"} <= set(row["metrics"])]
    if not shown:
        return False
    floor = controls["floor"]["metrics"]
    distances = [max(row["metrics"][QUALITY]["value"], 1e-6) for row in shown]
    best, worst = _decades([*distances, max(floor[QUALITY]["value"], min(distances) / 1000)])
    slow, fast = _decades([1 / row["seconds_per_image"] for row in shown])

    def quality(distance: float) -> float:
        return 1 - math.log(max(distance, best) / best) / math.log(worst / best)

    def speed(rate: float) -> float:
        return math.log(rate / slow) / math.log(fast / slow)

    figure = Figure(figsize=(5.6, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for name, colour, marker, group in _series(rows):
        for row in (row for row in group if row in shown):
            main = row["setting"] is None
            heights = [quality(row["metrics"][QUALITY]["value"]), min(row["metrics"]["coverage"]["value"], 1)]
            heights.append(speed(1 / row["seconds_per_image"]))
            look = {"linewidth": 2.6, "markersize": 8} if main else {"linewidth": 1.0, "markersize": 4, "alpha": 0.6}
            axes.plot(range(3), heights, f"{marker}-", color=colour, label=name if main else None, **look)  # type: ignore[arg-type]
    real = [quality(floor[QUALITY]["value"]), floor["coverage"]["value"]]
    axes.plot(range(2), real, "--", color=CONTROL, marker="_", markersize=14, label=controls["floor"]["label"])
    ticks = (
        [(quality(value), format_number(value)) for value in _steps(best, worst)],
        [(value, format_number(value)) for value in (0, 0.25, 0.5, 0.75, 1)],
        [(speed(value), f"{format_number(value)}/s") for value in _steps(slow, fast)],
    )
    for axis, marks in enumerate(ticks):
        axes.axvline(axis, color=INK, linewidth=1, zorder=1)
        side = 1 if axis == 2 else -1  # the labels of the outer axes are outside
        for height, text in marks:
            axes.plot([axis, axis + 0.03 * side], [height, height], color=INK, linewidth=1)
            label = axes.text(axis + 0.06 * side, height, text, ha="left" if side > 0 else "right", va="center")
            label.set(fontsize=8.5, color="#444444", zorder=4)
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    names = [f"quality\n{frechet.replace(' Frechet', chr(10) + 'Frechet')},\nlog scale, reversed"]
    names += ["diversity\ncoverage,\nlinear scale", "speed\nimages per second,\nlog scale"]
    axes.set_xticks(range(3), names, fontsize=9)
    axes.set(xlim=(-0.4, 2.45), ylim=(-0.04, 1.05), yticks=[])
    axes.set_ylabel("better \N{RIGHTWARDS ARROW}", fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0)
    _legend(figure, axes)
    save(figure, path)
    return True


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten that enclose positive values, at least one decade apart."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _steps(low: float, high: float) -> list[float]:
    """Return powers of ten from low to high, at most six of them."""
    first, last = round(math.log10(low)), round(math.log10(high))
    return [10.0**k for k in range(first, last + 1, max(1, math.ceil((last - first) / 5)))]


def draw_training(rows: Sequence[Row], controls: Mapping[str, Any], frechet: str, path: Path) -> bool:
    """Draw Frechet distance (logarithmic) against training time for main rows; see `draw_speed`.

    Nothing is drawn unless a training has two scored checkpoints.
    """
    series = [line for line in _series(rows) if line[3][0]["setting"] is None]
    points = [(name, colour, marker, training_points(group[0])) for name, colour, marker, group in series]
    if not any(len(scored) > 1 for *_, scored in points):
        return False
    longest = max(time for *_, scored in points for time, _ in scored)
    unit, size = next((u, s) for u, s, least in (("h", 3600, 7200), ("min", 60, 300), ("s", 1, 0)) if longest >= least)
    figure = Figure(figsize=(5.6, 3.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for name, colour, marker, scored in points:
        _draw_quality(axes, name, colour, marker, [time / size for time, _ in scored], [entry for _, entry in scored])
    axes.set_xlim(0, 1.05 * longest / size)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(f"training time ({unit})")
    _finish_quality(figure, axes, controls, frechet)
    save(figure, path)
    return True
