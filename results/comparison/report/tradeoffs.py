"""Quality against cost: the Pareto front, break-even points, scored checkpoints. Standard library only."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

Row = Mapping[str, Any]
QUALITY = "frechet_distance"
EQUAL_TRAINING = 0.01  # relative difference of training times below which they count as equal


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of main sample sets, one per training."""
    return [row for row in rows if row["setting"] is None]


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other row beats in both time per image and Frechet distance, the fastest first."""
    scored = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]
    front: list[Row] = []
    for row in sorted(scored, key=lambda r: (r["seconds_per_image"], r["metrics"][QUALITY]["value"])):
        if not front or row["metrics"][QUALITY]["value"] < front[-1]["metrics"][QUALITY]["value"]:
            front.append(row)
    return front


def break_evens(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare the total time, training seconds + n x seconds per image, of each pair of rows that have both times.

    Returns:
        One dictionary per pair: `cheaper` takes less time than `than` (labels) for more than `after` images (int). It
        is 0 if the faster sampler took no longer to train; training times within 1% of each other count as equal.
    """
    timed = [row for row in rows if row["training_seconds"] is not None and row["seconds_per_image"]]
    pairs = []
    for pair in combinations(timed, 2):
        fast, slow = sorted(pair, key=lambda row: row["seconds_per_image"])
        head_start = fast["training_seconds"] - slow["training_seconds"]
        longest = max(fast["training_seconds"], slow["training_seconds"])
        saving = slow["seconds_per_image"] - fast["seconds_per_image"]
        if saving == 0:
            continue
        after = 0 if head_start <= EQUAL_TRAINING * longest else math.ceil(head_start / saving)
        pairs.append({"cheaper": fast["label"], "than": slow["label"], "after": after})
    return pairs


def training_points(row: Row) -> list[tuple[float, Mapping[str, Any]]]:
    """Return (training seconds, Frechet distance) of each scored checkpoint with a known time, the newest last."""
    last = (row.get("trained") or {}).get("wall_seconds") or row["training_seconds"]
    points = [*((point["wall_seconds"], point["metrics"]) for point in row["history"]), (last, row["metrics"])]
    return [(seconds, metrics[QUALITY]) for seconds, metrics in points if seconds is not None and QUALITY in metrics]
