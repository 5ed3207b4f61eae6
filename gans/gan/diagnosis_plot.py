"""diagnosis.png: curves that show how a GAN's training goes."""

from pathlib import Path

from comparison.curves import COLOURS, running_mean
from comparison.files import atomic
from comparison.runs import read_progress
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = {  # title -> columns of progress.csv or scores.csv
    "discriminator, mean sigmoid": ("d_real", "d_fake", "d_held_out"),
    "gap of the logits, training - held out": ("gap",),
    "norm of the gradient": ("grad_norm_d", "grad_norm_g"),
    "offline Frechet distance": ("frechet_distance",),
    "coverage": ("coverage",),
}


def draw_diagnosis(folder: Path) -> None:
    """Plot progress.csv and scores.csv against training images seen, into <folder>/diagnosis.png.

    Panels without data are left out; without any panel no file is written.
    """
    files = [folder / name for name in ("progress.csv", "scores.csv")]
    rows = [row for path in files if path.is_file() for row in read_progress(path)]
    panels = {title: [n for n in names if any(n in row for row in rows)] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    figure = Figure(figsize=(3.2 * len(panels), 3), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, color in zip(names, COLOURS, strict=False):
            points = [(row["images_seen"], row[name]) for row in rows if name in row]
            x, y = zip(*points, strict=True)
            width = max(1, len(y) // 25) if len(y) >= 50 else 1
            axes.plot(x, running_mean(y, width), color=color, marker="." if len(y) < 50 else None, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("training images seen", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if "norm" in title:
            axes.set_yscale("log")
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=7)
    with atomic(folder / "diagnosis.png") as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
