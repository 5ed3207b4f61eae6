"""The findings of a report: at most six sentences, from its numbers and intervals. Standard library only."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from comparison.formatting import count, differ_significantly, format_number, join_words, metric, seconds
from comparison.report.tables import DEVICES_DIFFER, devices_differ, frechet_name, memorises
from comparison.report.tradeoffs import QUALITY, main_rows, pareto_front

Row = Mapping[str, Any]
SCALE = {"floor": "real images", "blur": "blurred images", "noise": "noise"}  # control -> name in the text
UNITS = {  # unit of a budget -> name, key of a row, formatter, the most that one long update may add
    "images": ("Images seen", "images_seen", count, 512),
    "seconds": ("Training time", "training_seconds", seconds, 10),
}


def findings(rows: Sequence[Row], anchors: Mapping[str, Any], budget: str | None) -> list[str]:
    """Return one Markdown list item each on quality, diversity, speed, Pareto front, budget and memorised samples.

    Args:
        rows: rows from `read_rows`.
        anchors: content of the controls' file.
        budget: training budget: `seconds=N`, `images=N`, `recipe`, `MODEL:seconds=N,...`, or None.
    """
    mains, controls = main_rows(rows), anchors["anchors"]
    topic = "Diversity (coverage, the fraction of real images with a sample nearby)"
    texts = [rank(mains, QUALITY, f"Quality ({frechet_name(anchors['extractor'])}, lower is better)", lowest=True)]
    if texts[0]:
        scale = [f"{label} {metric(QUALITY, controls[name]['metrics'][QUALITY])}" for name, label in SCALE.items()]
        texts[0] += f" For scale: {join_words(scale)}."
    counted = [row for row in mains if "modes_covered" in row["metrics"]]
    modes = f" Modes covered: {_cells(counted, 'modes_covered')}." if counted else ""
    texts += [f"{rank(mains, 'coverage', topic, lowest=False) or ''}{modes}".strip(), _speed(mains), _front(rows)]
    texts += [_budget(rows, budget), _memorised(rows, controls["floor"]["metrics"])]
    return [text for text in texts if text]


def rank(rows: Sequence[Row], name: str, topic: str, *, lowest: bool) -> str | None:
    """Return which row is best in a metric, which do not differ significantly from it, and which follow."""
    ranked = [row for row in rows if name in row["metrics"]]
    ranked.sort(key=lambda row: row["metrics"][name]["value"], reverse=not lowest)
    if len(ranked) < 2:
        return None
    best = ranked[0]["metrics"][name]
    rest = [row for row in ranked[1:] if differ_significantly(best, row["metrics"][name])]
    tied = [row for row in ranked if not any(row is other for other in rest)]
    text = f"no significant difference between {_cells(tied, name)}"
    if len(tied) == 1:
        text = f"**{ranked[0]['label']}** is best ({metric(name, best)})"
    return f"{topic}: {text}{f', followed by {_cells(rest, name)}' if rest else ''}."


def _cells(rows: Sequence[Row], name: str) -> str:
    return join_words([f"{_name(row)} ({metric(name, row['metrics'][name])})" for row in rows])


def _name(row: Row) -> str:
    """Return the label without its comma, which would look like the end of a list item."""
    return f"{row['series']} with {row['setting']}" if row.get("setting") else row["label"]


def _speed(rows: Sequence[Row]) -> str | None:
    timed = sorted((row for row in rows if row["seconds_per_image"]), key=lambda row: row["seconds_per_image"])
    if len(timed) < 2:
        return None
    cells = []
    for row in timed:
        steps = "" if row["nfe"] is None else f", {row['nfe']:g} network evaluation{'' if row['nfe'] == 1 else 's'}"
        cells.append(f"{seconds(row['seconds_per_image'])}{steps}")
    ratios = [f"{format_number(row['seconds_per_image'] / timed[0]['seconds_per_image'], 2)}x" for row in timed]
    slower = [f"{row['label']} takes {x} as long ({c})" for row, x, c in zip(timed, ratios, cells, strict=True)][1:]
    text = f"Speed (time per image at full throughput): **{timed[0]['label']}** is fastest ({cells[0]})."
    return f"{text} {join_words(slower)}.{f' {DEVICES_DIFFER}' if devices_differ(timed) else ''}"


def _front(rows: Sequence[Row]) -> str | None:
    scored, front = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]], pareto_front(rows)
    if len(scored) < 2:
        return None
    cells = [f"{_name(r)} ({seconds(r['seconds_per_image'])}, {metric(QUALITY, r['metrics'][QUALITY])})" for r in front]
    text = f"Pareto-optimal (time per image, Frechet distance): {join_words(cells)}."
    for fast, slow in pairwise(front):
        if not differ_significantly(fast["metrics"][QUALITY], slow["metrics"][QUALITY]):
            text += f" {_name(slow)} is not significantly better than the faster {_name(fast)}."
    return text


def _budget(rows: Sequence[Row], budget: str | None) -> str | None:
    sentences, spent = {}, {}
    for unit, (name, key, write, _) in UNITS.items():
        spent[unit] = [(row, _whole(rows, row, key)) for row in main_rows(rows) if row[key] is not None]
        if not spent[unit]:
            return None
        tuned = {row["label"]: whole - row[key] for row, whole in spent[unit] if whole > row[key]}
        of = {label: f" ({write(part)} by distillation)" for label, part in tuned.items()}
        used = [f"{row['label']} {write(whole)}{of.get(row['label'], '')}" for row, whole in spent[unit]]
        sentences[unit] = f"{name}: {join_words(used)}."
    unit, _, amount = (budget or "").partition("=")
    text = {"": "not given", "recipe": "each model's own recipe"}.get(unit, "different for each model")
    if unit in UNITS:
        _, key, write, update = UNITS[unit]
        text = f"{budget}, but not every model kept to it"
        if all(float(amount) <= whole <= 1.05 * float(amount) + update for _, whole in spent[unit]):
            sentences.pop(unit)
            text = f"{write(float(amount))}{' images' if unit == 'images' else ''} per model"
    return f"Training budget: {text}. {' '.join(sentences.values())}"


def _whole(rows: Sequence[Row], main: Row, key: str) -> float:
    """Return what a training cost, with the distillation of its network where the report has samples of that."""
    return max(row[key] for row in rows if row["series"] == main["series"] and row[key] is not None)


def _memorised(rows: Sequence[Row], floor: Mapping[str, Any]) -> str | None:
    scored = [row for row in rows if "memorised" in row["metrics"]]
    if not scored or "memorised" not in floor:
        return None
    flagged, real = [row for row in scored if memorises(row["metrics"], floor)], metric("memorised", floor["memorised"])
    if flagged:
        return f"Memorised samples: {_cells(flagged, 'memorised')}, significantly more than held-out images ({real})."
    most = max((row["metrics"]["memorised"] for row in scored), key=lambda entry: entry["value"])
    return f"Memorised samples: no sign of copies (at most {metric('memorised', most)}; held-out images {real})."
