"""Draw the generator's and the discriminator's loss of a run against training images seen.

python3 denoising-diffusion-gan/loss_graph.py results/runs/denoising-diffusion-gan/cifar10
"""

import argparse
from pathlib import Path

from comparison.cli import UserError, make_parser, positive_int, run
from comparison.runs import read_progress
from ddgan.options import run_folder

CURVES = (("loss_d", "discriminator", "#0072B2", 2), ("loss_g", "generator", "#D55E00", 1))
LOG_2 = 0.6931


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("run", help="name of the run (its --exp); with a slash, its folder")
    parser.add_argument(
        "--out", type=Path, default=None, help="PNG to write; default out/loss_<run>.png beside this script"
    )
    parser.add_argument(
        "--smooth", type=positive_int, default=25, help="rows that a point of the smooth curve averages"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    folder = run_folder(args.run)
    path = folder / "progress.csv"
    if not path.is_file():
        raise UserError(f"{args.run}: no progress.csv in {folder}")
    rows = [row for row in read_progress(path) if "loss_d" in row and "loss_g" in row]
    if not rows:
        raise UserError(f"{path}: no row with losses yet")
    out = args.out or Path(__file__).parent / "out" / f"loss_{folder.resolve().name}.png"
    draw(rows, args.smooth, folder.name, out)
    print(out)
    return 0


def draw(rows: list[dict[str, float]], smooth: int, title: str, out: Path) -> None:
    """Draw both losses, thin as logged and thick as running means, with the values of an undecided discriminator."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    seen = np.array([row["images_seen"] for row in rows])
    width = min(smooth, len(rows))
    for name, label, colour, terms in CURVES:
        values = np.array([row[name] for row in rows])
        axes.plot(seen, values, color=colour, alpha=0.25, linewidth=1)
        means = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(seen[width - 1 :], means, color=colour, linewidth=1.8, label=label)
        # Logits of 0 cost log 2 per term.
        axes.axhline(terms * LOG_2, color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="training images seen", ylabel="loss", title=f"{title} (dotted: discriminator undecided)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(out)


if __name__ == "__main__":
    run(lambda: main(parse_args()))
