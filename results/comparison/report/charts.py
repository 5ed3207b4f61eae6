"""Plots of trade-offs: quality against time per image, and against training time."""

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
