"""The report: REPORT.md, REPORT.html, report.json and pictures from run folders and the controls' file.

No number is typed in, but for the published ones. The tables are those of `tables`, the sentences those of `findings`;
report.schema.json describes report.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.cli import UserError
from comparison.files import read_json, write_json, write_text
from comparison.report import charts, html, pictures, plots, published, tables
from comparison.report.findings import faults, verdicts
from comparison.report.rows import first_samples, read_grid, read_rows, read_strips
from comparison.report.tradeoffs import break_evens, main_rows, pareto_front
from comparison.runs import read_progress

SCHEMA = 2

PICTURES = {  # file -> title, caption
    "samples.png": ("Samples", "The first images of each model, in order, uncurated."),
    "bars.png": ("Models beside the controls", "Models coloured, controls grey, 95% intervals."),
    "speed.png": (
        "Quality against time per image",
        "Down and to the left is better. A line joins the sampler settings of one training; no setting lies below and "
        "to the left of the dotted Pareto front.",
    ),
    "trilemma.png": (
        "Quality, diversity and speed at once",
        "Up is better on each axis; thick lines are the default samplers, thin ones the other settings.",
    ),
    "total_cost.png": (
        "Total cost against images drawn",
        "Training and sampling together, default samplers. It says nothing about quality.",
    ),
    "training.png": ("Quality against training time", "The default sampler on earlier checkpoints, 95% intervals."),
    "loss.png": ("Loss", "Against training images seen; the losses of two models are different quantities."),
    "neighbours.png": (
        "Nearest training images",
        "Upper rows: the samples that are nearest to a training image for how isolated that image is, the most "
        "suspicious first. Lower rows: those training images.",
    ),
    "interpolation.png": (
        "Walks between latents",
        "Each row is one walk between two latents on the sphere, drawn by the default sampler.",
    ),
    "controls.png": ("The controls", ""),
}


@dataclass(frozen=True)
class Report:
    """Everything a report says, before it is written."""

    name: str
    rows: list[dict[str, Any]]
    anchors: dict[str, Any]
    budget: str | None
    data_note: str | None
    sentences: list[str]
    faults: list[str]


def load_anchors(path: Path) -> dict[str, Any]:
    """Read the controls' file of evaluate.py.

    Raises:
        UserError: missing, damaged or something else.
    """
    anchors = read_json(path)
    needed = {"anchors", "checks", "n", "reference", "extractor"}
    if not isinstance(anchors, dict) or not needed <= set(anchors) or "floor" not in anchors["anchors"]:
        raise UserError(f"--anchors {path}: not a file that evaluate.py --anchors wrote")
    if not all("verdict" in check for check in anchors["checks"]):
        raise UserError(f"--anchors {path}: of an older evaluate.py; run it again")
    return anchors


def make_report(
    name: str, folders: Sequence[Path], anchors_path: Path, out: Path, budget: str | None, data_note: str | None
) -> Report:
    """Gather, draw and write a report; the same files give the same report.

    Args:
        name: title and folder name.
        folders: of the runs.
        anchors_path: file of evaluate.py --anchors, the pictures beside it.
        out: folder of the report.
        budget: `seconds=N`, `images=N`, `recipe`, `MODEL:seconds=N,...` or None.
        data_note: a sentence on the data, or None.

    Raises:
        UserError: files are damaged, or do not belong together.
    """
    anchors = load_anchors(anchors_path)
    rows = read_rows(folders, anchors)
    report = Report(name, rows, anchors, budget, data_note, verdicts(rows, anchors, budget), faults(anchors, rows))
    out.mkdir(parents=True, exist_ok=True)
    drawn = _draw(report, folders, anchors_path, out)
    text = markdown(report, drawn)
    write_text(out / "REPORT.md", text)
    write_json(out / "report.json", _as_json(report, drawn))
    if not html.write_html(text, f"Comparison: {name}", out / "REPORT.html"):
        print("No REPORT.html: it needs the package markdown (pip install markdown); REPORT.md says the same.")
    return report


def _draw(report: Report, folders: Sequence[Path], anchors_path: Path, out: Path) -> list[str]:
    """Draw every picture that the files suffice for; those that they do not suffice for are deleted."""
    rows, controls = report.rows, report.anchors["anchors"]
    frechet = tables.frechet_name(report.anchors["extractor"])
    mains = main_rows(rows)
    curves = [
        read_progress(folder / "progress.csv") if (folder / "progress.csv").is_file() else [] for folder in folders
    ]
    drawn = {
        "samples.png": _draw_samples(mains, folders, anchors_path, out / "samples.png"),
        "bars.png": plots.draw_bars(mains, controls, frechet, out / "bars.png"),
        "speed.png": charts.draw_speed(rows, controls, frechet, out / "speed.png"),
        "trilemma.png": charts.draw_trilemma(rows, controls, frechet, out / "trilemma.png"),
        "total_cost.png": charts.draw_total_cost(mains, out / "total_cost.png"),
        "training.png": charts.draw_training(mains, controls, frechet, out / "training.png"),
        "loss.png": plots.draw_loss(mains, curves, out / "loss.png"),
        "neighbours.png": _draw_strips(mains, folders, "neighbours.png", 2, 12, out),
        "interpolation.png": _draw_strips(mains, folders, "interpolation.png", 4, 8, out),
        "controls.png": _draw_controls(report, anchors_path, out / "controls.png"),
    }
    for name, there in drawn.items():
        if not there:
            (out / name).unlink(missing_ok=True)
    return [name for name in PICTURES if drawn[name]]


def _draw_samples(mains: Sequence[tables.Row], folders: Sequence[Path], anchors_path: Path, path: Path) -> bool:
    panels = []
    real = read_grid(anchors_path.with_name(f"{anchors_path.stem}-real.png"), 64)
    if real is not None:
        panels.append(("real images", real, "#666666"))
    for row, folder, colour in zip(mains, folders, plots.colours(mains), strict=True):
        images = first_samples(folder, 64)
        if images is not None:
            panels.append((row["label"], images, colour))
    return pictures.draw_samples(panels, path)


def _draw_strips(
    mains: Sequence[tables.Row], folders: Sequence[Path], name: str, lines: int, columns: int, out: Path
) -> bool:
    """Gather a picture of this name from the run folders, one titled panel each."""
    panels = []
    for row, folder, colour in zip(mains, folders, plots.colours(mains), strict=True):
        strips = read_strips(folder / name, lines, columns)
        if strips:
            panels.append((row["label"], colour, strips))
    return pictures.draw_strips(panels, out / name, edge=600 // columns)


def _draw_controls(report: Report, anchors_path: Path, path: Path) -> bool:
    """Label the rows of the picture that evaluate.py left beside the controls' file."""
    controls = report.anchors["anchors"]
    columns = min(10, report.anchors["n"])
    source = anchors_path.with_name(f"{anchors_path.stem}-controls.png")
    strips = read_strips(source, len(controls), columns)
    labels = [control["label"] for control in controls.values()]
    panels = [(label, plots.INK, [strip]) for label, strip in zip(labels, strips, strict=False)]
    return pictures.draw_strips(panels, path)


def markdown(report: Report, drawn: Sequence[str]) -> str:
    """Return REPORT.md: verdicts, samples, tables with their pictures, protocol, provenance."""
    anchors, rows = report.anchors, report.rows
    controls = anchors["anchors"]

    def picture(name: str) -> list[str]:
        title, caption = PICTURES[name]
        return [f"![{title}]({name})", *([caption] if caption else [])] if name in drawn else []

    def section(title: str, *parts: str) -> list[str]:
        return [f"## {title}", *parts] if parts else []

    parts = [f"# Comparison: {report.name}", _data_sentence(report)]
    parts.append("\n".join(f"- {sentence}" for sentence in report.sentences))
    if report.faults:
        parts.append("**Mind:**\n\n" + "\n".join(f"- {fault}" for fault in report.faults))
    parts += section("Samples", *picture("samples.png"))
    quality = formatting.markdown_table(*tables.quality_table(controls, rows))
    notes = tables.quality_notes(controls, rows, anchors["extractor"])
    parts += section("Quality and diversity", tables.numbers_sentence(anchors), quality, notes, *picture("bars.png"))
    protocol = tables.timing_protocol(rows)
    cost = [
        formatting.markdown_table(*tables.cost_table(rows)),
        tables.cost_notes(rows),
        *picture("total_cost.png"),
    ]
    parts += section("Cost", *([protocol] if protocol else []), *cost)
    parts += section("Quality against time", *picture("speed.png"), *picture("trilemma.png"))
    parts += section("Training", *picture("training.png"), *picture("loss.png"))
    parts += section("Nearest training images", *picture("neighbours.png"))
    parts += section("Interpolation", *picture("interpolation.png"))
    parts += section("Do the metrics see what they should?", *_controls(report), *picture("controls.png"))
    parts.append("\n".join(f"- {control['label']}: {control['note']}" for control in controls.values()))
    if any(row["standard"] for row in rows):
        standard = formatting.markdown_table(*tables.standard_table(rows))
        parts += section("Standard metrics", standard, tables.standard_notes(rows))
    if published.matches(anchors["reference"]["name"]):
        table = formatting.markdown_table(*published.published_table())
        parts += section("Published figures, not comparable", published.NOTE, table, published.SEED_NOTE)
    parts += ["## Protocol", _protocol(report), "## Provenance", _provenance(report)]
    return "\n\n".join(parts) + "\n"


def _controls(report: Report) -> list[str]:
    checks, controls = report.anchors["checks"], report.anchors["anchors"]
    if not checks:
        return []
    table = formatting.markdown_table(*tables.corruption_table(checks, controls))
    return [table, tables.corruption_notes(checks, controls)]


def _data_sentence(report: Report) -> str:
    reference = report.anchors["reference"]
    size = report.anchors["image_size"]
    text = f"Data: {reference['name']}, {reference['training_images']:,} training images of {size} x {size} pixels."
    return f"{text} {report.data_note.strip()}" if report.data_note and report.data_note.strip() else text


def _protocol(report: Report) -> str:
    anchors = report.anchors
    frechet = tables.frechet_name(anchors["extractor"])
    lines = [
        f"- Reference: {anchors['n']} training images drawn with seed {anchors['seed']}; the floor is as many others. "
        f"Each model is scored on {anchors['n']} of its samples.",
        f"- {frechet[0].upper()}{frechet[1:]}, relative within this report: {anchors['extractor']['architecture']}.",
        f"- Intervals: {anchors['intervals']}. Two numbers differ significantly where their difference exceeds the "
        "root of the sum of their squared half widths.",
    ]
    return "\n".join(lines)


def _provenance(report: Report) -> str:
    anchors = report.anchors
    reference = anchors["reference"]
    lines = [
        f"- Training data {reference['name']}: `{reference['training_fingerprint']}`, reference set "
        f"`{reference['fingerprint']}`, extractor `{anchors['extractor']['fingerprint']}` (SHA-256, first 16 digits)",
    ]
    scored_with = anchors.get("versions")
    elsewhere = [row["scored_with"] not in (None, scored_with) for row in report.rows]
    lines.append(f"- {'Controls scored' if any(elsewhere) else 'Scored'} with {_versions(scored_with)}")
    for row, other in zip(report.rows, elsewhere, strict=True):
        main = row["setting"] is None
        facts = [f"run `{row['model']}/{row['run']}`"] if main else []
        if row["checkpoint"]:
            facts.append(f"checkpoint `{row['checkpoint']}`")
        if row["samples"]:
            facts.append(f"samples `{row['samples']['fingerprint']}`")
        scored = [f"scored with {_versions(row['scored_with'])}"] if other else []
        if not main:
            lines += [f"- {row['label']}: {', '.join(facts + scored)}"] if facts else []
            continue
        if row["git_commit"]:
            facts.append(f"commit `{row['git_commit']}`")
        if row["finished"]:
            facts.append(f"ended by {row['finished']} after {row['steps']:,} steps")
        if row["versions"]:
            facts.append(_versions(row["versions"]))
        lines.append(f"- {row['label']}: {', '.join(facts + scored)}")
    return "\n".join(lines)


def _versions(versions: dict[str, str] | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in (versions or {}).items()) or "unknown versions"


def _as_json(report: Report, drawn: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": report.name,
        "budget": report.budget,
        "data_note": report.data_note,
        **{key: report.anchors.get(key) for key in ("reference", "extractor", "n", "image_size", "seed", "intervals")},
        "sentences": report.sentences,
        "faults": report.faults,
        "controls": report.anchors["anchors"],
        "checks": report.anchors["checks"],
        "models": report.rows,
        "pareto_front": [row["label"] for row in pareto_front(report.rows)],
        "break_even": break_evens(main_rows(report.rows)),
        "pictures": list(drawn),
    }


def console(report: Report) -> str:
    """Return tables and verdicts for the console."""
    parts = [formatting.console_table(*tables.quality_table(report.anchors["anchors"], report.rows))]
    parts.append(formatting.console_table(*tables.cost_table(report.rows)))
    parts.append("\n".join(f"* {sentence.replace('**', '')}" for sentence in report.sentences))
    if report.faults:
        parts.append("\n".join(f"! {fault}" for fault in report.faults))
    return "\n\n".join(parts)
