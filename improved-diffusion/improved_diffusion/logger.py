"""Logs of a run: messages and tables on the console and in log.txt, the same values in progress.csv and .json.

    logger.configure()
    logger.logkv("loss", 0.5)
    logger.dumpkvs()

Environment variables:
    OPENAI_LOGDIR: the folder, by default runs/openai-<date> below the working directory. A gs://, az:// or https://
        folder is written by way of a copy in runs/, sent once a minute and at the end.
    OPENAI_LOG_FORMAT: among stdout, log, csv, json and tensorboard, separated by commas.
    OPENAI_LOG_FORMAT_MPI: the same for the processes other than the first, whose files end in -rank001 and so on.

Files that are there already are continued, not replaced.
"""

import atexit
import datetime
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from . import blob
from .launch import find_place
from .log_formats import FORMATS, Format, make_format
from .mirror import Mirror

__all__ = [
    "DEBUG",
    "DISABLED",
    "ERROR",
    "FORMATS",
    "INFO",
    "WARN",
    "configure",
    "debug",
    "drop_after",
    "dumpkvs",
    "error",
    "get_dir",
    "getkvs",
    "info",
    "log",
    "logkv",
    "logkv_mean",
    "logkvs",
    "reset",
    "scoped_configure",
    "set_level",
    "upload",
    "warn",
]

DEBUG = 10
INFO = 20
WARN = 30
ERROR = 40
DISABLED = 50

DEFAULT_FORMAT = "stdout,log,csv,json"
DEFAULT_FORMAT_MPI = "log"
SECONDS_BETWEEN_UPLOADS = 60.0


class Logger:
    """Values that are being gathered, and the formats that they go to.

    Args:
        dir: local folder of the files; None where only the console is written.
        formats: what messages and values go to.
        comm: an mpi4py communicator over whose processes values are averaged, or None.
        mirror: of the remote folder that `dir` is the copy of.
    """

    def __init__(
        self, dir: str | None, formats: Sequence[Format], comm: Any = None, mirror: Mirror | None = None
    ) -> None:
        self.dir, self.formats, self.comm, self.mirror = dir, formats, comm, mirror
        self.level = INFO
        self._sums: dict[str, tuple[Any, int]] = {}
        self._sent_at = time.monotonic()

    def logkv(self, key: str, val: Any) -> None:
        """Set a value of the next row."""
        self._sums[key] = (val, 1)

    def logkv_mean(self, key: str, val: Any) -> None:
        """Add to a mean of the next row; a tensor stays on its device until the row is written."""
        total, count = self._sums.get(key, (0.0, 0))
        self._sums[key] = (total + val, count + 1)

    def getkvs(self) -> dict[str, Any]:
        """Return the values of the next row so far."""
        return {key: total if count == 1 else total / count for key, (total, count) in self._sums.items()}

    def dumpkvs(self) -> dict[str, Any]:
        """Write the row, begin the next one, and return it."""
        sums = self._sums if self.comm is None else _sum_over(self.comm, self._sums)
        self._sums = {}
        row = {key: _plain(total, count) for key, (total, count) in sums.items()}
        if row and self.level < DISABLED and (self.comm is None or self.comm.Get_rank() == 0):
            for output in self.formats:
                output.write_values(row)
            if self.mirror and time.monotonic() - self._sent_at > SECONDS_BETWEEN_UPLOADS:
                self.upload()
        return row

    def log(self, *args: Any, level: int = INFO) -> None:
        """Write a message."""
        if self.level <= level:
            for output in self.formats:
                output.write_text(" ".join(map(str, args)))

    def upload(self) -> None:
        """Send the folder's changes, where it is the copy of a remote one; a failure is a warning."""
        if self.mirror:
            self._sent_at = time.monotonic()
            try:
                self.mirror.upload()
            except OSError as error:
                print(f"warning: not sent, kept in {self.dir} ({error})", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the files, and send them."""
        for output in self.formats:
            output.close()
        self.upload()


_console = Logger(None, [make_format("stdout", "", "")])
_current = _console


def configure(
    dir: str | os.PathLike[str] | None = None, format_strs: Sequence[str] | None = None, comm: Any = None
) -> None:
    """Say where the log goes; called by every process of a run, where there are several.

    Args:
        dir: the folder, by default OPENAI_LOGDIR's, else runs/openai-<date>, the same for all processes.
        format_strs: names among `FORMATS`, by default those of OPENAI_LOG_FORMAT.
        comm: an mpi4py communicator over whose processes values are averaged; the first one writes them.

    Raises:
        ValueError: an unknown format.
        ImportError: the format or the folder needs a package that is not installed.
    """
    global _current
    rank = _rank() if comm is None else comm.Get_rank()
    if format_strs is None:
        variable, default = (
            ("OPENAI_LOG_FORMAT_MPI", DEFAULT_FORMAT_MPI) if rank else ("OPENAI_LOG_FORMAT", DEFAULT_FORMAT)
        )
        format_strs = (os.environ.get(variable) or default).split(",")
    names = [name.strip() for name in format_strs if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"a log format must be one of {', '.join(FORMATS)}, not {name!r}")
    folder = os.path.expanduser(os.fspath(dir or os.environ.get("OPENAI_LOGDIR") or _default_folder()))
    mirror = None
    if blob.is_remote(folder):
        folder, mirror = _copy_of(folder, rank)
    blob.make_dirs(folder)
    suffix = f"-rank{rank:03d}" if rank else ""
    formats = [make_format(name, folder, suffix) for name in names]
    reset()
    _current = Logger(folder, formats, comm, mirror)
    if rank == 0:
        log(f"Logging to {folder}" + (f", the copy of {mirror.remote}" if mirror else ""))


def reset() -> None:
    """Close the log; messages go to the console only."""
    global _current
    if _current is not _console:
        finished, _current = _current, _console
        finished.close()


atexit.register(reset)


@contextmanager
def scoped_configure(
    dir: str | os.PathLike[str] | None = None, format_strs: Sequence[str] | None = None, comm: Any = None
) -> Iterator[None]:
    """Log elsewhere within a `with` statement; arguments of `configure`."""
    global _current
    outer, _current = _current, _console
    try:
        configure(dir, format_strs, comm)
        yield
    finally:
        reset()
        _current = outer


def log(*args: Any, level: int = INFO) -> None:
    """Write a message, the arguments separated by spaces, unless its level is below that of `set_level`."""
    _current.log(*args, level=level)


def debug(*args: Any) -> None:
    """Write a message of level DEBUG."""
    log(*args, level=DEBUG)


def info(*args: Any) -> None:
    """Write a message of level INFO."""
    log(*args, level=INFO)


def warn(*args: Any) -> None:
    """Write a message of level WARN."""
    log(*args, level=WARN)


def error(*args: Any) -> None:
    """Write a message of level ERROR."""
    log(*args, level=ERROR)


def set_level(level: int) -> None:
    """Pass over messages below a level; DISABLED writes nothing, no values either."""
    _current.level = level


def logkv(key: str, val: Any) -> None:
    """Set a value of the next row; the last one counts."""
    _current.logkv(key, val)


def logkv_mean(key: str, val: Any) -> None:
    """Add to the mean that the next row holds; a tensor is not waited for until then."""
    _current.logkv_mean(key, val)


def logkvs(d: Mapping[str, Any]) -> None:
    """Set several values of the next row."""
    for key, val in d.items():
        logkv(key, val)


def getkvs() -> dict[str, Any]:
    """Return the values of the next row so far."""
    return _current.getkvs()


def dumpkvs() -> dict[str, Any]:
    """Write the values as a row to every format, begin the next row, and return the written one."""
    return _current.dumpkvs()


def get_dir() -> str:
    """Return the local folder of the log; `configure` is called first where nobody has."""
    if _current is _console:
        configure()
    assert _current.dir is not None
    return _current.dir


def drop_after(step: int) -> None:
    """Drop the rows of progress.csv and progress.json whose value `step` is larger: the run goes on from there."""
    for output in _current.formats:
        output.drop_after(step)


def upload() -> None:
    """Send what has changed in the folder now, where it is the copy of a remote one; a failure is a warning."""
    _current.upload()


def _rank() -> int:
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return find_place().rank


def _copy_of(remote: str, rank: int) -> tuple[str, Mirror | None]:
    """Fetch a remote folder, once per machine, into its copy; return the copy, and the mirror in the first process."""
    local = os.path.join("runs", remote.replace("://", os.sep).rstrip("/"))
    mirror = None
    if rank == 0 or find_place().local_rank == 0:
        mirror = Mirror(remote, local)
        mirror.download()
    if "torch" in sys.modules:
        from .dist_util import barrier

        barrier()
    return local, mirror if rank == 0 else None


def _default_folder() -> str:
    """Return runs/openai-<date>, the first process's for all where they are connected."""
    folder = os.path.join("runs", datetime.datetime.now().strftime("openai-%Y-%m-%d-%H-%M-%S-%f"))
    if "torch" in sys.modules:
        from .dist_util import broadcast_object

        return broadcast_object(folder)
    return folder


def _sum_over(comm: Any, sums: dict[str, tuple[Any, int]]) -> dict[str, tuple[Any, int]]:
    """Add the sums and counts of all processes of a communicator."""
    total: dict[str, tuple[Any, int]] = {}
    for part in comm.allgather({key: (_plain(value, 1), count) for key, (value, count) in sums.items()}):
        for key, (value, count) in part.items():
            before = total.get(key, (0.0, 0))
            total[key] = (before[0] + value, before[1] + count) if isinstance(value, int | float) else (value, 1)
    return total


def _plain(total: Any, count: int) -> Any:
    """Return the mean as a plain number; text stays text."""
    value = total.item() if hasattr(total, "item") else total
    return value if count == 1 else value / count
