"""When a training run writes what. Imports torch only inside functions."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.runs import Run
from comparison.training import Loop, prune

from ddgan.windows import Windows

if TYPE_CHECKING:
    from ddgan.training import Trainer

GENERATORS = "netG_*.pth"
GRID_IMAGES = 64
GRID_UPDATES = 500  # at least, between two grids: on a small data set an epoch costs less than its grid


def saved_epochs(folder: Path) -> list[int]:
    """Return the epochs of the folder's netG_<epoch>.pth, ascending."""
    numbers = (int(p.stem[5:]) for p in folder.glob("netG_*.pth") if p.stem[5:].isdecimal())
    return sorted(number for number in numbers if (folder / f"netG_{number}.pth").is_file())


class RunFiles:
    """Checkpoints and sample grids of one run, which the first process writes.

    Args:
        loop: of the training.
        trainer: whose state is written.
        args: flags of the training script.
        windows: the updates of an epoch.
        data: what describes the training images.
        classes: num_classes and class_names of class-conditional networks, else nothing.
    """

    def __init__(
        self,
        loop: Loop,
        trainer: "Trainer",
        args: argparse.Namespace,
        windows: Windows,
        data: Mapping[str, Any],
        classes: Mapping[str, Any],
    ):
        self.loop, self.trainer, self.args, self.windows = loop, trainer, args, windows
        self.data, self.classes = data, classes
        self._grid_step = 0

    def gradient_norms(self) -> dict[str, float]:
        """Return the norms of the last update's gradients; nothing of a network that has had none."""
        from ddgan.training import gradient_norm

        networks = {"grad_norm_g": self.trainer.generator, "grad_norm_d": self.trainer.discriminator}
        updated = {
            name: network
            for name, network in networks.items()
            if any(parameter.grad is not None for parameter in network.parameters())
        }
        return {name: gradient_norm(network).item() for name, network in updated.items()}

    def save_if_due(self) -> None:
        """Write what the epochs passed and the minutes gone by ask for.

        Raises:
            UserError: the training has diverged; what was saved before stays.
        """
        if not self.loop.run:
            return
        step = self.loop.step
        epoch, into = divmod(step, self.windows.updates_per_epoch)
        ends_epoch = into == 0
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
        """Write what goes on and can be sampled, and at the end of the training the last samples."""
        if self.loop.run:
            self._save_content()
            self._save_generator()
            if self.loop.reason:
                self._draw_grid("grid.png")

    def _run(self) -> Run:
        """Return the run folder, of the process that writes."""
        assert self.loop.run
        return self.loop.run

    def _save_content(self) -> None:
        from ddgan.checkpoints import save_content

        self.loop.check(self.gradient_norms())
        path = self._run().folder / "content.pth"
        save_content(path, self.trainer, step=self.loop.step, wall_seconds=self.loop.seconds, data=self.data)

    def _save_generator(self) -> None:
        """Write netG_<epoch>.pth, the weights to sample with, named by the epoch completed or in progress."""
        from ddgan.checkpoints import save_generator

        epoch = math.ceil(self.loop.step / self.windows.updates_per_epoch)
        save_generator(
            self._run().folder / GENERATORS.replace("*", str(epoch)),
            self.trainer.generator_weights(),
            {**self._run().config["options"], **self.classes},
            step=self.loop.step,
            images_seen=self.loop.images_seen,
        )
        every = self.args.save_ckpt_every
        prune(self._run().folder, GENERATORS, self.args.keep, lambda epoch: epoch % every == 0)

    def _draw_grid(self, name: str) -> None:
        """Draw the first samples of the run's seed with the averaged weights, the same noise every time."""
        import torch
        from comparison.data.images import to_uint8
        from comparison.png import save_grid

        from ddgan.conditional import grid_labels
        from ddgan.domain import Domain
        from ddgan.sampling import sample

        args, trainer = self.args, self.trainer
        labels = grid_labels(self.classes.get("num_classes", 0))
        weights = trainer.generator_weights()
        domain = Domain.of(vars(args))
        trainer.generator.eval()
        with torch.no_grad(), self.loop.pause():
            images = sample(
                lambda *inputs: torch.func.functional_call(trainer.generator, weights, inputs),
                trainer.process,
                range(GRID_IMAGES if labels is None else len(labels)),
                seed=args.seed,
                nz=args.nz,
                shape=domain.shape,
                device=trainer.device,
                autocast_dtype=trainer.autocast_dtype,
                labels=labels,
            )
            save_grid(to_uint8(domain.inverse(images)), self._run().folder / name)
        trainer.generator.train()
