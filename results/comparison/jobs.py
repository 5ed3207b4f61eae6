"""Run the models' own scripts: training, sampling, scoring. Used by compare.py, benchmark.py and the studies.

The scripts skip what is finished, so a job can be repeated. Standard library only.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comparison import cli, contract
from comparison.checkpoints import newest
from comparison.cli import UserError
from comparison.models import Model, newest_checkpoint
from comparison.runs import read_config

INTERRUPTED = 130  # exit status after Ctrl-C


def run(command: Sequence[str], console: Path | None = None) -> None:
    """Run a script of the repository from its root to the end.

    Ctrl-C, SIGTERM and SIGHUP are forwarded, so that the script saves before it ends.

    Args:
        command: script, from the repository's root, and its arguments.
        console: file that the script's output is appended to; None for this process's own console.

    Raises:
        UserError: the script failed and `console` is given; the text is the script's last line.
        SystemExit: the script failed without `console`; has its exit status.
        KeyboardInterrupt: the script was interrupted.
    """
    if console:
        console.parent.mkdir(parents=True, exist_ok=True)
    before = console.stat().st_size if console and console.is_file() else 0
    search = os.pathsep.join(filter(None, [str(cli.repo_root() / "results"), os.environ.get("PYTHONPATH")]))
    with open(console, "a", encoding="utf-8") if console else contextlib.nullcontext() as output:
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=cli.repo_root(),
            env=os.environ | {"PYTHONPATH": search},
            stdout=output,
            stderr=subprocess.STDOUT if console else None,
            start_new_session=True,  # or the terminal's Ctrl-C would reach it twice
        )
        with _forward_signals(process):
            status = process.wait()
    if status in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if status and console:
        lines = console.read_bytes()[before:].decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit status {status}")
        raise UserError(f"{last} ({console})")
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


@contextlib.contextmanager
def _forward_signals(process: subprocess.Popen) -> Iterator[None]:
    """Send the signals that would end this process to a child instead."""

    def send(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    try:
        # an ignored signal, as under nohup, stays ignored
        numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, send) for number in numbers}
    except ValueError:  # only the main thread receives signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def relative(path: Path | str) -> str:
    """Return a path relative to the repository's root if it lies below it, else absolute."""
    whole = Path(os.path.abspath(path))  # links stay, or a run's recorded options would change
    root = cli.repo_root()
    return str(whole.relative_to(root) if whole.is_relative_to(root) else whole)


def train(
    model: Model, folder: Path, data: str, flags: Sequence[str], *, fresh: bool = False, console: Path | None = None
) -> dict[str, Any]:
    """Train a model in a run folder, resume or reuse what it holds; return config.json with its entry `finished`.

    A training that diverged counts as finished if it left a checkpoint, which is of an earlier update.

    Args:
        model: row of the table.
        folder: run folder.
        data: data source; a path is relative to the repository's root.
        flags: flags of the script.
        fresh: True to start over.
        console: see `run`.
    """
    command = [model.train, "--data", data, "--run_dir", relative(folder), *flags, *(["--fresh"] if fresh else [])]
    before = diverged_config(model, folder).get("diverged")
    try:
        run(command, console)
    except (UserError, SystemExit):
        config = diverged_config(model, folder)
        if config.get("diverged") in (None, before):  # failed for another reason
            raise
        print(f"{folder}: {config['finished']['reason']}; its last checkpoint is used", flush=True)
        return config
    config = read_config(folder / "config.json")
    if "finished" not in config:
        raise UserError(f"{folder}: the training did not finish; see {console or 'its output'}")
    return config


def diverged_config(model: Model, folder: Path) -> dict[str, Any]:
    """Return config.json of a run that diverged, with an entry `finished`, {} for other runs."""
    path = folder / "config.json"
    config = read_config(path) if path.is_file() else {}
    if "diverged" not in config or newest(folder, model.checkpoints) is None:
        return {}
    counts = {name: config["diverged"][name] for name in ("steps", "images_seen", "wall_seconds")}
    return {**config, "finished": {"reason": f"diverged at step {counts['steps']}", **counts}}


def sample(
    model: Model, trained: Path, out: Path, flags: Sequence[str], benchmark: bool = False, console: Path | None = None
) -> dict[str, Any]:
    """Sample the newest checkpoint of the run `trained` into the folder `out`, unless that is done.

    Returns:
        sampling.json; timing.json for `benchmark`, which measures the speed instead.
    """
    checkpoint = newest_checkpoint(model, trained)
    command = [model.sample, "--checkpoint", relative(checkpoint), "--out", relative(out / model.samples), *flags]
    run([*command, "--benchmark"] if benchmark else command, console)
    name = "timing.json" if benchmark else "sampling.json"
    return contract.read(out / name, name)


def evaluate(
    folders: Sequence[Path], reference: str, anchors: Path, flags: Sequence[str], console: Path | None = None
) -> dict[str, Any]:
    """Score the samples in each folder into its metrics.json; return the controls' file.

    Args:
        folders: folders with samples*.npz.
        reference: data source of the real images.
        anchors: controls' file.
        flags: further flags of evaluate.py.
        console: see `run`.
    """
    anchors.parent.mkdir(parents=True, exist_ok=True)
    command = ["results/evaluate.py", *map(relative, folders), "--reference", reference, "--anchors", relative(anchors)]
    run([*command, *flags], console)
    return contract.read(anchors, "anchors.json")
