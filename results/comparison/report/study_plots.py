"""The pictures of the studies: panels of lines and of bars, both with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from comparison.formatting import count, plain
from comparison.report.plots import DPI, INK, save, tidy

Entry = Mapping[str, Any]  # of metrics.json: `value`, and perhaps `interval`
STYLES = tuple(  # tells lines of one colour apart
    {"marker": marker, "style": style}
    for marker, style in zip("osD^vP", ("-", "--", "-.", ":", "-", "--"), strict=True)
)
ROW_HEIGHT = 0.42  # inches per bar


@dataclass(frozen=True)
class Line:
    """Points (x, entry), connected in their order; an empty label keeps a line out of the legend."""

    label: str
    points: Sequence[tuple[float, Entry]]
    colour: str
    marker: str = "o"
    style: str = "-"


@dataclass(frozen=True)
class Lines:
    """A panel of lines.

    Attributes:
        x, y: names of the axes.
        lines: drawn in this order.
        log: `x`, `y`, `xy` or empty: the logarithmic axes.
        ticks: marks of the x axis, where they are not chosen by its range.
        top: that a linear y axis reaches at least, so that chance differences of small shares look small.
        level: of a dotted horizontal line.
        title: above the panel.
    """

    x: str
    y: str
    lines: Sequence[Line]
    log: str = ""
    ticks: Sequence[float] = ()
    top: float = 0.0
    level: float | None = None
    title: str = ""

    size = (4.7, 3.7)

    def is_empty(self) -> bool:
        """Return True if there is nothing to draw."""
        return not any(line.points for line in self.lines)

    def draw(self, axes: Axes) -> None:
        """Draw the panel."""
        lines = [line for line in self.lines if line.points]
        for line in lines:
            x, entries = zip(*line.points, strict=True)
            values = [entry["value"] for entry in entries]
            below, above = _sides(entries)
            if "y" in self.log:
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
        every = [x for line in lines for x, _ in line.points]
        if "x" in self.log:
            _logarithmic(axes, "x", every)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        if self.ticks:
            axes.set_xticks(self.ticks, [f"{tick:g}" for tick in self.ticks])
            axes.set_xticks([], minor=True)
        if "y" in self.log:
            _logarithmic(axes, "y", [entry["value"] for line in lines for _, entry in line.points])
        else:
            low, high = axes.get_ylim()
            crosses = axes.dataLim.y0 < -0.02 * axes.dataLim.y1  # an interval that barely crosses 0 needs no room
            axes.set_ylim(low if crosses else 0, max(high, self.top))
        if self.level is not None:
            axes.axhline(self.level, color=INK, linestyle=":", linewidth=1)
        axes.set(xlabel=self.x, ylabel=self.y)
        axes.set_title(self.title, fontsize=10)
        tidy(axes)


@dataclass(frozen=True)
class Bar:
    """A bar: its label, its entry, its colour, and the values of the trainings that it is the mean of, as dots."""

    label: str
    entry: Entry
    colour: str
    dots: Sequence[float] = ()


@dataclass(frozen=True)
class Bars:
    """A panel of horizontal bars, the first on top.

    Attributes:
        x: name of the axis.
        bars: with distinct labels.
        log: whether the axis is logarithmic.
        base: from which bars of a linear axis start.
        marks: of dotted vertical lines.
        labelled: whether the labels are written, which panels beside each other need once.
    """

    x: str
    bars: Sequence[Bar]
    log: bool = False
    base: float = 0.0
    marks: Sequence[float] = ()
    labelled: bool = True

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return (5.6 if self.labelled else 2.8), ROW_HEIGHT * len(self.bars) + 1.1

    def is_empty(self) -> bool:
        """Return True if there is nothing to draw."""
        return not self.bars

    def draw(self, axes: Axes) -> None:
        """Draw the panel."""
        values = [max(bar.entry["value"], 1e-6) if self.log else bar.entry["value"] for bar in self.bars]
        base = min(values) / 3 if self.log else self.base
        below, above = _sides([bar.entry for bar in self.bars])
        if self.log:
            axes.set_xscale("log")
            below = [min(side, value - base) for side, value in zip(below, values, strict=True)]
        places = range(len(values))
        colours = [bar.colour for bar in self.bars]
        axes.barh(places, [value - base for value in values], left=base, color=colours, height=0.68)
        axes.errorbar(values, places, xerr=[below, above], fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        for place, bar in enumerate(self.bars):
            axes.plot(bar.dots, [place] * len(bar.dots), "o", color="white", markeredgecolor=INK, markersize=4)
        for mark in self.marks:
            axes.axvline(mark, color=INK, linestyle=":", linewidth=1)
        axes.set_yticks(places, [bar.label if self.labelled else "" for bar in self.bars])
        axes.invert_yaxis()
        if self.log:
            _logarithmic(axes, "x", [base, *values])
        elif not self.base:
            axes.set_xlim(0, axes.get_xlim()[1] if max(values) else 1)
        axes.set_xlabel(self.x)
        tidy(axes, "x")


def draw(panels: Sequence[Lines | Bars], path: Path, columns: int = 0) -> None:
    """Draw panels into a PNG, with one legend above them; nothing where all are empty.

    Args:
        panels: row by row; empty ones are left out.
        path: of the picture.
        columns: panels of a row; all in one row unless given.
    """
    panels = [panel for panel in panels if not panel.is_empty()]
    if not panels:
        return
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    widths, heights = ([panel.size[side] for panel in panels] for side in (0, 1))
    figure = Figure(figsize=(sum(widths[:columns]), rows * max(heights)), dpi=DPI, layout="constrained")
    known: dict[str, Any] = {}
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        panel.draw(axes)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if known:
        look = {"ncols": min(len(known), 2 * columns), "frameon": False, "fontsize": 9}
        figure.legend(known.values(), known, loc="outside upper center", **look)
    save(figure, path)


def _sides(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    """Return how far each interval reaches below and above its value, 0 without one."""
    values = [entry["value"] for entry in entries]
    bounds = [entry.get("interval") or (value, value) for entry, value in zip(entries, values, strict=True)]
    below = [max(value - low, 0.0) for value, (low, _) in zip(values, bounds, strict=True)]
    return below, [max(high - value, 0.0) for value, (_, high) in zip(values, bounds, strict=True)]


def _logarithmic(axes: Axes, side: str, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with plain numbers: at 1, 2 and 5 of each power of ten, or close ones if it is short.

    An axis of a single value has no length and is given some.
    """
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
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(NullFormatter())
