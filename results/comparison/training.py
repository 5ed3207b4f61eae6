"""The part that all training loops share: budget, clock, stop signals, rows of progress.csv, checkpoint intervals."""

import math
import signal
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, SupportsFloat

from tqdm import tqdm

from comparison.cli import INTERRUPTED, UserError
from comparison.curves import draw_run_loss
from comparison.distributed import mean, same, sync_stop
from comparison.progress import bar
from comparison.runs import Run


@dataclass(frozen=True)
class Budget:
    """Bounds of a training run; 0 means no bound.

    Attributes:
        max_steps: number of updates.
        max_images: number of training images, including repetitions.
        max_seconds: wall seconds of training over all restarts.
    """

    max_steps: int = 0
    max_images: int = 0
    max_seconds: float = 0

    def exhausted(self, step: int, images_seen: int, wall_seconds: float) -> str | None:
        """Return the name and value of the bound that is reached, or None."""
        if self.max_steps and step >= self.max_steps:
            return f"max_steps {self.max_steps}"
        if self.max_images and images_seen >= self.max_images:
            return f"max_images {self.max_images}"
        if self.max_seconds and wall_seconds >= self.max_seconds:
            return f"max_seconds {self.max_seconds:g}"
        return None

    def progress(self, step: int, images_seen: int, wall_seconds: float) -> float:
        """Return the used fraction of the budget, in [0, 1], by the nearest bound; 0 without bounds."""
        used = ((step, self.max_steps), (images_seen, self.max_images), (wall_seconds, self.max_seconds))
        return max((min(1.0, value / bound) for value, bound in used if bound), default=0.0)

    def cut(self, stop_after: float) -> "Budget":
        """Return the budget with its only bound lowered to `stop_after`, in its unit; 0 changes nothing.

        Raises:
            UserError: the budget does not have exactly one bound, or `stop_after` is a fraction of an update or image.
        """
        if not stop_after:
            return self
        bounds = [name for name, bound in vars(self).items() if bound]
        if len(bounds) != 1:
            given = " and ".join(f"--{name} {getattr(self, name):g}" for name in bounds) or "none"
            needed = "exactly one of --max_steps, --max_images and --max_seconds above 0"
            raise UserError(f"--stop_after {stop_after:g} needs {needed}, not {given}")
        name = bounds[0]
        if name != "max_seconds" and stop_after != int(stop_after):
            raise UserError(f"--stop_after {stop_after:g} must be a whole number, as --{name} is")
        part = stop_after if name == "max_seconds" else int(stop_after)
        return replace(self, **{name: min(getattr(self, name), part)})

    def describe(self) -> str:
        """Return the bounds as text for logs."""
        bounds = zip(("updates", "images", "seconds"), vars(self).values(), strict=True)
        return " or ".join(f"{bound:g} {unit}" for unit, bound in bounds if bound) or "no bound"


class StopSignal:
    """Record the first Ctrl-C or SIGTERM, so that a loop can save and exit; the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Loop:
    """Iterator over the update numbers 0, 1, ... of a training, until a bound or Ctrl-C ends it.

    All ranks iterate in step: rank 0's clock counts, and a stop signal to one stops all.

    Args:
        run: run folder on rank 0, which writes alone; None on other ranks.
        budget: bounds of the run.
        images_of: maps a number of updates to the number of training images that they use.
        step, seconds: updates and wall seconds of earlier starts of the run.
        log_interval: updates between rows of progress.csv.
        save_minutes: maximum minutes of training between checkpoints.
        stop_after: see `Budget.cut`.
        epochs: one more bound, as updates and text, such as (600, "num_epoch 3"); 0 updates for none.
        advice: hint in the error if training diverges.

    Attributes:
        step: updates done, in the loop's body including the current one.
        progress: used fraction of the budget before the current update, in [0, 1].
        reason: bound that ended the loop; None during the loop, and after Ctrl-C or SIGTERM.
        bar: progress bar, in the loop's body.
    """

    bar: tqdm

    def __init__(
        self,
        run: Run | None,
        budget: Budget,
        images_of: Callable[[int], int],
        *,
        step: int = 0,
        seconds: float = 0.0,
        log_interval: int,
        save_minutes: float = math.inf,
        stop_after: float = 0,
        epochs: tuple[int, str] = (0, ""),
        advice: str = "lower the learning rate",
    ):
        self.run, self.budget, self._whole, self._epochs = run, budget.cut(stop_after), budget, epochs
        self.step, self.progress = step, 0.0
        self.reason: str | None = None
        self._images_of, self._log_interval, self._save_minutes = images_of, log_interval, save_minutes
        self._advice, self._began, self._paused = advice, time.perf_counter() - seconds, False
        self._agreed = self._saved_at = self._paused_at = seconds
        self._logged_step = -1

    def begin(self, text: str, **facts: Any) -> None:
        """Trim progress.csv to the updates done, add facts to config.json, and log the start.

        Raises:
            UserError: the ranks have restored different states.
        """
        same(self.step, "updates in the run folder, which every machine must see")
        if self.run:
            self.run.start(self.step)
            self.run.config.pop("diverged", None)
            self.run.describe(**facts)
            self.log(f"continue after step {self.step}, {text}" if self.step else f"start, {text}")

    def __iter__(self) -> Iterator[int]:
        last, name = self._epochs
        by_images = bisect_left(range(self.budget.max_images), self.budget.max_images, key=self._images_of)
        total = min((n for n in (last, self.budget.max_steps, by_images) if n), default=None)
        with StopSignal() as stop, bar(total, self.step, "train", "steps") as self.bar:
            while True:
                stopped, self._agreed = sync_stop(stop.requested, self.seconds)
                used = (self.step, self.images_seen, self._agreed)
                self.reason = name if last and self.step >= last else self.budget.exhausted(*used)
                if self.reason or stopped:
                    return
                self.progress = max(self.step / last if last else 0.0, self._whole.progress(*used))
                self.step += 1
                yield self.step - 1
                self.bar.update()

    @property
    def images_seen(self) -> int:
        """Return the number of training images of the updates done, including repetitions."""
        return self._images_of(self.step)

    @property
    def seconds(self) -> float:
        """Return the wall seconds of training so far."""
        return self._paused_at if self._paused else time.perf_counter() - self._began

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock inside the `with` block, for pictures and scores, after the GPU has finished the updates."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._paused, self._paused_at = True, self.seconds
        try:
            yield
        finally:
            self._paused, self._began = False, time.perf_counter() - self._paused_at

    @property
    def row_due(self) -> bool:
        """Return True if --log_interval asks for a row after the current update."""
        return self.step % self._log_interval == 0

    def check(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Raise UserError if a value is not finite, after `step` updates, by default those done.

        config.json then has an entry `diverged`, so that a comparison can count the run and use its last checkpoint.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                if self.run:
                    counts = {"images_seen": self.images_seen, "wall_seconds": round(self.seconds, 3)}
                    self.run.describe(diverged={"steps": step or self.step, "value": f"{name} {value}", **counts})
                raise UserError(
                    f"step {step or self.step}: {name} is {value}, the training has diverged; the last checkpoint is "
                    f"an earlier state, {self._advice}"
                )

    def row(self, values: Mapping[str, SupportsFloat], own: Mapping[str, float] | None = None) -> dict[str, float]:
        """Write a row of progress.csv, unless this step has one, and return the means of `values` over the ranks.

        Args:
            values: scalars, with the same names on every rank.
            own: further columns of rank 0.

        Raises:
            UserError: a mean is not finite.
        """
        means = mean(values)
        self.check(means)
        if self.run and self._logged_step != self.step:
            self.run.log_row(self.step, self.images_seen, self.seconds, **means, **(own or {}))
            self._logged_step = self.step
        return means

    def save_due(self, planned: bool) -> bool:
        """Return True if a checkpoint is planned, or --save_minutes have passed since the last one."""
        due = planned or self._agreed - self._saved_at > 60 * self._save_minutes
        self._saved_at = self._agreed if due else self._saved_at
        return due

    def log(self, message: str) -> None:
        """Print a line and append it to log.txt, on rank 0."""
        if self.run:
            self.run.log(message)

    def finish(self, **facts: Any) -> int:
        """Log the end; at a bound, draw loss.png and mark the run as finished, with further facts in config.json.

        Returns:
            The exit status: 0, or 130 after Ctrl-C or SIGTERM.
        """
        if not self.reason:
            self.log(f"interrupted after step {self.step}; the same command continues")
            return INTERRUPTED
        if self.run:
            step, images, seconds = self.step, self.images_seen, self.seconds
            draw_run_loss(self.run.folder)
            self.run.finish(self.reason, steps=step, images_seen=images, wall_seconds=seconds, **facts)
            done = f"{step} steps, {images} images, {seconds:.1f} s of training"
            self.log(f"finished ({self.reason}): {done}; {self.run.folder}")
        return 0


def prune(folder: Path, pattern: str, keep: int, planned: Callable[[int], bool] = lambda number: True) -> None:
    """Delete old checkpoints, except the newest of all and the newest `keep` of the planned ones.

    Args:
        folder: run folder.
        pattern: file names, with one * for the number.
        keep: number of planned checkpoints to keep, 0 for all.
        planned: returns False for the number of a checkpoint that --save_minutes or Ctrl-C caused.
    """
    before, _, after = pattern.partition("*")
    numbers = {path: path.name.removeprefix(before).removesuffix(after) for path in folder.glob(pattern)}
    checkpoints = sorted((int(number), path) for path, number in numbers.items() if number.isdecimal())
    kept = [path for number, path in checkpoints if planned(number)][-keep:] + [path for _, path in checkpoints[-1:]]
    for _, path in checkpoints:
        if path not in kept:
            path.unlink(missing_ok=True)
