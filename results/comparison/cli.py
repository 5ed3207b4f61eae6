"""Command lines: one-sentence errors, types with ranges, the options that every training script shares.

Standard library only, so that a wrong flag is answered before torch is imported.
"""

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # exit status after Ctrl-C


class UserError(ValueError):
    """A mistake that the user can mend, told in one sentence; `run` turns it into exit status 2."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands, and the default behind each option."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser described by a script's docstring, strict about names and brief about errors."""
    return Parser(description=(doc or "").strip(), allow_abbrev=False, formatter_class=Formatter)


def run(main: Callable[[], Any]) -> NoReturn:
    """Call `main` and leave with its status: 2 and one sentence after a UserError, a file that cannot be used or memory
    that does not suffice, 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are not text in the terminal's encoding
    try:
        status = main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{Path(sys.argv[0]).name}: error: {where}{error.strerror or error}", file=sys.stderr)
        status = 2
    except (MemoryError, RuntimeError) as error:
        if not (words := memory_words(error)):
            raise
        print(f"{Path(sys.argv[0]).name}: error: {words}", file=sys.stderr)
        status = 2
    sys.exit(status or 0)


def memory_words(error: BaseException) -> str:
    """Return a sentence for an error of Python or torch which means that memory is used up, '' for any other."""
    text = " ".join(str(error).split())
    of_torch = ("can't allocate memory", "Storage size calculation overflowed", "CUDA out of memory")
    if not isinstance(error, MemoryError) and not any(words in text for words in of_torch):
        return ""
    return f"out of memory ({text[:200] or 'of the machine'}); smaller batches, images or networks need less"


def str2bool(text: str | bool) -> bool:
    """Read a published flag value such as `True`, `true`, `yes` or `0`."""
    if isinstance(text, bool):
        return text
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")


def _number(kind: type, accepts: Callable[[Any], bool], words: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {words}, not {text!r}") from None
        if kind is int and abs(value) >= 2**63:
            raise argparse.ArgumentTypeError(f"must be {words}, and below 2^63")
        if not math.isfinite(value) or not accepts(value):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text}")
        return value

    return read


positive_int = _number(int, lambda v: v > 0, "a whole number above 0")
non_negative_int = _number(int, lambda v: v >= 0, "a whole number, 0 or more")
positive_float = _number(float, lambda v: v > 0, "a number above 0")
non_negative_float = _number(float, lambda v: v >= 0, "a number, 0 or more")
fraction = _number(float, lambda v: 0 <= v <= 1, "a number between 0 and 1")
pixels = _number(int, lambda v: 1 <= v <= 4096, "a whole number from 1 to 4096")
thread_count = _number(int, lambda v: 0 <= v <= 4096, "a whole number from 0 to 4096")


def local_path(text: str) -> Path:
    """Read a path on this machine; gs:// and the like would become folders of that name, '' the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, not empty")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise argparse.ArgumentTypeError(f"must be a path on this machine, not {text}")
    return Path(text)


def device_name(text: str) -> str:
    """Read --device; whether this machine has it is for `comparison.device.pick_device` to say."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda, cuda:N or mps, not {text!r}")
    return text


def check_folder(folder: Path, flag: str) -> None:
    """Refuse an output folder that cannot be made or written into.

    Raises:
        UserError: one sentence that names `flag`.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{flag} {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: {there} is not writable")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add --device, --precision and --threads."""
    group = parser.add_argument_group("device")
    group.add_argument(
        "--device",
        type=device_name,
        default="auto",
        help="auto (CUDA, MPS, CPU in this order), cpu, cuda, cuda:N or mps",
    )
    group.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bf16"],
        help="of the network passes; auto is bf16 where the hardware computes in it",
    )
    group.add_argument(
        "--threads", type=thread_count, default=0, help="CPU threads, 0 divides the cores among local processes"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what every training script takes: seed, budget, checkpoints, device."""
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=non_negative_int, default=0, help="of weights, data order and noise")
    group.add_argument(
        "--max_steps", type=non_negative_int, default=0, help="stop after so many updates, 0 for no bound"
    )
    group.add_argument(
        "--max_images", type=non_negative_int, default=0, help="stop after so many training images, 0 for no bound"
    )
    group.add_argument(
        "--max_seconds",
        type=non_negative_float,
        default=0,
        help="stop after so many seconds of training, restarts included; 0 for no bound",
    )
    group.add_argument(
        "--stop_after",
        type=non_negative_float,
        default=0,
        help="stop early, after so many updates, images or seconds, the unit of the only --max_... given; schedules "
        "still span the whole budget; 0 for its end",
    )
    group.add_argument(
        "--save_minutes", type=positive_float, default=5, help="minutes after which a checkpoint is written anyway"
    )
    group.add_argument("--keep", type=non_negative_int, default=3, help="checkpoints kept, the newest; 0 keeps all")
    group.add_argument(
        "--fresh", action="store_true", help="start over, deleting what the run folder holds of this model"
    )
    add_device_options(parser)


def add_sampling_extras(parser: argparse.ArgumentParser) -> None:
    """Add what every sampling script also does: --benchmark, --benchmark_seconds and --interpolation."""
    group = parser.add_argument_group("benchmark and interpolation")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--benchmark", action="store_true", help="measure speed and memory into timing.json instead of drawing"
    )
    either.add_argument(
        "--interpolation", action="store_true", help="also write interpolation.png: 4 walks between pairs of samples"
    )
    group.add_argument(
        "--benchmark_seconds",
        type=positive_float,
        default=2.0,
        help="least seconds per batch size; a call that would take 15 times as long is left out",
    )


def repo_root() -> Path:
    """Return the folder that holds `results/`."""
    return Path(__file__).resolve().parents[2]


def data_root() -> Path:
    """Return the one data root: the environment variable DATA_ROOT, or `data/` in the repository."""
    return Path(os.environ.get("DATA_ROOT") or repo_root() / "data")


def default_run_folder(model: str, run_name: str) -> Path:
    """Return results/runs/<model>/<run_name>."""
    return repo_root() / "results" / "runs" / model / run_name
