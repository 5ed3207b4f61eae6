"""Run folders and controls made up for tests of the report: numbers as they might be, pictures of `shapes`.

made = runpy.run_path("made_runs.py")["make"](folder)
"""

import json
from pathlib import Path

import numpy as np

CONTROLS = {  # label, note, then per metric the value and half width
    "floor": ("real images (floor)", "training images outside the reference set", (0.78, -0.003, 0.94, 0.976, 0.011)),
    "copies": ("copied training images", "the reference set itself", (0.0, -0.01, 1.0, 1.0, 1.0)),
    "jpeg": ("JPEG, quality 10", "the floor's images as JPEG", (1.4, 0.007, 0.94, 0.965, 0.004)),
    "half": ("half of the modes", "real images of 5 of 10 classes", (3.7, 0.064, 0.938, 0.93, 0.011)),
    "blur": ("blur, 1 px", "the floor's images, blurred", (27.9, 0.56, 0.86, 0.69, 0.0)),
    "noise": ("uniform noise", "each value drawn alone", (823.0, 86.0, 0.0, 0.0, 0.0)),
}
NAMES = ("frechet_distance", "kernel_distance", "recall", "coverage", "memorised")
REFERENCE = {"name": "cifar10-jpeg", "training_images": 50000, "training_fingerprint": "f1", "fingerprint": "e4"}
EXTRACTOR = {"name": "random embedding", "key": "random", "fingerprint": "a6", "dimensions": 192, "architecture": "two"}
IDENTITY = {"reference": REFERENCE, "extractor": EXTRACTOR, "n": 2000, "image_size": 16, "seed": 0}
PROTOCOL = "median of repeated calls after one warm-up, eval and inference mode, device synchronised"
DEVICE = {"device": "a CPU, 2 threads", "precision": "bfloat16"}
# model -> trained seconds, images seen, parameters, default NFE, seconds per image and evaluation, value per setting
MODELS = {
    "gans": (1200.1, 966784, 1068928, 1, 7e-5, {None: (37.7, 0.69, 0.864)}),
    "improved-diffusion": (
        *(1200.4, 83072, 2491462, 20, 0.0029),
        {
            None: (81.0, 0.90, 0.61),
            "ddim5": (140.0, 0.7, 0.4),
            "ddim10": (95.0, 0.85, 0.55),
            "ddim50": (78.0, 0.91, 0.63),
        },
    ),
    "denoising-diffusion-gan": (1200.9, 54624, 1842115, 4, 0.0026, {None: (81.4, 0.046, 0.329)}),
}
HISTORY = {
    "gans": (50.0, 36.0, 38.0),
    "improved-diffusion": (300.0, 150.0, 110.0),
    "denoising-diffusion-gan": (84.0, 82.0, 81.0),
}


def entry(value, half, n=2000):
    return {"value": value, "interval": [value - half, value + half], "n": n}


def entries(frechet, kernel, recall, coverage, memorised):
    values = (frechet, kernel, recall, coverage, memorised)
    halves = (0.05 * frechet + 0.05, 0.1 * abs(kernel) + 0.006, 0.02, 0.015, 0.002)
    return {name: entry(*pair) for name, *pair in zip(NAMES, values, halves, strict=True)}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_anchors(path):
    """Write anchors.json, schema 2, with a metric that a control deceives."""
    anchors = {k: {"label": a, "note": b, "metrics": entries(*v)} for k, (a, b, v) in CONTROLS.items()}
    checks = [
        {"metric": "frechet_distance", "anchor": "half", "verdict": "worse", "expected": ["worse"], "ok": True},
        {"metric": "kernel_distance", "anchor": "jpeg", "verdict": "unchanged", "expected": ["worse"], "ok": False},
        {"metric": "coverage", "anchor": "half", "verdict": "worse", "expected": ["worse"], "ok": True},
        {"metric": "coverage", "anchor": "copies", "verdict": "better", "expected": [], "ok": True},
        {"metric": "memorised", "anchor": "copies", "verdict": "worse", "expected": ["worse"], "ok": True},
        {"metric": "recall", "anchor": "jpeg", "verdict": "unchanged", "expected": ["unchanged", "worse"], "ok": True},
    ]
    checks = [{**check, "against": "floor"} for check in checks]
    write(path, {"schema": 2, **IDENTITY, "intervals": "95%", "anchors": anchors, "checks": checks, "versions": {}})


def make_set(folder, model, setting, frechet, recall, coverage, trained):
    """Write the files of one sample set; returns nothing."""
    _, _, parameters, nfe, each, _ = MODELS[model]
    nfe = int(setting.removeprefix("ddim")) if setting else nfe
    sampler = f"DDIM, {nfe} steps, eta 0" if model == "improved-diffusion" else f"{nfe} steps"
    facts = {"model": model, "sampler": sampler, "nfe": float(nfe), "parameters": parameters, **DEVICE}
    facts |= {"checkpoint": "checkpoint_9.pt"}
    seconds = nfe * each
    drawn = {"file": "samples.npz", "images": 2000, "batch_size": 100, "seconds": 2400 * seconds}
    drawn |= {"seconds_per_image": 1.2 * seconds, "trained": trained, "peak_memory_bytes": 6 * 10**8}
    write(folder / "sampling.json", {**facts, **drawn, "protocol": "after one warm-up batch"})
    batches = [
        {"batch_size": b, "seconds": s, "interquartile_range": 0.1 * s, "runs": 5, "images_per_second": b / s}
        | {"peak_memory_bytes": 5 * 10**8 + 10**6 * b}
        for b, s in ((1, 4 * seconds), (16, 20 * seconds), (128, 128 * seconds))
    ]
    cost = {"gflop_per_evaluation": 0.31, "gflop_per_image": 0.31 * nfe, "versions": {}, "threads": 2}
    best = {"best": {"batch_size": 128, "images_per_second": 1 / seconds}, "batches": batches, "schema": 1}
    largest = {"largest": {"batch_size": 512, "reason": "throughput no longer rises"}}
    write(folder / "timing.json", {"protocol": PROTOCOL, **facts, **cost, **best, **largest})
    metrics = entries(frechet, frechet / 60, recall, coverage, 0.001)
    scored = {"schema": 2, **IDENTITY, "samples": {"file": "samples.npz", "images": 2000, "fingerprint": "ba"}}
    write(folder / "metrics.json", {**scored, "metrics": metrics, "versions": {}})


def make_run(folder, model):
    """Write a run folder with settings and history."""
    from comparison.data import shapes
    from comparison.png import save_grid

    seconds, images_seen, parameters, _, _, settings = MODELS[model]
    finished = {"reason": "max_seconds 1200", "steps": 900, "images_seen": images_seen, "wall_seconds": seconds}
    config = {"model": model, "parameters": {"network": parameters, "other": 500}, "git_commit": "abc", "versions": {}}
    data = {"name": REFERENCE["name"], "fingerprint": REFERENCE["training_fingerprint"]}
    write(
        folder / "config.json", {**config, "data": data, "finished": {**finished, "peak_memory_bytes": 10**9}, **DEVICE}
    )
    steps = np.arange(1, 100)
    lines = [f"{10 * i},{100 * i},{12 * i},{1 / i + 0.5:.4f},{2 / i + 0.2:.4f}" for i in steps]
    (folder / "progress.csv").write_text("\n".join(["step,images_seen,wall_seconds,loss_d,loss_g", *lines]) + "\n")
    end = {"step": 900, "images_seen": images_seen, "wall_seconds": seconds}
    for setting, (frechet, recall, coverage) in settings.items():
        place = folder / "settings" / setting if setting else folder
        make_set(place, model, setting, frechet, recall, coverage, end)
    for percent, frechet in zip((25, 50, 75), HISTORY[model], strict=True):
        then = {
            "step": 9 * percent,
            "images_seen": images_seen * percent // 100,
            "wall_seconds": seconds * percent / 100,
        }
        make_set(folder / "history" / str(percent), model, None, frechet, 0.5, 0.4, then)
    images = shapes.dataset(10, 16, split="test", limit=64)[0]
    save_grid(images, folder / "samples.png")
    save_grid(images[:24], folder / "neighbours.png", columns=12)
    save_grid(images[:32], folder / "interpolation.png")


def make(folder: Path) -> list[Path]:
    """Write three run folders and report/anchors.json with its pictures; return the run folders."""
    from comparison.data import shapes
    from comparison.png import save_grid

    make_anchors(folder / "report" / "anchors.json")
    images = shapes.dataset(10, 16, limit=64)[0]
    save_grid(images, folder / "report" / "anchors-real.png")
    save_grid(images[:60], folder / "report" / "anchors-controls.png", columns=10)
    for model in MODELS:
        make_run(folder / "runs" / model / "made", model)
    return [folder / "runs" / model / "made" for model in MODELS]
