"""OpenAI's training loop by its names, on the optimizer step of `training` and the files of `checkpoints`.

TrainLoop(model=model, diffusion=diffusion, data=load_data(...), batch_size=128, ...).run_loop()
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import blob, dist_util, logger
from .checkpoints import load_step, save_step, saved_steps, step_of
from .gaussian_diffusion import GaussianDiffusion
from .resample import LossAwareSampler, ScheduleSampler, UniformSampler
from .training import INITIAL_LOG_LOSS_SCALE, QUARTILES, Trainer

__all__ = [
    "INITIAL_LOG_LOSS_SCALE",
    "TrainLoop",
    "find_ema_checkpoint",
    "find_resume_checkpoint",
    "get_blob_logdir",
    "log_loss_dict",
    "parse_resume_step_from_filename",
]


class TrainLoop:
    """Train a network on endless batches; every rank makes one and calls `run_loop`.

    Args:
        model: network on the device of `dist_util.dev`.
        diffusion: process whose loss is minimised.
        data: yields (images, kwargs of the network), see `image_datasets.load_data`.
        batch_size: images per batch of this rank.
        microbatch: images per forward pass, 0 or less for the whole batch.
        lr: learning rate of AdamW, also after resuming.
        ema_rate: EMA rates of the weights, one or several separated by commas.
        log_interval: updates between log rows.
        save_interval: updates between checkpoints.
        resume_checkpoint: model<step>.pt to start from with the files beside it, or any network's file; '' for none.
            A checkpoint in the log folder takes precedence.
        use_fp16: compute in bf16 where the GPU can, else in float16 with a dynamic loss scale.
        fp16_scale_growth: growth of the loss scale's base-2 logarithm per update.
        schedule_sampler: samples the timesteps; uniform by default.
        weight_decay: weight decay of AdamW.
        lr_anneal_steps: updates after which lr has fallen linearly to 0 and training ends; 0 for constant.
        max_steps: updates after which training ends; 0 for no bound.
        seed: seed of timesteps, noise and dropout, together with rank and step.
        folder: folder of the checkpoints, local or remote; `get_blob_logdir` by default.
        trainer: optimizer step to use instead of one made of the arguments above.

    Attributes:
        step: updates made since the start or the resumption.
        resume_step: updates made before.
        lr_factor: multiple of the learning rate at the next update; None leaves the optimizer's as it is.

    Raises:
        ValueError: a checkpoint does not fit, or is not a network's.
        OSError, ImportError: see `blob.open_file`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        data: Iterator[tuple[Tensor, dict[str, Tensor]]],
        batch_size: int,
        microbatch: int,
        lr: float,
        ema_rate: float | str,
        log_interval: int,
        save_interval: int,
        resume_checkpoint: str,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        schedule_sampler: ScheduleSampler | None = None,
        weight_decay: float = 0.0,
        lr_anneal_steps: int = 0,
        max_steps: int = 0,
        seed: int = 0,
        folder: str = "",
        trainer: Trainer | None = None,
    ) -> None:
        self.model, self.diffusion, self.data = model, diffusion, data
        self.batch_size, self.microbatch, self.lr = batch_size, microbatch, lr
        self.ema_rate = [float(rate) for rate in str(ema_rate).split(",")]
        self.log_interval, self.save_interval = log_interval, save_interval
        self.use_fp16 = use_fp16
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.lr_anneal_steps, self.max_steps, self.seed = lr_anneal_steps, max_steps, seed
        self.global_batch = batch_size * dist_util.get_world_size()
        self.step = self.resume_step = 0
        self.lr_factor: float | None = None
        self.folder = folder or get_blob_logdir()
        self.trainer = trainer or Trainer(
            model,
            diffusion,
            lr=lr,
            weight_decay=weight_decay,
            ema_rates=self.ema_rate,
            microbatch=microbatch,
            lr_anneal_steps=lr_anneal_steps,
            autocast_dtype=_half_dtype(next(model.parameters()).device) if use_fp16 else None,
            fp16_scale_growth=fp16_scale_growth,
        )
        self.opt = self.trainer.optimizer
        self._samples_before = 0
        own = self.own_checkpoint()
        self.resume_checkpoint = own or resume_checkpoint
        if self.resume_checkpoint:
            self._resume(str(self.resume_checkpoint))
        if own:
            logger.drop_after(self.resume_step)
        self._logged_at = (0, time.monotonic())

    @property
    def updates(self) -> int:
        """Updates of the weights, including those before the resumption."""
        return self.resume_step + self.step

    @property
    def samples(self) -> int:
        """Training images seen, including those before the resumption."""
        return self._samples_before + self.step * self.global_batch

    def run_loop(self) -> None:
        """Train until `max_steps` or `lr_anneal_steps` updates are made, or without end where both are 0.

        Raises:
            FloatingPointError: the loss is not finite any more.
        """
        bound = min((steps for steps in (self.max_steps, self.lr_anneal_steps) if steps), default=0)
        if not bound:
            logger.log("neither max_steps nor lr_anneal_steps: trains until it is stopped")
        saved = self.updates
        while not (bound and self.updates >= bound):
            batch, cond = next(self.data)
            self.run_step(batch, cond)
            self.step += 1
            if self.updates % self.log_interval == 0:
                self._write_row()
            if self.updates % self.save_interval == 0:
                self.save()
                saved = self.updates
        if saved != self.updates:
            self.save()

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """Make one update.

        Args:
            batch: (N, C, H, W) float32 in [-1, 1].
            cond: kwargs of the network, each (N, ...).
        """
        self.forward_backward(batch, cond)
        if self.use_fp16:
            self.optimize_fp16()
        else:
            self.optimize_normal()
        self.log_step()

    def forward_backward(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """Compute the gradient of a batch's loss; arguments of `run_step`."""
        device = self.trainer.device
        batch = batch.to(device, non_blocking=True)
        cond = {name: value.to(device, non_blocking=True) for name, value in cond.items()}
        t, weights, noise = self.draws(batch)
        losses = self.trainer.accumulate(batch, t, noise, weights, cond)
        if isinstance(self.schedule_sampler, LossAwareSampler):
            self.schedule_sampler.update_with_local_losses(t, losses)

    def draws(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample timesteps (N,) int64, their loss weights (N,) and noise like the batch; also seed dropout."""
        torch.manual_seed(_mix(self.seed, self.updates, dist_util.get_rank()))
        t, weights = self.schedule_sampler.sample(len(batch), batch.device)
        return t, weights, torch.randn_like(batch)

    def optimize_fp16(self) -> None:
        """Update the weights and their EMA; a gradient that overflowed lowers the loss scale instead."""
        self.optimize_normal()

    def optimize_normal(self) -> None:
        """Update the weights and their EMA."""
        self.trainer.optimize(self.updates, self.lr_factor)

    def log_step(self) -> None:
        """Set the counts of the next log row."""
        logger.logkv("step", self.updates + 1)
        logger.logkv("samples", self.samples + self.global_batch)

    def _write_row(self) -> None:
        means = self.trainer.meter.read()
        step, seconds = self._logged_at
        self._logged_at = (self.step, time.monotonic())
        rate = (self.step - step) * self.global_batch / max(self._logged_at[1] - seconds, 1e-9)
        logger.logkvs({**means, "images_per_second": rate})
        if self.trainer.scaler.is_enabled():
            logger.logkv("lg_loss_scale", float(np.log2(self.trainer.scaler.get_scale())))
        logger.dumpkvs()
        if not np.isfinite(means.get("loss", 0.0)):
            raise FloatingPointError(f"the loss is {means['loss']} near update {self.updates}: lower lr")

    def save(self) -> None:
        """Write the checkpoint of the updates made so far; rank 0 writes, the others wait."""
        if dist_util.get_rank() == 0:
            self.write_checkpoint()
        dist_util.barrier()

    def write_checkpoint(self) -> None:
        """Write the files of the present step."""
        logger.log(f"saving the checkpoint of step {self.updates} to {self.folder}")
        save_step(self.folder, self.updates, self.trainer, self.counters())

    def counters(self) -> dict[str, Any]:
        """Return the entries of opt<step>.pt beside the optimizer's state and the step."""
        state_dict = getattr(self.schedule_sampler, "state_dict", None)
        return {"images_seen": self.samples, **({"sampler": state_dict()} if state_dict else {})}

    def _resume(self, path: str) -> None:
        """Load a network, and the EMA weights, the optimizer and the sampler beside it where they exist."""
        payload, missing = load_step(path, self.trainer)
        self.restore_counters(step_of(path), payload, path)
        logger.log(f"resuming from {path} after {self.resume_step} updates")
        if missing:
            logger.warn(f"not beside {path}: {', '.join(missing)}")

    def own_checkpoint(self) -> str:
        """Return the model file of the newest complete checkpoint in `folder`; '' where there is none."""
        steps = saved_steps(self.folder)
        return os.path.join(self.folder, f"model{steps[-1]:06d}.pt") if steps else ""

    def restore_counters(self, step: int, payload: dict[str, Any], path: str) -> None:
        """Set the counters and the timestep sampler to those of opt<step>.pt; {} where it does not exist."""
        self.resume_step = step
        images_seen = payload.get("images_seen")
        self._samples_before = step * self.global_batch if images_seen is None else int(images_seen)
        load = getattr(self.schedule_sampler, "load_state_dict", None)
        if load and payload.get("sampler"):
            try:
                load(payload["sampler"])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: the timestep sampler beside it does not fit ({error})") from None


def parse_resume_step_from_filename(filename: str) -> int:
    """Return the step in the name of a checkpoint's file, such as model002500.pt; 0 for any other name."""
    return step_of(str(filename))


def get_blob_logdir() -> str:
    """Return the folder of the checkpoints: DIFFUSION_BLOB_LOGDIR, which may be remote, else the log folder."""
    return os.environ.get("DIFFUSION_BLOB_LOGDIR") or logger.get_dir()


def find_resume_checkpoint() -> str | None:
    """Return the model file of the newest complete checkpoint in `get_blob_logdir`, None where there is none."""
    steps = saved_steps(get_blob_logdir())
    return os.path.join(get_blob_logdir(), f"model{steps[-1]:06d}.pt") if steps else None


def find_ema_checkpoint(main_checkpoint: str | None, step: int, rate: float | str) -> str | None:
    """Return the file of the EMA weights beside a model file, None where there is none."""
    if not main_checkpoint:
        return None
    path = os.path.join(os.path.dirname(main_checkpoint), f"ema_{rate}_{step:06d}.pt")
    return path if blob.backend(path).exists(path) else None


def log_loss_dict(diffusion: GaussianDiffusion, ts: Tensor, losses: dict[str, Tensor]) -> None:
    """Add losses, each (N,), at timesteps (N,) int64, to the means of the next log row, also by quartile of t.

    Waits for the device; `TrainLoop` keeps its losses on the device instead.
    """
    quartiles = (QUARTILES * ts // diffusion.num_timesteps).tolist()
    for name, values in losses.items():
        for quartile, value in zip(quartiles, values.tolist(), strict=True):
            logger.logkv_mean(name, value)
            logger.logkv_mean(f"{name}_q{quartile}", value)


def _half_dtype(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        logger.warn("use_fp16: no GPU, so float32 is used")
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _mix(*numbers: int) -> int:
    """Return one seed for several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
