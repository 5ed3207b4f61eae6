"""Every option of every script, found in the parsers themselves, with numbers and paths that cannot be used."""

import argparse
import contextlib
import io
import math

import numpy as np
import pytest

HOSTILE = ("abc", "", "nan", "inf", "-inf", "1e30", "-1e30", "9" * 20, "0x10", "1_0_", "1 2", "\n", "½")


class FoundError(Exception):
    """Carries a parser out of parse_args."""


@pytest.fixture
def parser_of(parse, monkeypatch):
    """Return a function that returns the parser of a script's command line: parse_args is called until it parses."""
    known = argparse.ArgumentParser.parse_known_args

    def found(self, *args, **kwargs):  # parse_args calls it, too; a parser of --preset alone comes first in gans
        if len(self._actions) > 2 or not all(action.option_strings for action in self._actions):
            raise FoundError(self)
        return known(self, *args, **kwargs)

    def parser_of(script):
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", found)
            with pytest.raises(FoundError) as raised:
                parse(script, [])
        return raised.value.args[0]

    return parser_of


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


def test_numeric_options_refuse_what_is_no_usable_number(script, parser_of):
    parser = parser_of(script)
    numeric = [action for action in parser._actions if action.option_strings and takes_numbers(action)]
    if script in ("gans/cifar_gan.py", "improved-diffusion/scripts/image_train.py"):
        assert len(numeric) > 25
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


SOURCES = ("data", "data_dir", "dataset", "test", "reference", "source")  # names of options
FREE_TEXT = {"--data_note", "--prefix"}  # any text is accepted
NEED_THE_CHECKPOINT = {("denoising-diffusion-gan/test_ddgan.py", name) for name in ("dataset", "class_label")}


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


@pytest.fixture
def folder(tmp_path):
    """A folder with a run, and with a file that is neither a checkpoint nor a folder."""
    (tmp_path / "file").write_text("neither a checkpoint nor a folder")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "progress.csv").write_text("step,images_seen,wall_seconds,loss_d,loss_g\n1,8,0.1,2,3\n")
    np.savez(tmp_path / "run" / "samples.npz", np.zeros((1, 64, 64, 3), np.uint8))
    return tmp_path


def test_paths_that_cannot_be_used_are_refused_in_one_line_before_torch_is_imported(
    scripts, parser_of, without_torch, checkout, folder
):
    """Paths below a file, with characters that a terminal acts on, and a name that is too long."""
    cases = []
    for script in scripts:
        parser = parser_of(script)
        for action in filter(takes_text, parser._actions):
            if (script, action.dest) not in NEED_THE_CHECKPOINT:
                for text in (f"{folder}/file/\n\x1b[31mné\u202eツ.npz", f"{folder}/{'x' * 300}/below.npz"):
                    cases.append((action, [script, *command_line(parser, action, text, folder)]))
    before = files_below(folder), files_below(checkout / "results")
    for (action, line), (status, _, errors) in zip(cases, without_torch([line for _, line in cases]), strict=True):
        case = f"{line}: {errors[-1500:]}"
        assert (status, errors.count("\n")) == (2, 1), case
        names = ("ツ", "xxx", (action.option_strings or ["ツ"])[0], f"{folder}/file")  # the last is no checkpoint
        assert any(name in errors for name in names), case
        assert errors[:-1].isprintable(), case
    assert (files_below(folder), files_below(checkout / "results")) == before


def files_below(folder):
    return sorted(str(path) for path in folder.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__")
