"""A copy of the repository to run documented commands in, as a stranger who has just cloned it would."""

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    str(path.relative_to(ROOT))
    for folder in ("gans", "improved-diffusion", "denoising-diffusion-gan", "results")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "tests" not in path.parts and "def parse_args" in path.read_text(encoding="utf-8")
]


def pytest_generate_tests(metafunc):
    """Run a test with the argument `script` once for every script."""
    if "script" in metafunc.fixturenames:
        metafunc.parametrize("script", SCRIPTS)


@pytest.fixture(scope="session")
def scripts():
    """Paths of all scripts with a function parse_args, relative to the repository."""
    return SCRIPTS


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


@pytest.fixture(scope="session")
def shell(checkout, environment):
    """Run a line of bash in the copy and return the finished process."""

    def run(line, **extra):
        command = ["bash", "-c", line]
        settings = {"cwd": checkout, "env": environment | extra, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)

    return run


@pytest.fixture(scope="session")
def parse():
    """Return a function that calls parse_args of a script of the repository."""

    def run(script, words):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend((ROOT / script).parent)
            return runpy.run_path(str(ROOT / script))["parse_args"](words)

    return run


@pytest.fixture(scope="session")
def without_torch(checkout, environment):
    """Return a function that runs command lines where torch cannot be imported, and returns status, output, errors."""

    def run(lines):
        command = [sys.executable, str(Path(__file__).with_name("scripts_without_torch.py"))]
        settings = {"input": json.dumps(lines), "cwd": checkout, "env": environment}
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **settings).stdout)

    return run


def run_script(words, folder=ROOT):
    """Run a script in this process, from a folder, as `python words` would; return its status, output and errors."""
    script, status = folder / words[0], 0
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", list(words))
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def run_here():
    """Return `run_script`."""
    return run_script


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    """Let the data set `shapes` have few training images in this process."""
    from comparison.data import shapes

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.COUNTS, "train", 2000)
        yield


@pytest.fixture(scope="session")
def jobs_here(checkout):
    """Return what replaces `jobs.run` so that it starts no process."""

    def run(command, console=None):
        status, out, err = run_script(command, checkout)
        sys.stdout.write(out)
        sys.stderr.write(err)
        if status:
            raise SystemExit(status)

    return run
