"""Colours and helpers of the plots of a report, and two plots: loss curves, and bars of models and controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comparison.curves import running_mean
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


def draw_loss(rows: Sequence[Row], curves: Sequence[Sequence[Mapping[str, float]]], path: Path) -> bool:
    """Draw each model's losses against images seen, one panel per model.

    Args:
        rows: rows of the report.
        curves: rows of progress.csv of each.
        path: the PNG to write.

    Returns:
        False if there is nothing to draw.
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
        tidy(axes)
        if i == 0:
            axes.set_ylabel("training loss", fontsize=9)
    save(figure, path)
    return True


def _bound(axes: Axes, curve: Sequence[Mapping[str, float]]) -> None:
    """Limit the y axis to most of the values: outliers of the first steps would flatten the rest."""
    values = np.array([entry[name] for entry in curve for name in loss_names(curve) if name in entry])
    values = values[np.isfinite(values)]
    if len(values) >= 40:
        low, high = np.quantile(values, [0.005, 0.985])
        margin = 0.08 * max(high - low, 1e-9)
        axes.set_ylim(min(low - margin, 0 if 0 < low < 0.3 * high else low - margin), high + margin)


def loss_names(curve: Sequence[Mapping[str, float]]) -> list[str]:
    """Return at most four loss columns, without parts of another (`loss_d_real` of `loss_d`)."""
    names = sorted({name for entry in curve for name in entry if name.startswith("loss")})
    return [name for name in names if not any(name.startswith(f"{other}_") for other in names)][:4]


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
