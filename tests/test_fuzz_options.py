"""Every option of every script, found in the parsers themselves, with values that no number can be."""

import argparse
import contextlib
import io
import math
import runpy
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
HOSTILE = ("abc", "", "nan", "inf", "-inf", "1e30", "-1e30", "9" * 20, "0x10", "1_0_", "1 2", "\n", "½")


class FoundError(Exception):
    """Carries a parser out of parse_args."""


def parsers_of(script):
    """Return the parsers of a script's command line: parse_args is called until it parses."""

    def found(self, *args, **kwargs):
        raise FoundError(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        parse_args = runpy.run_path(str(ROOT / script))["parse_args"]
        patch.setattr(argparse.ArgumentParser, "parse_args", found)
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
