"""Run scripts one after the other in this process, where imports of large libraries fail; JSON in and out.

Standard input: a list of command lines, each a list of words with the script's path first. Standard output: for each
its exit status, standard output and standard error.
"""

import contextlib
import io
import json
import os
import runpy
import sys
from pathlib import Path

LARGE = ("torch", "torchvision", "scipy", "matplotlib", "mpi4py", "blobfile", "pytorch_fid", "diffusers")


def run(words: list[str]) -> tuple[int, str, str]:
    """Run a script as `python words` would."""
    out, err, before = io.StringIO(), io.StringIO(), list(sys.path)
    sys.argv, status = words, 0
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            status = -1
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.path[:] = before
    return status, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    sys.modules |= dict.fromkeys(LARGE)
    lines, answers = json.load(sys.stdin), sys.stdout
    results = [run(line) for line in lines]
    json.dump(results, answers)
    answers.flush()
    os._exit(0)
