"""Lets the tests import `ddgan`, and keeps pytest from taking the script test_ddgan.py for a test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
collect_ignore = ["test_ddgan.py"]
