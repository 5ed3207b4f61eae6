"""Running the models' own scripts: training, sampling, scoring. Used by compare.py, benchmark.py and the studies.

The scripts recognise what is finished, so a job may be called again. Standard library only.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comparison import cli
from comparison.cli import UserError
from comparison.files import read_json
from comparison.models import Model, newest_checkpoint
from comparison.runs import read_config

INTERRUPTED = 130  # exit status after Ctrl-C


def run(command: Sequence[str], console: Path | None = None) -> None:
    """Run a script of the repository from its root to the end.

    Ctrl-C, SIGTERM and SIGHUP are passed on to it, so that it saves before it ends.

    Args:
        command: script, from the repository's root, and its arguments.
        console: file for what the script prints; None for this process's own console.

    Raises:
        UserError: it fails, and `console` is given; the sentence is the script's last line.
        SystemExit: it fails, and has said why on the console; with its exit status.
        KeyboardInterrupt: it was interrupted.
    """
    if console:
        console.parent.mkdir(parents=True, exist_ok=True)
    search = os.pathsep.join(filter(None, [str(cli.repo_root() / "results"), os.environ.get("PYTHONPATH")]))
    with open(console, "w", encoding="utf-8") if console else contextlib.nullcontext() as output:
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=cli.repo_root(),
            env=os.environ | {"PYTHONPATH": search},
            stdout=output,
            stderr=subprocess.STDOUT if console else None,
            start_new_session=True,  # or the terminal's Ctrl-C would reach it besides the one passed on
        )
        with _pass_on(process):
            status = process.wait()
    if status in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if status and console:
        lines = console.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit status {status}")
        raise UserError(f"{last} ({console})")
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


@contextlib.contextmanager
def _pass_on(process: subprocess.Popen) -> Iterator[None]:
    """Pass signals that end this process on to a child; its end decides what follows."""

    def send(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    try:
        # one that is ignored, as under nohup, stays so
        numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, send) for number in numbers}
    except ValueError:  # not the main thread, which alone receives signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def relative(path: Path | str) -> str:
    """Return a path as seen from the repository's root where it lies below it, else absolute."""
    whole = Path(os.path.abspath(path))  # links stay: what a run's options name must not change with them
    root = cli.repo_root()
    return str(whole.relative_to(root) if whole.is_relative_to(root) else whole)


def train(
    model: Model,
    folder: Path,
    data: str,
    words: Sequence[str],
    *,
    fresh: bool = False,
    console: Path | None = None,
) -> dict[str, Any]:
    """Train a model in a run folder; one that was cut short goes on, a finished one is left as it is.

    Args:
        model: of the table.
        folder: of the run.
        data: a data source; a path as the scripts see it from the repository's root.
        words: flags: of the preset, the budget, the device.
        fresh: start over.
        console: as for `run`.

    Returns:
        The run's config.json, with the entry `finished`.
    """
    command = [model.train, "--data", data, "--run_dir", relative(folder), *words, *(["--fresh"] if fresh else [])]
    run(command, console)
    config = read_config(folder / "config.json")
    if "finished" not in config:
        raise UserError(f"{folder}: the training did not reach its end; see {console or 'its output'}")
    return config


def sample(
    model: Model,
    run_folder: Path,
    folder: Path,
    words: Sequence[str],
    *,
    benchmark: bool = False,
    console: Path | None = None,
) -> dict[str, Any]:
    """Sample a run's newest checkpoint into a folder, or measure the time that takes, unless that is done.

    Args:
        model: of the table.
        run_folder: of the training.
        folder: of samples*.npz, sampling.json and timing.json.
        words: flags: of the preset, numbers of images and steps, seed, device.
        benchmark: measure instead of sampling.
        console: as for `run`.

    Returns:
        sampling.json, or timing.json.
    """
    checkpoint = newest_checkpoint(model, run_folder)
    command = [model.sample, "--checkpoint", relative(checkpoint), "--out", relative(folder / model.samples), *words]
    run([*command, "--benchmark"] if benchmark else command, console)
    return read_json(folder / ("timing.json" if benchmark else "sampling.json"))


def evaluate(
    folders: Sequence[Path], reference: str, anchors: Path, words: Sequence[str], *, console: Path | None = None
) -> dict[str, Any]:
    """Score sample sets into their metrics.json.

    Args:
        folders: each with samples*.npz.
        reference: data source of the real images.
        anchors: file of the controls.
        words: further flags of evaluate.py.
        console: as for `run`.

    Returns:
        The controls' file.
    """
    anchors.parent.mkdir(parents=True, exist_ok=True)
    command = ["results/evaluate.py", *map(relative, folders), "--reference", reference, "--anchors", relative(anchors)]
    run([*command, *words], console)
    return read_json(anchors)
