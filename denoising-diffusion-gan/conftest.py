"""Lets the tests import `ddgan`, scripts and helpers; keeps pytest from taking test_ddgan.py, a script, for a test."""

import sys
from pathlib import Path

for folder in (".", "tests"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
collect_ignore = ["test_ddgan.py"]
