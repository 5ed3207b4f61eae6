"""Run folders: config.json, progress.csv, log.txt, checkpoints. Imports torch only where a tensor is touched."""

import contextlib
import csv
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from comparison.cli import UserError, repo_root
from comparison.files import atomic, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Options that may differ when a run is continued: they decide how long and where it runs, not what it computes.
MAY_CHANGE = frozenset(
    {
        *("device", "threads", "num_workers", "fresh", "keep", "run_dir"),
        *("max_steps", "max_images", "max_seconds", "stop_after", "save_minutes", "save_interval"),
        *("log_interval", "grid_every"),
        *("num_samples", "sample_batch_size"),
    }
)
_PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.json of a training run.

    Raises:
        UserError: missing, damaged, or something else.
    """
    config = read_json(path)
    finished = config.get("finished", {"reason": "", "steps": 0, "images_seen": 0, "wall_seconds": 0})
    known = all(isinstance(found, dict) for found in (config.get("options"), config.get("data", {}), finished))
    counts = ("steps", "images_seen", "wall_seconds")
    if (
        not known
        or not isinstance(finished.get("reason"), str)
        or not all(isinstance(finished.get(name), int | float) for name in counts)
    ):
        raise UserError(f"{path}: not the config.json of a training run")
    return config


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> str | None:
    """Return the project's commit, marked `+` when tracked source files differ from it, or None outside git."""
    try:
        git = ["git", "-C", str(repo_root())]
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno", "--", "*.py"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


class Run:
    """One training run in its folder.

    Attributes:
        folder: where everything is written.
        config: the content of config.json.
        resumed: whether the folder held this run already.
    """

    def __init__(self, folder: Path, config: dict[str, Any], resumed: bool, stale: list[Path]):
        self.folder, self.config, self.resumed = folder, config, resumed
        self._stale = stale

    @classmethod
    def open(
        cls,
        folder: Path,
        options: dict[str, Any],
        *,
        model: str,
        may_change: Iterable[str] = (),
        implied: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> "Run":
        """Open a run folder for training; nothing is written or deleted before `start`.

        Args:
            folder: of the run; need not exist.
            options: every flag with its value.
            model: name of the family, e.g. `gans`.
            may_change: further options that may differ from the folder's.
            implied: the values of options that a run had which began before they existed; else they were off.
            fresh: start over.

        Raises:
            UserError: the folder holds another run; the sentence names each difference.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: not a folder")
        _refuse_company(folder, keep=False)
        options = json.loads(json.dumps(options, default=str))
        config = {"model": model, "options": options, "git_commit": git_commit(), "versions": versions()}
        config["created"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        path = folder / "config.json"
        if not path.is_file():
            if not fresh and (any(folder.glob("*.pt")) or any(folder.glob("*.pth"))):
                raise UserError(f"{folder}: holds checkpoints but no config.json; name another folder")
            return cls(folder, config, False, [])
        known = read_config(path)
        if known.get("model") != model:
            raise UserError(f"{folder} holds a run of {known.get('model')}, not of {model}")
        if fresh:
            stale = [found for pattern in _OWN_FILES for found in folder.glob(pattern) if found.is_file()]
            return cls(folder, config, False, stale)
        known["options"] = {**(implied or {}), **known["options"]}
        _refuse_differences(folder, known["options"], options, MAY_CHANGE | set(may_change))
        config = {**known, "options": {**known["options"], **options}}
        return cls(folder, config, True, [])

    def finished_reason(self, budget: Any = None) -> str | None:
        """Return why the run has ended, or None if it has not or `budget` (a Budget) now allows more."""
        done = self.config.get("finished")
        if not done:
            return None
        if budget is None:
            return done["reason"]
        if not done["reason"].startswith("max_"):
            return done["reason"]
        return budget.exhausted(done["steps"], done["images_seen"], done["wall_seconds"])

    def start(self, step: int = 0) -> None:
        """Make the folder ready for training from `step`: old files of a fresh start go, later rows are trimmed.

        Raises:
            UserError: another process is training in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _refuse_company(self.folder, keep=True)
        for path in self._stale:
            path.unlink(missing_ok=True)
        for name in _SET_FOLDERS if self._stale else ():
            for path in (*self.folder.glob(f"{name}/*"), self.folder / name):
                with contextlib.suppress(OSError):  # a file, or a folder that holds something of the user's
                    path.rmdir()
        self._stale = []
        for path in self.folder.glob(".*"):  # temporary names that a killed process left, see `files.atomic`
            if path.is_file() and re.search(r"\.\d+(\.(png|json|csv|txt|pt|pth|npz))?$", path.name):
                path.unlink(missing_ok=True)
        self.config.pop("finished", None)
        self._write_config()
        path = self.folder / "progress.csv"
        if path.is_file():
            rows = [row for row in read_progress(path) if row["step"] <= step]
            _write_rows(path, rows)

    def describe(self, **facts: Any) -> None:
        """Add facts to config.json: parameters, data, device, precision."""
        self.config.update(facts)
        self._write_config()

    def log(self, message: str) -> None:
        """Print a line on the console and append it to log.txt."""
        from tqdm import tqdm

        with tqdm.external_write_mode(sys.stdout):
            print(message, flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.txt", "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(message + "\n")

    def log_row(self, step: int, images_seen: int, wall_seconds: float, **values: float) -> None:
        """Append a row to progress.csv; new columns are added to the file, missing ones left empty."""
        row = {"step": step, "images_seen": images_seen, "wall_seconds": round(wall_seconds, 3)}
        row.update({name: float(f"{float(value):.7g}") for name, value in values.items()})
        path = self.folder / "progress.csv"
        header = _header(path)
        if header is not None and set(row) <= set(header):
            with open(path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, header).writerow(row)
        else:
            rows = [*read_progress(path), row] if header is not None else [row]
            _write_rows(path, rows)

    def finish(self, reason: str, *, steps: int, images_seen: int, wall_seconds: float, **facts: Any) -> None:
        """Mark the run as ended in config.json."""
        self.config["finished"] = {
            "reason": reason,
            "steps": steps,
            "images_seen": images_seen,
            "wall_seconds": round(wall_seconds, 3),
            **facts,
        }
        self._write_config()
        _let_go(self.folder)

    def _write_config(self) -> None:
        write_json(self.folder / "config.json", self.config)


_held: dict[tuple[int, int], int] = {}  # device and inode of the folders in which this process trains -> its handle


def _refuse_company(folder: Path, *, keep: bool) -> None:
    """Refuse a folder in which another process trains; `keep` holds it for this one until it ends.

    The lock is the system's and lies on the folder itself, so that a killed process leaves none. Looking without
    `keep` disturbs nobody who looks at the same time, such as the other processes of a job.

    Raises:
        UserError: so.
    """
    if fcntl is None or not folder.is_dir():
        return
    handle = os.open(folder, os.O_RDONLY)
    key = _identity(folder)
    try:
        if key in _held:
            return
        fcntl.flock(handle, fcntl.LOCK_NB | (fcntl.LOCK_EX if keep else fcntl.LOCK_SH))
        if keep:
            _held[key] = handle
    except BlockingIOError:
        raise UserError(f"{folder}: another process is training in this folder; wait for it or stop it") from None
    except OSError:
        pass  # a file system that knows no locks
    finally:
        if _held.get(key) != handle:
            os.close(handle)


def _let_go(folder: Path) -> None:
    if (handle := _held.pop(_identity(folder), None)) is not None:
        os.close(handle)


def _forget() -> None:
    """Leave the folders to the process before a fork: its child, which reads data, may outlive it by seconds."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


# What a run writes, and --fresh deletes; in these folders lie sample sets of other settings and earlier checkpoints.
_SET_FOLDERS = ("settings", "history")
_SAMPLE_FILES = (
    *("samples*", "sampling.json", "metrics.json", "timing.json", "interpolation.png", "neighbours.png"),
    *("trajectory.png", "comparison.png", "nll.json", "nll.png", "nll-*.part-*.npz", "*_terms.npz"),
)
_OWN_FILES = (
    *("*.pt", "*.pth", "config.json", "progress.*", "log.txt", "loss.png", "grid*.png"),
    *_SAMPLE_FILES,
    *(f"{folder}/*/{name}" for folder in _SET_FOLDERS for name in _SAMPLE_FILES),
)


def _refuse_differences(
    folder: Path, there: dict[str, Any], here: dict[str, Any], may_change: set[str] | frozenset[str]
) -> None:
    # An option that the scripts did not have yet when the run began, and that is off, changes nothing.
    newer_and_off = {name for name, value in here.items() if name not in there and not value}
    names = sorted((set(there) | set(here)) - set(may_change) - newer_and_off)
    differences = [f"{n} {there.get(n)} there, {here.get(n)} here" for n in names if there.get(n) != here.get(n)]
    if differences:
        raise UserError(
            f"{folder} holds another run: {'; '.join(differences)}; use the same options, another folder or --fresh"
        )


def _header(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader(file), None)


def read_progress(path: Path) -> list[dict[str, float]]:
    """Read progress.csv as one dictionary per row; empty cells are left out, and rows that are damaged.

    Raises:
        UserError: it is no table at all.
    """
    rows = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.DictReader(file)
        try:
            for row in lines:
                with contextlib.suppress(TypeError, ValueError):
                    values = {name: float(value) for name, value in row.items() if value not in ("", None)}
                    counts = (values.get(name, math.nan) for name in ("step", "images_seen", "wall_seconds"))
                    if all(map(math.isfinite, counts)):
                        rows.append(values)
        except csv.Error as error:
            raise UserError(f"{path}: damaged ({error}); mend or remove it") from None
    return rows


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    header = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header or ["step", "images_seen", "wall_seconds"])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: int(v) if k in ("step", "images_seen") else v for k, v in row.items()})
