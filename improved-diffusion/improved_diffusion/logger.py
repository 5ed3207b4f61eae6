"""Run logs: messages and tables on the console and in log.txt, the same values in progress.csv and progress.json.

    logger.configure()
    logger.logkv("loss", 0.5)
    logger.dumpkvs()

Environment variables:
    OPENAI_LOGDIR: the folder, by default runs/openai-<date> below the working directory.
    OPENAI_LOG_FORMAT: names among `flags.LOG_FORMATS`, separated by commas.
    OPENAI_LOG_FORMAT_MPI: the same for ranks above 0, whose files end in -rank001 and so on.

Existing files are continued, not replaced.
"""

import atexit
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import blob, dist_util
from .flags import LOG_FORMATS
from .launch import launched_ranks
from .log_formats import Format, make_format

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50

DEFAULT_FORMAT = "stdout,log,csv,json"
DEFAULT_FORMAT_MPI = "log"


@dataclass
class Log:
    """An open log.

    Attributes:
        dir: folder of the files; None where only the console is written.
        formats: outputs of messages and rows.
        comm: mpi4py communicator over whose ranks values are averaged, or None.
        level: messages below it are ignored.
        sums: sum and count of each value of the next row.
    """

    dir: str | None
    formats: Sequence[Format]
    comm: Any = None
    level: int = INFO
    sums: dict[str, tuple[Any, int]] = field(default_factory=dict)


_console = Log(None, [make_format("stdout", "", "")])
_current = _console


def configure(
    dir: str | os.PathLike[str] | None = None, format_strs: Sequence[str] | None = None, comm: Any = None
) -> None:
    """Open the log; every rank of a job calls it.

    Args:
        dir: local folder, by default that of OPENAI_LOGDIR, else runs/openai-<date>, the same for all ranks.
        format_strs: names among `flags.LOG_FORMATS`, by default those of OPENAI_LOG_FORMAT.
        comm: mpi4py communicator over whose ranks values are averaged; rank 0 writes them.

    Raises:
        ValueError: an unknown format, or a remote folder.
        ImportError: the format needs a package that is not installed.
    """
    global _current
    connected = dist_util.dist.is_initialized()
    rank = comm.Get_rank() if comm is not None else dist_util.get_rank() if connected else launched_ranks()[0]
    if format_strs is None:
        variable, default = (
            ("OPENAI_LOG_FORMAT_MPI", DEFAULT_FORMAT_MPI) if rank else ("OPENAI_LOG_FORMAT", DEFAULT_FORMAT)
        )
        format_strs = (os.environ.get(variable) or default).split(",")
    names = [name.strip() for name in format_strs if name.strip()]
    for name in names:
        if name not in LOG_FORMATS:
            raise ValueError(f"a log format must be one of {', '.join(LOG_FORMATS)}, not {name!r}")
    folder = os.path.expanduser(os.fspath(dir or os.environ.get("OPENAI_LOGDIR") or _default_folder()))
    if blob.is_remote(folder):
        raise ValueError(f"{folder}: the log needs a local folder; DIFFUSION_BLOB_LOGDIR sends checkpoints elsewhere")
    os.makedirs(folder, exist_ok=True)
    suffix = f"-rank{rank:03d}" if rank else ""
    formats = [make_format(name, folder, suffix) for name in names]
    reset()
    _current = Log(folder, formats, comm)
    if rank == 0:
        log(f"Logging to {folder}")


def reset() -> None:
    """Close the log; further messages go to the console only."""
    global _current
    if _current is not _console:
        finished, _current = _current, _console
        for output in finished.formats:
            output.close()


atexit.register(reset)


@contextmanager
def scoped_configure(
    dir: str | os.PathLike[str] | None = None, format_strs: Sequence[str] | None = None, comm: Any = None
) -> Iterator[None]:
    """Log elsewhere inside a `with` block; arguments of `configure`."""
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
    if _current.level <= level:
        for output in _current.formats:
            output.write_text(" ".join(map(str, args)))


# Write a message of the level in the name; arguments of `log`.
debug, info, warn, error = (partial(log, level=level) for level in (DEBUG, INFO, WARN, ERROR))


def set_level(level: int) -> None:
    """Ignore messages below a level; DISABLED also ignores rows."""
    _current.level = level


def logkv(key: str, val: Any) -> None:
    """Set a value of the next row; the last one counts."""
    _current.sums[key] = (val, 1)


def logkv_mean(key: str, val: Any) -> None:
    """Add to a mean of the next row; a tensor stays on its device until then."""
    total, count = _current.sums.get(key, (0.0, 0))
    _current.sums[key] = (total + val, count + 1)


def logkvs(d: Mapping[str, Any]) -> None:
    """Set several values of the next row."""
    for key, val in d.items():
        logkv(key, val)


def getkvs() -> dict[str, Any]:
    """Return the values of the next row so far."""
    return {key: total if count == 1 else total / count for key, (total, count) in _current.sums.items()}


def dumpkvs() -> dict[str, Any]:
    """Write the row to every format, start the next one, and return the written row."""
    comm = _current.comm
    sums = _current.sums if comm is None else _sum_over(comm, _current.sums)
    _current.sums = {}
    row = {key: _plain(total, count) for key, (total, count) in sums.items()}
    if row and _current.level < DISABLED and (comm is None or comm.Get_rank() == 0):
        for output in _current.formats:
            output.write_values(row)
    return row


def get_dir() -> str:
    """Return the folder of the log; opens one by `configure` where none is open."""
    if _current is _console:
        configure()
    assert _current.dir is not None
    return _current.dir


def drop_after(step: int) -> None:
    """Delete the rows of progress.csv and progress.json with a larger `step`: the run resumes there."""
    for output in _current.formats:
        output.drop_after(step)


def _default_folder() -> str:
    """Return runs/openai-<date>, in all ranks the date of rank 0."""
    return dist_util.broadcast_object(f"runs/openai-{datetime.datetime.now():%Y-%m-%d-%H-%M-%S-%f}")


def _sum_over(comm: Any, sums: dict[str, tuple[Any, int]]) -> dict[str, tuple[Any, int]]:
    """Add the sums and counts of all ranks of a communicator."""
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
