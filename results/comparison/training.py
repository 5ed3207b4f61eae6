"""What every training does alike: budget, clock, Ctrl-C, rows of progress.csv, checkpoints that are due, the end."""

import math
import signal
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from comparison.cli import INTERRUPTED, UserError
from comparison.curves import draw_run_loss
from comparison.distributed import agree, mean, same
from comparison.runs import Run

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm


@dataclass(frozen=True)
class Budget:
    """Bounds of one training run; 0 means no bound.

    Attributes:
        max_steps: updates.
        max_images: training images, repetitions counted.
        max_seconds: wall seconds of training over all restarts.
    """

    max_steps: int = 0
    max_images: int = 0
    max_seconds: float = 0

    def exhausted(self, step: int, images_seen: int, wall_seconds: float) -> str | None:
        """Name the bound that is reached, or return None."""
        if self.max_steps and step >= self.max_steps:
            return f"max_steps {self.max_steps}"
        if self.max_images and images_seen >= self.max_images:
            return f"max_images {self.max_images}"
        if self.max_seconds and wall_seconds >= self.max_seconds:
            return f"max_seconds {self.max_seconds:g}"
        return None

    def progress(self, step: int, images_seen: int, wall_seconds: float) -> float:
        """Return the share of the budget that is used, in [0, 1]: that of the nearest bound, 0 without one."""
        used = ((step, self.max_steps), (images_seen, self.max_images), (wall_seconds, self.max_seconds))
        return max((min(1.0, value / bound) for value, bound in used if bound), default=0.0)

    def cut(self, stop_after: float) -> "Budget":
        """Return the first part of a budget with one bound, up to `stop_after` in its unit; 0 for the whole.

        Raises:
            UserError: the budget has no bound or several, or a part of an update or image is asked for.
        """
        if not stop_after:
            return self
        bounds = [name for name, bound in vars(self).items() if bound]
        if len(bounds) != 1:
            found = " and ".join(f"--{name} {getattr(self, name):g}" for name in bounds) or "none"
            wanted = "exactly one of --max_steps, --max_images and --max_seconds above 0"
            raise UserError(f"--stop_after {stop_after:g} needs {wanted}, not {found}")
        name = bounds[0]
        if name != "max_seconds" and stop_after != int(stop_after):
            raise UserError(f"--stop_after {stop_after:g} must be a whole number, as --{name} is")
        part = stop_after if name == "max_seconds" else int(stop_after)
        return replace(self, **{name: min(getattr(self, name), part)})

    def describe(self) -> str:
        """Return the bounds in words, for logs."""
        bounds = zip(("updates", "images", "seconds"), vars(self).values(), strict=True)
        return " or ".join(f"{bound:g} {unit}" for unit, bound in bounds if bound) or "no bound"

    def total_steps(self, images_per_step: int) -> int | None:
        """Return the step at which the run ends if steps or images decide it, for a progress bar."""
        bounds = [self.max_steps] if self.max_steps else []
        if self.max_images:
            bounds.append(-(-self.max_images // images_per_step))
        return min(bounds, default=None)


class Clock:
    """Wall seconds, from `elapsed` on."""

    def __init__(self, elapsed: float = 0.0):
        self._start = time.perf_counter() - elapsed

    def seconds(self) -> float:
        """Return the seconds so far."""
        return time.perf_counter() - self._start


class StopSignal:
    """Turn the first Ctrl-C or SIGTERM into a request, so that the loop can save and leave; the second one raises."""

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
    """The updates of a training: iterating gives their numbers 0, 1, ... until a bound or Ctrl-C ends it.

    All processes of a job iterate alike: the first one's clock counts, and a stop of one stops all.

    Args:
        run: the run's folder; None in all processes but the first, which alone writes.
        budget: bounds of the run.
        images_of: maps a number of updates to the training images that they see.
        step, seconds: updates and wall seconds of earlier starts of the run.
        log_interval: updates between rows of progress.csv.
        save_minutes: minutes of training after which a checkpoint is due anyway.
        stop_after: see `Budget.cut`.
        epochs: one more bound, as updates and in words, such as (600, "num_epoch 3"); 0 updates for none.
        advice: what may help a training that diverges.

    Attributes:
        step: updates done; in the loop's body, the present one included.
        progress: share of the budget that was used before the present update, in [0, 1].
        reason: the bound that ended the loop; None before that, and after Ctrl-C or SIGTERM.
        bar: the progress bar, in the loop's body.
    """

    bar: "tqdm"

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
        self._advice, self._clock, self._paused = advice, Clock(seconds), False
        self._agreed = self._saved_at = self._paused_at = seconds
        self._logged_step = -1

    def begin(self, words: str, **facts: Any) -> None:
        """Trim progress.csv to the updates done, add the facts to config.json, and log what begins, in words.

        Raises:
            UserError: the processes have restored different states.
        """
        same(self.step, "updates in the run folder, which every machine must see")
        if self.run:
            self.run.start(self.step)
            self.run.describe(**facts)
            self.log(f"continue after step {self.step}, {words}" if self.step else f"start, {words}")

    def __iter__(self) -> Iterator[int]:
        from comparison.progress import bar

        last, name = self._epochs
        by_images = bisect_left(range(self.budget.max_images), self.budget.max_images, key=self._images_of)
        total = min((n for n in (last, self.budget.max_steps, by_images) if n), default=None)
        with StopSignal() as stop, bar(total, self.step, "train", "steps") as self.bar:
            while True:
                stopped, self._agreed = agree(stop.requested, self.seconds)
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
        """Training images of the updates done, repetitions counted."""
        return self._images_of(self.step)

    @property
    def seconds(self) -> float:
        """Wall seconds of training so far."""
        return self._paused_at if self._paused else self._clock.seconds()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock inside the `with` block, for pictures and scores, once the GPU has done what is training."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._paused, self._paused_at = True, self.seconds
        try:
            yield
        finally:
            self._paused, self._clock = False, Clock(self._paused_at)

    @property
    def row_due(self) -> bool:
        """Whether --log_interval asks for a row after the present update."""
        return self.step % self._log_interval == 0

    def check(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Refuse values that are not finite.

        Args:
            values: of this process.
            step: the updates after which they were not; the present number unless told.

        Raises:
            UserError: the training has diverged.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"step {step or self.step}: {name} is {value}, the training has diverged; what is saved is an "
                    f"earlier state, {self._advice}"
                )

    def row(self, values: "Mapping[str, Tensor | float]", own: Mapping[str, float] | None = None) -> dict[str, float]:
        """Write a row of progress.csv, unless this step has one, and return the values' means over the processes.

        Args:
            values: scalars that every process has.
            own: further columns, of the first process.

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
        """Return True where a checkpoint is planned, or --save_minutes have passed since the last one."""
        due = planned or self._agreed - self._saved_at > 60 * self._save_minutes
        self._saved_at = self._agreed if due else self._saved_at
        return due

    def log(self, message: str) -> None:
        """Print a line and append it to log.txt, in the first process."""
        if self.run:
            self.run.log(message)

    def finish(self, **facts: Any) -> int:
        """Log how the loop ended; at a bound, draw loss.png and mark the run as finished, with further facts.

        Returns:
            The exit status: 0, or 130 after an interruption.
        """
        if not self.reason:
            self.log(f"interrupted after step {self.step}; the same command continues")
            return INTERRUPTED
        if self.run:
            folder, seconds = self.run.folder, self.seconds
            draw_run_loss(folder)
            images = self.images_seen
            self.run.finish(self.reason, steps=self.step, images_seen=images, wall_seconds=seconds, **facts)
            done = f"{self.step} steps, {self.images_seen} images, {seconds:.1f} s of training"
            self.log(f"finished ({self.reason}): {done}; {folder}")
        return 0


def prune(folder: Path, pattern: str, keep: int, planned: Callable[[int], bool] = lambda number: True) -> None:
    """Delete old checkpoints: of the planned ones all but the newest `keep`, of the others all but the newest of all.

    Args:
        folder: of the run.
        pattern: of their names, with one *, which stands for the number.
        keep: 0 keeps all that are planned.
        planned: whether the checkpoint of a number is planned, and not one that --save_minutes or Ctrl-C asked for.
    """
    before, _, after = pattern.partition("*")
    numbers = {path: path.name.removeprefix(before).removesuffix(after) for path in folder.glob(pattern)}
    found = sorted((int(number), path) for path, number in numbers.items() if number.isdecimal())
    kept = [path for number, path in found if planned(number)][-keep:] + [path for _, path in found[-1:]]
    for _, path in found:
        if path not in kept:
            path.unlink(missing_ok=True)
