"""What a training run writes while it goes on: rows of losses, scores, checkpoints, grids of fixed noise."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison.checkpoints import load_checkpoint, save_checkpoint
from comparison.cli import UserError
from comparison.curves import draw_run_loss
from comparison.data.images import to_uint8
from comparison.distributed import mean
from comparison.png import save_grid
from comparison.training import Loop, prune
from torch import Tensor

from .diagnosis import Probe, Scorer
from .files import CHECKPOINTS, MODEL, checkpoint_name
from .pictures import draw_diagnosis
from .sampling import draw_in_eval_mode
from .scores import Scores
from .training import DCGAN

GRID_IMAGES = 64


class Recorder:
    """Write a run's rows, checkpoints, scores and grids when they are due.

    Args:
        loop: of the training; in all processes but the first, which writes, the others only take part in the means.
        gan: what is trained.
        options: every flag with its value; goes into the checkpoints.
        steps_per_epoch: updates in a pass over the data.
        probe: of the first process, asked at every row; None for no held-out images.
        scorer: of the first process; None for no scores.
    """

    def __init__(
        self,
        loop: Loop,
        gan: DCGAN,
        options: dict[str, Any],
        steps_per_epoch: int,
        probe: Probe | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self._loop, self._gan, self._steps_per_epoch = loop, gan, steps_per_epoch
        self._probe, self._scorer = probe, scorer
        self._options: dict[str, Any] = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}
        self._scores: Scores | None = None
        self._saved_step = loop.step or -1
        self._losses: dict[str, Tensor] = {}

    def begin(self, **facts: Any) -> None:
        """Make the run folder ready, note the facts in config.json and say what happens now.

        Args:
            facts: for config.json: data, parameters, device, precision.
        """
        loop, data = self._loop, facts["data"]
        words = f"{data['images']} images of {data['name']}, on {facts['device']}"
        loop.begin(f"until {loop.budget.describe()}; {words}", **facts)
        if loop.run:
            if loop.step == 0:
                (loop.run.folder / "diagnosis.png").unlink(missing_ok=True)
            self._scores = Scores(loop.run.folder, loop.step, self._options.get("keep_best", False))

    def after_update(self, losses: dict[str, Tensor], real: Tensor) -> None:
        """Write what is due after an update.

        Args:
            losses: what `DCGAN.train_step` returned.
            real: (n, C, S, S) float32, its training images.

        Raises:
            UserError: a loss or gradient is not finite; nothing is written then.
        """
        loop, self._losses = self._loop, losses
        epoch, within = divmod(loop.step, self._steps_per_epoch)
        epoch_ends = within == 0
        row_due = epoch_ends or loop.row_due
        if row_due or self._gan.first_bad.device.type == "cpu":  # a GPU would have to wait for the answer
            means = mean(losses)
            self._check(means)
            if row_due:
                loop.row(means, self._probe(self._gan, real, loop.step - 1) if self._probe else None)
            if epoch_ends:
                words = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
                loop.log(f"epoch {epoch}, step {loop.step}, {loop.images_seen} images, {loop.seconds:.1f} s: {words}")
        every = self._options.get("score_every", 0)
        if every and (loop.images_seen - self._options["batch_size"]) // every < loop.images_seen // every:
            self.score()
        grid_due = epoch_ends and epoch % self._options["grid_every"] == 0
        if loop.save_due(grid_due):
            self.save()
        if grid_due:
            self._draw()

    def score(self) -> None:
        """Score the sampled generator, and keep its checkpoint if it is the best one and that is wanted.

        Raises:
            UserError: a loss or gradient was not finite.
        """
        loop = self._loop
        if self._scores is None or self._scorer is None or self._scores.last_step == loop.step:
            return
        self._check(self._losses)
        with loop.pause():
            score = self._scorer(self._gan.sampled, self._gan.dtype)
            loop.log(self._scores.add(loop.step, loop.images_seen, loop.seconds, score))
            if self._scores.keep_best and self._scores.is_best():
                self.save()
                self._scores.keep()

    def save(self) -> None:
        """Write checkpoint_<step>.pt unless it is there, and delete the oldest ones.

        Raises:
            UserError: a loss is not finite; nothing is written then.
        """
        loop = self._loop
        if loop.run is None or self._saved_step == loop.step:
            return
        self._check(self._losses)
        payload = {
            **self._gan.state_dict(),
            "step": loop.step,
            "images_seen": loop.images_seen,
            "wall_seconds": loop.seconds,
            "config": self._options,
        }
        save_checkpoint(loop.run.folder / checkpoint_name(loop.step), payload, model=MODEL)
        prune(loop.run.folder, CHECKPOINTS, self._options["keep"])
        self._saved_step = loop.step

    def end(self) -> None:
        """Write the last checkpoint, and where a bound ended the training the last row, score and pictures."""
        self.save()
        if self._loop.reason:
            if self._losses:
                means = mean(self._losses)
                self._check(means)
                self._loop.row(means)
            self.score()
            self._draw()

    def _draw(self) -> None:
        """Draw grid_<step>.png, the first 64 images of the sample set as they are now, and the curves."""
        loop = self._loop
        if loop.run is None:
            return
        with loop.pause():
            device = next(self._gan.generator.parameters()).device
            seed, dtype = self._options["seed"], self._gan.dtype
            images = draw_in_eval_mode(self._gan.sampled, range(GRID_IMAGES), seed, device, dtype)
            save_grid(to_uint8(images), loop.run.folder / f"grid_{loop.step:06d}.png")
            draw_run_loss(loop.run.folder)
            draw_diagnosis(loop.run.folder)

    def _check(self, losses: Mapping[str, Tensor | float]) -> None:
        """Refuse values that are not finite, of this update or of the first bad one, which the GPU has kept."""
        first = int(self._gan.first_bad) + 1
        if first not in (0, self._loop.step):
            self._loop.check({"a loss or gradient": math.nan}, first)
        self._loop.check({name: float(value) for name, value in losses.items()})


def restore(path: Path, gan: DCGAN) -> tuple[int, float]:
    """Go on from a checkpoint; return the updates done and the wall seconds used.

    Raises:
        UserError: it is missing, truncated, of another model, or of networks of another shape.
    """
    payload = load_checkpoint(path, model=MODEL)
    try:
        gan.load_state_dict(payload)
        step, seconds = payload["step"], payload["wall_seconds"]
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: does not fit these networks ({str(error).splitlines()[0]})") from None
    if not (isinstance(step, int) and step >= 0 and isinstance(seconds, int | float) and seconds >= 0):
        raise UserError(f"{path}: damaged, {step!r} steps in {seconds!r} seconds")
    return step, seconds
