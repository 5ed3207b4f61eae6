"""The page of a study: README.md made from study.json alone. Standard library only."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.cli import UserError
from comparison.files import read_json, write_json, write_text
from comparison.formatting import join_words
from comparison.report.tradeoffs import QUALITY

Study = dict[str, Any]
Row = Mapping[str, Any]
Entry = dict[str, Any]
Page = Callable[[Study], str]  # study.json -> README.md
Pictures = Callable[[Study, Path], object]  # study.json, folder -> PNG files

SCHEMA = 1
SHOWN = (
    *(QUALITY, "kernel_distance", "precision", "recall", "coverage"),
    *("modes_covered", "modes_matched", "memorised", "sharpness"),
)
FRACTIONS = ("precision", "recall", "coverage", "memorised", "modes_matched")  # metrics that lie in [0, 1]
NOT_ASKED = "not among --cells"  # why a cell was left out
EQUAL = 0.1  # relative difference of training times up to which they count as equal


def write(out: Path, name: str, content: Study, page: Page, pictures: Pictures) -> None:
    """Write study.json, README.md and the pictures of a study."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "study.json", {"schema": SCHEMA, "study": name, **content})
    rewrite(out, name, page, pictures)


def rewrite(out: Path, name: str, page: Page, pictures: Pictures) -> None:
    """Write README.md and the pictures from study.json; raise UserError if it is unusable."""
    path = out / "study.json"
    study = read_json(path)
    if study.get("study") != name or study.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a study.json of the study {name}, schema {SCHEMA}; run the study again")
    try:
        text = page(study)
        pictures(study, out)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); run the study again") from None
    write_text(out / "README.md", text)
    print(out / "README.md", flush=True)


def pool(entries: Sequence[Entry]) -> Entry:
    """Return the mean over trainings with a 95% interval by Student's t; a single entry keeps its own interval."""
    if len(entries) == 1:
        return dict(entries[0])
    values = [entry["value"] for entry in entries]
    mean, half = sum(values) / len(values), formatting.student_half_width(values)
    return {**entries[0], "value": mean, "interval": [mean - half, mean + half]}


def paired(topic: str, pairs: Sequence[tuple[float, float]]) -> list[str]:
    """Return a sentence on what a part changes, from (with it, without it) distances of pairs of trainings.

    The ratio is the geometric mean with a 95% interval by Student's t; none for fewer than two pairs.
    """
    if len(pairs) < 2:
        return []
    entry = pool([{"value": math.log(with_ / without)} for with_, without in pairs])
    verdict = "better" if entry["interval"][1] < 0 else "worse" if entry["interval"][0] > 0 else "no significant change"
    low, middle, high = (f"{math.exp(v):.2f}" for v in (entry["interval"][0], entry["value"], entry["interval"][1]))
    count = f"{len(pairs)} pairs of trainings that differ in this part alone"
    return [f"{topic}: {verdict}, {middle} times the Frechet distance ({low} to {high}; {count})."]


def pool_metrics(cells: Sequence[Row]) -> dict[str, Entry]:
    """Return metric -> pooled entry of one cell's trainings; intervals of fractions are clipped to [0, 1]."""
    shared = set.intersection(*(set(cell["metrics"]) for cell in cells))
    pooled = {name: pool([cell["metrics"][name] for cell in cells]) for name in cells[0]["metrics"] if name in shared}
    for entry in (pooled[name] for name in FRACTIONS if name in pooled):
        entry["interval"] = [min(1.0, max(0.0, bound)) for bound in entry["interval"]]
    return pooled


def pooled(study: Study) -> list[dict[str, Any]]:
    """Return a row per cell: the first training with the metrics pooled over the seeds."""
    rows = []
    for name in dict.fromkeys(cell["name"] for cell in study["cells"]):
        cells = [cell for cell in study["cells"] if cell["name"] == name]
        rows.append({**cells[0], "metrics": pool_metrics(cells)})
    return rows


def scaled(entry: Row, factor: float) -> Entry:
    """Return an entry in another unit."""
    bounds = {"interval": [factor * bound for bound in entry["interval"]]} if "interval" in entry else {}
    return {**entry, "value": factor * entry["value"], **bounds}


def join(*parts: str | Sequence[str] | None) -> str:
    """Join the parts of a page with empty lines; lists become items, empty parts are dropped."""
    blocks = [part if isinstance(part, str) else "\n".join(f"- {line}" for line in part) for part in parts if part]
    return "\n\n".join(blocks) + "\n"


def page(
    study: Study,
    title: str,
    question: str,
    setup: str,
    body: Sequence[str | Sequence[str] | None],
    notes: Sequence[str | None] = (),
) -> str:
    """Return README.md of a study.

    Args:
        study: content of study.json.
        title, question: heading, and the question that the study answers.
        setup: what was trained and for how long; the environment is appended.
        body: pictures, sentences and tables.
        notes: limitations.
    """
    left: dict[str, list[str]] = {}
    for item in study.get("left_out", ()):
        left.setdefault(item["reason"], []).append(item["name"])
    return join(
        f"# Study: {title}",
        question,
        f"{setup} {machine(study['cells'])}",
        protocol(study) if "scoring" in study else None,
        *body,
        "## Notes" if any(notes) else None,
        [line for line in notes if line],
        "## Not measured" if left else None,
        [f"{reason[0].upper()}{reason[1:]}: {', '.join(names)}." for reason, names in left.items()],
    )


def machine(cells: Sequence[Row]) -> str:
    """Return the environment line: the devices, precisions, versions and commits of the trainings."""
    training = [cell["training"] for cell in cells]
    values = {
        "Trained on {}": [entry.get("device") for entry in training],
        "precision {}": [entry.get("precision") for entry in training],
        "torch {}": [(entry.get("versions") or {}).get("torch") for entry in training],
        "commit {} (`+`: with local changes)": [entry.get("git_commit") for entry in training],
    }
    distinct = {text: [value for value in dict.fromkeys(every) if value] for text, every in values.items()}
    return "; ".join(text.format(join_words(every)) for text, every in distinct.items() if every) + "."


def protocol(study: Study) -> str:
    """Return the protocol line: the reference of the scores, and what the intervals cover."""
    scoring, names = study["scoring"], [cell["name"] for cell in study["cells"]]
    reference, trainings = scoring["reference"], {names.count(name) for name in names}
    if trainings == {1}:
        intervals = "resampling from the same checkpoint. One seed per row, so seed-to-seed variance is not estimated."
    else:
        intervals = f"{max(trainings)} trainings with different seeds (Student's t)"
        intervals += "." if len(trainings) == 1 else "; for a single training, resampling from its checkpoint."
    return (
        f"Scores: {scoring['n']:,} samples per row against as many training images of {reference['name']} "
        f"({reference['fingerprint']}), in features of the {scoring['extractor']['name']}. Distances are comparable "
        f"within one table only. 95% intervals cover {intervals}"
    )


def table(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """Return a table of rows; `columns` maps a heading to the function that makes its cells."""
    return formatting.markdown_table(list(columns), [[column(row) for column in columns.values()] for row in rows])


def scores(names: Sequence[str]) -> dict[str, Callable[[Row], str]]:
    """Return the columns of metrics for `table`."""

    def score(name: str) -> Callable[[Row], str]:
        return lambda row: formatting.metric(name, row["metrics"].get(name))

    return {formatting.METRICS[name][0]: score(name) for name in names}


def score_table(rows: Sequence[Row], floor: Row | None, extra: Mapping[str, Callable[[Row], str]]) -> str:
    """Return the table of metrics: the row of the `floor`, if given, then `rows`; `extra` columns come first."""

    names = [name for name in SHOWN if any(name in row["metrics"] for row in rows)]
    columns: dict[str, Callable[[Row], str]] = {name: partial(_of_models, extra[name]) for name in extra}
    columns |= scores(names)
    first = [{"label": "real images (floor)", "metrics": floor}] if floor else []
    return table([*first, *rows], {"": lambda row: row["label"], **columns})


def _of_models(column: Callable[[Row], str], row: Row) -> str:
    return column(row) if "model" in row else formatting.MISSING


def unequal_time_note(rows: Sequence[Row]) -> str | None:
    """Return a note if the trainings took different times."""
    times = {row["label"]: row["training"]["seconds"] for row in rows}
    if not times or max(times.values()) <= (1 + EQUAL) * min(times.values()):
        return None
    text = join_words([f"{label} {formatting.seconds(value)}" for label, value in times.items()])
    return f"Training times differ, so the rows are not compared at equal time: {text}."
