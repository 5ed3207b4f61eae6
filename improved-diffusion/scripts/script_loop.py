"""The training loop of the scripts: `TrainLoop` with a budget, a run folder, sample grids and exact resumption."""

import argparse
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from comparison import rng
from comparison.checkpoints import newest_whole
from comparison.cli import UserError
from comparison.data.batches import BatchStream
from comparison.data.images import to_uint8
from comparison.data.streaming import FileStream
from comparison.device import peak_memory_bytes
from comparison.files import write_text
from comparison.png import save_grid
from comparison.runs import read_progress
from comparison.schedule import Schedule
from comparison.training import Loop, StopSignal
from improved_diffusion import logger
from improved_diffusion.checkpoints import save_step, saved_steps
from improved_diffusion.dist_util import broadcast_object, get_rank, get_world_size
from improved_diffusion.train_util import TrainLoop
from improved_diffusion.training import Trainer
from model_options import log_formats
from torch import Tensor
from train_options import Training

ADVICE = "lower --lr, or use --precision float32"


class ScriptLoop(TrainLoop):
    """A training run in its folder; all random values depend on (seed, step, index in the batch of all ranks).

    Args:
        args: command line.
        training: run folder and budget.
        task: inputs of the network, and images of the grids; see train_network.py.
        stream: this rank's part of the batches.
        options: arguments of `TrainLoop`, with `trainer`.
    """

    _loop: Loop

    def __init__(
        self, args: argparse.Namespace, training: Training, task: Any, stream: BatchStream | FileStream, **options: Any
    ) -> None:
        self.args, self.run, self.task, self.stream = args, training.run, task, stream
        self.budget, self.schedule = training.budget, Schedule.of(args)
        self._seconds_before, self._saved_step = 0.0, -1
        try:
            super().__init__(data=self._batches(), folder=str(self.run.folder), **options)
        except ValueError as error:
            raise UserError(str(error)) from None

    def own_checkpoint(self) -> str:
        """Return the run's newest checkpoint, the same for all ranks; '' for a new run, whose folder is cleared."""
        return broadcast_object(newest_model(self.run.folder) if self.run.resumed else "")

    def restore_counters(self, step: int, payload: dict[str, Any], path: str) -> None:
        """Restore the clock too."""
        super().restore_counters(step if re.fullmatch(r"model\d+\.pt", os.path.basename(path)) else 0, payload, path)
        if payload.get("model", self.run.config["model"]) != self.run.config["model"]:
            optimizer_file = os.path.join(os.path.dirname(path), f"opt{step:06d}.pt")
            raise ValueError(f"{optimizer_file}: a checkpoint of {payload['model']}, not of {self.run.config['model']}")
        self._seconds_before = payload.get("wall_seconds") or 0.0
        self._saved_step = step if os.path.dirname(path) == self.folder else -1
        if self._saved_step == step:  # the next log row also covers the updates before the checkpoint
            try:
                self.trainer.meter.load_state_dict(payload.get("meter") or {}, self.trainer.device, get_rank() == 0)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: the sums of the next row beside it do not fit ({error})") from None

    def counters(self) -> dict[str, Any]:
        """Add the family, the clock and the sums of the next log row."""
        own = {"wall_seconds": self._loop.seconds, "model": self.run.config["model"], "meter": self._sums}
        return {**super().counters(), **own}

    def draws(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample timesteps, loss weights and noise for the batch of all ranks; return this rank's rows."""
        seed, step, rows, n = self.seed, self.updates, self.stream.rows, self.args.batch_size
        noise = rng.normal((n, *batch.shape[1:]), seed, step, "noise", device=batch.device, rows=rows)
        t, factors = self.schedule_sampler.sample(n, batch.device, rng.generator("cpu", seed, step, "t"))
        rng.seed_default(seed, step, "dropout", *([get_rank()] if get_world_size() > 1 else []))
        return t[rows], factors[rows], noise

    def log_step(self) -> None:
        """Do nothing: rows are written by `_write_row`."""

    def _batches(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for step in itertools.count(self.updates):
            x_start, labels = self.stream.batch(step)
            condition = self.task.condition(x_start)
            if labels is not None and self.task.class_cond:
                n, rows = self.args.batch_size, self.stream.rows
                condition["y"] = drop_labels(labels, self.args.class_dropout, n, rows, self.seed, step)
            yield x_start, condition

    def run_loop(self, description: str = "", metadata: dict[str, Any] | None = None) -> int:  # type: ignore[override]
        """Train until the budget is used up or the user stops it; return the exit status.

        `description` (data, budget, device) is for the log, `metadata` for config.json.
        """
        args, main, before, samples = self.args, get_rank() == 0, self.updates, self.samples
        self._loop = loop = Loop(
            self.run if main else None,
            self.budget,
            lambda step: samples + (step - before) * args.batch_size,
            step=before,
            seconds=self._seconds_before,
            log_interval=args.log_interval,
            save_minutes=args.save_minutes,
            stop_after=args.stop_after,
            advice=ADVICE,
        )
        loop.begin(description, **(metadata or {}))
        formats = ["json", *(["tensorboard"] if "tensorboard" in log_formats() else [])] if main else []
        if main:
            write_progress_json(self.run.folder)
        try:
            with logger.scoped_configure(self.folder, formats):
                logger.drop_after(before)
                return self._run(loop)
        finally:
            self.trainer.leave_group()

    def _run(self, loop: Loop) -> int:
        self._logged = (self.updates, loop.seconds)
        for _ in loop:
            self.lr_factor = self.schedule.factor(loop.progress)
            self.run_step(*next(self.data))
            self.step += 1
            if loop.row_due:
                self._write_row()
            planned = self.updates % self.save_interval == 0
            if loop.save_due(planned):
                self.save()
            if planned:
                self._save_grid()
        with StopSignal():  # a signal may come again while the end is saved
            if loop.reason:
                self._write_row()
            if self._saved_step != self.updates:
                self.save()
            if loop.reason:
                self._save_grid()
        return loop.finish(peak_memory_bytes=peak_memory_bytes(self.trainer.device))

    def save(self) -> None:
        """Write the checkpoint; UserError where a weight is not finite."""
        if not self.trainer.is_finite():
            raise UserError(f"step {self.updates}: a weight is NaN or infinite; {ADVICE}")
        self._sums = self.trainer.meter.state_dict()
        super().save()
        self._saved_step = self.updates

    def write_checkpoint(self) -> None:
        """Write the files of the present step, then delete old ones; UserError where the disk is full."""
        try:
            save_step(self.folder, self.updates, self.trainer, self.counters())
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.folder}: checkpoint not written ({error})") from None
        prune(self.run.folder, self.save_interval, self.args.keep)

    def _write_row(self) -> None:
        """Write a row of the mean losses since the last row; UserError where the loss is not finite."""
        means, loop = self.trainer.meter.read(), self._loop
        if not means:
            return
        loop.check({"loss": means["loss"]})
        if not loop.run:
            return
        (step, seconds), self._logged = self._logged, (self.updates, loop.seconds)
        rate = (self.updates - step) * self.args.batch_size / max(self._logged[1] - seconds, 1e-9)
        row = {**means, "lr": self.trainer.optimizer.param_groups[0]["lr"]}
        if self.trainer.scaler.is_enabled():
            row["lg_loss_scale"] = math.log2(self.trainer.scaler.get_scale())
        row["images_per_second"] = rate
        loop.run.log_row(self.updates, self.samples, loop.seconds, **row)
        logger.logkvs(
            {"step": self.updates, "images_seen": self.samples, "wall_seconds": round(loop.seconds, 3), **row}
        )
        logger.dumpkvs()
        parts = " ".join(f"{name} {means[name]:.4g}" for name in ("loss", "mse", "vb", "grad_norm") if name in means)
        loop.log(f"step {self.updates} images {self.samples} {parts} {rate:.1f} images/s {loop.seconds:.0f} s")

    def _save_grid(self) -> None:
        path = self.run.folder / f"grid_{self.updates:06d}.png"
        if self.args.grid_images and get_rank() == 0 and not path.is_file():
            with self._loop.pause():
                save_sample_grid(self.trainer, path, self.args, self.task)


def newest_model(folder: Path) -> str:
    """Return the model file of the newest step with an opt file whose files are whole, '' where there is none.

    Raises:
        UserError: it is missing; training must not go on from an older step. Or every step has a damaged file.
    """
    steps = [int(m[1]) for path in folder.glob("opt*.pt") if (m := re.fullmatch(r"opt(\d+)\.pt", path.name))]
    path = folder / f"model{max(steps, default=0):06d}.pt"
    if steps and not path.is_file():
        raise UserError(f"{path}: no such checkpoint, but the opt file of its step exists; restore or delete it")
    saved = [
        [folder / f"model{step:06d}.pt", folder / f"opt{step:06d}.pt", *folder.glob(f"ema_*_{step:06d}.pt")]
        for step in sorted(steps, reverse=True)
    ]
    return str(newest_whole(saved, get_rank() == 0) or "")


def write_progress_json(folder: Path) -> None:
    """Write the rows of progress.csv, which `Run.start` has trimmed, to progress.json, one object per line."""
    rows = read_progress(path) if (path := folder / "progress.csv").is_file() else []
    write_text(folder / "progress.json", "".join(json.dumps(row) + "\n" for row in rows))


def save_sample_grid(trainer: Trainer, path: Path, args: argparse.Namespace, task: Any) -> None:
    """Save images of the first EMA weights, generated in a few steps, always from the same noise."""
    ema: Any = next(iter(trainer.ema.values()))
    parts: list[Tensor] = []
    with torch.inference_mode(), trainer.autocast():
        for start in range(0, args.grid_images, 32):
            noise = rng.SampleNoise(args.seed, range(start, min(start + 32, args.grid_images)), trainer.device)
            labels = noise.randint(ema.num_classes, "class") if task.class_cond else None
            parts.append(task.sample(ema, noise, labels, min(args.grid_steps, args.diffusion_steps)).cpu())
    save_grid(to_uint8(torch.cat(parts)), path)


def prune(folder: Path, save_interval: int, keep: int) -> None:
    """Delete old checkpoints: of the planned steps all but the newest `keep` (0 keeps all), of the others all but the
    newest of all.
    """
    steps = saved_steps(str(folder))
    planned = [step for step in steps if step % save_interval == 0]
    for step in set(steps) - set(planned[-keep:]) - set(steps[-1:]):
        # The optimizer's file first: without it the step no longer counts as saved.
        for pattern in (f"opt{step:06d}.pt", f"model{step:06d}.pt", f"ema_*_{step:06d}.pt"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def drop_labels(labels: Tensor, fraction: float, batch_size: int, rows: slice, seed: int, step: int) -> Tensor:
    """Replace a fraction of the labels by -1, which the network takes for no class (Ho & Salimans 2022).

    Args:
        labels: (n,) int64, of the rows of this rank.
        fraction: fraction of the labels, in [0, 1].
        batch_size: images of all ranks.
        rows: the n rows of this rank.
        seed, step: decide which labels are dropped.
    """
    if not fraction:
        return labels
    values = torch.rand(batch_size, generator=rng.generator("cpu", seed, step, "class_dropout"))[rows]
    return torch.where((values < fraction).to(labels.device, non_blocking=True), -1, labels)
