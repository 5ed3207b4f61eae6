"""The figure of loss_graph.py: losses and other columns of progress.csv against training images seen."""

import math
from pathlib import Path

import numpy as np
from comparison.curves import LARGEST, running_mean
from comparison.files import atomic
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Column -> label, color (Okabe and Ito 2008), number of terms: each term is log 2 for a logit of 0.
LOSSES = {"loss_d": ("discriminator", "#0072B2", 2), "loss_g": ("generator", "#D55E00", 1)}
LOG_2 = 0.6931
SMOOTH = 25  # rows of the running mean
STYLES = ("-", "--", "-.", ":")
Rows = list[dict[str, float]]  # rows of progress.csv


def draw(rows: dict[Path, Rows], also: list[str], mean: bool, out: Path) -> None:
    """Plot both losses, thin as logged and thick as running means, and a panel for each other column.

    Args:
        rows: run folder -> rows of its progress.csv.
        also: further columns.
        mean: whether to plot the mean and range of all runs instead of a curve for each.
        out: PNG to write.
    """
    figure = Figure(figsize=(7, 4 + 1.8 * len(also)), layout="constrained")
    grid = figure.add_gridspec(1 + len(also), 1, height_ratios=[4, *[1.8] * len(also)])
    panels = [(figure.add_subplot(grid[0]), LOSSES, "loss")]
    panels += [(figure.add_subplot(grid[n]), {name: ("", "#333333", 0)}, name) for n, name in enumerate(also, 1)]
    for axes, columns, title in panels:
        for column, (label, color, terms) in columns.items():
            draw_curves(axes, rows, column, color, label, mean)
            if terms:
                axes.axhline(terms * LOG_2, color=color, linestyle=":", linewidth=1)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    names = ", ".join(folder.name for folder in rows)
    title = names if len(names) <= 60 else f"{len(rows)} runs"
    panels[0][0].set_title(f"{title} (dotted: all logits 0)".replace("$", r"\$"), fontsize=10)
    panels[0][0].legend(frameon=False, fontsize=8)
    panels[-1][0].set_xlabel("training images seen")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def draw_curves(axes: Axes, rows: dict[Path, Rows], column: str, color: str, label: str, mean: bool) -> None:
    """Plot a column of each run with its line style, or the mean as far as all runs reach, and the shaded range."""
    smoothed = []
    for number, (folder, run_rows) in enumerate(rows.items()):
        points = [(row["images_seen"], row[column]) for row in run_rows if abs(row.get(column, math.inf)) < LARGEST]
        if not points:
            continue
        seen, values = zip(*points, strict=True)
        smoothed.append((seen, running_mean(values, min(SMOOTH, len(values)))))
        if not mean:
            axes.plot(seen, values, color=color, alpha=0.25 / len(rows) ** 0.5, linewidth=1)
            run_label = ", ".join(filter(None, (label, folder.name if len(rows) > 1 else "")))
            axes.plot(*smoothed[-1], STYLES[number % len(STYLES)], color=color, linewidth=1.6, label=run_label)
    if mean and smoothed:
        end = min(seen[-1] for seen, _ in smoothed)
        x = np.array([value for value in smoothed[0][0] if value <= end] or [end])
        y = np.array([np.interp(x, *curve) for curve in smoothed])
        axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.2, linewidth=0)
        axes.plot(x, y.mean(0), color=color, linewidth=1.8, label=f"{label}, mean of {len(rows)} runs".lstrip(", "))
