"""The pictures of study.py, one for each study, from study.json alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.report.plots import COLOURS, CONTROL, DPI, INK, SPARE, save, tidy
from comparison.report.study_page import pooled
from comparison.report.tradeoffs import QUALITY
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study_cells import LABELS, PERCENTS, PHOTOS, SHAPES
from study_text import mode_rows, photos_name

COLOUR = {
    "dcgan": COLOURS["gans"],
    "dcgan-plus": SPARE[3],
    "ddpm": COLOURS["improved-diffusion"],
    "ddgan": COLOURS["denoising-diffusion-gan"],
}
MARKS = {"dcgan": "o", "dcgan-plus": "s", "ddpm": "^", "ddgan": "D"}
FLOOR = "real images (floor)"
DISTANCE = "Frechet distance\n(log, lower is better)"
Study = Mapping[str, Any]


def stability(study: Study, out: Path) -> None:
    """Draw the distance and coverage along every training, one column per source."""
    cells = [cell for cell in study["cells"] if cell.get("curve")]
    sources = [source for source in (PHOTOS, SHAPES) if any(cell["source"] == source for cell in cells)]
    if not sources:
        return
    figure = Figure(figsize=(4.8 * len(sources), 6.2), dpi=DPI, layout="constrained")
    grid = figure.subplots(2, len(sources), squeeze=False, sharex="col")
    for column, source in enumerate(sources):
        upper, lower = grid[0][column], grid[1][column]
        for cell in (cell for cell in cells if cell["source"] == source):
            _course(upper, lower, cell)
        upper.set_yscale("log")
        _plain_log(upper)
        upper.set_title(photos_name(study) if source == PHOTOS else "shapes, 200 modes", fontsize=10)
        upper.set_ylabel(DISTANCE if not column else "")
        lower.set_ylabel("coverage\n(higher is better)" if not column else "")
        lower.set_xlabel("training images seen")
        lower.set_ylim(bottom=0)
        lower.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g} k")
        lower.locator_params(axis="x", nbins=6)
        tidy(upper)
        tidy(lower)
    _legend(figure, columns=3)
    save(figure, out / "stability.png")


def _course(upper: Axes, lower: Axes, cell: Mapping[str, Any]) -> None:
    """Draw one training's scores, and a cross where its coverage first fell below half its best."""
    x, distance, coverage = zip(*cell["curve"], strict=True)
    preset = cell["variant"]
    look = {"color": COLOUR[preset], "linewidth": 1.4, "alpha": 0.85, "linestyle": ("-", "--", ":")[cell["seed"] % 3]}
    upper.plot(x, distance, marker=MARKS[preset], markersize=3, label=LABELS[preset], **look)
    lower.plot(x, coverage, marker=MARKS[preset], markersize=3, label=LABELS[preset], **look)
    fallen = (cell.get("along") or {}).get("collapsed_at")
    if fallen is not None:
        there = x.index(fallen)
        cross = {"color": INK, "marker": "x", "markersize": 9, "markeredgewidth": 2, "linestyle": "none"}
        lower.plot(fallen, coverage[there], label="coverage below half its best", **cross)


def collapse(study: Study, out: Path) -> None:
    """Draw bars of modes, recall and coverage, with a dot for each training."""
    rows = pooled(dict(study))
    panels = [
        (SHAPES, "modes_covered", "modes of 200 (shapes)"),
        (SHAPES, "modes_matched", "share of images that\nshow a mode (shapes)"),
        (PHOTOS, "recall", f"recall\n({photos_name(study)})"),
        (PHOTOS, "coverage", f"coverage\n({photos_name(study)})"),
    ]
    panels = [panel for panel in panels if any(row["source"] == panel[0] for row in rows)]
    if not panels:
        return
    figure = Figure(figsize=(2.6 * len(panels) + 1.2, 2.6), dpi=DPI, layout="constrained")
    for number, (source, name, title) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        mine = [row for row in rows if row["source"] == source and name in row["metrics"]]
        bars = [(row["label"], row["metrics"][name], _shade(row)) for row in mine]
        bars.append((FLOOR, study["floors"][source][name], CONTROL))
        values = [entry["value"] for _, entry, _ in bars]
        axes.barh(range(len(bars)), values, color=[colour for *_, colour in bars], height=0.65)
        error = {"fmt": "none", "ecolor": INK, "elinewidth": 1.2, "capsize": 3}
        axes.errorbar(values, range(len(bars)), xerr=_sides([entry for _, entry, _ in bars]), **error)
        for place, row in enumerate(mine):
            dots = [cell["metrics"][name]["value"] for cell in study["cells"] if cell["name"] == row["name"]]
            axes.plot(dots, [place] * len(dots), "o", color="white", markeredgecolor=INK, markersize=4)
        axes.set_yticks(range(len(bars)), [label for label, *_ in bars] if not number else [""] * len(bars))
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_title(title, fontsize=10)
        tidy(axes, "x")
    save(figure, out / "collapse.png")


def _shade(row: Mapping[str, Any]) -> str:
    return COLOUR[row["variant"].removesuffix("-best")]


def modes(study: Study, out: Path) -> None:
    """Draw the share of modes, the share of images that show one, and the distance against the number of modes."""
    rows = mode_rows(study)
    panels = [
        ("share", "modes covered, % of what as\nmany real images cover", 100, False),
        ("modes_matched", "images that show a mode, %", 100, False),
        (QUALITY, DISTANCE, 1, True),
    ]
    if not rows:
        return
    figure = Figure(figsize=(11.4, 3.9), dpi=DPI, layout="constrained")
    for number, (name, words, factor, log) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for turn, variant in enumerate(LABELS):
            mine = [row for row in rows if row["variant"] == variant]
            aside = 1 + 0.06 * (turn - 1.5)  # or equal values would hide each other
            points = [(aside * row["modes"], row["metrics"][name]) for row in mine]
            _line(axes, points, LABELS[variant], COLOUR[variant], MARKS[variant], factor)
        if name == QUALITY:
            floors = sorted({row["modes"]: row["floor"][name] for row in rows}.items())
            _line(axes, floors, FLOOR, CONTROL, "v", factor)
        _ticks(axes, sorted({row["modes"] for row in rows}), "modes of the data (log)")
        axes.set_ylabel(words)
        if log:
            axes.set_yscale("log")
            _plain_log(axes)
        else:
            axes.set_ylim(0, max(axes.get_ylim()[1], 5))
        tidy(axes)
    _legend(figure, columns=5)
    save(figure, out / "modes.png")


def overfitting(study: Study, out: Path) -> None:
    """Draw gap, copies and distance against the share of the images, and the course of the smallest share."""
    rows = pooled(dict(study))
    if not rows:
        return
    figure = Figure(figsize=(9.6, 7), dpi=DPI, layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    looks = {True: ("with DiffAugment", SPARE[3], "s"), False: ("without DiffAugment", COLOURS["gans"], "o")}
    for augment, (label, colour, mark) in looks.items():
        mine = [row for row in rows if row["augment"] == augment and not row["variant"].endswith("-best")]
        _line(axes[0], [(r["percent"], r["gap"]) for r in mine if r.get("gap")], label, colour, mark)
        copies = [(r["percent"], r["metrics"]["memorised"]) for r in mine]
        _line(axes[1], copies, label, colour, mark, 100)
        _line(axes[2], [(r["percent"], r["metrics"][QUALITY]) for r in mine], label, colour, mark)
        for cell in (c for c in study["cells"] if c["augment"] == augment and c["percent"] == PERCENTS[-1]):
            if cell.get("curve"):
                x, distance, _ = zip(*cell["curve"], strict=True)
                axes[3].plot(x, distance, color=colour, marker=mark, markersize=3, label=label)
    held = sorted({row["percent"]: row["held_out"] for row in rows if "held_out" in row}.items())
    _line(axes[1], held, "real images that were held out", CONTROL, "v", 100)
    words = ("logit of training images less\nthat of held-out ones", "unusually near a training image, %", DISTANCE)
    for part, text in zip(axes, words, strict=False):
        _ticks(part, sorted({row["percent"] for row in rows}), "share of the images, % (log)")
        part.set_ylabel(text)
    axes[1].set_ylim(0, max(axes[1].get_ylim()[1], 5))
    axes[3].set_xlabel(f"training images seen, with {PERCENTS[-1]}% of the images")
    axes[3].xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g} k")
    axes[3].locator_params(axis="x", nbins=6)
    axes[3].set_ylabel(DISTANCE)
    axes[0].axhline(0, color=CONTROL, linewidth=0.8)
    for part in axes[2:]:
        part.set_yscale("log")
        _plain_log(part)
    for part in axes:
        tidy(part)
    _legend(figure, columns=3)
    save(figure, out / "overfitting.png")


def _line(
    axes: Axes, points: Sequence[tuple[float, Any]], label: str, colour: str, mark: str, factor: float = 1
) -> None:
    """Draw connected points with their intervals."""
    if not points:
        return
    x, entries = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    values = [factor * entry["value"] for entry in entries]
    sides = [[factor * side for side in sides] for sides in _sides(entries)]
    sides[0] = [min(side, 0.9 * abs(value)) for side, value in zip(sides[0], values, strict=True)]
    axes.errorbar(x, values, sides, color=colour, marker=mark, markersize=5, capsize=3, linewidth=1.5, label=label)


def _sides(entries: Sequence[Any]) -> list[list[float]]:
    bounds = [entry.get("interval") or (entry["value"], entry["value"]) for entry in entries]
    values = [entry["value"] for entry in entries]
    lower = [max(value - low, 0) for value, (low, _) in zip(values, bounds, strict=True)]
    return [lower, [max(high - value, 0) for value, (_, high) in zip(values, bounds, strict=True)]]


def _ticks(axes: Axes, ticks: Sequence[float], words: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)
    axes.set_xlabel(words)


def _plain_log(axes: Axes) -> None:
    """Write plain numbers on a logarithmic axis, at 1, 2 and 5 of each power of ten where there is room."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: formatting.plain(value))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, columns: int) -> None:
    """Name each kind of line once, above the panels."""
    known: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if known:
        figure.legend(
            known.values(), known, loc="outside upper center", ncols=min(len(known), columns), frameon=False, fontsize=9
        )


DRAW = {"stability": stability, "collapse": collapse, "modes": modes, "overfitting": overfitting}
