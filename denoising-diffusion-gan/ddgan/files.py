"""When a training run writes what. Imports torch only inside functions."""

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import UserError
from comparison.curves import draw_run_loss
from comparison.runs import Run
from comparison.training import Clock

from ddgan.distributed import mean_over_processes
from ddgan.windows import Windows

if TYPE_CHECKING:
    from ddgan.training import Trainer

GRID_IMAGES = 64
GRID_UPDATES = 500  # at least, between two grids: on a small data set an epoch costs less than its grid


def saved_epochs(folder: Path) -> list[int]:
    """Return the epochs of the folder's netG_<epoch>.pth, ascending."""
    numbers = (int(p.stem[5:]) for p in folder.glob("netG_*.pth") if p.stem[5:].isdecimal())
    return sorted(number for number in numbers if (folder / f"netG_{number}.pth").is_file())


def prune_generators(folder: Path, save_ckpt_every: int, keep: int) -> None:
    """Delete old netG_<epoch>.pth: of the planned ones all but the newest `keep` (0 keeps all), of the others all but
    the newest of all.
    """
    epochs = saved_epochs(folder)
    planned = [epoch for epoch in epochs if epoch % save_ckpt_every == 0]
    for epoch in set(epochs) - {*planned[-keep:], *epochs[-1:]}:
        (folder / f"netG_{epoch}.pth").unlink(missing_ok=True)


class RunFiles:
    """Progress, checkpoints and sample grids of one run.

    Args:
        record: the run folder.
        trainer: whose state is written.
        args: flags of the training script.
        windows: the updates of an epoch.
        data: what describes the training images.
        classes: num_classes and class_names of class-conditional networks, else nothing.
        clock: of the training.

    Several processes call the methods alike; the first one writes.

    Attributes:
        images_per_micro: of all processes together.
    """

    def __init__(
        self,
        record: Run,
        trainer: "Trainer",
        args: argparse.Namespace,
        windows: Windows,
        data: Mapping[str, Any],
        classes: Mapping[str, Any],
        clock: Clock,
    ):
        self.record, self.trainer, self.args, self.clock = record, trainer, args, clock
        self.windows, self.data, self.classes = windows, data, classes
        self.images_per_micro = args.batch_size * trainer.place.world_size
        self._writes = trainer.place.is_first
        self._saved_at = time.perf_counter()
        self._grid_step = 0

    def images_seen(self, step: int) -> int:
        """Return the training images of the first `step` updates, repetitions counted."""
        return self.windows.micro_done(step) * self.images_per_micro

    def epoch_in_progress(self, step: int) -> int:
        """Return the epoch that the last of `step` updates belongs to, from 1."""
        return math.ceil(step / self.windows.updates_per_epoch)

    def log_row(self, step: int, losses: dict[str, float], lr: float) -> None:
        """Append a row to progress.csv, of the losses' means over the processes.

        Raises:
            UserError: the training has diverged, in one process or more.
        """
        losses = mean_over_processes(losses)
        self._refuse_divergence(step, losses)
        if not self._writes:
            return
        norms = self._gradient_norms()
        images_seen = self.images_seen(step)
        self.record.log_row(step, images_seen, self.clock.seconds(), **losses, lr=lr, **norms)

    def warn(self, message: str) -> None:
        """Print a warning and append it to log.txt."""
        if self._writes:
            self.record.log(message)

    def _gradient_norms(self) -> dict[str, float]:
        """Return the norms of the last update's gradients, of a network that has had none nothing."""
        from ddgan.training import gradient_norm

        networks = {"grad_norm_g": self.trainer.generator, "grad_norm_d": self.trainer.discriminator}
        updated = {
            name: network
            for name, network in networks.items()
            if any(parameter.grad is not None for parameter in network.parameters())
        }
        return {name: gradient_norm(network).item() for name, network in updated.items()}

    def _refuse_divergence(self, step: int, values: dict[str, float]) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(
                f"the training has diverged by update {step} ({values}); what is saved is an earlier state: "
                "lower --lr_g and --lr_d or raise --r1_gamma, with --fresh"
            )

    def save_if_due(self, step: int) -> None:
        """Write what the epochs passed and the minutes gone by ask for."""
        if not self._writes:
            return
        epoch, into = divmod(step, self.windows.updates_per_epoch)
        ends_epoch = into == 0
        timed_out = time.perf_counter() - self._saved_at > 60 * self.args.save_minutes
        if timed_out or (ends_epoch and epoch % self.args.save_content_every == 0):
            self.save_content(step)
        if ends_epoch and epoch % self.args.save_ckpt_every == 0:
            self.save_generator(step)
            self.draw_grid(f"grid_{epoch}.png")
        elif timed_out:
            self.save_generator(step)
        if timed_out or (ends_epoch and step - self._grid_step >= GRID_UPDATES):
            self.draw_grid("grid.png")
            self._grid_step = step

    def save_content(self, step: int) -> None:
        """Write content.pth.

        Raises:
            UserError: the training has diverged; what was saved before stays.
        """
        from ddgan.checkpoints import save_content

        self._refuse_divergence(step, self._gradient_norms())

        path = self.record.folder / "content.pth"
        seconds = self.clock.seconds()
        save_content(path, self.trainer, step=step, wall_seconds=seconds, data=self.data)
        self._saved_at = time.perf_counter()

    def save_generator(self, step: int) -> None:
        """Write netG_<epoch>.pth, the weights to sample with, named by the epoch completed or in progress."""
        from ddgan.checkpoints import save_generator

        save_generator(
            self.record.folder / f"netG_{self.epoch_in_progress(step)}.pth",
            self.trainer.generator_weights(),
            {**self.record.config["options"], **self.classes},
            step=step,
            images_seen=self.images_seen(step),
        )
        prune_generators(self.record.folder, self.args.save_ckpt_every, self.args.keep)

    def stop(self, step: int) -> None:
        """Write what goes on, and can be sampled, after an interruption."""
        if not self._writes:
            return
        self.save_content(step)
        self.save_generator(step)
        self.record.log(f"stopped at update {step}; the same command continues")

    def draw_grid(self, name: str) -> None:
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
        with torch.no_grad():
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
        trainer.generator.train()
        save_grid(to_uint8(domain.inverse(images)), self.record.folder / name)

    def finish(self, step: int, reason: str) -> None:
        """Write the last checkpoint, samples and loss curve, and mark the run as ended."""
        if not self._writes:
            return
        from comparison.device import peak_memory_bytes

        seconds = self.clock.seconds()
        self.save_content(step)
        self.save_generator(step)
        self.draw_grid("grid.png")
        draw_run_loss(self.record.folder)
        images_seen = self.images_seen(step)
        memory = peak_memory_bytes(self.trainer.device)
        self.record.finish(reason, steps=step, images_seen=images_seen, wall_seconds=seconds, peak_memory_bytes=memory)
        self.record.log(
            f"finished ({reason}): {step} updates, {images_seen} images in {seconds:.0f} s; "
            f"{self.record.folder / f'netG_{self.epoch_in_progress(step)}.pth'}"
        )
