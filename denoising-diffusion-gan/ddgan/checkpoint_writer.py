"""Write a training run's checkpoints and sample grids when they are due."""

import argparse
import math
from collections.abc import Mapping
from typing import Any

import torch
from comparison.data.images import to_uint8
from comparison.png import save_grid
from comparison.rng import SampleNoise
from comparison.training import Loop, prune

from ddgan.checkpoints import save_content, save_generator
from ddgan.conditional import grid_labels
from ddgan.domain import Domain
from ddgan.grad_accumulation import AccumulationSchedule
from ddgan.sampling import sample
from ddgan.training import Trainer

GENERATORS = "netG_*.pth"
GRID_IMAGES = 64
GRID_UPDATES = 500  # minimum between two grids: on a small data set a grid takes longer than an epoch


class CheckpointWriter:
    """Checkpoints and sample grids of one run; only rank 0 writes.

    Args:
        loop: training loop.
        trainer: trainer whose state is written.
        args: flags of the training script.
        accumulation: updates of an epoch.
        data: description of the training images.
        classes: num_classes and class_names of class-conditional networks, else {}.
    """

    def __init__(
        self,
        loop: Loop,
        trainer: Trainer,
        args: argparse.Namespace,
        accumulation: AccumulationSchedule,
        data: Mapping[str, Any],
        classes: Mapping[str, Any],
    ):
        self.loop, self.trainer, self.args, self.accumulation = loop, trainer, args, accumulation
        self.data, self.classes = data, classes
        self._grid_step = 0

    def save_if_due(self) -> None:
        """Write what is due after the present epoch or --save_minutes.

        Raises:
            UserError: the training has diverged; earlier checkpoints stay.
        """
        if not self.loop.run:
            return
        step = self.loop.step
        epoch, position = divmod(step, self.accumulation.updates_per_epoch)
        ends_epoch = position == 0
        timed_out = self.loop.save_due(False)
        if timed_out or self.loop.save_due(ends_epoch and epoch % self.args.save_content_every == 0):
            self._save_content()
        planned = ends_epoch and epoch % self.args.save_ckpt_every == 0
        if planned or timed_out:
            self._save_generator()
        if planned:
            self._draw_grid(f"grid_{epoch}.png")
        if timed_out or (ends_epoch and step - self._grid_step >= GRID_UPDATES):
            self._draw_grid("grid.png")
            self._grid_step = step

    def end(self) -> None:
        """Write both checkpoints, and the last samples if a bound ended the training."""
        if self.loop.run:
            self._save_content()
            self._save_generator()
            if self.loop.reason:
                self._draw_grid("grid.png")

    def _save_content(self) -> None:
        assert self.loop.run
        self.loop.check(self.trainer.gradient_norms())
        path = self.loop.run.folder / "content.pth"
        save_content(path, self.trainer, step=self.loop.step, wall_seconds=self.loop.seconds, data=self.data)

    def _save_generator(self) -> None:
        """Write netG_<epoch>.pth, the weights to sample with, named after the completed or present epoch."""
        assert self.loop.run
        epoch = math.ceil(self.loop.step / self.accumulation.updates_per_epoch)
        folder, every = self.loop.run.folder, self.args.save_ckpt_every
        save_generator(
            folder / GENERATORS.replace("*", str(epoch)),
            self.trainer.generator_weights(),
            {**self.loop.run.config["options"], **self.classes},
            step=self.loop.step,
            images_seen=self.loop.images_seen,
        )
        prune(folder, GENERATORS, self.args.keep, lambda epoch: epoch % every == 0)

    def _draw_grid(self, name: str) -> None:
        """Draw the first samples of the run's seed with the EMA weights; the noise is the same every time."""
        assert self.loop.run
        args, trainer = self.args, self.trainer
        labels = grid_labels(self.classes.get("num_classes", 0))
        weights = trainer.generator_weights()
        domain = Domain.of(vars(args))
        trainer.generator.eval()
        with torch.no_grad(), self.loop.pause():
            images = sample(
                SampleNoise(args.seed, range(GRID_IMAGES if labels is None else len(labels)), trainer.device),
                lambda *inputs: torch.func.functional_call(trainer.generator, weights, inputs),
                *(trainer.process, args.nz, domain.shape, trainer.autocast_dtype, labels),
            )
            save_grid(to_uint8(domain.inverse(images)), self.loop.run.folder / name)
        trainer.generator.train()
