"""Numbers, intervals and tables as text, for the console and Markdown. Standard library only."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "-"

METRICS = {  # key in metrics.json -> heading, better
    "frechet_distance": ("Frechet", "lower"),
    "kernel_distance": ("kernel x1000", "lower"),
    "sliced_wasserstein": ("sliced W2", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "density": ("density", "higher"),
    "coverage": ("coverage", "higher"),
    "class_entropy": ("classes, bits", "higher"),
    "memorised": ("memorised", "lower"),
    "nearest_ratio": ("nearest ratio", "higher"),
    "modes_covered": ("modes", "higher"),
    "modes_kl": ("modes KL", "lower"),
    "modes_matched": ("show a mode", "higher"),
    "sharpness": ("residual", "lower"),
}
STANDARD = {  # key in the section `standard` of metrics.json -> heading
    "fid": "FID",
    "pytorch_fid": "FID, pytorch-fid",
    "kid": "KID x1000",
    "inception_score": "inception score",
    "inception_precision": "precision",
    "inception_recall": "recall",
}
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5% quantile at 1 to 9 degrees
_PERCENT = ("memorised", "modes_matched")
_THOUSANDTHS = ("kernel_distance", "kid")


def format_number(value: float, digits: int = 3) -> str:
    """Return a number as text with so many significant digits, without an exponent from 1e-4 to 1e7."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits + 4) or abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e" in text or abs(value) >= 1000 else text


def format_interval(value: float, half: float) -> str:
    """Return value ± half width as text; the half width has one digit if its first digit is 3 or more, else two."""
    if half <= 0 or abs(value) >= 1e5:
        return format_number(value)
    step = 0
    while half * 10**step < 2.95 and step < 6:
        step += 1
    return f"{round(value, step) + 0.0:,.{step}f} ± {half:,.{step}f}"  # + 0.0 avoids -0


def half_width(entry: Mapping[str, Any]) -> float:
    """Return the wider side of an entry's interval (the range may cut the other side), 0 without interval."""
    low, high = entry.get("interval") or (entry["value"], entry["value"])
    return max(entry["value"] - low, high - entry["value"])


def student_half_width(values: Sequence[float]) -> float:
    """Return the half width of the 95% interval of a mean by Student's t; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    return STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def differ_significantly(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return True if two entries of metrics.json differ by more than the 95% interval of their difference.

    An entry with the values of several trainings has the larger of the intervals by resampling and by Student's t.
    """
    sides = [max(half_width(entry), student_half_width(entry.get("trainings", ()))) for entry in (a, b)]
    return abs(a["value"] - b["value"]) > math.hypot(*sides)


def metric(name: str, entry: Mapping[str, Any] | None, *, error: bool = True) -> str:
    """Return an entry of metrics.json as a table cell, with the range over several trainings in square brackets."""
    if entry is None or entry.get("value") is None:
        return MISSING
    text = _metric(name, entry, half_width(entry) if error else 0.0)
    if trainings := entry.get("trainings"):
        low, high = (_metric(name, {"value": value}, 0.0) for value in (min(trainings), max(trainings)))
        text += f" [{low} to {high}]"
    return text


def _metric(name: str, entry: Mapping[str, Any], half: float) -> str:
    value = entry["value"]
    if name == "modes_covered":
        return f"{value:.0f} of {entry['total']}" if "total" in entry else f"{value:.0f}"
    if name in _PERCENT:
        return f"{100 * value:.1f}%"
    if name in _THOUSANDTHS:
        value, half = 1000 * value, 1000 * half
    return format_interval(value, half)


def count(value: float | None) -> str:
    """Return a large count as text: 3.58 M, 62.3 k."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (size if size != 1e4 else 1e3):.3g}{unit}"
    return f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Return a duration with its unit."""
    if value is None:
        return MISSING
    if value >= 7200:
        return f"{value / 3600:.3g} h"
    if value >= 300:
        return f"{value / 60:.3g} min"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def memory(value: float | None) -> str:
    """Return bytes as MiB or GiB."""
    if value is None:
        return MISSING
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def rate(value: float | None) -> str:
    """Return images per second as text."""
    return MISSING if value is None else f"{format_number(value)}/s"


def number(value: float | None) -> str:
    """Return a number as text, `-` for None."""
    return MISSING if value is None else format_number(value)


def join_words(words: Sequence[str]) -> str:
    """Return the words as an enumeration: A, B and C."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def console_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with columns aligned by spaces, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a GitHub table; a `|` inside a cell is escaped."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def metrics_columns(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics of any of the rows, in table order."""
    return [name for name in METRICS if any(name in row for row in entries)]


def check_sentence(check: Mapping[str, Any], anchors: Mapping[str, Any]) -> str:
    """Return the sentence on a control that a metric does not rank as expected."""
    name, verdict = check["metric"], check["verdict"]
    label, against = anchors[check["anchor"]]["label"], anchors[check["against"]]["label"]
    cells = [metric(name, anchors[check[key]]["metrics"][name]) for key in ("anchor", "against")]
    if verdict == "unchanged":
        result = f"cannot tell '{label}' from '{against}' at this number of images"
    else:
        result = f"finds '{label}' {verdict} than '{against}'"
    return (
        f"{METRICS[name][0]} {result} ({cells[0]} and {cells[1]}), where {' or '.join(check['expected'])} is expected"
    )
