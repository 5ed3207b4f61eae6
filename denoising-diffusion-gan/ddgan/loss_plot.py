"""The figure of loss_graph.py: losses and other columns of progress.csv against training images seen."""

from pathlib import Path

import numpy as np
from comparison.curves import running_mean
from comparison.files import atomic
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Column -> label, color (Okabe and Ito 2008), number of terms: each term is log 2 for a logit of 0.
LOSSES = {"loss_d": ("discriminator", "#0072B2", 2), "loss_g": ("generator", "#D55E00", 1)}
LOG_2 = 0.6931
STYLES = ("-", "--", "-.", ":")
Rows = list[dict[str, float]]  # rows of progress.csv
Curve = tuple[list[float], list[float]]  # images seen, values


def draw(rows: dict[Path, Rows], smooth: int, also: list[str], mean: bool, out: Path) -> None:
    """Plot both losses, thin as logged and thick as running means, and a panel for each other column.

    Args:
        rows: run folder -> rows of its progress.csv.
        smooth: rows of the running mean.
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
            curves = {folder.name: _curves(run_rows, column, smooth) for folder, run_rows in rows.items()}
            if mean:
                _draw_mean(axes, [smoothed for _, smoothed in curves.values()], color, label)
            else:
                _draw_each(axes, curves, color, label)
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


def _curves(rows: Rows, column: str, smooth: int) -> tuple[Curve, Curve]:
    """Return a column against images seen, as logged and as running mean over `smooth` rows."""
    seen = [row["images_seen"] for row in rows if column in row]
    values = [row[column] for row in rows if column in row]
    return (seen, values), (seen, running_mean(tuple(values), min(smooth, len(values))))


def _draw_each(axes: Axes, curves: dict[str, tuple[Curve, Curve]], color: str, label: str) -> None:
    """Plot a curve per run, each with its line style."""
    for number, (name, (logged, smoothed)) in enumerate(curves.items()):
        style = STYLES[number % len(STYLES)]
        axes.plot(*logged, color=color, alpha=0.25 / len(curves) ** 0.5, linewidth=1)
        run_label = ", ".join(filter(None, (label, name if len(curves) > 1 else "")))
        axes.plot(*smoothed, style, color=color, linewidth=1.6, label=run_label)


def _draw_mean(axes: Axes, curves: list[Curve], color: str, label: str) -> None:
    """Plot the mean of the curves as far as all of them reach, and shade their range."""
    end = min(seen[-1] for seen, _ in curves)
    x = np.array([value for value in curves[0][0] if value <= end] or [end])
    values = np.array([np.interp(x, seen, run_values) for seen, run_values in curves])
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    axes.plot(x, values.mean(0), color=color, linewidth=1.8, label=f"{label}, mean of {len(curves)} runs".lstrip(", "))
