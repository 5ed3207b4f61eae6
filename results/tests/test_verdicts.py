"""Sentences and trade-offs of a report, against numbers worked out by hand."""

import pytest
from comparison.report import findings, tradeoffs


def entry(value, half=1.0):
    return {"value": value, "interval": [value - half, value + half], "n": 10}


def row(label, value, half=1.0, **more):
    metrics = {"frechet_distance": entry(value, half)}
    facts = {"seconds_per_image": None, "setting": None, "series": label, "nfe": None, "device": "a CPU"}
    facts |= {"precision": "float32", "training_device": "a CPU", "training_seconds": None, "history": []}
    return {"label": label, "metrics": metrics, **facts, **more}


def test_ranking_says_no_significant_difference_when_there_is_none():
    close = findings.rank([row("A", 5.0), row("B", 5.5), row("C", 50.0)], "frechet_distance", "Q", lowest=True)
    assert close.startswith("Q: no significant difference between A (5.0 ± 1.0) and B (5.5 ± 1.0); C")
    clear = findings.rank([row("A", 9.0), row("B", 5.0)], "frechet_distance", "Q", lowest=True)
    assert clear.startswith("Q: **B** is best (5.0 ± 1.0); A (9.0 ± 1.0) follows")


def test_sentence_tells_the_side_of_blur_and_the_distance_from_noise():
    controls = {n: row(n, v) for n, v in {"floor": 2.0, "blur": 20.0, "noise": 900.0}.items()}
    text = findings.against_controls([row("A", 9.0), row("B", 60.0), row("C", 20.5), row("D", 900.5)], controls)
    assert "A is better than the blur control and 100 times below noise, 4.5 times the floor" in text
    assert "B is worse than the blur control and 15 times below noise" in text
    assert "C is not significantly different from the blur control" in text
    assert "D is worse than the blur control and not significantly different from noise, 450 times the floor" in text


def test_speed_on_different_devices_is_said_to_be_so():
    rows = [row("A", 1.0), row("B", 1.0)]
    for r, t, device in zip(rows, (0.1, 0.2), ("cpu", "gpu"), strict=True):
        r |= {"seconds_per_image": t, "device": device, "precision": "float32", "nfe": 1}
    assert "devices or precisions differ" in findings.speed(rows)
    rows[1]["device"] = "cpu"
    assert "differ" not in findings.speed(rows)
    assert "2 times as fast as B" in findings.speed(rows)


def test_equal_images_print_the_seconds_and_equal_seconds_the_images():
    rows = [row("A", 1.0, images_seen=5000, training_seconds=10.0)]
    assert findings.cost(rows, "images=5000") == "Equal training images, 5,000 each; training time: A 10 s."
    assert findings.cost(rows, "seconds=10") == "Equal training time, 10 s each; images seen: A 5,000."
    assert "Unequal" in findings.cost(rows, "recipe")
    assert findings.cost(rows, "gans:images=5,flow:seconds=9").startswith("Unequal budgets, set for each model;")


def test_copies_are_called_memorised():
    def memorised(label, value):
        metrics = {"memorised": {"value": value, "interval": [value - 0.01, value + 0.01]}}
        return {"label": label, "setting": None, "metrics": metrics}

    controls = {"floor": memorised("floor", 0.02)}
    assert "A stands closer" in findings.memorisation([memorised("A", 0.5), memorised("B", 0.01)], controls)
    assert "no sign" in findings.memorisation([memorised("B", 0.025)], controls)


def test_pareto_front_holds_what_no_row_beats_in_both():
    rows = [
        row(*facts[:2], seconds_per_image=facts[2]) for facts in (("A", 9, 1), ("B", 5, 3), ("C", 7, 4), ("D", 4, 9))
    ]
    rows.append(row("E", 1.0))  # its speed is unknown
    assert [r["label"] for r in tradeoffs.pareto_front(rows)] == ["A", "B", "D"]
    text = findings.pareto(rows, "distance")
    assert "both faster and better than A (1 s per image, 9.0 ± 1.0), B (3 s" in text
    assert "D is not significantly better than the faster B" in text
    assert "for C there is a faster and better one" in text


def test_settings_are_named_without_a_comma_in_sentences():
    rows = [row("A", 9.0, seconds_per_image=1.0), row("A, ddim5", 20.0, seconds_per_image=0.5)]
    rows[1] |= {"series": "A", "setting": "ddim5"}
    assert "A with ddim5 (500 ms per image, 20.0 ± 1.0) and A (1 s" in findings.pareto(rows, "distance")


def test_one_setting_that_beats_all_is_called_the_fastest_and_the_best():
    rows = [row("A", 5.0, seconds_per_image=0.1), row("B", 5.5, seconds_per_image=0.2)]
    text = findings.pareto(rows, "distance")
    assert "is both the fastest and the best of 2 settings, though not significantly better than B" in text


def test_break_even_is_where_the_total_costs_are_equal():
    slow = row("slow sampler", 1.0, training_seconds=100.0, seconds_per_image=0.5)
    fast = row("fast sampler", 1.0, training_seconds=200.0, seconds_per_image=0.1)
    assert tradeoffs.break_evens([slow, fast]) == [{"cheaper": "fast sampler", "than": "slow sampler", "after": 250}]
    assert "after 250 images fast sampler has cost less than slow sampler" in findings.total_cost([slow, fast])


def test_no_break_even_is_said_to_be_none():
    rows = [row(name, 1.0, training_seconds=100.0, seconds_per_image=each) for name, each in (("A", 0.1), ("B", 0.5))]
    rows[0]["training_seconds"] = 100.4  # as long, within a step
    assert tradeoffs.break_evens(rows) == [{"cheaper": "A", "than": "B", "after": 0}]
    assert "A costs less than B for any number of images" in findings.total_cost(rows)
    assert findings.total_cost(rows[:1]) is None
    rows[1]["device"] = "a GPU"
    assert "devices differ" in findings.total_cost(rows)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((90, 50, 30, 20), "A was still getting better (30.0 ± 1.0 at 75% of training, 20.0 ± 1.0 at the end)"),
        ((90, 20.5, 20.9, 20), "A shows no significant change since 50% of training (20.5 ± 1.0 there"),
        ((20.1, 20.5, 20.9, 20), "since 25% of training"),
        ((90, 10, 15, 20), "A has got worse since 50% of training (10.0 ± 1.0 there, 20.0 ± 1.0 at the end)"),
    ],
)
def test_the_trend_of_a_training_follows_from_the_intervals(values, says):
    *earlier, end = values
    history = [
        {"name": str(p), "wall_seconds": p / 100, "metrics": {"frechet_distance": entry(value)}}
        for p, value in zip((25, 50, 75), earlier, strict=True)
    ]
    (text,) = findings.history([row("A", end, training_seconds=1.0, history=history)], "distance")
    assert says in text


def test_a_training_without_history_has_no_trend():
    assert findings.history([row("A", 1.0, training_seconds=1.0)], "distance") == []


def test_sampler_settings_of_one_training_are_ranked_among_themselves():
    rows = [row("A", 9.0, nfe=20, sampler="DDIM"), row("A, ddim50", 8.5), row("A, ddim5", 40.0)]
    for r, setting in zip(rows, (None, "ddim50", "ddim5"), strict=True):
        r |= {"setting": setting, "series": "A"}
    (text,) = findings.settings(rows, "distance")
    assert "no significant difference between ddim50 (8.5 ± 1.0) and the default with 20 evaluations (9.0" in text


def test_uneven_classes_are_named():
    def classes(label, value):
        return {"label": label, "metrics": {"class_entropy": entry(value, 0.02)}}

    text = findings.classes([classes("A", 3.31), classes("B", 2.1)], {"floor": classes("floor", 3.32)})
    assert "as even as those of real images for A (3.310 ± 0.020); less even for B (2.100 ± 0.020)" in text
