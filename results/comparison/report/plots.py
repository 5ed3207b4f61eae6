"""Colours and helpers of the plots of a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comparison.files import atomic
from comparison.models import MODELS

# Okabe and Ito 2008: safe for colour-blind readers, and distinct in grey
COLOURS = {name: model.colour for name, model in MODELS.items()}
SPARE = ("#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
CONTROL = "#9A9A9A"
INK = "#333333"
DPI = 110

Row = Mapping[str, Any]


def colours(rows: Sequence[Row]) -> list[str]:
    """Return a colour per row: the model's own for its first series, spare ones for others."""
    table: dict[str, str] = {}
    spare = 0
    for row in rows:
        if row["series"] not in table:
            own = COLOURS.get(row["model"])
            if own is None or own in table.values():
                own, spare = SPARE[spare % len(SPARE)], spare + 1
            table[row["series"]] = own
    return [table[row["series"]] for row in rows]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG atomically, the same bytes for the same figure."""
    with atomic(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None})


def tidy(axes: Axes, grid: str = "both") -> None:
    """Remove the upper and right spines and draw a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, alpha=0.25, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
