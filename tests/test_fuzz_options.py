"""Every option of every script, found in the parsers themselves, with numbers and paths that cannot be used."""

import argparse
import contextlib
import io
import math
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    str(path.relative_to(ROOT))
    for folder in ("gans", "improved-diffusion", "denoising-diffusion-gan", "results")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "tests" not in path.parts and "def parse_args" in path.read_text(encoding="utf-8")
]
HOSTILE = ("abc", "", "nan", "inf", "-inf", "1e30", "-1e30", "9" * 20, "0x10", "1_0_", "1 2", "\n", "½")


class FoundError(Exception):
    """Carries a parser out of parse_args."""


def parsers_of(script):
    """Return the parser of a script's command line: parse_args is called until it parses."""

    known = argparse.ArgumentParser.parse_known_args

    def found(self, *args, **kwargs):  # parse_args calls it, too; a parser of --preset alone comes first in gans
        if len(self._actions) > 2:
            raise FoundError(self)
        return known(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        parse_args = runpy.run_path(str(ROOT / script))["parse_args"]
        patch.setattr(argparse.ArgumentParser, "parse_known_args", found)
        with pytest.raises(FoundError) as raised:
            parse_args([])
    return raised.value.args[0]


def number_of(action, text):
    """Return the number that an option makes of a text; None where it refuses it, or takes no numbers."""
    try:
        value = action.type(text)
    except (argparse.ArgumentTypeError, ValueError, TypeError, OverflowError):
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def takes_numbers(action):
    return (
        action.type is not None
        and not action.choices
        and any(number_of(action, text) is not None for text in ("1", "2", "16", "0.5"))
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_numeric_options_refuse_what_is_no_usable_number(script):
    parser = parsers_of(script)
    numeric = [action for action in parser._actions if action.option_strings and takes_numbers(action)]
    for action in numeric:
        for text in HOSTILE:
            value = number_of(action, text)
            usable = value is None or (math.isfinite(value) and (isinstance(value, float) or abs(value) < 2**63))
            assert usable, f"{action.dest} {text!r}: {value}"
        required = [
            word for a in parser._actions if a.required and a.option_strings for word in (a.option_strings[0], "1")
        ]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
            parser.parse_args([*required, f"{action.option_strings[-1]}=abc"])
        assert end.value.code == 2
        assert errors.getvalue().count("\n") == 1
        assert action.option_strings[-1] in errors.getvalue()


def test_the_options_are_found():
    counts = {script: len([a for a in parsers_of(script)._actions if takes_numbers(a)]) for script in SCRIPTS}
    assert len(SCRIPTS) > 20
    assert counts["gans/cifar_gan.py"] > 25
    assert counts["improved-diffusion/scripts/image_train.py"] > 25


SECONDS = 20  # of a call that starts work, until it is stopped
SOURCES = ("data", "data_dir", "dataset", "test", "reference", "source")  # names of options
FREE_TEXT = {"--data_note", "--prefix"}  # any text is accepted


def takes_text(action):
    """Return whether an option's value goes unchecked through the parser: a path, a name, or a list."""
    if action.nargs == 0 or action.choices or takes_numbers(action) or set(action.option_strings) & FREE_TEXT:
        return False
    try:
        (action.type or str)("below/a/file")
    except (argparse.ArgumentTypeError, ValueError, TypeError):
        return False
    return True


def command_line(parser, action, text, folder):
    """Return a command line of `parser` in which `action` has the value `text` and all other options are usable."""
    options, positional = [], []
    for other in parser._actions:
        usable = text if other is action else usable_value(other, folder)
        if other is action or other.required or needed(other, action):
            options += [f"{other.option_strings[-1]}={usable}"] if other.option_strings else []
            positional += [] if other.option_strings else [usable]
    return [*options, *positional]


def needed(other, action):
    """Return whether a script would first complain that an option which it does not require is missing."""
    given = other.default or other.dest in ("data_dir", "test")
    return (other.dest in SOURCES and given) or (other.dest == "checkpoint" and action.dest not in ("exp", "run_dir"))


def usable_value(action, folder):
    if action.choices:
        return next(iter(action.choices))
    names = {"model": "gans", "name": "name", "runs": f"{folder}/run", "out": f"{folder}/out.npz"}
    names |= {"base_samples": f"{folder}/run/samples.npz", **dict.fromkeys(SOURCES, "shapes")}
    return names.get(action.dest, f"{folder}/file")


def call(script, arguments):
    """Run a script in this process and return its exit status and what it printed to stderr."""

    def too_long(*_):
        raise AssertionError(f"{script} {arguments}: still works after {SECONDS} s, so it accepts them")

    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        former = signal.signal(signal.SIGALRM, too_long)
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            return end.code, errors.getvalue()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, former)
    return 0, errors.getvalue()


def files_below(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_paths_that_cannot_be_used_are_refused_in_one_line(script, tmp_path, monkeypatch):
    """Paths below a file, with characters that a terminal acts on, and a name that is too long."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("neither a checkpoint nor a folder", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "progress.csv").write_text(
        "step,images_seen,wall_seconds,loss_d,loss_g\n1,8,0.1,2,3\n", encoding="utf-8"
    )
    np.savez(tmp_path / "run" / "samples.npz", np.zeros((1, 64, 64, 3), np.uint8))
    before = files_below(tmp_path), set((ROOT / "results").iterdir())
    parser = parsers_of(script)
    for action in filter(takes_text, parser._actions):
        for text in (f"{tmp_path}/file/\n\x1b[31mné\u202eツ.npz", f"{tmp_path}/{'x' * 300}/below.npz"):
            status, errors = call(script, command_line(parser, action, text, tmp_path))
            case = f"{action.option_strings or action.dest}: {errors[-1500:]}"
            assert status == 2, case
            assert errors.count("\n") == 1, case
            names = ("ツ", "xxx", (action.option_strings or ["ツ"])[0], f"{tmp_path}/file")  # the last is no checkpoint
            assert any(name in errors for name in names), case
            assert errors[:-1].isprintable(), case
            assert (files_below(tmp_path), set((ROOT / "results").iterdir())) == before, case
