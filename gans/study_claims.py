"""What the literature lets expect of the four studies, held against their numbers. Standard library only.

Each claim says what was expected and by whom, what was found, and whether the intervals decide it; a claim whose
numbers are missing is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comparison import formatting
from comparison.formatting import listed
from comparison.report.tradeoffs import QUALITY
from study_cells import LABELS, MODE_COUNTS, PERCENTS, PHOTOS, PRESETS, SHAPES

Row = Mapping[str, Any]
Entry = Mapping[str, Any]
VERDICTS = {True: "As expected", False: "Contradicts", None: "Not decided"}
EARLY = 0.05  # share of images that show a mode; below it a model has not learned to draw figures yet
NOTICEABLE = 1.1  # a last distance up to so many times the best one is called no worse: the best of several is lucky


def of_one_training(said: str) -> str:
    """Weaken the verdict of a claim whose intervals are of one training each."""
    for words in (VERDICTS[True], VERDICTS[False]):
        said = said.replace(f"**{words}.**", f"**{words}, in one training each.**")
    return said


def claim(expected: str, found: str, holds: bool | None) -> str:
    """Write a claim as an item of a list."""
    return f"**{VERDICTS[holds]}.** Expected: {expected}. Found: {found}."


def below(low: Entry | None, high: Entry | None) -> bool | None:
    """Tell whether one entry is below another; None where an interval is missing or the intervals do not decide."""
    if not low or not high or "interval" not in low or "interval" not in high or not formatting.apart(low, high):
        return None
    return bool(low["value"] < high["value"])


def at_source(rows: Sequence[Row], source: str) -> dict[str, Row]:
    """Return variant -> row of one source."""
    return {row["variant"]: row for row in rows if row["source"] == source}


def named(name: str, mine: Mapping[str, Row], variants: Sequence[str] = PRESETS) -> str:
    """List a metric of several variants."""
    known = [v for v in variants if v in mine and name in mine[v]["metrics"]]
    return listed([f"{LABELS[v]} {formatting.metric(name, mine[v]['metrics'][name])}" for v in known])


def said_of(source: str, data_name: str) -> str:
    """Name a source in a sentence."""
    return data_name if source == PHOTOS else "shapes" if source == SHAPES else source


def stability(rows: Sequence[Row], cells: Sequence[Row], data_name: str) -> list[str]:
    """Return the claims of the study of stability: the course of a training, and its end."""
    said = []
    for source in (PHOTOS, SHAPES):
        mine = at_source(rows, source)
        if not all(preset in mine for preset in PRESETS):
            continue
        where = said_of(source, data_name)
        plain, plus = (mine[preset]["metrics"] for preset in PRESETS)
        if "worsened" in plain and "worsened" in plus:
            low, high = plain["worsened"].get("interval", (0, 9e9))
            holds = True if low > NOTICEABLE else False if high < NOTICEABLE else None
            said.append(
                claim(
                    "DCGAN gets worse again after its best, as StudioGAN's log on CIFAR-10 does from 49 to 137",
                    f"the last distance on {where}, over the best one on the way, is {named('worsened', mine)}",
                    holds,
                )
            )
            said.append(
                claim(
                    "with spectral norm and a moving average the score swings less from one point to the next "
                    "(Miyato et al. 2018; Yazici et al. 2019)",
                    f"on {where} neighbouring scores differ by a factor of {named('swing', mine)} on average",
                    below(plus["swing"], plain["swing"]),
                )
            )
            said.append(detector(cells, source, where))
        said.append(
            claim(
                "the cured GAN ends at a lower distance (42.7 and 17.8 in pytorch-gan-collections, both CIFAR-10)",
                f"after the training on {where}: {named(QUALITY, mine)}",
                below(plus[QUALITY], plain[QUALITY]),
            )
        )
    return said


def detector(cells: Sequence[Row], source: str, where: str) -> str:
    """Return the claim on trainings whose coverage once fell below half its best."""
    counts, told = [], []
    for preset in PRESETS:
        mine = [c for c in cells if c["source"] == source and c["variant"] == preset and c.get("along")]
        fallen = [c["along"]["collapsed_at"] for c in mine if c["along"]["collapsed_at"] is not None]
        counts.append(len(fallen))
        when = f" (first after {formatting.count(min(fallen))} images)" if fallen else ""
        told.append(f"{len(fallen)} of {len(mine)} of {LABELS[preset]}{when}")
    plain, plus = counts
    return claim(
        "DCGAN loses modes that it had (recall-like 0.80 to 0.30 in StudioGAN's log), the cured GAN does not",
        f"on {where} coverage fell below half its best in {listed(told)}",
        True if plain and not plus else False if plus > plain else None,
    )


def collapse(rows: Sequence[Row], floors: Mapping[str, Row], data_name: str) -> list[str]:
    """Return the claims of the study of mode collapse."""
    said = []
    shapes, photos = at_source(rows, SHAPES), at_source(rows, PHOTOS)
    name = "modes_covered"
    if all(name in shapes.get(preset, {}).get("metrics", {}) for preset in PRESETS):
        floor = floors[SHAPES][name]
        plain, plus = (shapes[preset]["metrics"][name] for preset in PRESETS)
        said.append(
            claim(
                "DCGAN leaves modes out (99 of 1,000 on StackedMNIST in Srivastava et al. 2017)",
                f"on shapes {named(name, shapes, ['dcgan'])}, as many real images {formatting.metric(name, floor)}",
                below(plain, floor),
            )
        )
        said.append(
            claim(
                "the cured GAN covers more of them",
                f"{named(name, shapes)}; {named('modes_matched', shapes)} of the images show a mode",
                below(plain, plus),
            )
        )
    for name in ("recall", "coverage"):
        if not all(name in photos.get(preset, {}).get("metrics", {}) for preset in PRESETS):
            continue
        published = {"recall": "0.21", "coverage": "0.28"}[name]
        plain, plus = (photos[preset]["metrics"][name] for preset in PRESETS)
        said.append(
            claim(
                f"DCGAN's {name} is low (StudioGAN's benchmark on CIFAR-10, other features: {published}) and the cured "
                "GAN's higher",
                f"on {data_name} {named(name, photos)}, real images {formatting.metric(name, floors[PHOTOS][name])}",
                below(plain, plus),
            )
        )
    return said


def modes(rows: Sequence[Row]) -> list[str]:
    """Return the claims of the study of the number of modes."""
    said = []
    early = []
    few, many = (at_source(rows, f"shapes:{count}") for count in (MODE_COUNTS[0], MODE_COUNTS[-1]))
    for variant in LABELS:
        if variant in few and few[variant]["metrics"]["modes_matched"]["value"] < EARLY:
            early.append(variant)
        elif variant in few and variant in many:
            shares = [mine[variant]["metrics"]["share"] for mine in (few, many)]
            falls = below(shares[1], shares[0])
            one_shot = variant in PRESETS
            expected = (
                "a network that must draw the image in one shot covers a smaller share of more modes"
                if one_shot
                else "a model that removes noise step by step covers the same share of more modes"
            )
            told = listed([f"{as_share(s)} of {c:,}" for s, c in zip(shares, (10, 1000), strict=True)])
            holds = falls if one_shot else None if falls is None else not falls
            said.append(claim(expected, f"{LABELS[variant]} covers {told} (of what as many real images cover)", holds))
    for variant, source in (
        ("dcgan-plus", "the cure helps"),
        ("ddgan", "all 1,000 modes of StackedMNIST for DDGAN in Xiao et al. 2022, 99 for DCGAN in Srivastava 2017"),
        ("ddpm", "denoising breaks the step up, Xiao et al. 2022"),
    ):
        if variant in many and "dcgan" in many and variant not in early:
            pair = [many[v]["metrics"]["share"] for v in ("dcgan", variant)]
            matched = named("modes_matched", many, ["dcgan", variant])
            said.append(
                claim(
                    f"with {MODE_COUNTS[-1]:,} modes {LABELS[variant]} covers more than DCGAN ({source})",
                    f"{as_share(pair[1])} and {as_share(pair[0])}; images that show a mode: {matched}",
                    below(*pair),
                )
            )
    return [*said, *(_early(LABELS[variant], few[variant]) for variant in early)]


def _early(label: str, row: Row) -> str:
    """Say that a model draws no figures yet."""
    shown = formatting.metric("modes_matched", row["metrics"]["modes_matched"])
    seen = formatting.count(row["training"]["images_seen"])
    return (
        f"{label} shows a mode in {shown} of its images even where there are {MODE_COUNTS[0]}: after {seen} training "
        "images it is too early to say anything of their number."
    )


def as_share(entry: Entry) -> str:
    """Write a share with its interval in per cent."""
    return f"{formatting.with_error(100 * entry['value'], 100 * formatting.half_width(entry))}%"


def overfitting(rows: Sequence[Row]) -> list[str]:
    """Return the claims of the study of overfitting."""
    known = {(row["percent"], row["augment"]): row for row in rows}
    least = PERCENTS[-1]
    said = [
        _gaps(
            "without DiffAugment the discriminator knows few images by heart: its gap between training and held-out "
            "images is wider than with all of them (Karras et al. 2020)",
            known,
            ((100, False), (least, False)),
        ),
        _gaps(
            f"DiffAugment narrows that gap at {least}% (Zhao et al. 2020)",
            known,
            ((least, True), (least, False)),
        ),
    ]
    published = {100: "9.59 to 8.70", 20: "21.58 to 14.04", 10: "39.78 to 22.40"}
    for percent in PERCENTS:
        pair = [known.get((percent, augment)) for augment in (True, False)]
        if pair[0] and pair[1]:
            entries = [row["metrics"][QUALITY] for row in pair if row]
            told = f"{formatting.metric(QUALITY, entries[1])} without, {formatting.metric(QUALITY, entries[0])} with it"
            was = f"BigGAN's FID from {published[percent]} in Zhao et al. 2020"
            said.append(claim(f"at {percent}% DiffAugment lowers the distance ({was})", told, below(*entries)))
    said.append(_copies(rows))
    return [line for line in said if line]


def _gaps(expected: str, known: Mapping[Any, Row], pair: Sequence[Any]) -> str | None:
    entries = [(known.get(key) or {}).get("gap") for key in pair]
    if not all(entries):
        return None
    told = listed(
        [f"{known[key]['label']} {formatting.metric('gap', e)}" for key, e in zip(pair, entries, strict=True)]
    )
    return claim(expected, told, below(entries[0], entries[1]))


def _copies(rows: Sequence[Row]) -> str | None:
    judged = [row for row in rows if "held_out" in row]
    if not judged:
        return None
    more = [row for row in judged if below(row["held_out"], row["metrics"]["memorised"])]
    told = [
        f"{row['label']} ({formatting.metric('memorised', row['metrics']['memorised'])}, held-out images "
        f"{formatting.metric('memorised', row['held_out'])})"
        for row in more
    ]
    found = f"more than held-out images do in {listed(told)}" if more else "nowhere more often than held-out images do"
    return claim(
        "even where the discriminator overfits, samples are not copies (Webster et al. 2019)",
        f"samples stand unusually close to a training image {found}",
        not more,
    )


CLAIMS: dict[str, Callable[..., list[str]]] = {
    "stability": stability,
    "collapse": collapse,
    "modes": modes,
    "overfitting": overfitting,
}
