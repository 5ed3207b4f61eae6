"""What a report knows of each model: gathered from the files of its run folder, whatever wrote them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comparison.cli import UserError
from comparison.runs import read_json, read_progress

LABELS = {"gans": "DCGAN", "improved-diffusion": "improved DDPM", "denoising-diffusion-gan": "DDGAN"}
_COMPARABLE = ("reference", "extractor", "n", "image_size", "seed")  # must agree between metrics.json and the controls


def check_runs(folders: Sequence[Path]) -> None:
    """Refuse what is no run folder: missing, a file, or with none of the files of the contract.

    Raises:
        UserError: one sentence that names the folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such run folder")
        names = ("config.json", "metrics.json", "sampling.json", "progress.csv")
        if not any((folder / name).is_file() for name in names) and not any(folder.glob("samples*.npz")):
            raise UserError(f"{folder}: not a run folder; it holds none of {', '.join(names)}, samples*.npz")


def read_rows(folders: Sequence[Path], anchors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gather one row per run folder; what a folder does not hold is None.

    Raises:
        UserError: a folder's metrics.json belongs to other samples, or to another reference, number of images or
            extractor than the controls.
    """
    rows = [_read_row(folder, anchors) for folder in folders]
    labels = [row["label"] for row in rows]
    for row in rows:
        if labels.count(row["label"]) > 1:
            row["label"] = f"{row['label']}, {row['run']}"
    if len({row["label"] for row in rows}) < len(rows):
        raise UserError("two of the runs have the same model and run name; give each once")
    return rows


def _read_row(folder: Path, anchors: Mapping[str, Any]) -> dict[str, Any]:
    config, sampling, metrics = (_optional(folder / name) for name in ("config.json", "sampling.json", "metrics.json"))
    folder_names = folder.resolve()
    model = str(config.get("model") or sampling.get("model") or folder_names.parent.name)
    finished = config.get("finished") or {}
    progress = read_progress(folder / "progress.csv") if (folder / "progress.csv").is_file() else []
    last = progress[-1] if progress else {}
    if metrics:
        _check_comparable(folder, metrics, anchors)
        _check_fresh(folder, metrics)
    return {
        "label": LABELS.get(model, model),
        "model": model,
        "run": folder_names.name,
        "metrics": metrics.get("metrics", {}),
        "samples": metrics.get("samples"),
        "parameters": sampling.get("parameters") or _total(config.get("parameters")),
        "parameters_trained": _total(config.get("parameters")),
        "sampler": sampling.get("sampler"),
        "nfe": sampling.get("nfe"),
        "seconds_per_image": sampling.get("seconds_per_image"),
        "batch_size": sampling.get("batch_size"),
        "device": sampling.get("device"),
        "precision": sampling.get("precision") or sampling.get("dtype"),
        "sampling_peak_bytes": sampling.get("peak_memory_bytes"),
        "sampling_protocol": sampling.get("protocol"),
        "training_seconds": finished.get("wall_seconds", last.get("wall_seconds")),
        "images_seen": finished.get("images_seen", last.get("images_seen")),
        "steps": finished.get("steps", last.get("step")),
        "finished": finished.get("reason"),
        "training_peak_bytes": finished.get("peak_memory_bytes"),
        "training_device": config.get("device"),
        "training_precision": config.get("precision"),
        "data": config.get("data"),
        "git_commit": config.get("git_commit"),
        "versions": config.get("versions"),
    }


def _optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def _total(parameters: object) -> int | None:
    if isinstance(parameters, dict):
        return sum(value for value in parameters.values() if isinstance(value, int))
    return parameters if isinstance(parameters, int) else None


def _check_comparable(folder: Path, metrics: Mapping[str, Any], anchors: Mapping[str, Any]) -> None:
    differ = [name for name in _COMPARABLE if metrics.get(name) != anchors.get(name)]
    if differ:
        told = {name: (_short(metrics.get(name)), _short(anchors.get(name))) for name in differ}
        words = "; ".join(f"{name} {there} there, {here} in the controls" for name, (there, here) in told.items())
        raise UserError(f"{folder}/metrics.json cannot stand beside the controls: {words}; run evaluate.py again")


def _short(value: object) -> object:
    return f"{value.get('name')} {value.get('fingerprint')}" if isinstance(value, dict) else value


def _check_fresh(folder: Path, metrics: Mapping[str, Any]) -> None:
    scored = metrics.get("samples") or {}
    path = folder / str(scored.get("file"))
    drawn = _optional(folder / "sampling.json").get("file")
    if drawn and drawn != scored.get("file"):
        raise UserError(f"{folder}/metrics.json scores {scored.get('file')}, not {drawn}; run evaluate.py again")
    if path.is_file():
        from comparison.images import fingerprint, load_npz  # torch, only where there is something to hash

        if fingerprint(load_npz(path)[0]) != scored.get("fingerprint"):
            raise UserError(f"{path}: other samples than {folder}/metrics.json scores; run evaluate.py again")


def first_samples(folder: Path, count: int) -> np.ndarray | None:
    """Return the first images, (n, S, S, 3) uint8: from the .npz, or cut out of samples.png; None without either."""
    named = _optional(folder / "sampling.json").get("file")
    found = sorted(folder.glob("samples*.npz"), key=lambda p: (p.name == named, p.stat().st_mtime_ns, p.name))
    if found:
        with np.load(found[-1], allow_pickle=False) as archive:
            return archive["arr_0"][:count]
    return read_grid(folder / "samples.png", count)


def read_grid(path: Path, count: int, columns: int = 8, padding: int = 2) -> np.ndarray | None:
    """Cut the images out of a picture that `save_grid` wrote, (n, S, S, 3) uint8; None if there is no such file."""
    if not path.is_file():
        return None
    from PIL import Image

    picture = np.asarray(Image.open(path).convert("RGB"))
    size = (picture.shape[1] - padding) // columns - padding
    tiles = []
    for i in range(min(count, columns * ((picture.shape[0] - padding) // (size + padding)))):
        top, left = (padding + (k * (size + padding)) for k in divmod(i, columns))
        tile = picture[top : top + size, left : left + size]
        if not (tile == 255).all():  # the empty end of the last row
            tiles.append(tile)
    return np.stack(tiles) if tiles else None
