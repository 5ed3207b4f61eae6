"""Lets the tests import `ddgan`, scripts and helpers; keeps pytest from taking test_ddgan.py, a script, for a test."""

import sys
from pathlib import Path

import pytest

for folder in (".", "tests"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
collect_ignore = ["test_ddgan.py"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 20 pictures."""
    from helpers_ddgan import make_images

    return make_images(tmp_path_factory.mktemp("data") / "pictures")
