"""Page and figures of toy_gaussians.py, from study.json alone; no torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.report import study_page
from comparison.report.plots import DPI, save
from comparison.report.study_plots import Line, Lines, draw
from matplotlib.figure import Figure

MODES = 25
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008
INK = "#333333"


def by_timesteps(study: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Return T -> its cells, in order of T."""
    timesteps = sorted({cell["timesteps"] for cell in study["cells"]})
    return {t: [cell for cell in study["cells"] if cell["timesteps"] == t] for t in timesteps}


def pooled(cells: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0) -> str:
    """Return the mean of a metric over seeds with its interval, or a dash if a seed has no value."""
    values = [cell["end"][name] for cell in cells]
    if None in values:
        return formatting.MISSING
    return formatting.metric(name, study_page.pool([{"value": scale * value} for value in values]))


def first_step_with_all_modes(cell: Mapping[str, Any]) -> str:
    """Return the update from which every count has all modes, or a dash if the last count has not."""
    step = None
    for row in reversed(cell["history"]):
        if row["modes"] < MODES:
            break
        step = row["step"]
    return f"{step:,}" if step else formatting.MISSING


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    options = study["options"]
    rows: list[dict[str, Any]] = [{"label": "the mixture itself", "cells": [study["real"]]}]
    rows += [{"label": f"DDGAN, T = {t}", "t": t, "cells": cells} for t, cells in by_timesteps(study).items()]

    def trained(column: Callable[[Any], str]) -> Callable[[Any], str]:
        return lambda row: column(row) if "t" in row else formatting.MISSING

    columns = {
        "": lambda row: row["label"],
        "NFE": trained(lambda row: str(row["t"])),
        "modes, each seed": lambda row: ", ".join(str(cell["end"]["modes"]) for cell in row["cells"]),
        "all from update": trained(lambda row: ", ".join(map(first_step_with_all_modes, row["cells"]))),
        "high quality, %": lambda row: pooled(row["cells"], "high_quality", 100),
        "KL": lambda row: pooled(row["cells"], "kl"),
        "training": trained(
            lambda row: formatting.seconds(sum(cell["seconds"] for cell in row["cells"]) / len(row["cells"]))
        ),
    }
    seeds = f"{options['seeds']} seeds" if options["seeds"] > 1 else "1 seed"
    schedule = None
    if options.get("use_geometric"):  # older studies have the image model's schedule
        schedule = (
            f"The variance of the noise grows geometrically from {options['beta_min']:g} to {options['beta_max']:g}, "
            "so the noise of the first step is narrower than the spacing of the modes. The image model's schedule has "
            "wider noise at every step: images stay recognizable under it, but in two dimensions it hides the modes."
        )
    return study_page.page(
        study,
        "25 Gaussians",
        "Does the model cover every mode of a distribution whose modes can be counted, and do more denoising steps "
        "help? T = 1 is a GAN that generates points from noise.",
        f"{formatting.count(options['max_steps'])} updates of {options['batch_size']} points each; {seeds} for each T.",
        [
            "![Samples of the mixture and of each model](samples.png)",
            study_page.table(rows, columns),
            "`modes`: modes that get at least a quarter of their equal share of the samples, counting only those of "
            f"high quality. `all from update`: update from which every count finds all {MODES}. `high quality`: "
            "samples within 3 standard deviations of a mode's center. `KL`: divergence of the modes' frequencies among "
            f"these from equal ones, in nats. Each training is measured on {formatting.count(options['num_samples'])} "
            "samples; ± is the 95% interval over the seeds (Student's t).",
            "![Modes covered and fraction of high quality against updates; dotted: the mixture itself](progress.png)",
        ],
        [
            "The mixture: 25 equally likely Gaussians at -2, -1, 0, 1, 2 in both directions, standard deviation 0.05, "
            "all divided by the square root of 2. [Xiao et al. 2022](https://arxiv.org/abs/2112.07804) show such a "
            "mixture without its numbers; these are common ones.",
            "Process, losses, R1 penalty, EMA and update are those of the image model. Generator and discriminator "
            f"have three hidden layers of {options['width']} features; their inputs are the coordinates, and sines and "
            "cosines along random directions.",
            schedule,
        ],
        cells=[{"training": cell} for cell in study["cells"]],
    )


def draw_figures(study: dict[str, Any], out: Path) -> None:
    """Draw samples.png and progress.png."""
    cells_of = by_timesteps(study)
    colors = {t: COLORS[index % len(COLORS)] for index, t in enumerate(cells_of)}
    panels = [("the mixture", study["real"]["points"], INK)]
    for t, cells in cells_of.items():
        first = next((cell for cell in cells if cell["points"]), cells[0])
        panels.append((f"T = {t}: {first['end']['modes']} modes", first["points"], colors[t]))
    figure = Figure(figsize=(2.9 * len(panels), 3.2), dpi=DPI, layout="constrained")
    for number, (title, points, color) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.scatter([x for x, _ in points], [y for _, y in points], s=4, color=color, alpha=0.5, linewidths=0)
        axes.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), aspect="equal", title=title)
        axes.set_xticks([])
        axes.set_yticks([])
    save(figure, out / "samples.png")

    progress = []
    for name, axis in (("modes", f"modes covered, of {MODES}"), ("high_quality", "fraction of high quality")):
        lines = [
            Line(f"T = {t}", [(row["step"], {"value": row[name]}) for row in cell["history"]], colors[t])
            for t, cells in cells_of.items()
            for cell in cells
        ]
        progress.append(Lines("updates", axis, lines, level=study["real"]["end"][name]))
    draw(progress, out / "progress.png")
