"""The loss curve of one run, drawn from its progress.csv."""

import os
from pathlib import Path

from comparison.runs import read_progress

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008


def draw_run_loss(folder: Path) -> None:
    """Draw <folder>/loss.png: every column whose name begins with `loss`, against images seen.

    Quartiles and other parts of a loss (`loss_q0`, ...) are left out when the whole is there. Nothing is drawn for
    an empty progress.csv.
    """
    rows = read_progress(folder / "progress.csv") if (folder / "progress.csv").is_file() else []
    names = sorted({name for row in rows for name in row if name.startswith("loss") and "_q" not in name})
    if not names:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in zip(names, COLOURS, strict=False):
        points = [(row["images_seen"], row[name]) for row in rows if name in row]
        x, y = zip(*points, strict=True)
        smooth = len(y) >= 50
        axes.plot(x, y, color=colour, alpha=0.25 if smooth else 1, linewidth=1, label=None if smooth else name)
        if smooth:
            axes.plot(x, running_mean(y, len(y) // 25), color=colour, linewidth=1.8, label=name)
    axes.set_xlabel("training images seen")
    axes.set_ylabel("loss")
    title = f"{folder.parent.name}, {folder.name}".replace("$", r"\$")
    axes.set_title(title.encode(errors="replace").decode(), fontsize=10)  # matplotlib draws only what is text
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    temporary = folder / f".loss.{os.getpid()}.png"
    FigureCanvasAgg(figure).print_png(temporary)
    os.replace(temporary, folder / "loss.png")


def running_mean(values: tuple[float, ...], width: int) -> list[float]:
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0)
        means.append(total / min(i + 1, width))
    return means
