"""When training ends: budgets, the training clock, and Ctrl-C."""

import signal
import time
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from comparison.cli import UserError


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
        """Say the bounds in words, for logs and error messages."""
        parts = [f"{value:g} {unit}" for value, unit in self._bounds() if value]
        return " or ".join(parts) or "no bound"

    def total_steps(self, images_per_step: int) -> int | None:
        """Return the step at which the run ends if steps or images decide it, for a progress bar."""
        bounds = [self.max_steps] if self.max_steps else []
        if self.max_images:
            bounds.append(-(-self.max_images // images_per_step))
        return min(bounds, default=None)

    def _bounds(self) -> list[tuple[float, str]]:
        return [(self.max_steps, "updates"), (self.max_images, "images"), (self.max_seconds, "seconds")]


class Clock:
    """Wall seconds of training, restarts included.

    Args:
        elapsed: seconds that earlier starts of the run have used.
    """

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
