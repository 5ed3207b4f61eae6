"""The training loop that the scripts share: updates, the log, checkpoints and sample grids.

Several processes make the same updates, each from its part of the batch. The first one writes everything; its clock
ends the run and plans the checkpoints.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from comparison import rng
from comparison.cli import UserError
from comparison.curves import draw_run_loss
from comparison.data.images import to_uint8
from comparison.device import peak_memory_bytes
from comparison.png import save_grid
from comparison.progress import bar
from comparison.runs import Run
from comparison.training import Budget, Clock, StopSignal
from event_files import open_events
from improved_diffusion.dist_util import get_rank, get_world_size, is_main
from improved_diffusion.resample import LossAwareSampler, LossSecondMomentResampler, create_named_schedule_sampler
from improved_diffusion.training import Trainer
from remote import send
from run_files import prune, restore, save
from torch import Tensor

if TYPE_CHECKING:
    from comparison.data.batches import BatchStream
    from comparison.data.streaming import FileStream
    from improved_diffusion.log_formats import TensorBoardFormat
    from training_run import Task


class Loop:
    """A run in training.

    Args:
        train_run: its folder.
        trainer: the network.
        stream: this process's part of the batches.
        budget: when it ends.
        lr_factor: (updates, images seen, wall seconds) -> multiple of --lr.
        args: of the command line.
        task: what is trained.

    Attributes:
        step, images_seen: updates made, and the images of all processes that they took.
    """

    def __init__(
        self,
        train_run: Run,
        trainer: Trainer,
        stream: "BatchStream | FileStream",
        budget: Budget,
        lr_factor: Callable[[int, int, float], float],
        args: argparse.Namespace,
        task: "Task",
    ) -> None:
        self.train_run, self.trainer, self.stream, self.budget = train_run, trainer, stream, budget
        self.lr_factor, self.args, self.task = lr_factor, args, task
        self.sampler = create_named_schedule_sampler(args.schedule_sampler, trainer.diffusion)
        self.step, self.images_seen = 0, 0
        self._clock = Clock()
        self._saved_step = -1
        self._events: TensorBoardFormat | None = None

    def restore(self, model_file: Path, *, saved: bool) -> None:
        """Go on from a checkpoint, which every process reads for itself.

        Args:
            model_file: its model<step>.pt.
            saved: whether it is the run's own.

        Raises:
            UserError: a file is missing, damaged, or does not fit.
        """
        counters = restore(self.trainer, model_file, self.task.model)
        self.step = counters["step"]
        self.images_seen = counters.get("images_seen") or self.step * self.args.batch_size
        self._clock = Clock(counters.get("wall_seconds", 0.0))
        self._saved_step = self.step if saved else -1
        if isinstance(self.sampler, LossSecondMomentResampler) and counters.get("sampler"):
            try:
                self.sampler.load_state_dict(counters["sampler"])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise UserError(f"{model_file}: the timestep sampler beside it does not fit ({error})") from None

    def run(self) -> int:
        """Update until the budget is used up or the user stops it; return the exit status."""
        args = self.args
        total = self.budget.total_steps(args.batch_size)
        with StopSignal() as stop, bar(total, self.step, "train", "steps") as progress:
            self._events = open_events(self.train_run.folder, self.step) if is_main() else None
            stopped, seconds = shared(stop.requested, self._clock.seconds())
            saved_at, self._logged_at = seconds, (self.step, seconds)
            while not (reason := self.budget.exhausted(self.step, self.images_seen, seconds)):
                if stopped:
                    self._checkpoint()
                    if is_main():
                        self.train_run.log(f"interrupted after {self.step} updates; the same command continues")
                    return 130
                self._update(self.lr_factor(self.step, self.images_seen, seconds))
                progress.update()
                stopped, seconds = shared(stop.requested, self._clock.seconds())
                if self.step % args.log_interval == 0:
                    self._log(seconds)
                planned = self.step % args.save_interval == 0
                if planned or seconds - saved_at > 60 * args.save_minutes:
                    saved_at = seconds
                    self._checkpoint()
                if planned:
                    self._draw_grid()
        self._finish(reason)
        return 0

    def _update(self, lr_factor: float) -> None:
        seed, step, rows = self.args.seed, self.step, self.stream.rows
        x_start, labels = self.stream.batch(step)
        n, device = self.args.batch_size, self.trainer.device
        noise = rng.normal((n, *x_start.shape[1:]), seed, step, "noise", device=device, rows=rows)
        t, factors = self.sampler.sample(n, device, rng.generator("cpu", seed, step, "t"))
        condition = self.task.condition(x_start)
        if labels is not None and self.task.class_cond:
            condition["y"] = withhold(labels, self.args.class_dropout, n, rows, seed, step)
        rng.seed_default(seed, step, "dropout", *([get_rank()] if get_world_size() > 1 else []))
        losses = self.trainer.update(step, x_start, t[rows], noise, factors[rows], condition, lr_factor)
        if isinstance(self.sampler, LossAwareSampler):
            self.sampler.update_with_local_losses(t[rows], losses)
        self.step, self.images_seen = step + 1, self.images_seen + n

    def _checkpoint(self) -> None:
        if not self.trainer.is_finite():
            raise UserError(f"the weights are not finite at update {self.step}: lower --lr, or use --precision float32")
        if is_main():
            state = {"images_seen": self.images_seen, "wall_seconds": self._clock.seconds()}
            if isinstance(self.sampler, LossSecondMomentResampler):
                state["sampler"] = self.sampler.state_dict()
            save(self.trainer, self.train_run.folder, self.step, state, self.task.model)
            prune(self.train_run.folder, self.args.save_interval, self.args.keep)
            send(self.train_run.folder)
        self._saved_step = self.step

    def _log(self, seconds: float) -> None:
        """Write a log row of the means since the last one.

        Raises:
            UserError: the loss is not finite any more.
        """
        means = self.trainer.meter.read()
        if not means:
            return
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss is {means['loss']} near update {self.step}: lower --lr, or use --precision float32"
            )
        if not is_main():
            return
        n, step = self.args.batch_size, self.step
        rate = (step - self._logged_at[0]) * n / max(seconds - self._logged_at[1], 1e-9)
        row = {**means, "lr": self.trainer.optimizer.param_groups[0]["lr"], "images_per_second": rate}
        if self.trainer.scaler.is_enabled():
            row["lg_loss_scale"] = math.log2(self.trainer.scaler.get_scale())
        self.train_run.log_row(step, self.images_seen, seconds, **row)
        if self._events:
            self._events.write_values({"step": step, **row})
        json_row = {"step": step, "images_seen": self.images_seen, "wall_seconds": round(seconds, 3), **row}
        with open(self.train_run.folder / "progress.json", "a", encoding="utf-8") as file:
            finite = {name: value if math.isfinite(value) else None for name, value in json_row.items()}
            file.write(json.dumps(finite) + "\n")
        left = [(total - step) * n / rate for total in [self.budget.total_steps(n)] if total]
        left += [self.budget.max_seconds - seconds] if self.budget.max_seconds else []
        parts = " ".join(f"{name} {means[name]:.4g}" for name in ("loss", "mse", "vb", "grad_norm") if name in means)
        eta = f" eta {max(min(left), 0) / 60:.1f} min" if left else ""
        self.train_run.log(f"step {step} images {self.images_seen} {parts} {rate:.1f} images/s {seconds:.0f} s{eta}")
        self._logged_at = (step, seconds)

    def _draw_grid(self) -> None:
        """Draw a sample grid, which is not training: the clock stands still."""
        path = self.train_run.folder / f"grid_{self.step:06d}.png"
        if self.args.grid_images and is_main() and not path.is_file():
            seconds = self._clock.seconds()
            draw_grid(self.trainer, path, self.args, self.task)
            self._clock = Clock(seconds)

    def _finish(self, reason: str) -> None:
        seconds = self._clock.seconds()
        self._log(seconds)
        if self._saved_step != self.step:
            self._checkpoint()
        self._draw_grid()
        if not is_main():
            return
        draw_run_loss(self.train_run.folder)
        done = {"steps": self.step, "images_seen": self.images_seen, "wall_seconds": seconds}
        self.train_run.finish(reason, **done, peak_memory_bytes=peak_memory_bytes(self.trainer.device))
        self.train_run.log(
            f"finished after {self.step} updates, {self.images_seen} images, {seconds:.0f} s ({reason}): "
            f"{self.train_run.folder}"
        )


def shared(stop: bool, seconds: float) -> tuple[bool, float]:
    """Return whether a process was asked to stop, and the first one's clock: all decide alike, and stay together.

    The hosts wait for each other, not for their GPUs.
    """
    if get_world_size() == 1:
        return stop, seconds
    values = torch.tensor([float(stop), seconds if is_main() else 0.0], dtype=torch.float64)
    torch.distributed.all_reduce(values)
    return bool(values[0]), float(values[1])


def withhold(labels: Tensor, share: float, batch_size: int, rows: slice, seed: int, step: int) -> Tensor:
    """Replace a share of the labels by -1, which the network takes for no class (Ho & Salimans 2022).

    Args:
        labels: (n,) int64, of the rows of the batch that this process has.
        share: in [0, 1].
        batch_size: of the whole batch.
        rows: n of them.
        seed, step: which labels are withheld.
    """
    if not share:
        return labels
    drawn = torch.rand(batch_size, generator=rng.generator("cpu", seed, step, "class_dropout"))[rows]
    return torch.where((drawn < share).to(labels.device, non_blocking=True), -1, labels)


def draw_grid(trainer: Trainer, path: Path, args: argparse.Namespace, task: "Task") -> None:
    """Draw images from the first moving average in a few steps, always from the same noise."""
    ema = next(iter(trainer.ema.values()))
    parts: list[Tensor] = []
    with torch.inference_mode(), trainer.autocast():
        for start in range(0, args.grid_images, 32):
            noise = rng.SampleNoise(args.seed, range(start, min(start + 32, args.grid_images)), trainer.device)
            labels = noise.randint(ema.num_classes, "class") if task.class_cond else None
            steps = min(args.grid_steps, args.diffusion_steps)
            parts.append(task.sample(ema, noise, labels, steps).cpu())
    save_grid(to_uint8(torch.cat(parts)), path)
