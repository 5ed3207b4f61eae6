"""Draw the generator's and the discriminator's loss of one or more runs against training images seen.

    python3 denoising-diffusion-gan/loss_graph.py ddgan_cifar10_exp1
    python3 denoising-diffusion-gan/loss_graph.py mine-s0 mine-s1 mine-s2 --mean --also r1 grad_norm_g

Everything is read from the runs' progress.csv. Several runs share the picture, a line style each; --mean draws their
average and range instead, for trainings that differ in the seed. Writes one PNG.
"""

import argparse
from pathlib import Path

from comparison.cli import UserError, local_path, make_parser, positive_int, run
from comparison.curves import running_mean
from comparison.files import atomic
from comparison.runs import read_progress
from ddgan.options import run_folder

# column -> label, colour (Okabe and Ito 2008), terms whose sum it is: logits of 0 cost log 2 each.
LOSSES = {"loss_d": ("discriminator", "#0072B2", 2), "loss_g": ("generator", "#D55E00", 1)}
LOG_2 = 0.6931
STYLES = ("-", "--", "-.", ":")
Curve = tuple[list[float], list[float]]  # images seen, values


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="name of a run (its --exp); with a slash, its folder")
    add("--out", type=local_path, default=None, help="PNG to write; out/loss_<run>.png beside this script unless given")
    add("--smooth", type=positive_int, default=25, help="rows that a point of the smooth curve averages")
    add(
        "--also", nargs="+", default=[], metavar="COLUMN", help="a panel below for each: r1, lr, grad_norm_d and others"
    )
    add("--mean", action="store_true", help="average the runs, and shade their range, instead of a line for each")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    folders = [run_folder(name) for name in args.runs]
    rows = {folder: read_rows(folder, name) for folder, name in zip(folders, args.runs, strict=True)}
    if args.mean and len(rows) < 2:
        raise UserError("--mean: needs several runs")
    for column in dict.fromkeys(args.also):
        for folder, mine in rows.items():
            check_column(column, mine, folder)
    first = folders[0].resolve().name
    name = first if len(rows) == 1 else f"{first}_and_{len(rows) - 1}_more"
    out = args.out or Path(__file__).parent / "out" / f"loss_{name}.png"
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder, not a PNG file")
    draw(rows, args.smooth, list(dict.fromkeys(args.also)), args.mean, out)
    print(out)
    return 0


def read_rows(folder: Path, name: str) -> list[dict[str, float]]:
    """Return the rows of a run's progress.csv that hold losses.

    Raises:
        UserError: there are none.
    """
    path = folder / "progress.csv"
    if not path.is_file():
        raise UserError(f"{name}: no progress.csv in {folder}")
    rows = [row for row in read_progress(path) if LOSSES.keys() <= row.keys()]
    if not rows:
        raise UserError(f"{path}: no row with losses yet")
    return rows


def check_column(column: str, rows: list[dict[str, float]], folder: Path) -> None:
    """Refuse a column that a run does not have.

    Raises:
        UserError: naming those that it has.
    """
    known = sorted({name for row in rows for name in row} - {"step", "images_seen", "wall_seconds", *LOSSES})
    if column not in known:
        raise UserError(f"--also {column}: not in {folder / 'progress.csv'}, which has {', '.join(known) or 'no more'}")


def curve(rows: list[dict[str, float]], column: str, smooth: int) -> tuple[Curve, Curve]:
    """Return a column against images seen, as logged and as running mean over `smooth` rows."""
    seen = [row["images_seen"] for row in rows if column in row]
    values = [row[column] for row in rows if column in row]
    return (seen, values), (seen, running_mean(tuple(values), min(smooth, len(values))))


def draw(rows: dict[Path, list[dict[str, float]]], smooth: int, also: list[str], mean: bool, out: Path) -> None:
    """Draw both losses, thin as logged and thick as running means, and a panel for each other column.

    Args:
        rows: run folder -> rows of its progress.csv.
        smooth: rows of a running mean.
        also: further columns.
        mean: one curve with the range of all runs, instead of one for each.
        out: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 + 1.8 * len(also)), layout="constrained")
    grid = figure.add_gridspec(1 + len(also), 1, height_ratios=[4, *[1.8] * len(also)])
    panels = [(figure.add_subplot(grid[0]), LOSSES, "loss")]
    panels += [(figure.add_subplot(grid[n]), {name: ("", "#333333", 0)}, name) for n, name in enumerate(also, 1)]
    for axes, columns, words in panels:
        for column, (label, colour, terms) in columns.items():
            curves = {folder.name: curve(mine, column, smooth) for folder, mine in rows.items()}
            if mean:
                draw_mean(axes, [smoothed for _, smoothed in curves.values()], colour, label)
            else:
                draw_each(axes, curves, colour, label)
            if terms:
                axes.axhline(terms * LOG_2, color=colour, linestyle=":", linewidth=1)
        axes.set_ylabel(words)
        axes.grid(alpha=0.3)
    names = ", ".join(folder.name for folder in rows)
    title = names if len(names) <= 60 else f"{len(rows)} runs"
    panels[0][0].set_title(f"{title} (dotted: discriminator undecided)".replace("$", r"\$"), fontsize=10)
    panels[0][0].legend(frameon=False, fontsize=8)
    panels[-1][0].set_xlabel("training images seen")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def draw_each(axes, curves: dict[str, tuple[Curve, Curve]], colour: str, label: str) -> None:
    """Draw a curve per run, told apart by line style."""
    for number, (name, (logged, smoothed)) in enumerate(curves.items()):
        style = STYLES[number % len(STYLES)]
        axes.plot(*logged, color=colour, alpha=0.25 / len(curves) ** 0.5, linewidth=1)
        words = ", ".join(filter(None, (label, name if len(curves) > 1 else "")))
        axes.plot(*smoothed, style, color=colour, linewidth=1.6, label=words)


def draw_mean(axes, curves: list[Curve], colour: str, label: str) -> None:
    """Draw the mean of several curves over the part that all of them cover, and shade their range."""
    import numpy as np

    end = min(seen[-1] for seen, _ in curves)
    x = np.array([value for value in curves[0][0] if value <= end] or [end])
    values = np.array([np.interp(x, seen, mine) for seen, mine in curves])
    axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, values.mean(0), color=colour, linewidth=1.8, label=f"{label}, mean of {len(curves)} runs".lstrip(", "))


if __name__ == "__main__":
    run(lambda: main(parse_args()))
