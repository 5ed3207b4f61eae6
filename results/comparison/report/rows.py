"""The rows of a report, read from run folders.

A run folder has one row for its main samples and one for each folder in `settings/`, another sampler setting of the
same training. The folders in `history/`, earlier checkpoints, become points of the main row's `history`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import contract
from comparison.cli import UserError
from comparison.data.images import fingerprint, load_npz
from comparison.models import label_of
from comparison.runs import MAY_CHANGE, read_progress

FURTHER = re.compile(r"(.+)-s([1-9]\d*)")  # name of the run of another seed
FACTS = ("run", "steps", "images_seen", "finished", "checkpoint", "samples", "git_commit")  # of further trainings
MAY_DIFFER = MAY_CHANGE | {  # options of further trainings: what a resumed run may change, the seed and paths
    *("seed", "exp", "data", "data_dir", "dataset", "resume", "resume_checkpoint", "model_path", "teacher"),
}
MANY = 50_000  # images whose sampling time a report states
_COMPARABLE = ("reference", "extractor", "n", "image_size", "seed")  # must agree between metrics.json and the controls


def by_training(folders: Sequence[Path]) -> list[list[Path]]:
    """Return each run folder with those of its further trainings by other seeds: NAME with NAME-s1, NAME-s2, ...

    Raises:
        UserError: a folder is given twice.
    """
    known = {folder.resolve() for folder in folders}
    if len(known) < len(folders):
        twice = next(folder for folder in folders if [f.resolve() for f in folders].count(folder.resolve()) > 1)
        raise UserError(f"{twice}: two runs have the same model and name; give each once")
    groups: dict[Path, list[Path]] = {}
    for folder in sorted(folders, key=lambda folder: bool(FURTHER.fullmatch(folder.resolve().name))):
        path = folder.resolve()
        match = FURTHER.fullmatch(path.name)
        first = path.with_name(match[1]) if match else path
        groups.setdefault(first if first in known else path, []).append(folder)
    return list(groups.values())


def read_rows(groups: Sequence[Sequence[Path]], anchors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of all run folders, main samples before settings; values that no file holds are None.

    `series` names the training, `setting` the folder in settings/ (None for the main samples), `label` both. A row has
    the metrics of all trainings of its group, and else the values of the first.

    Args:
        groups: run folders, those of `by_training` together.
        anchors: content of the controls' file.

    Raises:
        UserError: a metrics.json belongs to other samples, or is not comparable with the controls.
    """
    folders = [group[0] for group in groups]
    for group in groups:
        for folder in group[1:]:
            _check_further(group[0], folder)
    runs = [_pool([_read_run(folder, anchors) for folder in group]) for group in groups]
    presets = [(optional_json(folder / "config.json").get("options") or {}).get("preset") for folder in folders]
    names = [label_of(run[0]["model"], preset) for run, preset in zip(runs, presets, strict=True)]
    series = [
        f"{name}, {run[0]['run']}" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)
    ]
    if len(set(series)) < len(runs):
        raise UserError("two runs have the same model and name; give each once")
    rows = [
        {"label": name if row["setting"] is None else f"{name}, {row['setting']}", "series": name, **row}
        for name, run in zip(series, runs, strict=True)
        for row in run
    ]
    _check_standard(rows)
    return rows


def _check_further(first: Path, folder: Path) -> None:
    """Raise UserError unless a run differs from another only in its seed and bounds, and is scored as that one is."""
    one, other = (optional_json(path / "config.json") for path in (first, folder))
    pairs = {"data.fingerprint": [(content.get("data") or {}).get("fingerprint") for content in (one, other)]}
    options = [c.get("options") or {} for c in (one, other)]
    pairs |= {name: [o.get(name) for o in options] for name in {**options[0], **options[1]} if name not in MAY_DIFFER}
    if different := next((name for name, (a, b) in sorted(pairs.items()) if a != b), None):
        a, b = pairs[different]
        raise UserError(f"{folder}: no further training of {first.name}: {different} {b} instead of {a}; rename it")
    if (first / "metrics.json").is_file() and not (folder / "metrics.json").is_file():
        raise UserError(f"{folder}: not scored, but {first.name} is; run evaluate.py")


def _pool(runs: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of the first run with the metrics of all, and what the further ones took."""
    for row in runs[0]:
        same = [other for run in runs[1:] for other in run if other["setting"] == row["setting"]]
        row["further"] = [{name: other[name] for name in FACTS} for other in same]
        row["metrics"] = pool_trainings([row["metrics"], *(other["metrics"] for other in same)])
        for point in row["history"]:
            others = [p["metrics"] for other in same for p in other["history"] if p["name"] == point["name"]]
            point["metrics"] = pool_trainings([point["metrics"], *others])
    return runs[0]


def pool_trainings(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics that all trainings have: their mean, its interval by resampling, and the values of each."""
    if len(metrics) == 1:
        return dict(metrics[0])
    pooled = {}
    for name, first in metrics[0].items():
        entries = [every[name] for every in metrics if name in every]
        if len(entries) == len(metrics):
            values = [entry["value"] for entry in entries]
            mean = sum(values) / len(values)
            sides = [entry.get("interval") or (entry["value"], entry["value"]) for entry in entries]
            low, high = (  # of a mean of independent samples; each side by itself, so that a fraction stays in [0, 1]
                math.hypot(*(side[end] - value for side, value in zip(sides, values, strict=True))) / len(values)
                for end in (0, 1)
            )
            pooled[name] = {**first, "value": mean, "interval": [mean - low, mean + high], "trainings": values}
    return pooled


def _read_run(folder: Path, anchors: Mapping[str, Any]) -> list[dict[str, Any]]:
    training = _training(folder)
    history = [
        {"name": p.name, **_trained(optional_json(p / "sampling.json")), "metrics": _scores(p, anchors)["metrics"]}
        for p in _sub_folders(folder / "history")
    ]
    history.sort(key=lambda point: (point["wall_seconds"] is None, point["wall_seconds"] or 0, point["name"]))
    rows = [{**training, **_distilled(folder), "setting": None, **_sample_set(folder, anchors), "history": history}]
    for part in _sub_folders(folder / "settings"):
        rows.append({**training, **_distilled(part), "setting": part.name, **_sample_set(part, anchors), "history": []})
    for row in rows:
        row["parameters"] = row["parameters"] or rows[0]["parameters"] or row["parameters_trained"]
    return rows


def _sub_folders(folder: Path) -> list[Path]:
    """Return the folders inside that hold results, ddim5 before ddim10."""
    holding = [p for p in folder.glob("*/") if any(p.glob("*.json")) or any(p.glob("samples*.npz"))]
    return sorted(holding, key=lambda p: (len(p.name), p.name))


def _training(folder: Path) -> dict[str, Any]:
    config, sampling = optional_json(folder / "config.json"), optional_json(folder / "sampling.json")
    path = folder.resolve()
    finished, diverged = config.get("finished") or {}, config.get("diverged")
    progress = read_progress(folder / "progress.csv") if (folder / "progress.csv").is_file() else []
    last = progress[-1] if progress else {}
    parameters = config.get("parameters")
    if isinstance(parameters, dict):
        parameters = sum(value for value in parameters.values() if isinstance(value, int))
    return {
        "model": str(config.get("model") or sampling.get("model") or path.parent.name),
        "run": path.name,
        "parameters_trained": parameters if isinstance(parameters, int) else None,
        "training_seconds": finished.get("wall_seconds", last.get("wall_seconds")),
        "images_seen": finished.get("images_seen", last.get("images_seen")),
        "steps": finished.get("steps", last.get("step")),
        "finished": f"divergence ({diverged['value']})" if diverged else finished.get("reason"),
        "training_peak_bytes": finished.get("peak_memory_bytes"),
        "training_device": config.get("device"),
        "training_precision": config.get("precision"),
        **{name: config.get(name) for name in ("data", "git_commit", "versions")},
    }


def _distilled(folder: Path) -> dict[str, Any]:
    """Return what training a distilled network and its teacher cost, {} for samples of another network."""
    trained = optional_json(folder / "sampling.json").get("trained") or {}
    if not (teacher := trained.get("teacher")):
        return {}
    names = {"training_seconds": "wall_seconds", "images_seen": "images_seen", "steps": "step"}
    return {
        name: None if None in (trained[key], teacher[key]) else trained[key] + teacher[key]
        for name, key in names.items()
    }


def _sample_set(folder: Path, anchors: Mapping[str, Any]) -> dict[str, Any]:
    sampling, timing = optional_json(folder / "sampling.json"), optional_json(folder / "timing.json")
    samplers = timing.get("sampler"), sampling.get("sampler")
    return {
        **_scores(folder, anchors),
        "sampler": sampling.get("sampler") or timing.get("sampler"),
        "checkpoint": sampling.get("checkpoint") or timing.get("checkpoint"),
        "trained": _trained(sampling),
        "nfe": timing.get("nfe", sampling.get("nfe")),
        "parameters": timing.get("parameters") or sampling.get("parameters"),
        "gflop_per_evaluation": timing.get("gflop_per_evaluation"),
        "gflop_per_image": timing.get("gflop_per_image"),
        "timed_otherwise": all(samplers) and samplers[0] != samplers[1],
        **_speed(sampling, timing),
    }


def _scores(folder: Path, anchors: Mapping[str, Any]) -> dict[str, Any]:
    metrics = optional_json(folder / "metrics.json")
    if metrics:
        _check_scores(folder, metrics, anchors)
    return {
        "metrics": metrics.get("metrics", {}),
        "standard": metrics.get("standard"),
        "samples": metrics.get("samples"),
        "scored_with": metrics.get("versions"),
    }


def _speed(sampling: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the times of timing.json, or those of sampling.json if no benchmark was run."""
    batches = {entry["batch_size"]: entry for entry in timing.get("batches") or []}
    best = timing.get("best") or {}
    benchmarked = bool(best.get("images_per_second"))
    source = timing if benchmarked else sampling
    each = 1 / best["images_per_second"] if benchmarked else sampling.get("seconds_per_image")
    batch = (best if benchmarked else sampling).get("batch_size")
    peak = batches.get(batch, {}).get("peak_memory_bytes") if benchmarked else None
    measured = sampling.get("images") == MANY and sampling.get("seconds") is not None
    return {
        "benchmarked": benchmarked,
        "latency_seconds": batches.get(1, {}).get("seconds"),
        "seconds_per_image": each,
        "batch_size": batch,
        "seconds_50k": sampling["seconds"] if measured else None if each is None else MANY * each,
        "seconds_50k_measured": measured,
        "sampling_peak_bytes": peak if peak is not None else sampling.get("peak_memory_bytes"),
        "device": source.get("device") or sampling.get("device"),
        "threads": timing.get("threads"),
        "precision": source.get("precision") or sampling.get("precision"),
        "timing_protocol": source.get("protocol"),
        "largest_batch": timing.get("largest"),
    }


def _trained(sampling: Mapping[str, Any]) -> dict[str, Any]:
    trained = sampling.get("trained") or {}
    return {name: trained.get(name) for name in ("step", "images_seen", "wall_seconds")}


def optional_json(path: Path) -> dict[str, Any]:
    """Return the content of a file of `contract`, {} if it is missing."""
    return contract.read(path, path.name) if path.is_file() else {}


def _check_standard(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError if the standard metrics have different weights or references."""
    scored = [row for row in rows if row["standard"]]
    for row in scored[1:]:
        for name in ("weights", "reference", "protocol"):
            if row["standard"].get(name) != scored[0]["standard"].get(name):
                pair = f"{scored[0]['label']} and {row['label']}"
                raise UserError(f"the standard metrics of {pair} have different {name}; run evaluate.py again")


def _check_scores(folder: Path, metrics: Mapping[str, Any], anchors: Mapping[str, Any]) -> None:
    """Raise UserError if a metrics.json is not comparable with the controls, or not of the samples in its folder."""
    again = "run evaluate.py again"

    def short(value: object) -> object:
        return f"{value.get('name')} {value.get('fingerprint')}" if isinstance(value, dict) else value

    differ = [
        f"{name} {short(metrics.get(name))}, but {short(anchors.get(name))} in the controls"
        for name in _COMPARABLE
        if metrics.get(name) != anchors.get(name)
    ]
    if differ:
        raise UserError(f"{folder}/metrics.json is not comparable with the controls: {'; '.join(differ)}; {again}")
    scored = metrics.get("samples") or {}
    sampled = optional_json(folder / "sampling.json").get("file")
    if sampled and sampled != scored.get("file"):
        raise UserError(f"{folder}/metrics.json scores {scored.get('file')}, not {sampled}; {again}")
    path = folder / str(scored.get("file"))
    if path.is_file() and fingerprint(load_npz(path)[0]) != scored.get("fingerprint"):
        raise UserError(f"{path}: not the samples that {folder}/metrics.json scores; {again}")
