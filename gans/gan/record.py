"""What a training run writes while it goes on: rows of losses, checkpoints, grids of fixed noise."""

import math
import time
from pathlib import Path
from typing import Any

from comparison.cli import UserError
from comparison.images import save_grid, to_uint8
from comparison.runs import Run, load_checkpoint, prune, save_checkpoint
from torch import Tensor

from .distributed import mean_values
from .files import CHECKPOINTS, MODEL, checkpoint_name
from .sampling import draw_in_eval_mode
from .training import DCGAN

GRID_IMAGES = 64


class Recorder:
    """Write a run's rows, checkpoints and grids when they are due.

    Attributes:
        step: updates done.
        images_seen: training images used, repetitions counted.
        wall_seconds: of training over all restarts, as of the last update.
    """

    def __init__(self, run: Run | None, gan: DCGAN, options: dict[str, Any], steps_per_epoch: int) -> None:
        """Start at step 0.

        Args:
            run: the open run; None in all processes but the first, which then only take part in the means.
            gan: what is trained.
            options: every flag with its value; goes into the checkpoints.
            steps_per_epoch: updates in a pass over the data.
        """
        self.step, self.images_seen, self.wall_seconds = 0, 0, 0.0
        self._run, self._gan, self._steps_per_epoch = run, gan, steps_per_epoch
        self._options: dict[str, Any] = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}
        self._saved_step, self._saved_at = -1, time.monotonic()
        self._logged_step, self._losses = -1, dict[str, Tensor]()

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: it is missing, truncated, of another model, or of networks of another shape.
        """
        payload = load_checkpoint(path, model=MODEL)
        try:
            self._gan.load_state_dict(payload)
            self.step, self.images_seen = payload["step"], payload["images_seen"]
            self.wall_seconds = payload["wall_seconds"]
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: does not fit these networks ({str(error).splitlines()[0]})") from None
        self._saved_step = self.step

    def begin(self, until: str, **facts: Any) -> None:
        """Trim progress.csv to the step restored, note the facts in config.json and say what happens now.

        Args:
            until: where training ends, in words.
            facts: for config.json: data, parameters, device, precision.
        """
        if self._run is None:
            return
        self._run.start(self.step)
        self._run.describe(**facts)
        data = facts["data"]
        start = f"continue after step {self.step}" if self.step else "start"
        self.log(f"{start}, {until}; {data['images']} images of {data['name']}, on {facts['device']}")

    def after_update(self, losses: dict[str, Tensor], batch_size: int, wall_seconds: float) -> None:
        """Count an update and write what is due after it.

        Args:
            losses: what `DCGAN.train_step` returned.
            batch_size: images of the update, all processes together.
            wall_seconds: of training so far.

        Raises:
            UserError: a loss is not finite; nothing is written then.
        """
        self.step += 1
        self.images_seen += batch_size
        self.wall_seconds = wall_seconds
        self._losses = losses
        epoch, within = divmod(self.step, self._steps_per_epoch)
        epoch_ends = within == 0
        row_due = epoch_ends or self.step % self._options["log_interval"] == 0
        if row_due or next(iter(losses.values())).device.type == "cpu":  # a GPU would have to wait for the answer
            values = mean_values(losses)
            self._refuse_divergence(values)
            if row_due:
                self._log_row(values)
            if self._run and epoch_ends:
                words = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                self._run.log(
                    f"epoch {epoch}, step {self.step}, {self.images_seen} images, {wall_seconds:.1f} s: {words}"
                )
        grid_due = epoch_ends and epoch % self._options["grid_every"] == 0
        if grid_due or time.monotonic() - self._saved_at > 60 * self._options["save_minutes"]:
            self.save()
        if grid_due:
            self.draw_grid()

    def save(self) -> None:
        """Write checkpoint_<step>.pt unless it is there, and delete the oldest ones.

        Raises:
            UserError: a loss is not finite; nothing is written then.
        """
        if self._run is None or self._saved_step == self.step:
            return
        self._refuse_divergence({name: value.item() for name, value in self._losses.items()})
        payload = {
            **self._gan.state_dict(),
            "step": self.step,
            "images_seen": self.images_seen,
            "wall_seconds": self.wall_seconds,
            "config": self._options,
        }
        save_checkpoint(self._run.folder / checkpoint_name(self.step), payload, model=MODEL)
        prune(self._run.folder, CHECKPOINTS, self._options["keep"])
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def draw_grid(self) -> None:
        """Write grid_<step>.png: the first 64 images of the sample set, as the generator now draws them."""
        if self._run is None:
            return
        device = next(self._gan.generator.parameters()).device
        images = draw_in_eval_mode(self._gan.sampled, GRID_IMAGES, self._options["seed"], device, self._gan.dtype)
        save_grid(to_uint8(images), self._run.folder / f"grid_{self.step:06d}.png")

    def log(self, message: str) -> None:
        """Print a line on the console and into log.txt."""
        if self._run:
            self._run.log(message)

    def finish(self, reason: str, **facts: Any) -> None:
        """Write the last row, the last grid and loss.png, and mark the run as finished; every process calls it."""
        if self._losses:
            values = mean_values(self._losses)
            self._refuse_divergence(values)
            self._log_row(values)
        if self._run is None:
            return
        self.draw_grid()
        self._run.draw_loss()
        self._run.finish(reason, steps=self.step, images_seen=self.images_seen, wall_seconds=self.wall_seconds, **facts)
        self.log(
            f"finished ({reason}): {self.step} steps, {self.images_seen} images, {self.wall_seconds:.1f} s of training"
        )

    def _log_row(self, values: dict[str, float]) -> None:
        if self._run and self._logged_step != self.step:
            self._run.log_row(self.step, self.images_seen, self.wall_seconds, **values)
            self._logged_step = self.step

    def _refuse_divergence(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"step {self.step}: {name} is {value}, the training has diverged; the checkpoints before it are "
                    "kept, a smaller --g_lr or --d_lr may help"
                )
