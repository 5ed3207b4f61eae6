"""Sentences drawn from the numbers of a report and their intervals. Standard library only."""

from collections.abc import Mapping, Sequence
from typing import Any

from comparison import tables

Row = Mapping[str, Any]
FRECHET = "random-embedding Frechet distance"
FEW_IMAGES = 1000


def verdicts(rows: Sequence[Row], anchors: Mapping[str, Any], budget: str | None) -> list[str]:
    """Return what the report says first, a Markdown list item per topic.

    Args:
        rows: of `comparison.rows.read_rows`.
        anchors: content of the controls' file.
        budget: as given to the comparison: `seconds=N`, `images=N`, `recipe`, or None.
    """
    controls = anchors["anchors"]
    sentences = [
        rank(rows, "frechet_distance", f"Quality ({FRECHET}, lower is better)", lowest=True),
        against_controls(rows, controls),
        rank(rows, "coverage", "Diversity (coverage, share of the real images with a sample nearby)", lowest=False),
        rank(rows, "modes_covered", "Modes drawn", lowest=False),
        speed(rows),
        cost(rows, budget),
        memorisation(rows, controls),
    ]
    if anchors["n"] < FEW_IMAGES:
        sentences.append(f"Only {anchors['n']} images per row: intervals are wide, small differences stay open.")
    return [sentence for sentence in sentences if sentence]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def rank(rows: Sequence[Row], name: str, topic: str, *, lowest: bool) -> str | None:
    """Say who is best in a metric, who cannot be told from it, and who follows."""
    known = sorted((row for row in rows if name in row["metrics"]), key=lambda r: r["metrics"][name]["value"])
    if not lowest:
        known.reverse()
    if len(known) < 2:
        return None
    told = {row["label"]: f"{row['label']} ({tables.metric(name, row['metrics'][name])})" for row in known}
    best = known[0]["metrics"][name]
    tied = [row["label"] for row in known if row is known[0] or not tables.apart(best, row["metrics"][name])]
    rest = [row["label"] for row in known if row["label"] not in tied]
    if len(tied) == 1:
        first = f"**{tied[0]}** is best ({tables.metric(name, best)})"
    else:
        first = f"no significant difference between {_listed([told[label] for label in tied])}"
    if not rest:
        return f"{topic}: {first}."
    follow = _listed([told[label] for label in rest])
    return f"{topic}: {first}; {follow} {'follows' if len(rest) == 1 else 'follow'}."


def against_controls(rows: Sequence[Row], controls: Mapping[str, Any]) -> str | None:
    """Say where each model's Frechet distance lies between the floor and noise, and on which side of blur."""
    name, said = "frechet_distance", []
    floor, blur, noise = (controls[anchor]["metrics"][name] for anchor in ("floor", "blur", "noise"))
    for row in rows:
        if name not in row["metrics"]:
            continue
        entry = row["metrics"][name]
        if not tables.apart(entry, blur):
            where = "not significantly different from"
        else:
            where = "below" if entry["value"] < blur["value"] else "above"
        below_noise = noise["value"] / max(entry["value"], 1e-9)
        if below_noise >= 1:
            far = f"{tables.plain(below_noise, 2)} times below noise"
        else:
            far = f"{tables.plain(1 / below_noise, 2)} times above noise"
        times = tables.plain(entry["value"] / max(floor["value"], 1e-9), 2)
        said.append(f"{row['label']} is {where} the blur control and {far}, {times} times the floor.")
    if not said:
        return None
    cells = f"floor {tables.metric(name, floor)}, blur {tables.metric(name, blur)}, noise {tables.metric(name, noise)}"
    return "\n  - ".join([f"Against the controls ({cells}):", *said])


def speed(rows: Sequence[Row]) -> str | None:
    """Compare seconds per image, and say when the devices differ."""
    known = sorted((row for row in rows if row["seconds_per_image"]), key=lambda row: row["seconds_per_image"])
    if len(known) < 2:
        return None
    fast = known[0]
    others = [
        f"{tables.plain(row['seconds_per_image'] / fast['seconds_per_image'], 2)} times as fast as {row['label']} "
        f"({tables.seconds(row['seconds_per_image'])}{_evaluations(row)})"
        for row in known[1:]
    ]
    where = {(row["device"], row["precision"]) for row in known}
    caveat = "" if len(where) == 1 else "; devices or precisions differ, so the times do not compare the models alone"
    first = f"**{fast['label']}** draws an image in {tables.seconds(fast['seconds_per_image'])}{_evaluations(fast)}"
    return f"Speed: {first}, {_listed(others)}{caveat}."


def _evaluations(row: Row) -> str:
    if row["nfe"] is None:
        return ""
    return f", {row['nfe']:g} network evaluation{'' if row['nfe'] == 1 else 's'}"


def cost(rows: Sequence[Row], budget: str | None) -> str | None:
    """State the budget, and what it came to in the other unit."""
    images = [f"{row['label']} {tables.count(row['images_seen'])}" for row in rows if row["images_seen"] is not None]
    times = [
        f"{row['label']} {tables.seconds(row['training_seconds'])}"
        for row in rows
        if row["training_seconds"] is not None
    ]
    if not images or not times:
        return None
    unit, _, amount = (budget or "").partition("=")
    if unit in ("seconds", "images") and not _kept(rows, unit, float(amount)):
        unit = "unequal"
    if unit == "seconds":
        return f"Equal training time, {tables.seconds(float(amount))} each; images seen: {_listed(images)}."
    if unit == "images":
        return f"Equal training images, {tables.count(float(amount))} each; training time: {_listed(times)}."
    first = {
        "recipe": "Unequal budgets, each model's own recipe; images seen",
        "unequal": f"Unequal budgets, not the {budget} that was asked for; images seen",
    }.get(unit, "Images seen")
    return f"{first} in training: {_listed(images)}; training time: {_listed(times)}."


def _kept(rows: Sequence[Row], unit: str, amount: float) -> bool:
    """Tell whether every training ended within 5% (and an update of 10 seconds or 512 images) of the budget."""
    name, slack = ("training_seconds", 10.0) if unit == "seconds" else ("images_seen", 512.0)
    used = [row[name] for row in rows if row[name] is not None]
    return all(amount <= value <= 1.05 * amount + slack for value in used)


def memorisation(rows: Sequence[Row], controls: Mapping[str, Any]) -> str | None:
    """Flag the models that stand closer to training images than held-out real images do."""
    name = "memorised"
    floor = controls["floor"]["metrics"].get(name)
    known = [row for row in rows if name in row["metrics"]]
    if not known or floor is None:
        return None
    cells = [f"{row['label']} {tables.metric(name, row['metrics'][name])}" for row in known]
    flagged = [
        row["label"]
        for row in known
        if row["metrics"][name]["value"] > floor["value"] and tables.apart(row["metrics"][name], floor)
    ]
    held_out = tables.metric(name, floor)
    if flagged:
        return (
            f"Memorisation: {_listed(flagged)} {'stands' if len(flagged) == 1 else 'stand'} closer to training images "
            f"than held-out real images do ({_listed(cells)}; held out {held_out})."
        )
    return f"Memorisation: no sign of copied training images ({_listed(cells)}; held-out real images {held_out})."


def faults(anchors: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return what makes the report weaker than it looks: blind metrics, missing numbers, other training data."""
    sentences = [tables.check_sentence(c, anchors["anchors"]) for c in anchors["checks"] if not c["ok"]]
    found = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]
    trained_on = anchors["reference"]["training_fingerprint"]
    for row in rows:
        data = row["data"]
        if isinstance(data, dict) and data.get("fingerprint") not in (None, trained_on):
            found.append(f"{row['label']} was trained on other images than the reference is drawn from.")
        if not row["metrics"]:
            found.append(f"{row['label']} has no metrics.json: its samples are not scored.")
    return found
