"""The report: REPORT.md, report.json and pictures from run folders and the controls' file; no number is typed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comparison import plots, tables
from comparison.cli import UserError
from comparison.rows import first_samples, read_grid, read_rows
from comparison.runs import read_json, read_progress, write_json, write_text
from comparison.verdicts import FRECHET, faults, verdicts

SCHEMA = 1

QUALITY_NOTES = """\
How to read it: **Frechet** is the random-embedding Frechet distance and **kernel** the squared MMD in the same
features, both 0 for equal distributions but for the finite number of images, so compare with the floor. **Precision**
and **density** say how far samples lie among real images, **recall** and **coverage** how far real images lie among
samples; equal distributions have density 1 and coverage 0.97. **Memorised** is the share of samples less than half as
far from a training image as that image is from its nearest other one. Intervals are 95%, from leaving out one of 20
groups of samples at a time, the reference fixed. The embedding sees colours, textures, sharpness, noise and coarse
layout, not objects: every number is relative within this report."""

_PICTURES = (
    ("samples.png", "Samples", "The first images of each model, in order, uncurated."),
    ("speed.png", "Quality against time per image", "Down and to the left is better."),
    ("bars.png", "Distance and coverage beside the controls", "Models coloured, controls grey, 95% intervals."),
    ("loss.png", "Loss", "Against training images seen; the losses of two models are different quantities."),
    ("controls.png", "The controls", ""),
)


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
        budget: `seconds=N`, `images=N`, `recipe` or None.
        data_note: a sentence on the data, or None.

    Raises:
        UserError: files are damaged, or do not belong together.
    """
    anchors = load_anchors(anchors_path)
    rows = read_rows(folders, anchors)
    report = Report(name, rows, anchors, budget, data_note, verdicts(rows, anchors, budget), faults(anchors, rows))
    out.mkdir(parents=True, exist_ok=True)
    pictures = _draw(report, folders, anchors_path, out)
    write_text(out / "REPORT.md", markdown(report, pictures))
    write_json(out / "report.json", _as_json(report, pictures))
    return report


def _draw(report: Report, folders: Sequence[Path], anchors_path: Path, out: Path) -> list[str]:
    rows, controls = report.rows, report.anchors["anchors"]
    curves = [
        read_progress(folder / "progress.csv") if (folder / "progress.csv").is_file() else [] for folder in folders
    ]
    panels = []
    real = read_grid(anchors_path.with_name(f"{anchors_path.stem}-real.png"), 64)
    if real is not None:
        panels.append(("real images", real, "#666666"))
    for row, folder, colour in zip(rows, folders, plots.colours(rows), strict=True):
        images = first_samples(folder, 64)
        if images is not None:
            panels.append((row["label"], images, colour))
    drawn = {
        "samples.png": plots.draw_samples(panels, out / "samples.png"),
        "speed.png": plots.draw_speed(rows, controls, out / "speed.png"),
        "bars.png": plots.draw_bars(rows, controls, out / "bars.png"),
        "loss.png": plots.draw_loss(rows, curves, out / "loss.png"),
        "controls.png": _draw_controls(report, anchors_path, out / "controls.png"),
    }
    for name, there in drawn.items():
        if not there:
            (out / name).unlink(missing_ok=True)
    return [name for name, _, _ in _PICTURES if drawn[name]]


def _draw_controls(report: Report, anchors_path: Path, path: Path) -> bool:
    """Label the rows of the picture that evaluate.py left beside the controls' file."""
    controls = report.anchors["anchors"]
    source = anchors_path.with_name(f"{anchors_path.stem}-controls.png")
    columns = min(10, report.anchors["n"])
    images = read_grid(source, columns * len(controls), columns=columns)
    if images is None or len(images) < columns * len(controls):
        return False
    strips = np.split(images[: columns * len(controls)], len(controls))
    return plots.draw_strips([control["label"] for control in controls.values()], strips, path)


def quality_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows: the controls first, then the models."""
    rows = [(row["label"], row["metrics"]) for row in report.anchors["anchors"].values()]
    rows += [(row["label"], row["metrics"]) for row in report.rows]
    names = tables.metrics_columns([metrics for _, metrics in rows])
    header = ["", *(tables.METRICS[name][0] for name in names)]
    return header, [[label, *(tables.metric(name, metrics.get(name)) for name in names)] for label, metrics in rows]


def cost_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows of what sampling and training cost."""
    header = ["", "parameters", "NFE", "time per image", "batch", "memory, sampling"]
    header += ["training time", "images seen", "memory, training"]
    cells = []
    for row in report.rows:
        nfe, batch = row["nfe"], row["batch_size"]
        cells.append(
            [
                row["label"],
                tables.count(row["parameters"]),
                tables.MISSING if nfe is None else f"{nfe:g}",
                tables.seconds(row["seconds_per_image"]),
                tables.MISSING if batch is None else str(batch),
                tables.memory(row["sampling_peak_bytes"]),
                tables.seconds(row["training_seconds"]),
                tables.count(row["images_seen"]),
                tables.memory(row["training_peak_bytes"]),
            ]
        )
    return header, cells


def markdown(report: Report, pictures: Sequence[str]) -> str:
    """Return REPORT.md: verdicts, tables, pictures, protocol, provenance."""
    anchors = report.anchors
    parts = [f"# Comparison: {report.name}", _data_sentence(report)]
    parts.append("\n".join(f"- {sentence}" for sentence in report.sentences))
    if report.faults:
        parts.append("**Mind:**\n\n" + "\n".join(f"- {fault}" for fault in report.faults))
    parts += ["## Quality and diversity", f"{anchors['n']} images per row. Controls first."]
    parts += [tables.markdown_table(*quality_table(report)), QUALITY_NOTES]
    parts += ["## Cost", tables.markdown_table(*cost_table(report)), _cost_notes(report)]
    for name, title, caption in _PICTURES:
        if name in pictures:
            parts += [f"## {title}", f"![{title}]({name})"]
            if caption:
                parts.append(caption)
            if name == "controls.png":
                parts.append("\n".join(f"- {a['label']}: {a['note']}" for a in anchors["anchors"].values()))
    parts += ["## Protocol", _protocol(report), "## Provenance", _provenance(report)]
    return "\n\n".join(parts) + "\n"


def _data_sentence(report: Report) -> str:
    reference = report.anchors["reference"]
    size = report.anchors["image_size"]
    text = f"Data: {reference['name']}, {reference['training_images']:,} training images of {size} x {size} pixels."
    return f"{text} {report.data_note.strip()}" if report.data_note and report.data_note.strip() else text


def _cost_notes(report: Report) -> str:
    lines = ["Parameters are those of the networks used in sampling; NFE is network evaluations per image, by a hook."]
    for row in report.rows:
        facts = [row["sampler"], row["precision"], row["device"]]
        trained = row["parameters_trained"]
        if trained and trained != row["parameters"]:
            facts.append(f"{tables.count(trained)} parameters while training")
        known = ", ".join(str(fact) for fact in facts if fact)
        if known:
            lines.append(f"- {row['label']}: {known}")
    return lines[0] + "\n\n" + "\n".join(lines[1:]) if len(lines) > 1 else lines[0]


def _protocol(report: Report) -> str:
    anchors = report.anchors
    lines = [
        f"- Reference: {anchors['n']} training images drawn with seed {anchors['seed']}; the floor is as many others. "
        f"Each model is scored on {anchors['n']} of its samples.",
        f"- {FRECHET[0].upper()}{FRECHET[1:]}, relative within this report: {anchors['extractor']['architecture']}.",
        f"- Intervals: {anchors['intervals']}. Two numbers differ significantly where their difference exceeds the "
        "root of the sum of their squared half widths.",
    ]
    protocols = dict.fromkeys(row["sampling_protocol"] for row in report.rows if row["sampling_protocol"])
    lines += [f"- Time per image: {protocol}." for protocol in protocols]
    passed = sum(check["ok"] for check in anchors["checks"])
    lines.append(f"- Controls: {passed} of {len(anchors['checks'])} expectations on them hold.")
    return "\n".join(lines)


def _provenance(report: Report) -> str:
    anchors = report.anchors
    reference = anchors["reference"]
    lines = [
        f"- Training data {reference['name']}: `{reference['training_fingerprint']}`, reference set "
        f"`{reference['fingerprint']}`, extractor `{anchors['extractor']['fingerprint']}` (SHA-256, first 16 digits)",
        f"- Scored with {_versions(anchors.get('versions'))}",
    ]
    for row in report.rows:
        facts = [f"run `{row['model']}/{row['run']}`"]
        if row["samples"]:
            facts.append(f"samples `{row['samples']['fingerprint']}`")
        if row["git_commit"]:
            facts.append(f"commit `{row['git_commit']}`")
        if row["finished"]:
            facts.append(f"ended by {row['finished']} after {row['steps']:,} steps")
        if row["versions"]:
            facts.append(_versions(row["versions"]))
        lines.append(f"- {row['label']}: {', '.join(facts)}")
    return "\n".join(lines)


def _versions(versions: dict[str, str] | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in (versions or {}).items()) or "unknown versions"


def _as_json(report: Report, pictures: Sequence[str]) -> dict[str, Any]:
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
        "pictures": list(pictures),
    }


def console(report: Report) -> str:
    """Return tables and verdicts for the console."""
    parts = [tables.console_table(*quality_table(report)), tables.console_table(*cost_table(report))]
    parts.append("\n".join(f"* {sentence.replace('**', '')}" for sentence in report.sentences))
    if report.faults:
        parts.append("\n".join(f"! {fault}" for fault in report.faults))
    return "\n\n".join(parts)
