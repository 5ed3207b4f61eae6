"""Colours and helpers of the plots of a report, and the bars of models and controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comparison.files import atomic
from comparison.formatting import format_number, half_width
from comparison.models import MODELS

# Okabe and Ito 2008: safe for colour-blind readers, and distinct in grey
COLOURS = {name: model.colour for name, model in MODELS.items()}
SPARE = ("#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
CONTROL = "#9A9A9A"
INK = "#333333"
DPI = 110

Row = Mapping[str, Any]


def colours(rows: Sequence[Row]) -> list[str]:
    """Return a colour per row: the models' own, spare ones for others."""
    others = list(dict.fromkeys(row["model"] for row in rows if row["model"] not in COLOURS))
    table = COLOURS | {model: SPARE[i % len(SPARE)] for i, model in enumerate(others)}
    return [table[row["model"]] for row in rows]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG atomically, the same bytes for the same figure."""
    with atomic(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None})


def tidy(axes: Axes, grid: str = "both") -> None:
    """Remove the upper and right spines and draw a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, alpha=0.25, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def draw_bars(rows: Sequence[Row], controls: Mapping[str, Any], frechet: str, path: Path) -> bool:
    """Draw Frechet distance (logarithmic), coverage and recall of models and controls, with intervals.

    Args:
        rows: main rows of the report.
        controls: controls of the report.
        frechet: name of the distance.
        path: the PNG to write.

    Returns:
        False if there is nothing to draw.
    """
    scored = [(row, colour) for row, colour in zip(rows, colours(rows), strict=True) if row["metrics"]]
    bars = [(row["label"], row["metrics"], colour) for row, colour in scored]
    bars += [(control["label"], control["metrics"], CONTROL) for control in controls.values()]
    titles = {
        "frechet_distance": f"{frechet.replace(' Frechet', chr(10) + 'Frechet')}\n(log, lower is better)",
        "coverage": "coverage\n(higher is better)",
        "recall": "recall\n(higher is better)",
    }
    titles = {name: title for name, title in titles.items() if any(name in metrics for _, metrics, _ in bars)}
    if not titles:
        return False
    figure = Figure(figsize=(6.6, 0.3 * len(bars) + 1.2), dpi=DPI, layout="constrained")
    positions = np.arange(len(bars))
    for i, (name, title) in enumerate(titles.items()):
        axes = figure.add_subplot(1, len(titles), i + 1)
        entries = [metrics.get(name) or {"value": float("nan")} for _, metrics, _ in bars]
        values = np.array([entry["value"] for entry in entries], float)
        errors = np.array([half_width(entry) for entry in entries])
        if name == "frechet_distance":
            # copies are at 0 but for rounding, so the axis starts just below the floor
            low = max(np.nanmin(values[values > 0]), controls["floor"]["metrics"][name]["value"]) / 5
            axes.set_xscale("log")
            axes.set_xlim(low, np.nanmax(values) * 3)
            axes.xaxis.set_major_formatter(lambda value, _: format_number(value))
            axes.locator_params(axis="x", numticks=4)
        else:
            low = 0.0
            axes.set_xlim(0, 1.05)
            axes.set_xticks([0, 0.5, 1])
        ends = np.maximum(values, low)
        axes.barh(positions, ends - low, left=low, color=[c for _, _, c in bars], height=0.68)
        axes.errorbar(
            ends, positions, xerr=[np.minimum(errors, ends - low), errors], fmt="none", ecolor=INK, elinewidth=1.2
        )
        axes.set_yticks(positions, [label for label, _, _ in bars] if i == 0 else [""] * len(bars), fontsize=9.5)
        for tick, (_, _, colour) in zip(axes.get_yticklabels(), bars, strict=True):
            tick.set_color("#555555" if colour == CONTROL else colour)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=9)
        axes.set_title(title, fontsize=9.5)
        tidy(axes, "x")
    save(figure, path)
    return True
