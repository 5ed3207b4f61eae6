"""What a report knows of each model: gathered from the files of its run folder, whatever wrote them.

A run folder gives one row for its main sample set and one for each folder of `settings/`, another sampler setting of
the same training. The folders of `history/`, earlier checkpoints of it, become points of the main row's `history`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comparison.cli import UserError
from comparison.files import read_json
from comparison.runs import read_progress

LABELS = {"gans": "DCGAN", "improved-diffusion": "improved DDPM", "denoising-diffusion-gan": "DDGAN"}
FILES = ("config.json", "metrics.json", "sampling.json", "timing.json", "progress.csv")
MANY = 50_000  # images whose drawing time a report states
_COMPARABLE = ("reference", "extractor", "n", "image_size", "seed")  # must agree between metrics.json and the controls


def check_runs(folders: Sequence[Path]) -> None:
    """Refuse what is no run folder: missing, a file, or with none of the files of the contract.

    Raises:
        UserError: one sentence that names the folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such run folder")
        if not any((folder / name).is_file() for name in FILES) and not any(folder.glob("samples*.npz")):
            raise UserError(f"{folder}: not a run folder; it holds none of {', '.join(FILES)}, samples*.npz")


def read_rows(folders: Sequence[Path], anchors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gather the rows of all run folders: each main set, then its settings; what a folder does not hold is None.

    `series` names the training, `setting` the folder below settings/ (None for the main set), `label` both.

    Raises:
        UserError: a metrics.json belongs to other samples, or to another reference, number of images or extractor
            than the controls.
    """
    runs = [_read_run(folder, anchors) for folder in folders]
    names = [LABELS.get(run[0]["model"], run[0]["model"]) for run in runs]
    series = [
        f"{name}, {run[0]['run']}" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)
    ]
    if len(set(series)) < len(runs):
        raise UserError("two of the runs have the same model and run name; give each once")
    rows = []
    for name, run in zip(series, runs, strict=True):
        for row in run:
            label = name if row["setting"] is None else f"{name}, {row['setting']}"
            rows.append({"label": label, "series": name, **row})
    _check_standard(rows)
    return rows


def _read_run(folder: Path, anchors: Mapping[str, Any]) -> list[dict[str, Any]]:
    training = _training(folder)
    history = []
    for point in _sub_folders(folder / "history"):
        trained = optional_json(point / "sampling.json").get("trained") or {}
        scored = _scores(point, anchors)
        history.append({"name": point.name, **_trained(trained), "metrics": scored["metrics"]})
    history.sort(key=lambda point: (point["wall_seconds"] is None, point["wall_seconds"] or 0, point["name"]))
    rows = [{**training, "setting": None, **_sample_set(folder, anchors), "history": history}]
    for part in _sub_folders(folder / "settings"):
        rows.append({**training, "setting": part.name, **_sample_set(part, anchors), "history": []})
    for row in rows:
        row["parameters"] = row["parameters"] or rows[0]["parameters"] or row["parameters_trained"]
    return rows


def _sub_folders(folder: Path) -> list[Path]:
    """Return the folders in it that hold results, ddim5 before ddim10."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.is_dir() and (any(p.glob("*.json")) or any(p.glob("samples*.npz")))]
    return sorted(found, key=lambda p: (len(p.name), p.name))


def _training(folder: Path) -> dict[str, Any]:
    config, sampling = optional_json(folder / "config.json"), optional_json(folder / "sampling.json")
    place = folder.resolve()
    finished = config.get("finished") or {}
    progress = read_progress(folder / "progress.csv") if (folder / "progress.csv").is_file() else []
    last = progress[-1] if progress else {}
    return {
        "model": str(config.get("model") or sampling.get("model") or place.parent.name),
        "run": place.name,
        "parameters_trained": _total(config.get("parameters")),
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


def _sample_set(folder: Path, anchors: Mapping[str, Any]) -> dict[str, Any]:
    sampling, timing = optional_json(folder / "sampling.json"), optional_json(folder / "timing.json")
    return {**_scores(folder, anchors), **_sampler(sampling, timing), **_speed(sampling, timing)}


def _scores(folder: Path, anchors: Mapping[str, Any]) -> dict[str, Any]:
    metrics = optional_json(folder / "metrics.json")
    if metrics:
        _check_comparable(folder, metrics, anchors)
        _check_fresh(folder, metrics)
    return {
        "metrics": metrics.get("metrics", {}),
        "standard": metrics.get("standard"),
        "samples": metrics.get("samples"),
        "scored_with": metrics.get("versions"),
    }


def _sampler(sampling: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, Any]:
    per_evaluation, per_image = timing.get("gflop_per_evaluation"), timing.get("gflop_per_image")
    nfe = timing.get("nfe", sampling.get("nfe"))
    if per_image is None and per_evaluation is not None and nfe is not None:
        per_image = per_evaluation * nfe
    return {
        "sampler": sampling.get("sampler") or timing.get("sampler"),
        "checkpoint": sampling.get("checkpoint") or timing.get("checkpoint"),
        "trained": _trained(sampling.get("trained") or {}),
        "nfe": nfe,
        "parameters": timing.get("parameters") or sampling.get("parameters"),
        "gflop_per_evaluation": per_evaluation,
        "gflop_per_image": per_image,
        "timed_otherwise": bool(
            timing.get("sampler") and sampling.get("sampler") and timing["sampler"] != sampling["sampler"]
        ),
    }


def _speed(sampling: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, Any]:
    """Take the times from timing.json, from sampling.json where there is none."""
    batches = {entry["batch_size"]: entry for entry in timing.get("batches") or []}
    best = timing.get("best") or {}
    benchmarked = bool(best.get("images_per_second"))
    if benchmarked:
        each, batch = 1 / best["images_per_second"], best.get("batch_size")
        peak = batches.get(batch, {}).get("peak_memory_bytes")
        source = timing
    else:
        each, batch = sampling.get("seconds_per_image"), sampling.get("batch_size")
        peak, source = sampling.get("peak_memory_bytes"), sampling
    measured = sampling.get("images") == MANY and sampling.get("seconds") is not None
    if measured:
        many = sampling["seconds"]
    else:
        many = None if each is None else MANY * each
    return {
        "benchmarked": benchmarked,
        "latency_seconds": batches.get(1, {}).get("seconds"),
        "seconds_per_image": each,
        "batch_size": batch,
        "seconds_50k": many,
        "seconds_50k_measured": measured,
        "sampling_peak_bytes": peak if peak is not None else sampling.get("peak_memory_bytes"),
        "device": source.get("device") or sampling.get("device"),
        "threads": timing.get("threads"),
        "precision": source.get("precision") or sampling.get("precision") or sampling.get("dtype"),
        "timing_protocol": source.get("protocol"),
        "largest_batch": timing.get("largest"),
    }


def _trained(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts.get(name) for name in ("step", "images_seen", "wall_seconds")}


def optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing file is an empty one.

    Raises:
        UserError: the file holds something else.
    """
    return read_json(path) if path.is_file() else {}


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


def _check_standard(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse standard metrics of different weights or references in one table."""
    known = [row for row in rows if row["standard"]]
    for row in known[1:]:
        for name in ("weights", "reference", "protocol"):
            if row["standard"].get(name) != known[0]["standard"].get(name):
                raise UserError(
                    f"the standard metrics of {row['label']} and {known[0]['label']} have other {name}; "
                    "run evaluate.py again"
                )


def _short(value: object) -> object:
    return f"{value.get('name')} {value.get('fingerprint')}" if isinstance(value, dict) else value


def _check_fresh(folder: Path, metrics: Mapping[str, Any]) -> None:
    scored = metrics.get("samples") or {}
    path = folder / str(scored.get("file"))
    drawn = optional_json(folder / "sampling.json").get("file")
    if drawn and drawn != scored.get("file"):
        raise UserError(f"{folder}/metrics.json scores {scored.get('file')}, not {drawn}; run evaluate.py again")
    if path.is_file():
        from comparison.data.samples import NpzSamples, fingerprint  # torch, only where there is something to hash

        if fingerprint(NpzSamples(path)) != scored.get("fingerprint"):
            raise UserError(f"{path}: other samples than {folder}/metrics.json scores; run evaluate.py again")


def first_samples(folder: Path, count: int) -> np.ndarray | None:
    """Return the first images, (n, S, S, 3) uint8: from the .npz, or cut out of samples.png; None without either."""
    named = optional_json(folder / "sampling.json").get("file")
    found = sorted(folder.glob("samples*.npz"), key=lambda p: (p.name == named, p.stat().st_mtime_ns, p.name))
    if found:
        from comparison.data.samples import NpzSamples

        return next(NpzSamples(found[-1]).batches(count)).permute(0, 2, 3, 1).numpy()
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


def read_strips(path: Path, rows: int, columns: int) -> list[np.ndarray]:
    """Cut a picture of `save_grid` into its rows, (columns, S, S, 3) uint8 each; none if it is missing or smaller."""
    images = read_grid(path, rows * columns, columns)
    if images is None or len(images) < rows * columns:
        return []
    return list(images.reshape(rows, columns, *images.shape[1:]))
