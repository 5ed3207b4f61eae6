"""Sentences drawn from the numbers of a report and their intervals. Standard library only."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from comparison import formatting
from comparison.formatting import listed
from comparison.report.tables import frechet_name, memorises
from comparison.report.tradeoffs import QUALITY, break_evens, main_rows, pareto_front, trend

Row = Mapping[str, Any]
FEW_IMAGES = 1000


def verdicts(rows: Sequence[Row], anchors: Mapping[str, Any], budget: str | None) -> list[str]:
    """Return what the report says first, a Markdown list item per topic.

    Args:
        rows: of `comparison.report.rows.read_rows`.
        anchors: content of the controls' file.
        budget: as given to the comparison: `seconds=N`, `images=N`, `recipe`, `MODEL:seconds=N,...`, or None.
    """
    controls = anchors["anchors"]
    frechet = frechet_name(anchors["extractor"])
    mains = main_rows(rows)
    sentences = [
        rank(mains, QUALITY, f"Quality ({frechet}, lower is better)", lowest=True),
        against_controls(mains, controls),
        rank(mains, "coverage", "Diversity (coverage, share of the real images with a sample nearby)", lowest=False),
        rank(mains, "modes_covered", "Modes drawn", lowest=False),
        classes(mains, controls),
        speed(mains),
        *settings(rows, frechet),
        pareto(rows, frechet),
        cost(mains, budget),
        total_cost(mains),
        *history(mains, frechet),
        memorisation(rows, controls),
    ]
    if anchors["n"] < FEW_IMAGES:
        sentences.append(f"Only {anchors['n']} images per row: intervals are wide, small differences stay open.")
    return [sentence for sentence in sentences if sentence]


def rank(rows: Sequence[Row], name: str, topic: str, *, lowest: bool) -> str | None:
    """Say who is best in a metric, who cannot be told from it, and who follows."""
    known = sorted((row for row in rows if name in row["metrics"]), key=lambda r: r["metrics"][name]["value"])
    if not lowest:
        known.reverse()
    if len(known) < 2:
        return None
    told = {row["label"]: f"{row['label']} ({formatting.metric(name, row['metrics'][name])})" for row in known}
    best = known[0]["metrics"][name]
    tied = [row["label"] for row in known if row is known[0] or not formatting.apart(best, row["metrics"][name])]
    rest = [row["label"] for row in known if row["label"] not in tied]
    if len(tied) == 1:
        first = f"**{tied[0]}** is best ({formatting.metric(name, best)})"
    else:
        first = f"no significant difference between {listed([told[label] for label in tied])}"
    if not rest:
        return f"{topic}: {first}."
    follow = listed([told[label] for label in rest])
    return f"{topic}: {first}; {follow} {'follows' if len(rest) == 1 else 'follow'}."


def against_controls(rows: Sequence[Row], controls: Mapping[str, Any]) -> str | None:
    """Say where each model's Frechet distance lies between the floor and noise, and on which side of blur."""
    name, said = "frechet_distance", []
    floor, blur, noise = (controls[anchor]["metrics"][name] for anchor in ("floor", "blur", "noise"))
    for row in rows:
        if name not in row["metrics"]:
            continue
        entry = row["metrics"][name]
        if not formatting.apart(entry, blur):
            where = "not significantly different from"
        else:
            where = "better than" if entry["value"] < blur["value"] else "worse than"
        below_noise = noise["value"] / max(entry["value"], 1e-9)
        if not formatting.apart(entry, noise):
            far = "not significantly different from noise"
        elif below_noise >= 1:
            far = f"{formatting.plain(below_noise, 2)} times below noise"
        else:
            far = f"{formatting.plain(1 / below_noise, 2)} times above noise"
        times = formatting.plain(entry["value"] / max(floor["value"], 1e-9), 2)
        said.append(f"{row['label']} is {where} the blur control and {far}, {times} times the floor.")
    if not said:
        return None
    controls = {"floor": floor, "blur": blur, "noise": noise}
    cells = ", ".join(f"{label} {formatting.metric(name, entry)}" for label, entry in controls.items())
    return "\n  - ".join([f"Against the controls ({cells}):", *said])


def speed(rows: Sequence[Row]) -> str | None:
    """Compare seconds per image, and say when the devices differ."""
    known = sorted((row for row in rows if row["seconds_per_image"]), key=lambda row: row["seconds_per_image"])
    if len(known) < 2:
        return None
    fast = known[0]
    others = [
        f"{formatting.plain(row['seconds_per_image'] / fast['seconds_per_image'], 2)} times as fast as {row['label']} "
        f"({formatting.seconds(row['seconds_per_image'])}{_evaluations(row)})"
        for row in known[1:]
    ]
    where = {(row["device"], row["precision"]) for row in known}
    caveat = "" if len(where) == 1 else "; devices or precisions differ, so the times do not compare the models alone"
    first = f"**{fast['label']}** draws an image in {formatting.seconds(fast['seconds_per_image'])}{_evaluations(fast)}"
    return f"Speed: {first}, {listed(others)}{caveat}."


def _evaluations(row: Row) -> str:
    if row["nfe"] is None:
        return ""
    return f", {row['nfe']:g} network evaluation{'' if row['nfe'] == 1 else 's'}"


def classes(rows: Sequence[Row], controls: Mapping[str, Any]) -> str | None:
    """Say whose classes are as evenly drawn as those of real images."""
    name = "class_entropy"
    floor = controls["floor"]["metrics"].get(name)
    known = [row for row in rows if name in row["metrics"]]
    if not known or floor is None:
        return None
    said: dict[str, list[str]] = {}
    for row in known:
        entry = row["metrics"][name]
        if not formatting.apart(entry, floor):
            side = "as even as those of real images"
        else:
            side = "less even" if entry["value"] < floor["value"] else "more even"
        said.setdefault(side, []).append(f"{row['label']} ({formatting.metric(name, entry)})")
    words = "; ".join(f"{side} for {listed(names)}" for side, names in said.items())
    return f"Classes (entropy in bits, real images {formatting.metric(name, floor)}): {words}."


def settings(rows: Sequence[Row], frechet: str) -> list[str | None]:
    """Rank the sampler settings of each training that has several."""
    said = []
    for series in dict.fromkeys(row["series"] for row in rows):
        mine = [row for row in rows if row["series"] == series]
        named = [{**row, "label": row["setting"] or f"the default{_with_evaluations(row)}"} for row in mine]
        said.append(rank(named, QUALITY, f"Samplers of {series} ({frechet})", lowest=True))
    return said


def _with_evaluations(row: Row) -> str:
    return "" if row["nfe"] is None else f" with {row['nfe']:g} evaluation{'' if row['nfe'] == 1 else 's'}"


def _name(row: Row) -> str:
    """Name a row within a sentence, where the comma of its label would read as one of the list."""
    return row["label"] if row["setting"] is None else f"{row['series']} with {row['setting']}"


def pareto(rows: Sequence[Row], frechet: str) -> str | None:
    """Say which settings no other beats in both speed and quality, and which steps along them are within the noise."""
    topic = f"Speed against quality ({frechet})"
    known = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]
    if len(known) < 2:
        return None
    front = pareto_front(rows)
    told = [
        f"{_name(row)} ({formatting.seconds(row['seconds_per_image'])} per image, "
        f"{formatting.metric(QUALITY, row['metrics'][QUALITY])})"
        for row in front
    ]
    if len(front) == 1:
        best = front[0]["metrics"][QUALITY]
        tied = [
            _name(row) for row in known if row is not front[0] and not formatting.apart(best, row["metrics"][QUALITY])
        ]
        caveat = f", though not significantly better than {listed(tied)}" if tied else ""
        return f"{topic}: {told[0]} is both the fastest and the best of {len(known)} settings{caveat}."
    text = f"{topic}: no other setting is both faster and better than {listed(told)}"
    for fast, slow in pairwise(front):
        if not formatting.apart(fast["metrics"][QUALITY], slow["metrics"][QUALITY]):
            text += f"; {_name(slow)} is not significantly better than the faster {_name(fast)}"
    beaten = len(known) - len(front)
    if beaten:
        others = f"each of the other {beaten} settings"
        if beaten == 1:
            others = next(_name(row) for row in known if not any(row is chosen for chosen in front))
        text += f"; for {others} there is a faster and better one"
    return f"{text}."


def total_cost(rows: Sequence[Row]) -> str | None:
    """Say after how many images which training and sampling together have cost less."""
    pairs = break_evens(rows)
    if not pairs:
        return None
    said = [
        f"after {_round(pair['after'])} images {pair['cheaper']} has cost less than {pair['than']}"
        for pair in pairs
        if pair["after"]
    ]
    always: dict[str, list[str]] = {}
    for pair in pairs:
        if not pair["after"]:
            always.setdefault(pair["cheaper"], []).append(pair["than"])
    said += [f"{cheap} costs less than {listed(others)} for any number of images" for cheap, others in always.items()]
    places = {(row["device"], row["training_device"]) for row in rows if row["seconds_per_image"]}
    caveat = "" if len(places) == 1 else "; devices differ, so the times do not compare the models alone"
    return f"Total cost in seconds, training included: {'; '.join(said)}{caveat}."


def _round(images: int) -> str:
    return f"{float(f'{images:.3g}'):,.0f}"


def history(rows: Sequence[Row], frechet: str) -> list[str | None]:
    """Say of each training with scored checkpoints whether it was still getting better at its end."""
    said = []
    for row in rows:
        found = trend(row)
        if found is None:
            continue
        verdict, point = found
        end = formatting.metric(QUALITY, row["metrics"][QUALITY]) if QUALITY in row["metrics"] else formatting.MISSING
        then = formatting.metric(QUALITY, point["entry"])
        since = "the checkpoint before" if point["percent"] is None else f"{point['percent']}% of training"
        said.append(
            {
                "better": f"{row['label']} was still getting better ({then} at {since}, {end} at the end)",
                "worse": f"{row['label']} has got worse since {since} ({then} there, {end} at the end)",
                "steady": f"{row['label']} shows no significant change since {since} ({then} there, {end} at the end)",
            }[verdict]
        )
    return [f"Training ({frechet}): {'; '.join(said)}."] if said else []


def cost(rows: Sequence[Row], budget: str | None) -> str | None:
    """State the budget, and what it came to in the other unit."""
    images = [
        f"{row['label']} {formatting.count(row['images_seen'])}" for row in rows if row["images_seen"] is not None
    ]
    times = [
        f"{row['label']} {formatting.seconds(row['training_seconds'])}"
        for row in rows
        if row["training_seconds"] is not None
    ]
    if not images or not times:
        return None
    unit, _, amount = (budget or "").partition("=")
    if unit in ("seconds", "images") and not _kept(rows, unit, float(amount)):
        unit = "unequal"
    if unit == "seconds":
        return f"Equal training time, {formatting.seconds(float(amount))} each; images seen: {listed(images)}."
    if unit == "images":
        return f"Equal training images, {formatting.count(float(amount))} each; training time: {listed(times)}."
    if ":" in unit:
        unit = "own"
    first = {
        "recipe": "Unequal budgets, each model's own recipe; images seen",
        "own": "Unequal budgets, set for each model; images seen",
        "unequal": f"Unequal budgets, not the {budget} that was asked for; images seen",
    }.get(unit, "Images seen")
    return f"{first} in training: {listed(images)}; training time: {listed(times)}."


def _kept(rows: Sequence[Row], unit: str, amount: float) -> bool:
    """Tell whether every training ended within 5% (and an update of 10 seconds or 512 images) of the budget."""
    name, slack = ("training_seconds", 10.0) if unit == "seconds" else ("images_seen", 512.0)
    used = [row[name] for row in rows if row[name] is not None]
    return all(amount <= value <= 1.05 * amount + slack for value in used)


def memorisation(rows: Sequence[Row], controls: Mapping[str, Any]) -> str | None:
    """Flag the rows that stand closer to training images than held-out real images do."""
    name = "memorised"
    floor = controls["floor"]["metrics"]
    known = [row for row in rows if name in row["metrics"]]
    if not known or name not in floor:
        return None
    flagged = [row for row in known if memorises(row["metrics"], floor)]
    cells = [f"{_name(row)} {formatting.metric(name, row['metrics'][name])}" for row in flagged or known]
    if len(cells) > 4:
        highest = max((row["metrics"][name] for row in known), key=lambda entry: entry["value"])
        cells = [f"at most {formatting.metric(name, highest)}"]
    held_out = formatting.metric(name, floor[name])
    if flagged:
        return (
            f"Memorisation: {listed([_name(row) for row in flagged])} {'stands' if len(flagged) == 1 else 'stand'} "
            f"closer to training images than held-out real images do ({listed(cells)}; held out {held_out})."
        )
    return f"Memorisation: no sign of copied training images ({listed(cells)}; held-out real images {held_out})."


def faults(anchors: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return what makes the report weaker than it looks: blind metrics, missing numbers, other training data."""
    wrong = [check for check in anchors["checks"] if not check["ok"]]
    sentences = [formatting.check_sentence(check, anchors["anchors"]) for check in wrong]
    found = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]
    trained_on = anchors["reference"]["training_fingerprint"]
    for row in rows:
        data = row["data"]
        if row["setting"] is None and isinstance(data, dict) and data.get("fingerprint") not in (None, trained_on):
            found.append(f"{row['label']} was trained on other images than the reference is drawn from.")
        if not row["metrics"]:
            found.append(f"{row['label']} has no metrics.json: its samples are not scored.")
        if row["timed_otherwise"]:
            found.append(f"{row['label']} was timed with another sampler than its samples were drawn with.")
    return found
