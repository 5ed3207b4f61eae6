"""The embedded data set and the counting of its modes."""

import numpy as np
import pytest
import torch
from comparison.data import shapes
from torchvision.transforms.functional import gaussian_blur


def matched(images):
    """Return the modes of the images that show one."""
    modes, _ = shapes.match_modes(images)
    return modes[modes >= 0]


@pytest.mark.parametrize("count", [10, 100, 200, 1000])
def test_every_picture_is_matched_to_its_own_mode(count):
    images, labels = shapes.dataset(count, 32, split="test", limit=600)
    residual, mode = shapes.fit_modes(images, count)
    assert torch.equal(mode, labels)
    accepted = (residual < shapes.ACCEPT).double().mean()
    assert accepted == 1 if count < 1000 else accepted > 0.99  # the smallest of 1,000 are three pixels across


def test_pictures_of_another_size_are_matched_too():
    images, labels = shapes.dataset(200, 64, limit=200)
    assert (shapes.match_modes(images)[0] == labels).float().mean() > 0.99


@pytest.mark.parametrize("level", [0, 128, 220, 255])
def test_empty_pictures_show_no_mode(level):
    assert not len(matched(torch.full((4, 3, 32, 32), level, dtype=torch.uint8)))


def test_every_test_image_is_below_the_acceptance_and_soft_spots_are_above_it():
    images, labels = shapes.dataset(200, 32, split="test")
    residual, mode = shapes.fit_modes(images)
    assert torch.equal(mode, labels)
    assert residual.max() < 0.08 < shapes.ACCEPT
    blobs = shapes.blobs(500, 32, np.random.default_rng(0))
    residual, _ = shapes.fit_modes(blobs)
    assert (residual < 0.35).double().mean() > 0.8  # what an acceptance of 0.35 took for figures
    assert (residual < shapes.ACCEPT).double().mean() < 0.01
    smears = gaussian_blur(images[:500], [25, 25], [3.0, 3.0])
    assert len(matched(smears)) < 0.01 * len(smears)


def test_whole_set_holds_each_mode_equally_often():
    _, labels = shapes.dataset(200, 8)
    assert torch.bincount(labels).tolist() == [100] * 200


def test_a_limit_takes_the_first_pictures_and_splits_differ():
    whole, _ = shapes.dataset(10, 16, limit=60)
    part, _ = shapes.dataset(10, 16, limit=20)
    other, _ = shapes.dataset(10, 16, limit=20, split="test")
    assert torch.equal(whole[:20], part)
    assert not torch.equal(part, other)
