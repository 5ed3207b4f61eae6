"""Sheets of images in the pictures of a report."""

import numpy as np
import pytest
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
