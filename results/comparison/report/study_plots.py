"""Drawing the panels of the studies with matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from comparison.formatting import count, format_number
from comparison.report.panels import Bars, Entry, Line, Lines
from comparison.report.plots import DPI, INK, save, tidy

__all__ = ["Line", "Lines", "draw"]

FONT, LETTER = 9, 0.075  # points of the legend's font, inches of its letters


def draw(panels: Sequence[Lines | Bars], path: Path) -> None:
    """Draw the panels that are not empty into a PNG, side by side, with one legend above; write none if all are."""
    panels = [panel for panel in panels if not panel.is_empty()]
    if not panels:
        return
    widths, heights = ([panel.size[side] for panel in panels] for side in (0, 1))
    figure = Figure(figsize=(sum(widths), max(heights)), dpi=DPI, layout="constrained")
    handles: dict[str, Any] = {}
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        _draw_lines(axes, panel) if isinstance(panel, Lines) else _draw_bars(axes, panel)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        entry = LETTER * (max(map(len, handles)) + 7)  # inches
        columns = max(1, min(len(handles), int(sum(widths) / entry)))
        figure.legend(
            handles.values(), handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=FONT
        )
    save(figure, path)


def _draw_lines(axes: Axes, panel: Lines) -> None:
    lines = [line for line in panel.lines if line.points]
    for line in lines:
        x, entries = zip(*line.points, strict=True)
        values = [entry["value"] for entry in entries]
        below, above = _sides(entries)
        if "y" in panel.log:
            below = [min(side, 0.9 * value) for side, value in zip(below, values, strict=True)]  # stays above 0
        small = len(x) > 8
        axes.errorbar(
            x,
            values,
            [below, above],
            color=line.colour,
            label=line.label or None,
            linestyle=line.style,
            linewidth=1.5,
            marker=line.marker,
            markersize=3 if small else 6,
            capsize=0 if small else 3,
        )
    axes.margins(0.08)
    if "x" in panel.log:
        _make_logarithmic(axes, "x", [x for line in lines for x, _ in line.points])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    if panel.ticks:
        axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        axes.set_xticks([], minor=True)
    if "y" in panel.log:
        _make_logarithmic(axes, "y", [entry["value"] for line in lines for _, entry in line.points])
    else:
        low, high = axes.get_ylim()
        crosses = axes.dataLim.y0 < -0.02 * axes.dataLim.y1  # an interval that barely crosses 0 needs no room
        axes.set_ylim(low if crosses else 0, max(high, panel.top))
    if panel.level is not None:
        axes.axhline(panel.level, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    tidy(axes)


def _draw_bars(axes: Axes, panel: Bars) -> None:
    values = [max(bar.entry["value"], 1e-6) if panel.log else bar.entry["value"] for bar in panel.bars]
    base = min(values) / 3 if panel.log else 0.0
    below, above = _sides([bar.entry for bar in panel.bars])
    if panel.log:
        axes.set_xscale("log")
        below = [min(side, value - base) for side, value in zip(below, values, strict=True)]
    positions = range(len(values))
    colours = [bar.colour for bar in panel.bars]
    axes.barh(positions, [value - base for value in values], left=base, color=colours, height=0.68)
    axes.errorbar(values, positions, xerr=[below, above], fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    for position, bar in enumerate(panel.bars):
        axes.plot(bar.dots, [position] * len(bar.dots), "o", color="white", markeredgecolor=INK, markersize=4)
    axes.set_yticks(positions, [bar.label if panel.labelled else "" for bar in panel.bars])
    axes.invert_yaxis()
    if panel.log:
        _make_logarithmic(axes, "x", [base, *values])
    else:
        axes.set_xlim(0, axes.get_xlim()[1] if max(values) else 1)
    axes.set_xlabel(panel.x)
    tidy(axes, "x")


def _sides(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    """Return how far each interval reaches below and above its value; 0 without an interval."""
    values = [entry["value"] for entry in entries]
    bounds = [entry.get("interval") or (value, value) for entry, value in zip(entries, values, strict=True)]
    below = [max(value - low, 0.0) for value, (low, _) in zip(values, bounds, strict=True)]
    return below, [max(high - value, 0.0) for value, (_, high) in zip(values, bounds, strict=True)]


def _make_logarithmic(axes: Axes, side: str, values: Sequence[float]) -> None:
    """Make an axis logarithmic with plain numbers as ticks; the axis of a single value gets some length."""
    (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    low, high = min(values), max(values)
    if low == high > 0:
        (axes.set_xlim if side == "x" else axes.set_ylim)(low / 2, 2 * high)
    axis = axes.xaxis if side == "x" else axes.yaxis
    if high > 5 * low:
        axis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0)))
    else:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axis.set_minor_formatter(NullFormatter())
