"""The pictures of a report: its plots, and titled sheets of images from the run folders."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from comparison import png
from comparison.data.images import load_npz
from comparison.report import charts, plots
from comparison.report.rows import optional_json
from comparison.report.tables import frechet_name
from comparison.report.tradeoffs import main_rows, summary_rows

PICTURES = {  # file -> title, caption
    "answer.png": (
        "What each model gives, and what it costs",
        "Lower left is better. Quality against time per image: lines connect numbers of evaluations of one sampler, "
        "the dotted line is the best up to each time. With scores of earlier checkpoints, also against training time. "
        "Dashed: controls. Bars: 95% intervals; short marks: single trainings. Below: what each model generates in the "
        "same time at full throughput, not selected.",
    ),
    "samples.png": ("Samples", "Real images and the first 64 samples of each model, uncurated."),
    "neighbours.png": (
        "Nearest training images",
        "The samples closest to a training image, relative to its distance from the nearest other one, closest first.",
    ),
    "interpolation.png": ("Interpolation", "Each row is a spherical interpolation between two latents."),
    "controls.png": ("Controls", "The first images of each control."),
}
OLD = ("bars.png", "speed.png", "training.png")  # of reports before answer.png
WIDTH = 620  # approximate pixels of a sheet, which is scaled by a whole factor
TITLE, GAP, LETTER = 24, 14, 7  # pixels: height of a title, space between panels, width of a letter


class Sheet(NamedTuple):
    """A panel: title and its colour, (H, W, 3) uint8 image, and labels of its equally high rows."""

    title: str
    colour: str
    image: np.ndarray
    rows: Sequence[str] = ()


def draw_pictures(report: Mapping[str, Any], folders: Sequence[Path], anchors_path: Path, out: Path) -> list[str]:
    """Draw the pictures whose files exist, delete the others, and return the names of those drawn.

    Args:
        report: content of report.json, without the pictures.
        folders: run folders, in the order of the main rows.
        anchors_path: controls' file, with its pictures in the same folder.
        out: folder of the report.
    """
    rows, controls, mains = report["models"], report["controls"], main_rows(report["models"])
    frechet = frechet_name(report["extractor"])

    def sheets(name: str, labels: Sequence[str] = ()) -> list[Sheet]:
        images = [_samples(folder) if name == "samples.png" else _read(folder / name) for folder in folders]
        titled = zip(mains, plots.colours(mains), images, strict=True)
        return [Sheet(row["label"], colour, image, labels) for row, colour, image in titled if image is not None]

    real = _read(anchors_path.with_name(f"{anchors_path.stem}-real.png"))
    samples = [*([] if real is None else [Sheet("real images", plots.INK, real)]), *sheets("samples.png")]
    strips = _strips(report["models"], folders)
    drawn = {
        "answer.png": charts.draw_answer(rows, controls, frechet, strips, out / "answer.png"),
        "samples.png": draw_sheets(samples, out / "samples.png", math.ceil(len(samples) ** 0.5)),
        "neighbours.png": draw_sheets(sheets("neighbours.png", ("samples", "training")), out / "neighbours.png"),
        "interpolation.png": draw_sheets(sheets("interpolation.png"), out / "interpolation.png"),
        "controls.png": draw_sheets(_controls(report, anchors_path), out / "controls.png"),
    }
    for name in (*OLD, *(name for name in drawn if not drawn[name])):
        (out / name).unlink(missing_ok=True)
    return [name for name in PICTURES if drawn[name]]


def _read(path: Path) -> np.ndarray | None:
    return np.asarray(Image.open(path).convert("RGB")) if path.is_file() else None


def _samples(folder: Path) -> np.ndarray | None:
    """Return a sheet of the first 64 samples, from the .npz or samples.png; None without either."""
    named = optional_json(folder / "sampling.json").get("file")
    files = sorted(folder.glob("samples*.npz"), key=lambda p: (p.name == named, p.stat().st_mtime_ns, p.name))
    return png.grid(load_npz(files[-1])[0][:64]) if files else _read(folder / "samples.png")


def _strips(rows: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> list[charts.Strip]:
    """Return the samples of the rows of the summary that have a time per image."""
    mains = main_rows(rows)
    places = {row["series"]: folder for row, folder in zip(mains, folders, strict=True)}
    strips = []
    shown = summary_rows(rows)
    for row, colour in zip(shown, plots.colours(shown), strict=True):
        folder = places[row["series"]]
        image = _samples(folder if row["setting"] is None else folder / "settings" / row["setting"])
        if image is None or not row["seconds_per_image"]:
            continue
        if len(images := png.cut(image)):
            strips.append(charts.Strip(row["label"], colour, row["seconds_per_image"], images))
    return strips


def _controls(report: Mapping[str, Any], anchors_path: Path) -> list[Sheet]:
    image = _read(anchors_path.with_name(f"{anchors_path.stem}-controls.png"))
    labels = [control["label"] for control in report["controls"].values()]
    if image is None or (image.shape[0] - 2) * min(10, report["n"]) != (image.shape[1] - 2) * len(labels):
        return []  # missing, or of other controls
    return [Sheet("", plots.INK, image, labels)]


def draw_sheets(sheets: Sequence[Sheet], path: Path, columns: int = 1) -> bool:
    """Draw sheets, `columns` in a row; return False if there are none."""
    if not sheets:
        return False
    images = [_scaled(sheet.image) for sheet in sheets]
    letters = max(len(label) for sheet in sheets for label in ("", *sheet.rows))
    margin = letters * LETTER + (GAP if letters else 0)
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    title = TITLE if any(sheet.title for sheet in sheets) else 0
    step_x, step_y = margin + width + GAP, title + height + GAP
    total_x, total_y = columns * step_x - GAP, -(-len(sheets) // columns) * step_y - GAP
    figure = Figure(figsize=(total_x / 100, total_y / 100), dpi=100)
    for i, (sheet, image) in enumerate(zip(sheets, images, strict=True)):
        left, top = i % columns * step_x + margin, i // columns * step_y + title
        high, wide, _ = image.shape
        axes = figure.add_axes((left / total_x, 1 - (top + high) / total_y, wide / total_x, high / total_y))
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        look: dict[str, Any] = {"va": "center", "color": sheet.colour}
        x, y = (left + 4) / total_x, 1 - (top - title / 2) / total_y
        figure.text(x, y, sheet.title, fontsize=10, weight="bold", **look)
        for k, label in enumerate(sheet.rows):
            y = 1 - (top + (k + 0.5) * high / len(sheet.rows)) / total_y
            figure.text((left - GAP / 2) / total_x, y, label, ha="right", fontsize=9, **look)
    plots.save(figure, path)
    return True


def _scaled(image: np.ndarray) -> np.ndarray:
    factor = WIDTH / image.shape[1]
    if factor >= 1:
        return image.repeat(round(factor), 0).repeat(round(factor), 1)
    return np.asarray(Image.fromarray(image).reduce(max(1, round(1 / factor))))
