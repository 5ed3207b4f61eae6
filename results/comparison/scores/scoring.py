"""The scores of evaluate.py, alone or with the ranks of a launcher."""

import argparse
from pathlib import Path
from typing import Any

import torch

from comparison import distributed
from comparison.device import set_threads
from comparison.ranks import RankInfo
from comparison.scores import evaluation, sharding
from comparison.scores.reference import Reference

Scores = tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]  # controls, if asked for; samples by name


def score_all(args: argparse.Namespace, standard: dict[str, Any] | None, rank_info: RankInfo) -> Scores | None:
    """Return the scores on rank 0, None on the others, which extract features for it.

    Args:
        args: options of evaluate.py.
        standard: weights, their hash and statistics for the standard metrics, or None.
        rank_info: this process's rank.
    """
    set_threads(args.threads, rank_info.local_world_size)
    device = distributed.device_of(rank_info, args.device)
    with distributed.group(rank_info, device):
        if not rank_info.is_first:
            sharding.serve(device)
            return None
        scores = _score(args, standard, device)
        sharding.dismiss()
    return scores


def _score(args: argparse.Namespace, standard: dict[str, Any] | None, device: torch.device) -> Scores:
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
        share=sharding.share,
    )
    used = len(reference.chosen)
    if used < args.num_images:
        limit = "all images" if args.anchors is None else f"half of the {len(reference.data)} images"
        print(f"note: {used} images per row instead of {args.num_images}: {limit} of the reference")
    scores = None if standard is None else evaluation.Standard(**standard, device=device)
    evaluator = evaluation.Evaluator(reference, extrapolate=args.extrapolate, standard=scores)
    anchors = evaluation.evaluate_controls(evaluator, args.anchors) if args.anchors else None
    results = {}
    for name, file in files.items():
        target = Path(name) / args.out if file != Path(name) else None
        results[name] = evaluation.evaluate_samples(evaluator, file, target)
    return anchors, results
