"""The ratio of two Frechet distances and its paired interval."""

import pytest
import torch
from comparison.scores.bootstrap import paired_ratio
from comparison.scores.metrics import frechet_from, moments


def features(seed, n=400):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


DISTANCE = frechet_from(*moments(features(0, 4000)))


def width(ratio):
    return ratio["interval"][1] - ratio["interval"][0]


def test_a_set_has_the_ratio_one_to_itself():
    ratio = paired_ratio(DISTANCE, 1.3 * features(1), 1.3 * features(1), rounds=50)
    assert ratio["value"] == 1
    assert ratio["interval"] == [1, 1]


def test_a_worse_set_is_told_from_a_better_one():
    near, far = 1.3 * features(1), 1.6 * features(1)
    ratio = paired_ratio(DISTANCE, far, near, rounds=200)
    assert ratio["interval"][0] > 2
    assert ratio["interval"][0] < ratio["value"] < ratio["interval"][1]
    back = paired_ratio(DISTANCE, near, far, rounds=200)
    assert back["interval"][1] < 0.5


def test_the_shared_noise_narrows_the_interval():
    first, second = 1.5 * features(1), 1.5 * features(1) + 0.05 * features(2)
    paired = paired_ratio(DISTANCE, first, second, rounds=200)
    apart = paired_ratio(DISTANCE, first, second.flip(0), rounds=200)
    assert paired["value"] == pytest.approx(apart["value"])
    assert width(paired) < 0.5 * width(apart)


def test_repeated_images_do_not_shift_the_interval():
    """Without the correction its middle would lie at 1.6 times the ratio here."""
    first, second = 1.05 * features(3), 1.5 * features(3)
    ratio = paired_ratio(DISTANCE, first, second, rounds=300)
    middle = sum(ratio["interval"]) / 2
    assert middle == pytest.approx(ratio["value"], rel=0.1)


def test_sets_of_different_size_are_refused():
    with pytest.raises(ValueError, match="differ"):
        paired_ratio(DISTANCE, features(1, 10), features(1, 11))
