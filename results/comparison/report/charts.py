"""The pictures that weigh one thing against another: quality, diversity, time per image, training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from comparison.formatting import count, half_width, plain, seconds
from comparison.report.plots import CONTROL, DPI, INK, Labels, colours, save, tidy
from comparison.report.tradeoffs import QUALITY, break_evens, pareto_front, training_points

Row = Mapping[str, Any]
MARKERS = "osD^v"


def _series(rows: Sequence[Row]) -> list[tuple[str, str, str, list[Row]]]:
    """Group rows by training: name, colour, marker, rows. Runs of one model share the colour, not the marker."""
    found: dict[str, tuple[str, str, str, list[Row]]] = {}
    seen: dict[str, int] = {}
    for row, colour in zip(rows, colours(rows), strict=True):
        if row["series"] not in found:
            turn = seen[row["model"]] = seen.get(row["model"], -1) + 1
            found[row["series"]] = (row["series"], colour, MARKERS[turn % len(MARKERS)], [])
        found[row["series"]][3].append(row)
    return list(found.values())


TIMES = (
    *(10.0**k for k in range(-7, 0)),
    *(1, 2, 5, 10, 30),
    *(60 * k for k in (1, 2, 5, 10, 20, 30)),
    *(3600 * k for k in (1, 2, 5, 10)),
    *(86400 * m * 10**k for k in range(5) for m in (1, 2, 5)),
)


def _duration(value: float) -> str:
    """Write a round duration in its own unit, as tick labels need it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return seconds(value) if value else "0"


def _time_ticks(axis: Axis, low: float, high: float) -> None:
    """Set at most seven ticks of a logarithmic axis at round durations."""
    ticks = [value for value in TIMES if low <= value <= high]
    ticks = ticks[:: max(1, math.ceil(len(ticks) / 7))]
    axis.set_ticks(ticks, [_duration(value) for value in ticks])
    axis.set_ticks([], minor=True)


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend above the axes, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if sum(map(len, labels)) + 4 * len(labels) <= 56 else 2
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _level(axes: Axes, label: str, value: float) -> None:
    """Draw a control as a dashed level, named at the left end."""
    axes.axhline(value, color=CONTROL, linestyle="--", linewidth=1)
    place: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": 8.5, "color": "#666666"}
    axes.text(0.01, value, label, transform=axes.get_yaxis_transform(), **place)


def draw_speed(rows: Sequence[Row], controls: Mapping[str, Any], frechet: str, path: Path) -> bool:
    """Draw Frechet distance against seconds per image, both logarithmic, one connected line per training.

    Args:
        rows: of the report, every sampler setting one point.
        controls: of the report; floor and blur become levels.
        frechet: name of the distance.
        path: of the picture.

    Returns:
        Whether there was anything to draw.
    """
    shown = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]
    if not shown:
        return False
    figure = Figure(figsize=(5.6, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    words = []
    for name, colour, marker, mine in _series(rows):
        points = sorted((row for row in mine if row in shown), key=lambda row: row["seconds_per_image"])
        if not points:
            continue
        x = [row["seconds_per_image"] for row in points]
        y = [row["metrics"][QUALITY]["value"] for row in points]
        error = [half_width(row["metrics"][QUALITY]) for row in points]
        below = [min(e, 0.9 * value) for e, value in zip(error, y, strict=True)]  # the axis ends above 0
        axes.errorbar(
            x, y, [below, error], fmt=f"{marker}-", color=colour, markersize=7, capsize=3, linewidth=1.4, label=name
        )
        words += [(f"{row['nfe']:g}", point, colour) for row, *point in zip(points, x, y, strict=True) if row["nfe"]]
    times = [row["seconds_per_image"] for row in shown]
    axes.set_xlim(min(times) / 4, max(times) * 4)
    front = pareto_front(rows)
    x = [*(row["seconds_per_image"] for row in front), axes.get_xlim()[1]]
    y = [row["metrics"][QUALITY]["value"] for row in front]
    axes.step(x, [*y, y[-1]], where="post", color=INK, linestyle=":", linewidth=1.8, label="Pareto front", zorder=1)
    for anchor in ("floor", "blur"):
        value = controls.get(anchor, {"metrics": {}})["metrics"].get(QUALITY, {}).get("value", 0)
        if value > 0:
            _level(axes, controls[anchor]["label"], value)
    axes.margins(y=0.12)
    _time_ticks(axes.xaxis, *axes.get_xlim())
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))
    axes.set_xlabel("time per image (log; a number at a point: network evaluations)")
    axes.set_ylabel(f"{frechet}\n(log, lower is better)")
    tidy(axes)
    _legend(figure, axes)
    labels = Labels(axes, [(point[0], point[1]) for _, point, _ in words])
    for text, (left, height), colour in words:
        labels.place(text, (left, height), colour)
    save(figure, path)
    return True


def draw_trilemma(rows: Sequence[Row], controls: Mapping[str, Any], frechet: str, path: Path) -> bool:
    """Draw quality, coverage and speed as three parallel axes, up is better on each; a line per sampler setting.

    Args:
        rows: of the report.
        controls: of the report; the floor is marked on the two axes that it has.
        frechet: name of the distance.
        path: of the picture.

    Returns:
        Whether any row has all three.
    """
    shown = [row for row in rows if row["seconds_per_image"] and {QUALITY, "coverage"} <= set(row["metrics"])]
    if not shown:
        return False
    floor = controls["floor"]["metrics"]
    distances = [max(row["metrics"][QUALITY]["value"], 1e-6) for row in shown]
    rates = [1 / row["seconds_per_image"] for row in shown]
    bottom, top = _decades([*distances, max(floor[QUALITY]["value"], min(distances) / 1000)])
    slow, fast = _decades(rates)

    def heights(distance: float, coverage: float, rate: float | None) -> list[float]:
        found = [1 - math.log(max(distance, bottom) / bottom) / math.log(top / bottom), min(coverage, 1.0)]
        return found if rate is None else [*found, math.log(rate / slow) / math.log(fast / slow)]

    figure = Figure(figsize=(5.6, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for name, colour, marker, mine in _series(rows):
        for row in (row for row in mine if row in shown):
            main = row["setting"] is None
            values = heights(
                row["metrics"][QUALITY]["value"], row["metrics"]["coverage"]["value"], 1 / row["seconds_per_image"]
            )
            look = {"linewidth": 2.6, "markersize": 8} if main else {"linewidth": 1.0, "markersize": 4, "alpha": 0.6}
            axes.plot(range(3), values, f"{marker}-", color=colour, label=name if main else None, **look)  # type: ignore[arg-type]
    real = heights(floor[QUALITY]["value"], floor["coverage"]["value"], None)
    axes.plot(range(2), real, "--", color=CONTROL, marker="_", markersize=14, label=controls["floor"]["label"])
    ticks = (
        [(heights(value, 0, None)[0], plain(value)) for value in _steps(bottom, top)],
        [(value, plain(value)) for value in (0, 0.25, 0.5, 0.75, 1)],
        [(heights(bottom, 0, value)[2], f"{plain(value)}/s") for value in _steps(slow, fast)],
    )
    for place, marks in enumerate(ticks):
        axes.axvline(place, color=INK, linewidth=1, zorder=1)
        side = 1 if place == 2 else -1  # the words of the outer axes stand outside
        for height, text in marks:
            axes.plot([place, place + 0.03 * side], [height, height], color=INK, linewidth=1)
            words = axes.text(place + 0.06 * side, height, text, ha="left" if side > 0 else "right", va="center")
            words.set(fontsize=8.5, color="#444444", zorder=4)
            words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    names = [f"quality\n{frechet.replace(' Frechet', chr(10) + 'Frechet')},\nlog, reversed"]
    names += ["diversity\ncoverage,\nlinear", "speed\nimages per second,\nlog"]
    axes.set_xticks(range(3), names, fontsize=9)
    axes.set_xlim(-0.4, 2.45)
    axes.set_ylim(-0.04, 1.05)
    axes.set_yticks([])
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
    """Draw Frechet distance (logarithmic) against training seconds, for trainings with scored checkpoints.

    Args:
        rows: of the report's main sample sets.
        controls: of the report.
        frechet: name of the distance.
        path: of the picture.

    Returns:
        Whether any training has two points whose time is known.
    """
    figure = Figure(figsize=(5.6, 3.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_yscale("log")
    drawn, longest = False, 0.0
    for name, colour, marker, (row, *_) in _series(rows):
        points = [point for point in training_points(row) if point["seconds"] is not None]
        if not points:
            continue
        drawn |= len(points) > 1
        x = [point["seconds"] for point in points]
        y = [point["entry"]["value"] for point in points]
        error = [half_width(point["entry"]) for point in points]
        below = [min(e, 0.9 * value) for e, value in zip(error, y, strict=True)]
        axes.errorbar(
            x, y, [below, error], fmt=f"{marker}-", color=colour, markersize=7, capsize=3, linewidth=1.6, label=name
        )
        longest = max(longest, *x)
    if not drawn:
        return False
    for anchor in ("floor", "blur"):
        value = controls.get(anchor, {"metrics": {}})["metrics"].get(QUALITY, {}).get("value", 0)
        if value > 0:
            _level(axes, controls[anchor]["label"], value)
    axes.set_xlim(0, 1.05 * longest)
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))
    step = next((value for value in TIMES if longest / value <= 5), TIMES[-1])
    axes.set_xticks(np.arange(0, 1.05 * longest, step))
    axes.xaxis.set_major_formatter(lambda value, _: _duration(value))
    axes.set_xlabel("training time")
    axes.set_ylabel(f"{frechet}\n(log, lower is better)")
    tidy(axes)
    _legend(figure, axes)
    save(figure, path)
    return True


def draw_total_cost(rows: Sequence[Row], path: Path) -> bool:
    """Draw training seconds + n x seconds per image against n, logarithmic, with the break-even points.

    Args:
        rows: of the report's main sample sets.
        path: of the picture.

    Returns:
        Whether two trainings have both times.
    """
    shown = [row for row in rows if row["training_seconds"] and row["seconds_per_image"]]
    if len(shown) < 2:
        return False
    pairs = break_evens(shown)
    crossings = [pair for pair in pairs if pair["after"]]
    most = max([1e6, *(10.0 ** math.ceil(math.log10(10 * pair["after"])) for pair in crossings)])
    n = np.logspace(0, math.log10(most), 200)
    figure = Figure(figsize=(5.6, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    for style, (name, colour, _, (row, *_)) in zip(("-", "--", "-.", ":") * len(shown), _series(shown), strict=False):
        total = row["training_seconds"] + n * row["seconds_per_image"]
        axes.plot(n, total, style, color=colour, linewidth=2.2, label=name)
    axes.margins(y=0.15)
    _legend(figure, axes)
    by_label = {row["label"]: row for row in shown}
    named = []
    for number, pair in enumerate(crossings, start=1):
        row = by_label[pair["cheaper"]]
        point = (pair["after"], row["training_seconds"] + pair["after"] * row["seconds_per_image"])
        axes.plot(*point, "o", color="white", markeredgecolor=INK, markersize=13, zorder=5)
        axes.annotate(str(number), point, ha="center", va="center", fontsize=9, zorder=6)
        said = f"{number}: {pair['cheaper']} costs less than {pair['than']} from {count(pair['after'])} images"
        named.append(Line2D([], [], linestyle="", label=said))
    if named:
        figure.legend(handles=named, loc="outside lower left", frameon=False, fontsize=9, handlelength=0)
    axes.set_xlim(1, most)
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    _time_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_xlabel("images drawn (log)")
    axes.set_ylabel("training + sampling, time (log)")
    if pairs and not crossings:
        cheapest = min(shown, key=lambda row: row["seconds_per_image"])["label"]
        axes.set_title(f"no break-even: {cheapest} costs least for any number", fontsize=9.5, color=INK)
    tidy(axes)
    save(figure, path)
    return True
