"""Lets the tests import `ddgan`, the scripts and their helpers, and keeps pytest from taking the script test_ddgan.py for a test."""

import sys
from pathlib import Path

for folder in (".", "tests"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
collect_ignore = ["test_ddgan.py"]
