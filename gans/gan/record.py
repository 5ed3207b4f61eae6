"""What a training run writes while it goes on: rows of losses, scores, checkpoints, grids of fixed noise."""

import math
import time
from pathlib import Path
from typing import Any

from comparison.checkpoints import load_checkpoint, prune, save_checkpoint
from comparison.cli import UserError
from comparison.curves import draw_run_loss
from comparison.data.images import to_uint8
from comparison.png import save_grid
from comparison.runs import Run
from torch import Tensor

from .diagnosis import Probe, Scorer
from .distributed import mean_values
from .files import CHECKPOINTS, MODEL, checkpoint_name
from .pictures import draw_diagnosis
from .sampling import draw_in_eval_mode
from .scores import Scores
from .training import DCGAN

GRID_IMAGES = 64
OWN_PICTURES = ("diagnosis.png",)


class Recorder:
    """Write a run's rows, checkpoints and grids when they are due.

    Attributes:
        step: updates done.
        images_seen: training images used, repetitions counted.
        wall_seconds: of training over all restarts, as of the last update.
        scoring_seconds: since this process began, spent on scores; they are no training.
    """

    def __init__(
        self,
        run: Run | None,
        gan: DCGAN,
        options: dict[str, Any],
        steps_per_epoch: int,
        probe: Probe | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """Start at step 0.

        Args:
            run: the open run; None in all processes but the first, which then only take part in the means.
            gan: what is trained.
            options: every flag with its value; goes into the checkpoints.
            steps_per_epoch: updates in a pass over the data.
            probe: of the first process, asked at every row; None for no held-out images.
            scorer: of the first process; None for no scores.
        """
        self.step, self.images_seen, self.wall_seconds, self.scoring_seconds = 0, 0, 0.0, 0.0
        self._probe, self._scorer = probe, scorer
        self._scores: Scores | None = None
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
        counts = (self.step, self.images_seen, self.wall_seconds)
        if not all(isinstance(count, int | float) and count >= 0 for count in counts):
            raise UserError(f"{path}: damaged, step {self.step!r}, {self.images_seen!r} images")
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
        if self.step == 0:
            for path in (self._run.folder / name for name in OWN_PICTURES):
                path.unlink(missing_ok=True)
        self._scores = Scores(self._run.folder, self.step, self._options.get("keep_best", False))
        data = facts["data"]
        start = f"continue after step {self.step}" if self.step else "start"
        self.log(f"{start}, {until}; {data['images']} images of {data['name']}, on {facts['device']}")

    def after_update(self, losses: dict[str, Tensor], real: Tensor, batch_size: int, wall_seconds: float) -> None:
        """Count an update and write what is due after it.

        Args:
            losses: what `DCGAN.train_step` returned.
            real: (n, C, S, S) float32, its training images.
            batch_size: images of the update, all processes together.
            wall_seconds: of training so far.

        Raises:
            UserError: a loss or gradient is not finite; nothing is written then.
        """
        self.step += 1
        before = self.images_seen
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
                if self._probe:
                    values |= self._probe(self._gan, real, self.step - 1)
                self._log_row(values)
            if self._run and epoch_ends:
                words = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                self._run.log(
                    f"epoch {epoch}, step {self.step}, {self.images_seen} images, {wall_seconds:.1f} s: {words}"
                )
        every = self._options.get("score_every", 0)
        if every and before // every < self.images_seen // every:
            self.score()
        grid_due = epoch_ends and epoch % self._options["grid_every"] == 0
        if grid_due or time.monotonic() - self._saved_at > 60 * self._options["save_minutes"]:
            self.save()
        if grid_due:
            self.draw_grid()
            self._draw_curves()

    def score(self) -> None:
        """Score the sampled generator, and keep its checkpoint if it is the best one and that is wanted.

        Raises:
            UserError: a loss or gradient was not finite.
        """
        if self._scores is None or self._scorer is None or self._scores.last_step == self.step:
            return
        start = time.perf_counter()
        self._refuse_divergence({name: value.item() for name, value in self._losses.items()})
        score = self._scorer(self._gan.sampled, self._gan.dtype)
        self.log(self._scores.add(self.step, self.images_seen, self.wall_seconds, score))
        if self._scores.keep_best and self._scores.is_best():
            self.save()
            self._scores.keep()
        self.scoring_seconds += time.perf_counter() - start

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
        images = draw_in_eval_mode(
            self._gan.sampled, range(GRID_IMAGES), self._options["seed"], device, self._gan.dtype
        )
        save_grid(to_uint8(images), self._run.folder / f"grid_{self.step:06d}.png")

    def log(self, message: str) -> None:
        """Print a line on the console and into log.txt."""
        if self._run:
            self._run.log(message)

    def finish(self, reason: str, **facts: Any) -> None:
        """Write the last row, score and pictures, and mark the run as finished; every process calls it."""
        if self._losses:
            values = mean_values(self._losses)
            self._refuse_divergence(values)
            self._log_row(values)
        if self._run is None:
            return
        self.score()
        self.draw_grid()
        self._draw_curves()
        self._run.finish(reason, steps=self.step, images_seen=self.images_seen, wall_seconds=self.wall_seconds, **facts)
        self.log(
            f"finished ({reason}): {self.step} steps, {self.images_seen} images, {self.wall_seconds:.1f} s of training"
        )

    def _draw_curves(self) -> None:
        if self._run:
            draw_run_loss(self._run.folder)
            draw_diagnosis(self._run.folder)

    def _log_row(self, values: dict[str, float]) -> None:
        if self._run and self._logged_step != self.step:
            self._run.log_row(self.step, self.images_seen, self.wall_seconds, **values)
            self._logged_step = self.step

    def _refuse_divergence(self, values: dict[str, float]) -> None:
        bad = next((name for name, value in values.items() if not math.isfinite(value)), None)
        first = int(self._gan.first_bad) + 1
        if bad is None and not first:
            return
        first = first or self.step
        what = f"{bad} is {values[bad]}" if bad and first == self.step else "a loss or gradient is not finite"
        raise UserError(
            f"step {first}: {what}, the training has diverged; the checkpoints before it are kept, a smaller --g_lr or "
            "--d_lr may help"
        )
