"""Write a training run's files: rows of losses, scores, checkpoints, and grids of fixed noise."""

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

from .diagnosis_plot import draw_diagnosis
from .diagnostics import HeldOutProbe, Scorer
from .run_paths import CHECKPOINTS, MODEL, checkpoint_name
from .sampling import sample_in_eval_mode
from .scores import Scores
from .training import GAN

GRID_IMAGES = 64


class TrainingLogger:
    """Write rows, checkpoints, scores and grids when they are due.

    Args:
        loop: training loop; ranks above 0 have no run folder and only take part in means over the ranks.
        gan: networks that are trained.
        options: every flag with its value, for the checkpoints.
        steps_per_epoch: updates per epoch.
        probe: held-out probe of rank 0, used at every row; None without held-out images.
        scorer: offline score of rank 0; None for no scores.
    """

    def __init__(
        self,
        loop: Loop,
        gan: GAN,
        options: dict[str, Any],
        steps_per_epoch: int,
        probe: HeldOutProbe | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self._loop, self._gan, self._steps_per_epoch = loop, gan, steps_per_epoch
        self._probe, self._scorer = probe, scorer
        self._options: dict[str, Any] = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}
        self._scores: Scores | None = None
        self._saved_step = loop.step or -1
        self._losses: dict[str, Tensor] = {}

    def begin(self, **metadata: Any) -> None:
        """Prepare the run folder, add the metadata (data, device and others) to config.json, and log the start."""
        loop, data = self._loop, metadata["data"]
        summary = f"{data['images']} images of {data['name']}, on {metadata['device']}"
        loop.begin(f"until {loop.budget.describe()}; {summary}", **metadata)
        if loop.run:
            if loop.step == 0:
                (loop.run.folder / "diagnosis.png").unlink(missing_ok=True)
            self._scores = Scores(loop.run.folder, loop.step, self._options.get("keep_best", False))
            prune(loop.run.folder, CHECKPOINTS, self._options["keep"])  # a killed process may have left one more

    def after_update(self, losses: dict[str, Tensor], real: Tensor) -> None:
        """Write what is due after an update.

        Args:
            losses: result of `GAN.train_step`.
            real: (n, C, S, S) float32, training images of the update.

        Raises:
            UserError: a loss or gradient is not finite; nothing is written then.
        """
        loop, self._losses = self._loop, losses
        epoch, within = divmod(loop.step, self._steps_per_epoch)
        epoch_ends = within == 0
        row_due = epoch_ends or loop.row_due
        if row_due or self._gan.first_nonfinite_step.device.type == "cpu":  # on a GPU each check would synchronize
            means = mean(losses)
            self._check(means)
            if row_due:
                loop.row(means, self._probe(self._gan, real, loop.step - 1) if self._probe else None)
            if epoch_ends:
                text = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
                loop.log(f"epoch {epoch}, step {loop.step}, {loop.images_seen} images, {loop.seconds:.1f} s: {text}")
        every = self._options.get("score_every", 0)
        if every and (loop.images_seen - self._options["batch_size"]) // every < loop.images_seen // every:
            self._score()
        grid_due = epoch_ends and epoch % self._options["grid_every"] == 0
        if loop.save_due(grid_due):
            self._save()
        if grid_due:
            self._draw()

    def end(self) -> None:
        """Write the last checkpoint and, if a bound ended the training, the last row, score and figures."""
        self._save()
        if self._loop.reason:
            if self._losses:
                means = mean(self._losses)
                self._check(means)
                self._loop.row(means)
            self._score()
            self._draw()

    def _score(self) -> None:
        """Score the sampling generator; with --keep_best, save its checkpoint if it is the best one."""
        loop = self._loop
        if self._scores is None or self._scorer is None or self._scores.last_step == loop.step:
            return
        self._check(self._losses)
        with loop.pause():
            score = self._scorer(self._gan.sampling_generator, self._gan.dtype)
            loop.log(self._scores.add(loop.step, loop.images_seen, loop.seconds, score))
            if self._scores.keep_best and self._scores.is_best():
                self._save()
                self._scores.keep()

    def _save(self) -> None:
        """Write checkpoint_<step>.pt unless it exists, and delete the oldest ones."""
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

    def _draw(self) -> None:
        """Draw grid_<step>.png, the first 64 samples at this step, and the curves."""
        loop = self._loop
        if loop.run is None:
            return
        with loop.pause():
            device = next(self._gan.generator.parameters()).device
            seed, dtype = self._options["seed"], self._gan.dtype
            images = sample_in_eval_mode(self._gan.sampling_generator, range(GRID_IMAGES), seed, device, dtype)
            save_grid(to_uint8(images), loop.run.folder / f"grid_{loop.step:06d}.png")
            draw_run_loss(loop.run.folder)
            draw_diagnosis(loop.run.folder)

    def _check(self, losses: Mapping[str, Tensor | float]) -> None:
        """Raise UserError if a loss is not finite, or an earlier update that the GPU recorded was not."""
        first = int(self._gan.first_nonfinite_step) + 1
        if first not in (0, self._loop.step):
            self._loop.check({"a loss or gradient": math.nan}, first)
        self._loop.check({name: float(value) for name, value in losses.items()})


def restore(path: Path, gan: GAN) -> tuple[int, float]:
    """Load a checkpoint into the GAN; return the updates and wall seconds so far.

    Raises:
        UserError: the file is missing, truncated, of another model, or of networks of another shape.
    """
    payload = load_checkpoint(path, model=MODEL)
    try:
        gan.load_state_dict(payload)
        step, seconds = payload["step"], payload["wall_seconds"]
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: does not fit these networks ({str(error).splitlines()[0]})") from None
    if not (isinstance(step, int) and step >= 0 and isinstance(seconds, int | float) and seconds >= 0):
        raise UserError(f"{path}: damaged; it says {step!r} steps in {seconds!r} seconds")
    return step, seconds
