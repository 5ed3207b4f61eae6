"""Tests build every figure but draw only those that they look at: drawing costs a sixth of the suite's time."""

import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

DRAW = FigureCanvasAgg.print_png


def leave_blank(canvas, filename, **options):
    """Write a white PNG of the figure's size, in place of `FigureCanvasAgg.print_png`."""
    if isinstance(filename, io.BytesIO):  # matplotlib asks for the renderer
        return DRAW(canvas, filename, metadata=options.get("metadata"))
    width, height = canvas.get_width_height()
    return Image.new("RGB", (width, height), "white").save(filename, "PNG")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Draw figures in tests with the marker `figures`, and in their fixtures, unless another test made those."""
    FigureCanvasAgg.print_png = DRAW if item.get_closest_marker("figures") else leave_blank
    yield
    FigureCanvasAgg.print_png = DRAW
