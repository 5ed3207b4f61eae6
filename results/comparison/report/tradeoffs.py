"""Quality against cost: the Pareto front, scored checkpoints. Standard library only."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
QUALITY = "frechet_distance"


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of main sample sets, one per training."""
    return [row for row in rows if row["setting"] is None]


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the main rows, each followed by its network distilled for two evaluations, where there is one."""
    return [row for row in rows if row["setting"] in (None, "few-step-2")]


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other row beats in both time per image and Frechet distance, the fastest first."""
    scored = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]
    front: list[Row] = []
    for row in sorted(scored, key=lambda r: (r["seconds_per_image"], r["metrics"][QUALITY]["value"])):
        if not front or row["metrics"][QUALITY]["value"] < front[-1]["metrics"][QUALITY]["value"]:
            front.append(row)
    return front


def training_points(row: Row) -> list[tuple[float, Mapping[str, Any]]]:
    """Return (training seconds, Frechet distance) of each scored checkpoint with a known time, the newest last."""
    last = (row.get("trained") or {}).get("wall_seconds") or row["training_seconds"]
    points = [*((point["wall_seconds"], point["metrics"]) for point in row["history"]), (last, row["metrics"])]
    return [(seconds, metrics[QUALITY]) for seconds, metrics in points if seconds is not None and QUALITY in metrics]
