"""The report: REPORT.md, REPORT.html, report.json and pictures, from run folders and the controls' file.

No number is typed in but the published ones. REPORT.md follows from report.json, which report.schema.json describes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.cli import UserError
from comparison.files import read_json, write_json, write_text
from comparison.report import html, published, tables
from comparison.report.findings import findings
from comparison.report.pictures import PICTURES, draw_pictures
from comparison.report.rows import read_rows
from comparison.report.tradeoffs import break_evens, main_rows, pareto_front

SCHEMA = 3
FEW_IMAGES = 1000
Report = dict[str, Any]  # the content of report.json


def load_anchors(path: Path) -> dict[str, Any]:
    """Read the controls' file of evaluate.py.

    Raises:
        UserError: missing, damaged or something else.
    """
    anchors = read_json(path)
    if not {"anchors", "checks", "n", "reference", "extractor"} <= set(anchors) or "floor" not in anchors["anchors"]:
        raise UserError(f"--anchors {path}: not a file that evaluate.py --anchors wrote")
    if not all("verdict" in check for check in anchors["checks"]):
        raise UserError(f"--anchors {path}: written by an older evaluate.py; run it again")
    return anchors


def make_report(
    name: str, folders: Sequence[Path], anchors_path: Path, out: Path, budget: str | None, data_note: str | None
) -> Report:
    """Read, draw and write a report; the same files give the same report.

    Args:
        name: title and folder name.
        folders: run folders.
        anchors_path: file of evaluate.py --anchors, its pictures in the same folder.
        out: folder of the report.
        budget: `seconds=N`, `images=N`, `recipe`, `MODEL:seconds=N,...` or None.
        data_note: a sentence on the data, or None.

    Raises:
        UserError: files are damaged, or do not belong together.
    """
    anchors = load_anchors(anchors_path)
    rows = read_rows(folders, anchors)
    protocol = ("reference", "extractor", "n", "image_size", "seed", "intervals", "versions")
    report = {
        **{"schema": SCHEMA, "name": name, "budget": budget, "data_note": data_note},
        **{key: anchors.get(key) for key in protocol},
        "findings": findings(rows, anchors, budget),
        "caveats": caveats(rows, anchors),
        "controls": anchors["anchors"],
        "checks": anchors["checks"],
        "models": rows,
        "pareto_front": [row["label"] for row in pareto_front(rows)],
        "break_even": break_evens(main_rows(rows)),
    }
    out.mkdir(parents=True, exist_ok=True)
    report["pictures"] = draw_pictures(report, folders, anchors_path, out)
    text = markdown(report)
    write_text(out / "REPORT.md", text)
    write_json(out / "report.json", report)
    if not html.write_html(text, f"Comparison: {name}", out / "REPORT.html"):
        print("No REPORT.html: it needs the package markdown (pip install markdown); REPORT.md says the same.")
    return report


def caveats(rows: Sequence[tables.Row], anchors: dict[str, Any]) -> list[str]:
    """Return what weakens a report: few images, metrics that misjudge a control, missing scores, other data."""
    texts = []
    if anchors["n"] < FEW_IMAGES:
        texts.append(f"Only {anchors['n']} images per row, so intervals are wide.")
    for check in anchors["checks"]:
        if not check["ok"]:
            sentence = formatting.check_sentence(check, anchors["anchors"])
            texts.append(f"{sentence[0].upper()}{sentence[1:]}.")
    for row in rows:
        data = row["data"] if row["setting"] is None and isinstance(row["data"], dict) else {}
        if data.get("fingerprint") not in (None, anchors["reference"]["training_fingerprint"]):
            texts.append(f"{row['label']} was trained on other images than those of the reference.")
        if not row["metrics"]:
            texts.append(f"{row['label']} has no metrics.json: its samples are not scored.")
        if row["timed_otherwise"]:
            texts.append(f"{row['label']} was timed with another sampler than its samples were generated with.")
    return texts


def markdown(report: Report) -> str:
    """Return REPORT.md: findings, samples, tables with their pictures, protocol, provenance."""
    controls, rows, checks = report["controls"], report["models"], report["checks"]

    def picture(name: str) -> list[str]:
        title, caption = PICTURES[name]
        return [f"![{title}]({name})", caption] if name in report["pictures"] else []

    def section(title: str, *parts: str | None) -> list[str]:
        return [f"## {title}", *filter(None, parts)] if any(parts) else []

    table = formatting.markdown_table
    quality = table(*tables.quality_table(controls, rows))
    notes = tables.quality_notes(controls, rows, report["extractor"])
    corruptions = [table(*tables.corruption_table(checks, controls)), tables.corruption_notes(checks, controls)]
    parts = [f"# Comparison: {report['name']}", _data(report), _items(report["findings"])]
    parts += ["**Caveats:**", _items(report["caveats"])] if report["caveats"] else []
    parts += section("Samples", *picture("samples.png"))
    parts += section("Quality and diversity", tables.numbers_sentence(report), quality, notes, *picture("bars.png"))
    parts += section("Cost", table(*tables.cost_table(rows)), tables.cost_notes(rows), tables.timing_protocol(rows))
    parts += section("Trade-offs", *picture("speed.png"), *picture("trilemma.png"))
    parts += section("Training", *picture("training.png"), *picture("loss.png"))
    parts += section("Nearest training images", *picture("neighbours.png"))
    parts += section("Interpolation", *picture("interpolation.png"))
    parts += section(
        "Sanity check: metrics on the controls", *(corruptions if checks else []), *picture("controls.png")
    )
    parts.append(_items([f"{control['label']}: {control['note']}" for control in controls.values()]))
    if any(row["standard"] for row in rows):
        parts += section("Standard metrics", table(*tables.standard_table(rows)), tables.standard_notes(rows))
    if published.matches(report["reference"]["name"]):
        rest = table(published.HEADER, published.PUBLISHED), published.SEED_NOTE
        parts += section("Published results, not comparable", published.NOTE, *rest)
    parts += ["## Protocol", _items(_protocol(report)), "## Provenance", _items(_provenance(report))]
    return "\n\n".join(parts) + "\n"


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _data(report: Report) -> str:
    reference, size = report["reference"], report["image_size"]
    text = f"Data: {reference['name']}, {reference['training_images']:,} training images of {size} x {size} pixels."
    return f"{text} {(report['data_note'] or '').strip()}".strip()


def _protocol(report: Report) -> list[str]:
    frechet = tables.frechet_name(report["extractor"])
    return [
        f"Reference: {report['n']:,} training images, chosen with seed {report['seed']}. The floor is as many other "
        f"training images. {report['n']:,} samples of each model are scored.",
        f"{frechet[0].upper()}{frechet[1:]}, relative within this report: {report['extractor']['architecture']}.",
        f"Intervals: {report['intervals']}. Two numbers differ significantly if their difference exceeds the root of "
        "the sum of their squared half widths.",
    ]


def _provenance(report: Report) -> list[str]:
    reference, scored_with = report["reference"], report["versions"]
    other = [row["scored_with"] not in (None, scored_with) for row in report["models"]]
    lines = [
        f"Training data {reference['name']}: `{reference['training_fingerprint']}`, reference set "
        f"`{reference['fingerprint']}`, extractor `{report['extractor']['fingerprint']}` (SHA-256, first 16 digits)",
        f"{'Controls scored' if any(other) else 'Scored'} with {_versions(scored_with)}",
    ]
    for row, otherwise in zip(report["models"], other, strict=True):
        main = row["setting"] is None
        facts = [
            main and f"run `{row['model']}/{row['run']}`",
            row["checkpoint"] and f"checkpoint `{row['checkpoint']}`",
            row["samples"] and f"samples `{row['samples']['fingerprint']}`",
            main and row["git_commit"] and f"commit `{row['git_commit']}`",
            main and row["finished"] and f"ended by {row['finished']} after {row['steps']:,} steps",
            main and row["versions"] and _versions(row["versions"]),
            otherwise and f"scored with {_versions(row['scored_with'])}",
        ]
        if any(facts):
            lines.append(f"{row['label']}: {', '.join(fact for fact in facts if fact)}")
    return lines


def _versions(versions: dict[str, str] | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in (versions or {}).items()) or "unknown versions"


def console(report: Report) -> str:
    """Return tables, findings and caveats for the console."""
    parts = [formatting.console_table(*tables.quality_table(report["controls"], report["models"]))]
    parts.append(formatting.console_table(*tables.cost_table(report["models"])))
    parts.append("\n".join(f"* {text.replace('**', '')}" for text in report["findings"]))
    parts.append("\n".join(f"! {text}" for text in report["caveats"]))
    return "\n\n".join(filter(None, parts))
