"""The folder's README names flags, scripts and files that are there, and its commands are understood."""

import argparse
import contextlib
import importlib.util
import re
import shlex
import subprocess

import pytest
from diffusion_testing import FOLDER, script_env

TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
NOT_OURS = {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--hostfile", "--signal"}
SBATCH = {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--kill-on-bad-exit"}


def commands():
    """Yield (script, its arguments) of every command in a bash block, continued lines joined."""
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words):
                if word.startswith("improved-diffusion/") and word.endswith(".py"):
                    yield word.removeprefix("improved-diffusion/"), [w for w in words[i + 1 :] if w != "..."]


COMMANDS = list(commands())
RUNNABLE = [
    f"{folder}/{path.name}"
    for folder in ("scripts", "datasets")
    for path in sorted((FOLDER / folder).glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def parsers():
    """Return a function from a script's path in this folder to its parse_args."""

    def load(script):
        spec = importlib.util.spec_from_file_location(script.replace("/", "_").removesuffix(".py"), FOLDER / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.parse_args

    return load


@pytest.fixture(scope="module")
def exported():
    """Return the variables of flags.sh, as words."""
    names = ("MODEL_FLAGS", "DIFFUSION_FLAGS", "TRAIN_FLAGS")
    script = 'source "$0"; for name in ' + " ".join(names) + '; do printf "%s\\n" "${!name}"; done'
    command = ["bash", "-c", script, str(FOLDER / "flags.sh")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=script_env()).stdout.splitlines()
    return {f"${name}": line.split() for name, line in zip(names, lines, strict=True)}


def test_the_readme_shows_every_script():
    named = set(re.findall(r"(?:scripts|datasets)/\w+\.py", TEXT))
    assert named == set(RUNNABLE)


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda n: f"{COMMANDS[n][0]}-{n}")
def test_its_commands_are_understood(number, parsers, exported):
    script, words = COMMANDS[number]
    parsers(script)([flag for word in words for flag in exported.get(word, [word])])


def test_every_flag_it_names_exists(monkeypatch, parsers):
    known = set(NOT_OURS | SBATCH)
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda self, argv=None: known.update(self._option_string_actions)
    )
    for script in RUNNABLE:
        with contextlib.suppress(AttributeError):  # of a script that goes on with what it has read
            parsers(script)([])
    assert len(known) > 60
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", TEXT)) - known == set()
