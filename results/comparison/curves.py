"""The loss plot of a run, from its progress.csv."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison.files import atomic
from comparison.runs import read_progress

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
LARGEST = 1e30  # larger values, of a training that diverges, are not drawn: an axis cannot hold them
SIDES = {"real": "real", "fake": "generated"}  # part of a column's name -> label


def draw_run_loss(folder: Path) -> None:
    """Plot `reconstruction` and all columns `loss...` except quartiles (`loss_q0`, ...) into <folder>/loss.png.

    Discriminator accuracies (`accuracy_real_t0`, `accuracy_fake_t0`, ...) get two panels beside the losses. Without
    losses, nothing is plotted.
    """
    rows = read_progress(folder / "progress.csv") if (folder / "progress.csv").is_file() else []
    columns = sorted({name for row in rows for name in row})
    names = [name for name in columns if (name.startswith("loss") and "_q" not in name) or name == "reconstruction"]
    accuracies = {side: [name for name in columns if name.startswith(f"accuracy_{side}_")] for side in SIDES}
    if not names:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    beside = any(accuracies.values())
    figure = Figure(figsize=(11 if beside else 7, 4), layout="constrained")
    grid = figure.add_gridspec(2, 1 + beside, width_ratios=[7, 4][: 1 + beside])
    axes = figure.add_subplot(grid[:, 0])
    _draw_columns(axes, rows, {name: name for name in names})
    axes.set_xlabel("training images seen")
    axes.set_ylabel("loss")
    title = f"{folder.parent.name}, {folder.name}".replace("$", r"\$")
    axes.set_title(title.encode(errors="replace").decode(), fontsize=10)  # paths need not be text
    for number, (side, panel_names) in enumerate(accuracies.items() if beside else ()):
        panel = figure.add_subplot(grid[number, 1])
        _draw_columns(panel, rows, {name: name.rpartition("_t")[2] for name in panel_names})
        panel.axhline(0.5, color="#333333", linestyle=":", linewidth=1)
        panel.set(ylim=(-0.03, 1.03), ylabel=f"{SIDES[side]} pairs")
        panel.legend(title="t", frameon=False, fontsize=7, title_fontsize=7, ncols=4, loc="lower right")
        if number == 0:
            panel.set_title("right answers of the discriminator (dotted: chance)", fontsize=9)
        else:
            panel.set_xlabel("training images seen")
    axes.legend(frameon=False)
    with atomic(folder / "loss.png") as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _draw_columns(axes: Any, rows: Sequence[Mapping[str, float]], columns: Mapping[str, str]) -> None:
    """Plot columns, name -> label; with many rows, values as thin lines and running means as thick ones."""
    for number, (name, label) in enumerate(columns.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(row["images_seen"], row[name]) for row in rows if abs(row.get(name, math.inf)) < LARGEST]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        smooth = len(y) >= 50
        axes.plot(x, y, color=colour, alpha=0.25 if smooth else 1, linewidth=1, label=None if smooth else label)
        if smooth:
            axes.plot(x, running_mean(y, len(y) // 25), color=colour, linewidth=1.8, label=label)
    axes.grid(alpha=0.3)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each value and the width - 1 values before it, or fewer at the start."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0)
        means.append(total / min(i + 1, width))
    return means
