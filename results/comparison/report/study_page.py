"""Pages of the studies: README.md from study.json and from nothing else, and the sentences that follow its numbers.

Standard library only, but for `draw_lines`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.cli import UserError
from comparison.files import read_json, write_json, write_text
from comparison.formatting import listed
from comparison.report.rows import LABELS
from comparison.report.tradeoffs import QUALITY
from comparison.studies import SCHEMA, Lab, pool_metrics

Study = dict[str, Any]
Row = Mapping[str, Any]
SHOWN = (
    QUALITY,
    "kernel_distance",
    "precision",
    "recall",
    "coverage",
    "modes_covered",
    "modes_matched",
    "memorised",
    "sharpness",
)
EQUAL = 0.1  # relative difference of training times up to which they are called equal


def write(lab: Lab, study: Study, page: Callable[[Study], str], draw: Callable[[Study, Path], object]) -> None:
    """Write study.json, the pictures and README.md of a study."""
    lab.out.mkdir(parents=True, exist_ok=True)
    study = {"schema": SCHEMA, "study": lab.study, **study}
    write_json(lab.out / "study.json", study)
    _write_page(lab.out, study, page, draw)


def rewrite(out: Path, name: str, page: Callable[[Study], str], draw: Callable[[Study, Path], object]) -> None:
    """Write the pictures and README.md of the study.json in `out`.

    Raises:
        UserError: it is missing, damaged, or of another study or schema.
    """
    study = read_json(out / "study.json")
    if study.get("study") != name or study.get("schema") != SCHEMA:
        raise UserError(f"{out / 'study.json'}: not of the study {name}, schema {SCHEMA}; run it anew")
    try:
        _write_page(out, study, page, draw)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{out / 'study.json'}: damaged ({type(error).__name__}: {error}); run the study anew"
        ) from None


def _write_page(out: Path, study: Study, page: Callable[[Study], str], draw: Callable[[Study, Path], object]) -> None:
    text = page(study)
    draw(study, out)
    write_text(out / "README.md", text)
    print(f"{out / 'README.md'}", flush=True)


def pooled(study: Study) -> list[dict[str, Any]]:
    """Return a row per cell of a study, its trainings with different seeds taken together."""
    rows = []
    for name in dict.fromkeys(cell["name"] for cell in study["cells"]):
        mine = [cell for cell in study["cells"] if cell["name"] == name]
        rows.append({**mine[0], "metrics": pool_metrics(mine)})
    return rows


def join(*parts: str | Sequence[str] | None) -> str:
    """Join the parts of a page with an empty line between them; lists become items, None is left out."""
    blocks = []
    for part in parts:
        if part and not isinstance(part, str):
            part = "\n".join(f"- {line}" for line in part)
        if part:
            blocks.append(part)
    return "\n\n".join(blocks) + "\n"  # type: ignore[arg-type]


def machine(cells: Sequence[Row]) -> str:
    """Say on what the cells ran: devices, precisions, versions, commits."""

    def distinct(values: Sequence[Any]) -> str:
        known = [value for value in dict.fromkeys(values) if value]
        return listed(known) if known else "unknown"

    training = [cell["training"] for cell in cells]
    torch = distinct([(facts.get("versions") or {}).get("torch") for facts in training])
    return (
        f"Device: {distinct([facts.get('device') for facts in training])}; precision "
        f"{distinct([facts.get('precision') for facts in training])}; torch {torch}; commit "
        f"{distinct([facts.get('git_commit') for facts in training])} (`+`: with changes)."
    )


def scoring(study: Study) -> str:
    """Say what the distances are and how far the intervals reach."""
    score = study["scoring"]
    text = (
        f"{score['n']} images of each row are scored against as many training images of {score['reference']['name']} "
        f"({score['reference']['fingerprint']}) in features of the {score['extractor']['name']}: relative within this "
        "page, not comparable with published figures. 95% intervals: "
    )
    if study["options"].get("seeds", 1) == 1:
        text += (
            "what another draw from the same training would give. One seed per cell: no claim about chance between "
            "trainings."
        )
    else:
        text += f"over {study['options']['seeds']} trainings with different seeds (Student's t)."
    return text + counted_leniently(study)


def counted_leniently(study: Study) -> str:
    """Return a caveat where modes of `shapes` were counted at the earlier acceptance of 0.35."""
    for cell in study["cells"]:
        source = cell.get("source") or study["scoring"]["reference"]["name"]
        if source.startswith("shapes") and "modes_matched" in cell["metrics"] and "sharpness" not in cell["metrics"]:
            return " Modes were counted at an acceptance of 0.35, which takes soft blobs for figures; today's is 0.10."
    return ""


def score_table(rows: Sequence[Row], floor: Row | None, extra: Mapping[str, Callable[[Row], str]]) -> str:
    """Lay out rows with `label` and `metrics`, after the floor; `extra` gives further columns in front."""
    every = [*([{"label": "real images (floor)", "metrics": floor}] if floor else []), *rows]
    names = [name for name in SHOWN if any(name in row["metrics"] for row in rows)]
    cells = []
    for row in every:
        front = [column(row) if "model" in row else formatting.MISSING for column in extra.values()]
        cells.append([row["label"], *front, *(formatting.metric(name, row["metrics"].get(name)) for name in names)])
    return formatting.markdown_table(["", *extra, *(formatting.METRICS[name][0] for name in names)], cells)


def enough(series: str, points: Sequence[tuple[float, Mapping[str, Any]]], place: str) -> str | None:
    """Say at which value of a knob the distance is least, and from where on it is not significantly worse.

    Args:
        series: what is told of.
        points: (value of the knob, entry of the distance), ascending.
        place: names a value of the knob, with {} for it, as in `T = {}`.
    """
    if len(points) < 2:
        return None
    best, entry = min(points, key=lambda point: point[1]["value"])
    told = f"{series}: least at {place.format(f'{best:g}')} ({formatting.metric(QUALITY, entry)})"
    tied = [(value, other) for value, other in points if value != best and not formatting.apart(entry, other)]
    if not tied:
        return f"{told}, significantly less than at {listed([f'{v:g}' for v, _ in points if v != best])}."
    cells = listed([f"{value:g} ({formatting.metric(QUALITY, other)})" for value, other in tied])
    return f"{told}; no significant difference from {cells}."


def against(first: str, a: Mapping[str, Any], second: str, b: Mapping[str, Any], name: str = QUALITY) -> str:
    """Compare two entries of a metric of which less is better."""
    if b["value"] < a["value"]:
        first, a, second, b = second, b, first, a
    cells = f"{formatting.metric(name, a)} and {formatting.metric(name, b)}"
    if not formatting.apart(a, b):
        return f"no significant difference between {first} and {second} ({cells})"
    return f"{first} is better than {second} ({cells})"


def unequal(rows: Sequence[Row]) -> str | None:
    """Say so where the trainings took different times."""
    times = {row["label"]: row["training"]["seconds"] for row in rows}
    if not times or max(times.values()) <= (1 + EQUAL) * min(times.values()):
        return None
    said = listed([f"{label} {formatting.seconds(value)}" for label, value in times.items()])
    return f"Unequal training times, so differences between trainings are not of the models alone: {said}."


def draw_lines(panels: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw panels of connected points with intervals side by side.

    Args:
        panels: each with x, y (axis labels), log ("x", "y", "xy" or ""), and lines: dictionaries with label, model,
            points [(x, entry with value and perhaps interval)], and perhaps style.
        path: of the picture.

    Returns:
        Whether there was anything to draw.
    """
    panels = [panel for panel in panels if any(line["points"] for line in panel["lines"])]
    if not panels:
        return False
    from matplotlib.figure import Figure

    from comparison.report.plots import COLOURS, DPI, SPARE, save, tidy

    figure = Figure(figsize=(4.6 * len(panels), 4.2), dpi=DPI, layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        if "x" in panel["log"]:
            axes.set_xscale("log")
        if "y" in panel["log"]:
            axes.set_yscale("log")
        heights = [point[1]["value"] for line in panel["lines"] for point in line["points"]]
        ticks = sorted({point[0] for line in panel["lines"] for point in line["points"]})
        if "y" in panel["log"] and min(heights) == max(heights) > 0:
            axes.set_ylim(heights[0] / 2, 2 * heights[0])  # a logarithmic axis of one value has no length
        if "x" in panel["log"] and len(ticks) == 1:
            axes.set_xlim(ticks[0] / 2, 2 * ticks[0])
        seen: dict[str, int] = {}
        for line in panel["lines"]:
            if not line["points"]:
                continue
            turn = seen[line["model"]] = seen.get(line["model"], -1) + 1
            _plot_line(axes, line, turn, COLOURS.get(line["model"], SPARE[0]))
        axes.margins(0.08)
        if panel.get("ticks"):
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(lambda value, _: formatting.plain(value))
        if "y" in panel["log"]:
            _name_minor(axes.yaxis)
        axes.set_xlabel(panel["x"])
        axes.set_ylabel(panel["y"])
        tidy(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for axes in figure.axes[1:]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    columns = max(1, min(len(labels), 2 * len(panels)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    save(figure, path)
    return True


def _plot_line(axes: Any, line: Mapping[str, Any], turn: int, colour: str) -> None:
    """Plot one line of `draw_lines`, the turn-th of its model."""
    x = [point[0] for point in line["points"]]
    y = [point[1]["value"] for point in line["points"]]
    bounds = [entry.get("interval") or (entry["value"], entry["value"]) for _, entry in line["points"]]
    low = [max(min(v - b[0], 0.9 * abs(v)), 0) for v, b in zip(y, bounds, strict=True)]  # a log axis ends above 0
    high = [max(b[1] - v, 0) for v, b in zip(y, bounds, strict=True)]
    style = line.get("style", ("-", "--", "-.", ":")[turn % 4])
    look = {"color": colour, "linestyle": style, "markersize": 6, "capsize": 3, "linewidth": 1.5}
    axes.errorbar(x, y, [low, high], fmt="osD^v"[turn % 5], label=line["label"], **look)


def _name_minor(axis: Any) -> None:
    """Write the minor ticks of a short logarithmic axis as plain numbers, where matplotlib names them at all."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, value: float, pos: Any = None) -> str:
            return formatting.plain(value, 5) if super().__call__(value, pos) else ""

    axis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


def draw_bars(rows: Sequence[Row], words: str, path: Path) -> bool:
    """Draw the distance of each row as a bar on a logarithmic axis, with its interval.

    Args:
        rows: with label, model and metrics.
        words: of the axis.
        path: of the picture.

    Returns:
        Whether there was anything to draw.
    """
    if not rows:
        return False
    from matplotlib.figure import Figure

    from comparison.report.plots import DPI, INK, colours, save, tidy

    figure = Figure(figsize=(5.8, 0.42 * len(rows) + 1.1), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    values = [max(row["metrics"][QUALITY]["value"], 1e-6) for row in rows]
    halves = [formatting.half_width(row["metrics"][QUALITY]) for row in rows]
    left = min(values) / 3
    low = [min(half, value - left) for half, value in zip(halves, values, strict=True)]
    axes.set_xscale("log")
    axes.barh(range(len(rows)), [v - left for v in values], left=left, color=colours(rows), height=0.68)
    axes.errorbar(values, range(len(rows)), xerr=[low, halves], fmt="none", ecolor=INK, elinewidth=1.2)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: formatting.plain(value))
    _name_minor(axes.xaxis)
    axes.set_xlabel(words)
    tidy(axes, "x")
    save(figure, path)
    return True


def label_of(model: str) -> str:
    """Return the model's name in tables."""
    return LABELS.get(model, model)
