"""Page and pictures of the 25 Gaussians, from study.json alone; needs no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.report import study_page
from comparison.studies import pool

STUDY = "gaussians"
MODES = 25
NEAR = 3.0  # standard deviations within which a sample is of high quality
LEAST_SHARE = 0.25  # of the 25th part of all samples, that a mode must get to count as covered
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008
INK = "#333333"

Study = dict[str, Any]
Cell = Mapping[str, Any]


def by_timesteps(study: Study) -> dict[int, list[Cell]]:
    """Return T -> its cells, ascending."""
    every = sorted({cell["timesteps"] for cell in study["cells"]})
    return {t: [cell for cell in study["cells"] if cell["timesteps"] == t] for t in every}


def pooled(cells: Sequence[Cell], name: str) -> dict[str, Any] | None:
    """Return the mean of a measure over seeds with its interval, None where a seed lacks it."""
    values = [cell["end"][name] for cell in cells]
    if any(value is None for value in values):
        return None
    return pool([{"value": value, "interval": [value, value]} for value in values])


def shown(entry: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    """Write a pooled entry."""
    if entry is None:
        return formatting.MISSING
    half = formatting.half_width(entry)
    value = scale * entry["value"]
    return formatting.with_error(value, scale * half) if half else formatting.plain(value)


def reached(cell: Cell) -> int | None:
    """Return the update from which on every count found all modes, None where the last did not."""
    step = None
    for row in reversed(cell["history"]):
        if row["modes"] < MODES:
            break
        step = row["step"]
    return step


def sentences(study: Study) -> list[str]:
    """Return what the numbers say."""
    said = []
    found = by_timesteps(study)
    for t, cells in found.items():
        modes = [cell["end"]["modes"] for cell in cells]
        full = sum(count == MODES for count in modes)
        told = f"T = {t}: all {MODES} modes in {full} of {len(cells)} trainings"
        if full < len(cells):
            told += f" ({formatting.listed([str(count) for count in modes])})"
        steps = [step for cell in cells if (step := reached(cell))]
        if steps:
            least, most = (f"{edge(steps):,}" for edge in (min, max))
            told += f", from update {least} on" if least == most else f", from update {least} to {most} on"
        said.append(f"{told}.")
    for name, words, best in (("high_quality", "Share of high quality", max), ("kl", "KL of the modes", min)):
        entries = {t: entry for t, cells in found.items() if (entry := pooled(cells, name))}
        if len(entries) < 2:
            continue
        first = best(entries, key=lambda t: entries[t]["value"])
        scale, unit = (100, "%") if name == "high_quality" else (1, "")
        tied = [
            f"T = {t} ({shown(entry, scale)}{unit})"
            for t, entry in entries.items()
            if t != first and not formatting.apart(entries[first], entry)
        ]
        told = f"{words}: best at T = {first} ({shown(entries[first], scale)}{unit})"
        if len(study["cells"]) == len(found):
            told += "; one training each, so no claim about chance"
        elif tied:
            told += f"; no significant difference from {formatting.listed(tied)}"
        else:
            told += ", significantly"
        said.append(f"{told}.")
    return said


def page(study: Study) -> str:
    """Return README.md."""
    options, cells = study["options"], study["cells"]
    rows = [["the mixture itself", "-", str(study["real"]["end"]["modes"]), *_cells([study["real"]]), "-"]]
    for t, mine in by_timesteps(study).items():
        modes = ", ".join(str(cell["end"]["modes"]) for cell in mine)
        seconds = formatting.seconds(sum(cell["seconds"] for cell in mine) / len(mine))
        rows.append([f"DDGAN, T = {t}", str(t), modes, *_cells(mine), seconds])
    devices = formatting.listed(list(dict.fromkeys(cell["device"] for cell in cells)))
    torch = formatting.listed(list(dict.fromkeys(str(cell["versions"].get("torch")) for cell in cells)))
    commits = formatting.listed(list(dict.fromkeys(str(cell["git_commit"]) for cell in cells)))
    seeds = f"{options['seeds']} seeds" if options["seeds"] > 1 else "1 seed"
    return study_page.join(
        "# Study: 25 Gaussians",
        "Does the model cover every mode of a distribution whose modes can be counted, and do more denoising steps "
        "help? T = 1 is a GAN that makes points from noise.",
        "25 equally likely Gaussians at -2, -1, 0, 1, 2 in both directions, standard deviation 0.05, all divided by "
        "the square root of 2: the kind of toy that [Xiao et al. 2022](https://arxiv.org/abs/2112.07804) show, with "
        "numbers that are usual for it but not known to be theirs. Process, "
        "losses, R1 penalty, average and update are "
        "those of the image model; generator and discriminator have three hidden layers of "
        f"{options['width']} features, and see sines and cosines along random directions beside the coordinates.",
        _schedule(options),
        f"{formatting.count(options['max_steps'])} updates of {options['batch_size']} points each; {seeds} for each T. "
        f"Device: {devices}; torch {torch}; commit {commits} (`+`: with changes).",
        f"{formatting.count(options['num_samples'])} samples of each training are counted. High quality: within "
        f"{NEAR:g} standard deviations of a centre. Covered: a mode that gets at least {LEAST_SHARE:.0%} of its equal "
        "share of the samples in high quality. KL: divergence of the modes' frequencies among these samples from "
        "equal ones, in nats. ±: 95% over the seeds (Student's t).",
        "## What the numbers say",
        sentences(study),
        "![Samples of the mixture and of each model](samples.png)",
        "![Modes covered and share of high quality against updates](progress.png)",
        "## Numbers",
        formatting.markdown_table(["", "NFE", "modes, each seed", "high quality", "KL", "training"], rows),
    )


def _schedule(options: Mapping[str, Any]) -> str | None:
    """Say how the noise grows; studies from before the choice have the image model's schedule."""
    if not options.get("use_geometric"):
        return None
    return (
        f"The variance of the noise grows geometrically from {options['beta_min']:g} to {options['beta_max']:g}, so "
        "that the first step's noise is narrower than the spacing of the modes. The image model's schedule has wider "
        "noise in every step: in many dimensions it still shows an image, in two it leaves little to denoise."
    )


def _cells(cells: Sequence[Cell]) -> list[str]:
    return [f"{shown(pooled(cells, 'high_quality'), 100)}%", shown(pooled(cells, "kl"))]


def draw_pictures(study: Study, out: Path) -> None:
    """Draw samples.png and progress.png."""
    from comparison.report.plots import DPI, save, tidy
    from matplotlib.figure import Figure

    found = by_timesteps(study)
    panels = [("the mixture", study["real"]["points"], INK)]
    for (t, cells), colour in zip(found.items(), _colours(len(found)), strict=True):
        first = next((cell for cell in cells if cell["points"]), cells[0])
        panels.append((f"T = {t}: {first['end']['modes']} modes", first["points"], colour))
    figure = Figure(figsize=(2.9 * len(panels), 3.2), dpi=DPI, layout="constrained")
    for number, (title, points, colour) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.scatter([x for x, _ in points], [y for _, y in points], s=4, color=colour, alpha=0.5, linewidths=0)
        axes.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), aspect="equal", title=title)
        axes.set_xticks([])
        axes.set_yticks([])
    save(figure, out / "samples.png")

    figure = Figure(figsize=(8.6, 3.4), dpi=DPI, layout="constrained")
    for number, (name, words) in enumerate((("modes", "modes covered, of 25"), ("high_quality", "high quality"))):
        axes = figure.add_subplot(1, 2, number + 1)
        for (t, cells), colour in zip(found.items(), _colours(len(found)), strict=True):
            for index, cell in enumerate(cells):
                x, y = ([row[key] for row in cell["history"]] for key in ("step", name))
                axes.plot(x, y, color=colour, linewidth=1.3, alpha=0.8, label=None if index else f"T = {t}")
        top = MODES if name == "modes" else 1
        axes.axhline(study["real"]["end"][name], color=INK, linestyle="--", linewidth=1)
        axes.set(xlabel="updates", ylabel=words, ylim=(-0.03 * top, 1.06 * top))
        tidy(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    save(figure, out / "progress.png")


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
