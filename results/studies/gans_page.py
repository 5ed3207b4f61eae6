"""The pages and pictures of gans.py, from study.json alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.models import DDGAN, DDPM, GAN, MODELS
from comparison.report import study_page
from comparison.report.panels import Bar, Bars, Line, Lines
from comparison.report.study_page import scaled
from comparison.report.tradeoffs import QUALITY

KINDS = {  # kind -> question, caption of the picture, note
    "stability": (
        "Does a GAN's score improve steadily during training, and is its last checkpoint its best?",
        "Distance and coverage along every training, a line style for each seed",
        "`last / best` and `swing` (mean factor between neighbouring scores in the second half) use scores of few "
        "samples, so their best value is optimistic. The distances in the table use more samples, of the last "
        "checkpoint or of the one with the best score. `collapsed`: trainings whose coverage fell below half its best.",
    ),
    "collapse": (
        "How much of the data does a GAN leave out?",
        "Modes, recall and coverage, with a dot for each training",
        "Modes are counted by fitting every mode to each image, with a reject class. The floor shows how many modes as "
        "many real images cover.",
    ),
    "modes": (
        "How many modes does a GAN cover as their number grows, compared with two models that take many small steps, "
        "at an equal budget?",
        "Fraction of the modes, fraction of samples that show one, and distance against the number of modes",
        "Covered modes depend on the number of samples, so the fraction is relative to what as many real images cover. "
        "The budget is equal, but the numbers of images seen and the networks are not.",
    ),
    "overfitting": (
        "How does a GAN react to fewer images: does its discriminator memorize them, do its samples copy them, and "
        "what does DiffAugment change?",
        "Gap, copies and distance against the fraction of the images, and the distance along the smallest training",
        "`gap`: mean logit of training images minus that of held-out ones over the last half of the training, with an "
        "interval from five parts of it. `memorised`: fraction of samples less than half as far from a training image "
        "as that image is from its nearest other one. `held out`: the same for real images.",
    ),
}
PHOTOS, SHAPES = "photos", "shapes:200"  # --data; the same as `shapes`
PERCENTS = (100, 20, 10)  # of the photos
VARIANTS = {"dcgan": GAN, "dcgan-plus": GAN, "ddpm": DDPM, "ddgan": DDGAN}  # -> model
LABELS = {variant: MODELS[name].label for variant, name in VARIANTS.items()} | {"dcgan-plus": "DCGAN plus"}
COLOURS = {variant: MODELS[name].colour for variant, name in VARIANTS.items()} | {"dcgan-plus": "#7F3C8D"}
MARKERS = dict(zip(VARIANTS, "os^D", strict=True))
AUGMENTED = {True: "with DiffAugment", False: "without DiffAugment"}
FLOOR, GREY, INK = "real images (floor)", "#9A9A9A", "#333333"
DISTANCE = "Frechet distance\n(log, lower is better)"
Row = dict[str, Any]
Cell = Callable[[Row], str]


def score(name: str) -> Cell:
    """Return the column of a metric."""
    return lambda row: formatting.metric(name, row["metrics"].get(name))


COLUMNS: dict[str, dict[str, Cell]] = {  # kind -> its columns before the metrics
    "stability": {
        **{"last / best": score("worsened"), "swing": score("swing")},
        "collapsed": lambda row: f"{row['collapsed']} of {row['watched']}" if row["watched"] else formatting.MISSING,
    },
    "collapse": {},
    "modes": {
        "NFE": lambda row: f"{row['nfe']:g}",
        "fraction of modes": lambda row: f"{formatting.metric('share', scaled(row['share'], 100))}%",
    },
    "overfitting": {
        "images": lambda row: formatting.count(row["training_images"]),
        "epochs": lambda row: formatting.format_number(row["training"]["images_seen"] / row["training_images"], 2),
        "gap": lambda row: formatting.metric("gap", row.get("gap")),
        "held out": lambda row: formatting.metric("memorised", row.get("held_out")),
    },
}


def read_rows(study: Row) -> list[Row]:
    """Return a row per cell, pooled over seeds, with the number of `collapsed` trainings.

    Where modes are counted, `modes` is their number and `share` the covered fraction of the floor's modes.
    """
    rows = []
    for row in study_page.pooled(study):
        cells = [cell for cell in study["cells"] if cell["name"] == row["name"]]
        seen = sum(cell["training"]["images_seen"] for cell in cells) / len(cells)
        fell = [cell["along"]["collapsed_at"] is not None for cell in cells if cell.get("along")]
        row |= {"training": {**row["training"], "images_seen": seen}, "collapsed": sum(fell), "watched": len(fell)}
        if "modes_covered" in row["metrics"]:
            floor = study["floors"][row["source"]]["modes_covered"]["value"]
            row["share"] = scaled(row["metrics"]["modes_covered"], 1 / max(floor, 1))
            row["modes"] = int(row["source"].partition(":")[2] or 0)
        rows.append(row)
    return rows


def source_name(study: Row, source: str) -> str:
    """Return the name of a data source on the page."""
    if source == PHOTOS and PHOTOS in study["scoring"]:
        return study["scoring"][PHOTOS]["reference"]["name"]
    return source.replace(":", ", ") + " modes" if source.startswith("shapes") else source


def page(study: Row) -> str:
    """Return README.md of a kind."""
    kind, options, rows = study["study"].removeprefix("gan-"), study["options"], read_rows(study)
    amount = f"{options['images']:,} images" if options["images"] else f"{options['seconds']:g} s"
    setup = [f"Budget of each training: {amount} at {options['image_size']} pixels."]
    if gan := next((row["training"]["options"] for row in rows if row["model"] == GAN), None):
        sizes = f"{gan['ngf']} channels at the finest stage and batches of {gan['batch_size']}"
        setup.append(f"GANs have {sizes}, half of the documented sizes, for more updates in the time.")
    if any(row["model"] != GAN for row in rows):
        setup.append(f"Other models: `{options['preset']}` in flags.sh.")
    if any(row["source"] != PHOTOS for row in rows):
        setup.append("Shapes are not flipped: flipped ones are not in the data.")
    if options.get("data_note") and PHOTOS in study["scoring"]:
        setup.append(options["data_note"])
    question, picture, note = KINDS[kind]
    body = [f"![{picture}]({kind}.png)"]
    columns = {"images seen": lambda row: formatting.count(row["training"]["images_seen"]), **COLUMNS[kind]}
    sources = [source for source in study["floors"] if any(row["source"] == source for row in rows)]
    for source in sources:
        body += [f"## {source_name(study, source)}"] if len(sources) > 1 else []
        of_source = [row for row in rows if row["source"] == source]
        body.append(study_page.score_table(of_source, study["floors"][source], columns))
    short = f"The networks are small and the budget is {amount}: effects of longer training do not appear here."
    unequal = None if options["images"] else study_page.unequal_time_note(study["cells"])
    return study_page.page(study, f"GANs, {kind}", question, " ".join(setup), body, [note, short, unequal])


def draw_pictures(study: Row, out: Path) -> None:
    """Draw the picture of a kind."""
    from comparison.report.study_plots import draw

    kind, rows = study["study"].removeprefix("gan-"), read_rows(study)
    panels_of: dict[str, Callable[[Row, list[Row]], Sequence[Lines | Bars]]]
    panels_of = {"stability": courses, "collapse": bars, "modes": modes, "overfitting": overfitting}
    panels = panels_of[kind](study, rows)
    draw(panels, out / f"{kind}.png", columns={"stability": len(panels) // 2, "overfitting": 2}.get(kind, 0))


def courses(study: Row, rows: list[Row]) -> list[Lines]:
    """Return panels of distance and, below, coverage along every training, one column per source."""
    upper, lower = [], []
    for source in (PHOTOS, SHAPES):
        distances, coverages = [], []
        cells = [cell for cell in study["cells"] if cell["source"] == source and cell.get("curve")]
        for cell in cells:
            variant, style = cell["variant"], ("-", "--", ":")[cell["seed"] % 3]
            look = {"colour": COLOURS[variant], "marker": MARKERS[variant], "style": style}
            distances.append(Line(LABELS[variant], [(x, {"value": y}) for x, y, _ in cell["curve"]], **look))
            points = [(x, {"value": y}) for x, _, y in cell["curve"]]
            fell = [point for point in points if point[0] == cell["along"].get("collapsed_at")]
            coverages.append(Line(LABELS[variant], points, **look))
            coverages.append(Line("coverage below half its best", fell, INK, "X", "none"))
        if cells:
            upper.append(Lines("", DISTANCE, distances, "y", title=source_name(study, source)))
            lower.append(Lines("training images seen", "coverage\n(higher is better)", coverages))
    return [*upper, *lower]


def bars(study: Row, rows: list[Row]) -> list[Bars]:
    """Return panels of modes, recall and coverage, with a dot for each training."""
    panels: list[Bars] = []
    for source, name, axis in (
        *((SHAPES, "modes_covered", "modes of 200\n(shapes)"), (SHAPES, "modes_matched", "show a mode\n(shapes)")),
        *((PHOTOS, name, f"{name}\n({source_name(study, PHOTOS)})") for name in ("recall", "coverage")),
    ):
        drawn = []
        for row in (row for row in rows if row["source"] == source and name in row["metrics"]):
            dots = [cell["metrics"][name]["value"] for cell in study["cells"] if cell["name"] == row["name"]]
            drawn.append(Bar(row["label"], row["metrics"][name], COLOURS[row["variant"].removesuffix("-best")], dots))
        if drawn:
            floor = Bar(FLOOR, study["floors"][source][name], GREY)
            panels.append(Bars(axis, [*drawn, floor], labelled=not panels))
    return panels


def modes(study: Row, rows: list[Row]) -> list[Lines]:
    """Return panels of covered modes, samples that show one, and distance against the number of modes."""
    floor = {row["modes"]: study["floors"][row["source"]][QUALITY] for row in rows}
    ticks = sorted(floor)
    shares = lines(rows, "variant", "modes", lambda row: scaled(row["share"], 100))
    matched = lines(rows, "variant", "modes", lambda row: scaled(row["metrics"]["modes_matched"], 100))
    distances = lines(rows, "variant", "modes", lambda row: row["metrics"][QUALITY], floor)
    return [
        Lines("modes of the data (log)", "modes covered, % of those\nin as many real images", shares, "x", ticks=ticks),
        Lines("modes of the data (log)", "samples that show a mode, %", matched, "x", ticks=ticks),
        Lines("modes of the data (log)", DISTANCE, distances, "xy", ticks=ticks),
    ]


def overfitting(study: Row, rows: list[Row]) -> list[Lines]:
    """Return panels of gap, copies and distance against the fraction of the images, and of the smallest training."""
    floor = {row["percent"]: scaled(row["held_out"], 100) for row in rows if "held_out" in row}
    fraction, ticks = "fraction of the images, % (log)", sorted({row["percent"] for row in rows})
    gaps = lines(rows, "augment", "percent", lambda row: row.get("gap"))
    copies = lines(rows, "augment", "percent", lambda row: scaled(row["metrics"]["memorised"], 100), floor)
    distances = lines(rows, "augment", "percent", lambda row: row["metrics"][QUALITY])
    course = []
    for row in (row for row in rows if row["percent"] == PERCENTS[-1] and row.get("curve")):
        label, *look = LOOKS[row["augment"]]
        course.append(Line(label, [(x, {"value": y}) for x, y, _ in row["curve"]], *look))
    return [
        Lines(fraction, "gap: logit of training images\nminus that of held-out ones", gaps, "x", ticks=ticks, level=0),
        Lines(fraction, "unusually close to a training image, %", copies, "x", ticks=ticks, top=5),
        Lines(fraction, DISTANCE, distances, "xy", ticks=ticks),
        Lines(f"training images seen, with {PERCENTS[-1]}% of the images", DISTANCE, course, "y"),
    ]


LOOKS: dict[Any, tuple[str, str, str]] = {  # value of `variant` or `augment` -> label, colour, marker of its line
    **{variant: (LABELS[variant], COLOURS[variant], MARKERS[variant]) for variant in VARIANTS},
    True: (AUGMENTED[True], COLOURS["dcgan-plus"], "s"),
    False: (AUGMENTED[False], COLOURS["dcgan"], "o"),
}


def lines(
    rows: list[Row], by: str, x: str, y: Callable[[Row], Any], floor: dict[float, Any] | None = None
) -> list[Line]:
    """Return a line of y against x for each value of the column `by`, and the floor's."""
    drawn = []
    for value, (label, *look) in LOOKS.items():
        group = sorted((row for row in rows if row[by] == value), key=lambda row: row[x])
        points = [(row[x], entry) for row in group if (entry := y(row))]
        drawn += [Line(label, points, *look)] if points else []
    return [*drawn, Line(FLOOR, sorted((floor or {}).items()), GREY, "v")]
