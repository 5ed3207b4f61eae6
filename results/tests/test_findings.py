"""Findings and trade-offs of a report, against values worked out by hand."""

import pytest
from comparison.report import tradeoffs
from comparison.report.findings import findings, rank


def entry(value, half=1.0):
    return {"value": value, "interval": [value - half, value + half], "n": 10}


def row(label, value=None, seconds=None, trained=None, **more):
    unknown = dict.fromkeys(["setting", "nfe", "images_seen", "batch_size", "benchmarked", "latency_seconds"])
    unknown |= dict.fromkeys(["parameters", "gflop_per_evaluation", "gflop_per_image"])
    unknown |= dict.fromkeys(["sampling_peak_bytes", "training_peak_bytes"])
    facts = {"device": "a CPU", "precision": "float32", "training_device": "a CPU", "series": label, "label": label}
    facts |= {"seconds_per_image": seconds, "training_seconds": trained, "seconds_50k": None}
    facts |= {"seconds_50k_measured": False}
    return unknown | facts | {"metrics": {} if value is None else {"frechet_distance": entry(value)}} | more


def said(rows, budget=None):
    """Return the findings by their first word."""
    texts = findings(rows, {"anchors": {"floor": row("floor", 2.0)}, "extractor": {"key": "cifar"}}, budget)
    return {text.split()[0].rstrip(":"): text for text in texts}


def test_ranking_says_no_significant_difference_when_there_is_none():
    close = rank([row("A", 5.0), row("B", 5.5), row("C", 50.0)], "frechet_distance", "Q", lowest=True)
    assert close == "Q: no significant difference between A (5.0 ± 1.0) and B (5.5 ± 1.0), followed by C (50.0 ± 1.0)."
    clear = rank([row("A", 9.0), row("B", 5.0)], "frechet_distance", "Q", lowest=True)
    assert clear == "Q: **B** is best (5.0 ± 1.0), followed by A (9.0 ± 1.0)."


def test_speed_is_relative_to_the_fastest():
    rows = [row("A", 1.0, 0.1, nfe=1), row("B", 1.0, 0.2, nfe=4)]
    assert said(rows)["Speed"].endswith("**A** is fastest (100 ms); B takes 2x as long.")
    assert "different" not in said(rows)["Speed"]
    rows[1]["device"] = "a GPU"
    assert "measured on different devices" in said(rows)["Speed"]


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ("images=5000", "5,000 images per model; training time: A 10 s."),
        ("seconds=10", "10 s per model; images seen: A 5,000."),
        ("seconds=99", "seconds=99, but not every model kept to it; {both}"),
        ("gans:images=5,flow:seconds=9", "different for each model; {both}"),
    ],
)
def test_a_budget_in_one_unit_is_also_stated_in_the_other(budget, text):
    text = text.format(both="images seen: A 5,000; training time: A 10 s.")
    assert said([row("A", 1.0, trained=10.0, images_seen=5000)], budget)["Training"] == f"Training budget: {text}"


def test_pareto_front_holds_what_no_row_beats_in_both():
    rows = [row(*facts) for facts in (("A", 9, 1), ("B", 5, 3), ("C", 7, 4), ("D", 4, 9), ("F", 5.5, 4))]
    rows.append(row("E", 1.0))  # its speed is unknown
    rows[1] |= {"series": "A", "setting": "ddim5"}
    assert [r["label"] for r in tradeoffs.pareto_front(rows)] == ["A", "B", "D"]
    # D is not significantly better than the faster B
    assert said(rows)["Choice"] == (
        "Choice: the best Frechet distance has, with at least 1 s per image A (9.0 ± 1.0) and "
        "with at least 3 s per image A with ddim5 (5.0 ± 1.0)."
    )
    assert (
        "no slower model has a significantly better Frechet distance than A"
        in said([rows[0], row("G", 8.5, 3)])["Choice"]
    )
