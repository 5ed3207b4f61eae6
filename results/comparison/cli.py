"""Command lines: one-line errors, types with ranges, options that all training and sampling scripts share.

Standard library only, so that wrong flags are reported before torch is imported.
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
    """A user-fixable error, reported in one line; `run` turns it into exit status 2."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the docstring and shows the default of each option."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with a script's docstring as description, without abbreviations, with one-line errors."""
    return Parser(description=(doc or "").strip(), allow_abbrev=False, formatter_class=Formatter)


def run(main: Callable[[], Any]) -> NoReturn:
    """Call `main` and exit with its status: 130 after Ctrl-C, 2 with one line after user, file and memory errors."""
    script, message = Path(sys.argv[0]).name, None
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that the terminal's encoding lacks
    try:
        status = main()
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        message = (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    except (MemoryError, RuntimeError) as error:
        if not (message := memory_message(error)):
            raise
    if message is not None:
        print(f"{script}: error: {printable(message)}", file=sys.stderr)
        status = 2
    sys.exit(status or 0)


def _open_closed_streams() -> None:
    """Open the null device for standard streams that the shell closed, or data files would take their numbers."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    sys.stdin, sys.stdout, sys.stderr = (
        stream or open(handle, mode, closefd=False)  # noqa: SIM115 (open until the end)
        for handle, stream, mode in ((0, sys.stdin, "r"), (1, sys.stdout, "w"), (2, sys.stderr, "w"))
    )


def printable(text: str) -> str:
    """Return text with each character that a terminal would not show, such as a newline or ESC, as its escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def memory_message(error: BaseException) -> str:
    """Return the message for an out-of-memory error of Python or torch, '' for any other error."""
    text = " ".join(str(error).split())
    of_torch = ("can't allocate memory", "Storage size calculation overflowed", "CUDA out of memory")
    if not isinstance(error, MemoryError) and not any(part in text for part in of_torch):
        return ""
    return f"out of memory ({text[:200] or 'of the machine'}); smaller batches, images or networks need less"


def str2bool(text: str | bool) -> bool:
    """Parse a published flag value such as `True`, `true`, `yes` or `0`."""
    if isinstance(text, bool):
        return text
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")


def _number(kind: type, accepts: Callable[[Any], bool], accepted: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {accepted}, not {text!r}") from None
        if kind is int and abs(value) >= 2**63:
            raise argparse.ArgumentTypeError(f"must be {accepted}, and below 2^63")
        if not math.isfinite(value) or not accepts(value):
            raise argparse.ArgumentTypeError(f"must be {accepted}, not {text}")
        return value

    return read


positive_int = _number(int, lambda v: v > 0, "a whole number above 0")
non_negative_int = _number(int, lambda v: v >= 0, "a whole number, 0 or more")
positive_float = _number(float, lambda v: v > 0, "a number above 0")
non_negative_float = _number(float, lambda v: v >= 0, "a number, 0 or more")
fraction = _number(float, lambda v: 0 <= v <= 1, "a number between 0 and 1")
below_one = _number(float, lambda v: 0 <= v < 1, "a number of at least 0 and below 1")
pixels = _number(int, lambda v: 1 <= v <= 4096, "a whole number from 1 to 4096")
thread_count = _number(int, lambda v: 0 <= v <= 4096, "a whole number from 0 to 4096")
process_count = _number(int, lambda v: 1 <= v <= 1024, "a whole number from 1 to 1024")
port_number = _number(int, lambda v: 1024 <= v <= 65535, "a whole number from 1024 to 65535")


def local_path(text: str) -> Path:
    """Parse a path on this machine; reject '' and URLs such as gs://, which would become folder names."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, not empty")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise argparse.ArgumentTypeError(f"must be a path on this machine, not {text}")
    return Path(text)


def device_name(text: str) -> str:
    """Parse --device; `comparison.device.pick_device` checks whether this machine has it."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda, cuda:N or mps, not {text!r}")
    return text


def run_name(text: str) -> str:
    """Parse the name of a comparison or report, which becomes that of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"must be at most 100 letters, digits, '.', '_' and '-', the first a letter or digit, not {text!r}"
        )
    return text


def check_folder(folder: Path, flag: str) -> None:
    """Raise UserError, with the name of `flag`, if an output folder cannot be created or written."""
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # above all a name that is too long
        raise UserError(f"{flag} {folder}: {error.strerror}") from None
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UserError(f"{flag} {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: {existing} is not writable")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add --device, --precision and --threads."""
    add = parser.add_argument_group("device").add_argument
    device_help = "auto (CUDA, MPS, CPU in this order), cpu, cuda, cuda:N or mps"
    add("--device", type=device_name, default="auto", help=device_help)
    precision_help = "precision of the network passes; auto is bf16 if the hardware is fast at it"
    add("--precision", default="auto", choices=["auto", "float32", "bf16"], help=precision_help)
    add("--threads", type=thread_count, default=0, help="CPU threads, 0 divides the cores among local processes")


def add_oversubscribe(group: argparse._ActionsContainer) -> None:
    """Add --oversubscribe."""
    help_text = "start more processes than this machine's cores, GPUs and free memory allow"
    group.add_argument("--oversubscribe", action="store_true", help=help_text)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all training scripts: seed, budget, checkpoints, device."""
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=non_negative_int, default=0, help="seed of weights, data order and noise")
    add("--max_steps", type=non_negative_int, default=0, help="maximum number of updates, 0 for no bound")
    add("--max_images", type=non_negative_int, default=0, help="maximum number of training images, 0 for no bound")
    seconds_help = "maximum seconds of training, restarts included; 0 for no bound"
    add("--max_seconds", type=non_negative_float, default=0, help=seconds_help)
    stop_help = "updates, images or seconds after which to stop early, in the unit of the only --max_... given; "
    stop_help += "schedules still span the whole budget; 0 for its end"
    add("--stop_after", type=non_negative_float, default=0, help=stop_help)
    add("--save_minutes", type=positive_float, default=5, help="maximum minutes between checkpoints")
    add("--keep", type=non_negative_int, default=3, help="number of newest checkpoints to keep, 0 for all")
    add("--fresh", action="store_true", help="start over, deleting this model's files in the run folder")
    add_device_options(parser)


def add_sampling_extras(parser: argparse.ArgumentParser) -> None:
    """Add --benchmark, --benchmark_seconds and --interpolation of all sampling scripts."""
    group = parser.add_argument_group("benchmark and interpolation")
    add = group.add_mutually_exclusive_group().add_argument
    add("--benchmark", action="store_true", help="measure speed and memory into timing.json instead of sampling")
    walks_help = "also write interpolation.png: 4 walks between pairs of samples"
    add("--interpolation", action="store_true", help=walks_help)
    seconds_help = "minimum seconds per batch size; a batch size is skipped if one call takes 15 times as long"
    group.add_argument("--benchmark_seconds", type=positive_float, default=2.0, help=seconds_help)


def repo_root() -> Path:
    """Return the folder that holds `results/`."""
    return Path(__file__).resolve().parents[2]


def data_root() -> Path:
    """Return the data root: the environment variable DATA_ROOT, or `data/` in the repository."""
    return Path(os.environ.get("DATA_ROOT") or repo_root() / "data")


def default_run_folder(model: str, run_name: str) -> Path:
    """Return results/runs/<model>/<run_name>."""
    return repo_root() / "results" / "runs" / model / run_name
