"""The content of the studies' plots: panels of lines and of bars with intervals. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]  # of metrics.json: `value`, and perhaps `interval`
STYLES = tuple(  # for lines of one colour
    {"marker": marker, "style": style}
    for marker, style in zip("osD^vP", ("-", "--", "-.", ":", "-", "--"), strict=True)
)


@dataclass(frozen=True)
class Line:
    """Points (x, entry), connected in this order; a line with an empty label is not in the legend."""

    label: str
    points: Sequence[tuple[float, Entry]]
    colour: str
    marker: str = "o"
    style: str = "-"


@dataclass(frozen=True)
class Lines:
    """A panel of lines."""

    x: str  # label of the axis
    y: str
    lines: Sequence[Line]
    log: str = ""  # the logarithmic axes: `x`, `y` or `xy`
    ticks: Sequence[float] = ()  # ticks of the x axis; chosen from its range unless given
    top: float = 0.0  # least upper end of a linear y axis, so that chance differences look small
    level: float | None = None  # dotted horizontal line

    size = (4.7, 3.7)  # width and height in inches

    def is_empty(self) -> bool:
        """Return True if there is nothing to draw."""
        return not any(line.points for line in self.lines)


@dataclass(frozen=True)
class Bar:
    """A bar; `dots` are the values of the trainings that it is the mean of."""

    label: str
    entry: Entry
    colour: str
    dots: Sequence[float] = ()


@dataclass(frozen=True)
class Bars:
    """A panel of horizontal bars, the first on top."""

    x: str  # label of the axis
    bars: Sequence[Bar]
    log: bool = False  # logarithmic x axis
    labelled: bool = True  # False in a panel beside another with the same bars

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return (5.6 if self.labelled else 2.8), 0.42 * len(self.bars) + 1.1

    def is_empty(self) -> bool:
        """Return True if there is nothing to draw."""
        return not self.bars
