"""The scores of evaluate.py."""

import argparse
from pathlib import Path
from typing import Any

from comparison.device import pick_device, set_threads
from comparison.scores import evaluation
from comparison.scores.reference import Reference


def score_all(
    args: argparse.Namespace, standard: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """Return the controls, None unless asked for, and the scores of each sample set by its name.

    Args:
        args: options of evaluate.py.
        standard: weights, their hash and statistics for the standard metrics, or None.
    """
    set_threads(args.threads)
    device = pick_device(args.device)
    files = {
        str(folder): evaluation.find_samples(folder)
        for name in args.runs
        for folder in evaluation.scored_folders(Path(name))
    }
    reference = Reference.load(
        args.reference,
        args.image_size,
        args.num_images,
        args.seed,
        args.features,
        device=device,
        whole=args.anchors is None,
    )
    used = len(reference.chosen)
    if used < args.num_images:
        limit = "all images" if args.anchors is None else f"half of the {len(reference.data)} images"
        print(f"note: {used} images per row instead of {args.num_images}: {limit} of the reference")
    scores = None if standard is None else evaluation.Standard(**standard, device=device)
    evaluator = evaluation.Evaluator(reference, standard=scores)
    anchors = evaluation.evaluate_controls(evaluator, args.anchors) if args.anchors else None
    results = {}
    for name, file in files.items():
        target = Path(name) / "metrics.json" if file != Path(name) else None
        results[name] = evaluation.evaluate_samples(evaluator, file, target)
    return anchors, results
