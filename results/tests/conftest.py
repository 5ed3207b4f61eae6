"""Running a script of results/ as a user would, without starting Python anew."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # helpers


@pytest.fixture(scope="session")
def script():
    """Return a function (folder, script, *arguments) -> CompletedProcess with returncode, stdout, stderr."""

    def call(folder, name, *args):
        import contextlib
        import io

        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(folder)
            patch.setattr(sys, "argv", [name, *map(str, args)])
            patch.syspath_prepend(RESULTS / Path(name).parent)  # as Python does for a script
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(RESULTS / name), run_name="__main__")
        return subprocess.CompletedProcess(args, end.value.code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Return a folder with made-up runs and report/anchors.json; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("made")
    runpy.run_path(str(Path(__file__).with_name("made_runs.py")))["make"](folder)
    return folder
