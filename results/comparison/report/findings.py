"""The findings of a report: at most six sentences, from its numbers and intervals. Standard library only."""

from collections.abc import Mapping, Sequence
from typing import Any

from comparison.formatting import count, differ_significantly, format_number, join_words, metric, seconds
from comparison.report.tables import devices_differ, frechet_name, memorises
from comparison.report.tradeoffs import QUALITY, main_rows, pareto_front

Row = Mapping[str, Any]
UNITS = {  # unit of a budget -> name, key of a row, formatter, the most that one long update may add
    "images": ("Images seen", "images_seen", count, 512),
    "seconds": ("Training time", "training_seconds", seconds, 10),
}


def findings(rows: Sequence[Row], anchors: Mapping[str, Any], budget: str | None) -> list[str]:
    """Return one sentence each on quality, diversity, speed, the choice, the budget and memorised samples.

    Args:
        rows: rows from `read_rows`.
        anchors: content of the controls' file.
        budget: training budget: `seconds=N`, `images=N`, `recipe`, `MODEL:seconds=N,...`, or None.
    """
    mains = main_rows(rows)
    topic = "Diversity (coverage, the fraction of real images with a sample nearby)"
    texts = [
        rank(mains, QUALITY, f"Quality ({frechet_name(anchors['extractor'])}, lower is better)", lowest=True),
        rank(mains, "coverage", topic, lowest=False),
        _speed(mains),
        _choice(rows),
        _budget(rows, budget),
        _memorised(rows, anchors["anchors"]["floor"]["metrics"]),
    ]
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
    ratios = [f"{format_number(row['seconds_per_image'] / timed[0]['seconds_per_image'], 2)}x" for row in timed]
    slower = [f"{row['label']} takes {x} as long" for row, x in zip(timed, ratios, strict=True)][1:]
    where = ", measured on different devices or in different precisions" if devices_differ(timed) else ""
    text = f"Speed (time per image at full throughput{where}): **{timed[0]['label']}** is fastest"
    return f"{text} ({seconds(timed[0]['seconds_per_image'])}); {join_words(slower)}."


def _choice(rows: Sequence[Row]) -> str | None:
    """Return what to take for a given time per image: the Pareto front, without steps that are not significant."""
    front = pareto_front(rows)
    if len([row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]) < 2:
        return None
    chosen = front[:1]
    for row in front[1:]:
        if differ_significantly(chosen[-1]["metrics"][QUALITY], row["metrics"][QUALITY]):
            chosen.append(row)
    best = [f"{_name(r)} ({metric(QUALITY, r['metrics'][QUALITY])})" for r in chosen]
    if len(chosen) == 1:
        return f"Choice: no slower model has a significantly better Frechet distance than {best[0]}."
    times = [seconds(row["seconds_per_image"]) for row in chosen]
    cells = [f"with at least {time} per image {text}" for time, text in zip(times, best, strict=True)]
    return f"Choice: the best Frechet distance has, {join_words(cells)}."


def _budget(rows: Sequence[Row], budget: str | None) -> str | None:
    sentences, spent = {}, {}
    for unit, (name, key, write, _) in UNITS.items():
        spent[unit] = [(row, _whole(rows, row, key)) for row in main_rows(rows) if row[key] is not None]
        if not spent[unit]:
            return None
        tuned = {row["label"]: whole - row[key] for row, whole in spent[unit] if whole > row[key]}
        of = {label: f" ({write(part)} by distillation)" for label, part in tuned.items()}
        used = [f"{row['label']} {write(whole)}{of.get(row['label'], '')}" for row, whole in spent[unit]]
        sentences[unit] = f"{name.lower()}: {join_words(used)}"
    unit, _, amount = (budget or "").partition("=")
    text = {"": "not given", "recipe": "each model's own recipe"}.get(unit, "different for each model")
    if unit in UNITS:
        _, key, write, update = UNITS[unit]
        text = f"{budget}, but not every model kept to it"
        if all(float(amount) <= whole <= 1.05 * float(amount) + update for _, whole in spent[unit]):
            sentences.pop(unit)
            text = f"{write(float(amount))}{' images' if unit == 'images' else ''} per model"
    return f"Training budget: {'; '.join([text, *sentences.values()])}."


def _whole(rows: Sequence[Row], main: Row, key: str) -> float:
    """Return what a training cost, with the distillation of its network where the report has samples of that."""
    return max(row[key] for row in rows if row["series"] == main["series"] and row[key] is not None)


def _memorised(rows: Sequence[Row], floor: Mapping[str, Any]) -> str | None:
    scored = [row for row in rows if "memorised" in row["metrics"]]
    if not scored or "memorised" not in floor:
        return None
    flagged, real = [row for row in scored if memorises(row["metrics"], floor)], metric("memorised", floor["memorised"])
    if flagged:
        return f"Memorised samples: {_cells(flagged, 'memorised')}, significantly more than of real images ({real})."
    most = max((row["metrics"]["memorised"] for row in scored), key=lambda entry: entry["value"])
    return f"Memorised samples: no sign of copies (at most {metric('memorised', most)}; of other real images {real})."
