"""What a setting costs against what it gives: the Pareto front, break-even points, the trend of a training.

Standard library only.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from comparison.formatting import apart

Row = Mapping[str, Any]
QUALITY = "frechet_distance"
EQUAL_TRAINING = 0.01  # relative difference of training times below which they count as equal


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of main sample sets, one per training."""
    return [row for row in rows if row["setting"] is None]


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other row beats in both time per image and Frechet distance, the fastest first."""
    known = [row for row in rows if row["seconds_per_image"] and QUALITY in row["metrics"]]
    front: list[Row] = []
    for row in sorted(known, key=lambda r: (r["seconds_per_image"], r["metrics"][QUALITY]["value"])):
        if not front or row["metrics"][QUALITY]["value"] < front[-1]["metrics"][QUALITY]["value"]:
            front.append(row)
    return front


def break_evens(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare the total cost, training seconds + n x seconds per image, of each pair of rows.

    Args:
        rows: one per training; those without either time are left out.

    Returns:
        One dictionary per pair: `cheaper` than `than` (labels) once more than `after` images (int) are drawn; 0 where
        it is so from the first image on. Trainings within 1% of each other count as equally long.
    """
    known = [row for row in rows if row["training_seconds"] is not None and row["seconds_per_image"]]
    found = []
    for pair in combinations(known, 2):
        fast, slow = sorted(pair, key=lambda row: row["seconds_per_image"])
        head_start = fast["training_seconds"] - slow["training_seconds"]
        longest = max(fast["training_seconds"], slow["training_seconds"])
        saving = slow["seconds_per_image"] - fast["seconds_per_image"]
        if saving == 0:
            continue
        after = 0 if head_start <= EQUAL_TRAINING * longest else math.ceil(head_start / saving)
        found.append({"cheaper": fast["label"], "than": slow["label"], "after": after})
    return found


def training_points(row: Row) -> list[dict[str, Any]]:
    """Return the scored checkpoints of a training in order, the newest last: percent, seconds, entry.

    Seconds are those of training when the checkpoint was written, None where unknown; percent is of the newest.
    """
    last = (row.get("trained") or {}).get("wall_seconds") or row["training_seconds"]
    points = []
    for point in row["history"]:
        if QUALITY in point["metrics"]:
            seconds = point["wall_seconds"]
            percent = round(100 * seconds / last) if seconds is not None and last else None
            if percent is None and point["name"].isdigit():
                percent = int(point["name"])
            points.append({"percent": percent, "seconds": seconds, "entry": point["metrics"][QUALITY]})
    if QUALITY in row["metrics"]:
        points.append({"percent": 100, "seconds": last, "entry": row["metrics"][QUALITY]})
    return points


def trend(row: Row) -> tuple[str, dict[str, Any]] | None:
    """Judge how the Frechet distance moved at the end of a training.

    Returns:
        `worse` and the earlier point that was significantly better than the end; `better` and the last earlier point,
        which the end beats significantly; `steady` and the earliest point from which on nothing differs significantly
        from the end. None without two points.
    """
    points = training_points(row)
    if len(points) < 2:
        return None
    *earlier, end = points
    value = end["entry"]["value"]
    ahead = [point for point in earlier if point["entry"]["value"] < value and apart(point["entry"], end["entry"])]
    if ahead:
        return "worse", min(ahead, key=lambda point: point["entry"]["value"])
    if apart(earlier[-1]["entry"], end["entry"]):
        return "better", earlier[-1]
    since = earlier[-1]
    for point in reversed(earlier):
        if apart(point["entry"], end["entry"]):
            break
        since = point
    return "steady", since
