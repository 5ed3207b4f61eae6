"""A copy of the repository to run documented commands in, as a stranger who has just cloned it would."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comparison.data import shapes

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A folder with the repository's files, without runs, data or environment."""
    copy = tmp_path_factory.mktemp("clone") / "comparative-diffusion-models"
    git = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    if listed is None or listed.returncode:
        ignored = shutil.ignore_patterns(".git", ".venv", "data", "runs", "__pycache__", "*.egg-info", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        return copy
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_file() and not name.startswith("results/runs/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name)
    return copy


@pytest.fixture(scope="session")
def environment(checkout):
    """Environment variables that make this Python and the copy's packages the ones that are found."""
    path = [str(checkout / "results"), str(checkout / "improved-diffusion")]
    unwanted = ("DATA_ROOT", "OPENAI_", "PRESET", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return environment | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHON": sys.executable,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.fixture
def shell(checkout, environment):
    """Run a line of bash in the copy and return the finished process."""

    def run(line, timeout=300, **extra):
        return subprocess.run(
            ["bash", "-c", line],
            cwd=checkout,
            env=environment | extra,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return run


def _run_here(words, root):
    """Run a script of the repository in this process, which has torch already, from a folder; return its status."""
    script = root / words[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.COUNTS, "train", 2000)
        patch.chdir(root)
        patch.setattr(sys, "argv", list(words))
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
    return 0


@pytest.fixture(scope="session")
def run_here(checkout):
    """Return a function that runs the words of a command in this process, in the copy, and returns its status."""
    return lambda words: _run_here(words, checkout)


@pytest.fixture(scope="session")
def jobs_here(checkout):
    """Return what replaces `jobs.run` so that it starts no process; its console goes to this one's."""

    def run(command, console=None):
        status = _run_here(command, checkout)
        if status:
            raise SystemExit(status)

    return run
