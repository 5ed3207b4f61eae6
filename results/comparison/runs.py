"""Run folders: config.json, progress.csv, log.txt, and a lock against a second training in the same folder."""

import contextlib
import csv
import fcntl
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Set
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from comparison import contract
from comparison.cli import UserError, repo_root
from comparison.files import atomic, remove_stale, write_json

# Options that may differ when a run is resumed: they affect where and how long it runs, not what it computes.
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
        UserError: the file is missing, damaged or holds something else.
    """
    config = contract.read(path, "config.json")
    if "options" not in config:
        raise UserError(f"{path}: not what config.json holds: no options")
    return config


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    numbers = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            numbers[package] = metadata.version(package)
    return numbers


def git_commit() -> str | None:
    """Return the project's commit, with `+` if tracked source files differ from it; None outside git."""
    try:
        git = ["git", "-C", str(repo_root())]
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno", "--", "*.py"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


class Run:
    """A training run in its folder.

    Attributes:
        folder: run folder.
        config: content of config.json.
        resumed: True if the folder held this run already.
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
            folder: run folder; need not exist.
            options: all flags with their values.
            model: name of the model family, e.g. `gans`.
            may_change: further options that may differ from the folder's.
            implied: values, in runs older than these options, of options that were not off.
            fresh: start over.

        Raises:
            UserError: the folder holds another run; the error names each difference.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: not a folder")
        _lock_run_dir(folder, keep=False)
        options = json.loads(json.dumps(options, default=str))
        config = {"model": model, "options": options, "git_commit": git_commit(), "versions": versions()}
        config["created"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        path = folder / "config.json"
        if not path.is_file():
            if any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
                raise UserError(f"{folder}: holds checkpoints but no config.json; name another folder")
            return cls(folder, config, False, [])
        saved = read_config(path)
        if saved.get("model") != model:
            raise UserError(f"{folder} holds a run of {saved.get('model')}, not of {model}")
        if fresh:
            stale = [file for pattern in _RUN_FILES for file in folder.glob(pattern) if file.is_file()]
            return cls(folder, config, False, stale)
        saved["options"] = {**(implied or {}), **saved["options"]}
        _check_options(folder, saved["options"], options, MAY_CHANGE | set(may_change))
        config = {**saved, "options": {**saved["options"], **options}}
        return cls(folder, config, True, [])

    def finished_reason(self, budget: Any = None) -> str | None:
        """Return the reason why the run ended, None if it has not ended or `budget` (a Budget) now allows more."""
        done = self.config.get("finished")
        if not done or budget is None or not done["reason"].startswith("max_"):
            return done["reason"] if done else None
        return budget.exhausted(done["steps"], done["images_seen"], done["wall_seconds"])

    def start(self, step: int = 0) -> None:
        """Prepare the folder for training from `step`: lock it, delete files of a fresh start, trim later rows.

        Raises:
            UserError: another process is training in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _lock_run_dir(self.folder, keep=True)
        for path in self._stale:
            path.unlink(missing_ok=True)
        for name in _SET_FOLDERS if self._stale else ():
            for path in (*self.folder.glob(f"{name}/*"), self.folder / name):
                with contextlib.suppress(OSError):  # a file, or a folder with files of the user
                    path.rmdir()
        self._stale = []
        remove_stale(self.folder)
        path = self.folder / "progress.csv"
        rows = [row for row in read_progress(path) if row["step"] <= step] if path.is_file() else None
        self.config.pop("finished", None)
        self.describe()
        if rows is not None:
            _write_rows(path, rows)

    def describe(self, **facts: Any) -> None:
        """Add facts to config.json: parameters, data, device, precision."""
        self.config.update(facts)
        write_json(self.folder / "config.json", self.config)

    def log(self, message: str) -> None:
        """Print a line and append it to log.txt."""
        with tqdm.external_write_mode(sys.stdout):
            print(message, flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.txt", "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(message + "\n")

    def log_row(self, step: int, images_seen: int, wall_seconds: float, **values: float) -> None:
        """Append a row to progress.csv; new columns are added to the file, missing values left empty."""
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
        """Mark the run as finished in config.json and release its lock."""
        counts = {"steps": steps, "images_seen": images_seen, "wall_seconds": round(wall_seconds, 3)}
        self.describe(finished={"reason": reason, **counts, **facts})
        if (handle := _held.pop(_identity(self.folder), None)) is not None:
            os.close(handle)


_held: dict[tuple[int, int], int] = {}  # device and inode of the folders that this process has locked -> handle


def _lock_run_dir(folder: Path, *, keep: bool) -> None:
    """Raise UserError if another process trains in a folder; with `keep`, hold the lock until this process ends.

    The lock is the operating system's, on the folder itself, so a killed process leaves none. Without `keep` it is
    shared, so that all ranks of a job can check at the same time.
    """
    if not folder.is_dir():
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
        pass  # a file system without locks
    finally:
        if _held.get(key) != handle:
            os.close(handle)


def _drop_locks_after_fork() -> None:
    """Close the handles in a forked data worker, which may outlive the training process by seconds."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_drop_locks_after_fork)


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


# Files that a run writes and --fresh deletes; the folders hold samples of other settings and of earlier checkpoints.
_SET_FOLDERS = ("settings", "history")
_SAMPLE_FILES = (
    *("samples*", "sampling.json", "metrics.json", "timing.json", "interpolation.png", "neighbours.png"),
    *("comparison.png", "nll.json", "nll.png", "nll-*.part-*.npz", "*_terms.npz"),
)
_RUN_FILES = (
    *(
        "*.pt",
        "*.pth",
        "*.damaged",
        "weights.safetensors",
        "config.json",
        "progress.*",
        "log.txt",
        "loss.png",
        "grid*.png",
    ),
    *_SAMPLE_FILES,
    *(f"{folder}/*/{name}" for folder in _SET_FOLDERS for name in _SAMPLE_FILES),
    *(f"pretrained/{name}" for name in _SAMPLE_FILES),
)


REMOVED = {  # options that no longer exist -> their value in all runs now
    **{"label_smoothing": "none", "nc": 3, "minibatch_stddev": 0},
    **{"gan_loss": "softplus", "penalty": "r1", "reconstruction_norm": "l2", "denoiser_warmup": 0.1, "levels": None},
}


def _check_options(folder: Path, saved: Mapping[str, Any], options: Mapping[str, Any], may_change: Set[str]) -> None:
    """Raise UserError if options differ.

    An option that is off and newer than the run may be missing there; one that no longer exists must have the value
    that all runs now have.
    """
    newer_and_off = {name for name, value in options.items() if name not in saved and not value}
    names = sorted(options.keys() - may_change - newer_and_off)
    differing = [name for name in names if saved.get(name) != options.get(name)]
    differences = [f"{name} {saved.get(name)} there, {options.get(name)} here" for name in differing]
    gone = [name for name in REMOVED if name in saved and name not in options and saved[name] != REMOVED[name]]
    differences += [f"{name} {saved[name]} there, {REMOVED[name]} always here" for name in gone]
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
    """Read progress.csv as one dictionary per row, without empty cells and damaged rows.

    Raises:
        UserError: the file is not a CSV table.
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
            raise UserError(f"{path}: damaged ({error}); fix or delete the file") from None
    return rows


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    header = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header or ["step", "images_seen", "wall_seconds"])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: int(v) if k in ("step", "images_seen") else v for k, v in row.items()})
