"""The pages of study.py: README.md of each study, from its study.json alone. Standard library only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import study_claims
from comparison import formatting
from comparison.report import study_page
from comparison.report.study_page import pooled
from study_cells import PHOTOS

Row = Mapping[str, Any]
QUESTIONS = {
    "stability": "Does the score of a GAN improve steadily while it trains, and is its last state its best?",
    "collapse": "How much of the data does a GAN leave out?",
    "modes": "How does a network that draws an image in one shot cope with more and more modes, beside two models that "
    "take many small steps, at an equal budget?",
    "overfitting": "What does a GAN do with fewer images: does its discriminator learn them by heart, do its samples "
    "copy them, and what does DiffAugment change?",
}
LIMITS = {
    "stability": "The distance along the way is of few images, so its best value is a little lucky; the table's is of "
    "more images, from the last checkpoint, and `best checkpoint` is the one with the best score on the way.",
    "collapse": "Modes are counted by fitting every mode to each image, with a reject class; a mode of which real "
    "images as many as the samples show none is not to be expected of a model either (floor).",
    "modes": "Covered modes depend on how many images are drawn, so that the share is of what as many real images "
    "cover. The budget is equal, the number of images seen is not, and neither are the networks.",
    "overfitting": "The gap is the mean logit of training images less that of held-out ones over the last half of the "
    "training, its interval from five stretches of it: of one training, not between trainings. The distance along the "
    "way is to images that the training has. A sample stands "
    "`unusually near` a training image where it is less than half as far from it as that is from its nearest other.",
}


def page(study: Mapping[str, Any]) -> str:
    """Return README.md of a study."""
    name = study["study"].removeprefix("gan-")
    rows = mode_rows(study) if name == "modes" else pooled_rows(study)
    sources = [source for source in study["floors"] if any(row["source"] == source for row in rows)]
    blocks: list[str | Sequence[str] | None] = []
    for source in sources:
        if len(sources) > 1:
            blocks.append(f"### {study_claims.said_of(source, photos_name(study))}")
        mine = [row for row in rows if row["source"] == source]
        blocks.append(study_page.score_table(mine, study["floors"][source], columns(name, mine)))
    left = study["left_out"]
    return study_page.join(
        f"# Study: {name}",
        QUESTIONS[name],
        setting(study, rows),
        scoring(study),
        "## Expected and found",
        claims(name, study, rows),
        f"![The numbers below, drawn]({name}.png)",
        "## Numbers",
        *blocks,
        "## How far this goes",
        [*limits(name, study), *([f"Left out: {formatting.listed(left)}."] if left else [])],
    )


def photos_name(study: Mapping[str, Any]) -> str:
    """Return the name of --data."""
    known = study["scoring"].get(PHOTOS)
    return known["reference"]["name"] if known else PHOTOS


def pooled_rows(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per cell, its seeds taken together, also in the number of images seen."""
    rows = []
    for row in pooled(dict(study)):
        seen = [cell["training"]["images_seen"] for cell in study["cells"] if cell["name"] == row["name"]]
        rows.append({**row, "training": {**row["training"], "images_seen": sum(seen) / len(seen)}})
    return rows


def mode_rows(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the study of modes, with `modes`, their `floor` and the `share` of it that is covered."""
    rows = []
    for row in pooled_rows(study):
        floor = study["floors"][row["source"]]
        covered, of = row["metrics"]["modes_covered"], max(floor["modes_covered"]["value"], 1)
        share = {"value": covered["value"] / of, "n": covered["n"]}
        if "interval" in covered:
            share["interval"] = [bound / of for bound in covered["interval"]]
        modes = int(row["source"].partition(":")[2])
        rows.append({**row, "modes": modes, "floor": floor, "metrics": {**row["metrics"], "share": share}})
    return rows


def setting(study: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Say what was trained, for how long and on what."""
    options = study["options"]
    budget = f"{options['images']:,} images" if options["images"] else f"{options['seconds']:g} s"
    gan = next((row["training"]["options"] for row in rows if row["model"] == "gans"), None)
    parts = [f"Each network trained on {budget}" if options["images"] else f"Each network trained for {budget}"]
    parts.append(f"at {options['image_size']} pixels")
    text = " ".join(parts)
    if gan:
        text += (
            f"; both GANs with {gan['ngf']} channels at their finest stage and batches of {gan['batch_size']}, half of "
            "the documented sizes, for more updates in the time"
        )
    if any(row["model"] != "gans" for row in rows):
        text += f"; the other models with the settings of `{options['preset']}` in flags.sh"
    if any(row["source"] != PHOTOS for row in rows):
        text += "; shapes are not mirrored, since mirrored ones are not in the data"
    note = f" {options['data_note']}" if options.get("data_note") and photos_name(study) != PHOTOS else ""
    return f"{text}.{note} {study_page.machine(rows)}"


def scoring(study: Mapping[str, Any]) -> str:
    """Say what the distances are and how far the intervals reach."""
    known = study["scoring"]
    count = next(iter(known.values()))["n"]
    seen: dict[str, list[str]] = {}
    for source, facts in known.items():
        seen.setdefault(facts["extractor"]["name"], []).append(study_claims.said_of(source, facts["reference"]["name"]))
    named = [f"the {name} ({formatting.listed(sources)})" for name, sources in seen.items()]
    text = (
        f"{count} images of each row are scored against as many training images, in features of "
        f"{formatting.listed(named)}: relative within one table, not comparable with published figures. 95% intervals: "
    )
    if of_one_seed(study):
        text += (
            "what another draw from the same training would give. One seed per row, so no claim about chance between "
            "trainings."
        )
    else:
        text += f"over {study['options']['seeds']} trainings with different seeds (Student's t)."
    return text + study_page.counted_leniently(dict(study))


def of_one_seed(study: Mapping[str, Any]) -> bool:
    """Tell whether every row is of a single training."""
    return len({cell["name"] for cell in study["cells"]}) == len(study["cells"])


def claims(name: str, study: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return what was expected and what was found."""
    data_name = photos_name(study)
    arguments = {
        "stability": (rows, study["cells"], data_name),
        "collapse": (rows, study["floors"], data_name),
        "modes": (rows,),
        "overfitting": (rows,),
    }
    said = study_claims.CLAIMS[name](*arguments[name]) or ["Too few of its trainings are there to say."]
    return [study_claims.of_one_training(line) for line in said] if of_one_seed(study) else said


def columns(name: str, rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Return the columns before the scores."""
    found: dict[str, Callable[[Row], str]] = {
        "images seen": lambda row: formatting.count(row["training"]["images_seen"])
    }

    def entry(where: str, key: str) -> Callable[[Row], str]:
        return lambda row: formatting.metric(key, (row.get(where) or {}).get(key))

    if name == "stability":
        found |= {"last / best": entry("metrics", "worsened"), "swing": entry("metrics", "swing")}
    if name == "modes":
        found |= {"NFE": lambda row: f"{row['nfe']:g}"}
        found |= {"share of modes": lambda row: study_claims.as_share(row["metrics"]["share"])}
    if name == "overfitting":
        found |= {
            "images": lambda row: formatting.count(row["training_images"]),
            "passes": lambda row: formatting.plain(row["training"]["images_seen"] / row["training_images"], 2),
            "gap": lambda row: formatting.metric("gap", row.get("gap")),
            "held out": lambda row: formatting.metric("memorised", row.get("held_out")),
        }
    return found


def limits(name: str, study: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know before believing the numbers."""
    options = study["options"]
    budget = f"{options['images']:,} images" if options["images"] else formatting.seconds(options["seconds"])
    said = [
        LIMITS[name],
        f"Small networks after {budget}: far from published training lengths, where things may look different. What "
        "does not show here may show later.",
    ]
    told = None if options["images"] else study_page.unequal(study["cells"])
    return [*said, *([told] if told else [])]
