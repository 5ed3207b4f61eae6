"""Sheets of images in the pictures of a report."""

import numpy as np
import pytest
import torch
from comparison import png
from comparison.report import charts
from comparison.report.pictures import Sheet, draw_sheets
from PIL import Image

pytestmark = pytest.mark.figures


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_sheets_are_shown_whole_and_scaled_by_a_whole_factor(tmp_path):
    sheet = np.random.default_rng(0).integers(0, 256, (40, 310, 3), dtype=np.uint8)
    assert draw_sheets([Sheet("", "black", sheet)], tmp_path / "one.png")
    assert np.array_equal(pixels(tmp_path / "one.png"), sheet.repeat(2, 0).repeat(2, 1))
    large = np.full((1240, 1240, 3), 200, np.uint8)
    assert draw_sheets([Sheet("A", "black", sheet, ("label",)), Sheet("B", "black", large)], tmp_path / "two.png", 2)
    assert (pixels(tmp_path / "two.png") == 200).all(2).sum() == 620**2
    assert not draw_sheets([], tmp_path / "none.png")


def test_strips_show_what_each_model_draws_in_the_same_time():
    images = np.arange(20 * 4 * 4 * 3, dtype=np.uint8).reshape(20, 4, 4, 3)
    strips = [charts.Strip(name, "#000000", seconds, images) for name, seconds in (("A", 0.01), ("B", 1.0), ("C", 1.5))]
    (a, _, fast), (b, _, slow), (c, _, _) = charts.in_equal_time(strips)
    assert (a, b, c) == ("A: 600 images per 6 s, 16 shown", "B: 6 images per 6 s", "C: 4 images per 6 s")
    assert np.array_equal(fast[:, -4:], images[15])
    assert np.array_equal(slow[:, 30:34], images[5])
    assert (slow[:, 34:] == 255).all()


def test_a_grid_is_cut_into_its_images():
    images = np.random.default_rng(0).integers(0, 255, (16, 5, 5, 3), dtype=np.uint8)
    assert np.array_equal(png.cut(png.grid(torch.from_numpy(images).permute(0, 3, 1, 2))), images)
