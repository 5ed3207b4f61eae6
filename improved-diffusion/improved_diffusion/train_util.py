"""OpenAI's training loop by its names, on the optimizer step of `training`.

    TrainLoop(model=model, diffusion=diffusion, data=load_data(...), batch_size=128, ...).run_loop()

After n updates, counted over restarts, the folder of `get_blob_logdir` holds model<n>.pt and ema_<rate>_<n>.pt, plain
state dicts, and opt<n>.pt with the optimizer, the timestep sampler and n: written last, it makes the step count.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import blob, dist_util, logger
from .checkpoints import fill_network, read_checkpoint
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
    """Train a network on endless batches; every process of a run makes one and calls `run_loop`.

    Args:
        model: on the device of `dist_util.dev`.
        diffusion: whose loss is minimised.
        data: yields (images, kwargs of the network), see `image_datasets.load_data`.
        batch_size: images per batch of this process.
        microbatch: images per forward pass, 0 or less for the whole batch.
        lr: learning rate of AdamW; on resuming too, it is this one.
        ema_rate: rates of the moving averages, one or several separated by commas.
        log_interval: updates between log rows.
        save_interval: updates between checkpoints.
        resume_checkpoint: model<step>.pt to start from with what lies beside it, or any network's file; '' for none.
            A checkpoint in the log folder comes first.
        use_fp16: compute in bf16 where the GPU can, else in float16 with a dynamic loss scale.
        fp16_scale_growth: growth of the loss scale's base-2 logarithm per update.
        schedule_sampler: draws the timesteps; uniform by default.
        weight_decay: of AdamW.
        lr_anneal_steps: updates after which lr has fallen linearly to 0 and training ends; 0 for constant.
        max_steps: updates after which training ends; 0 for no bound.
        seed: of timesteps, noise and dropout, with the process and the step.

    Attributes:
        step: updates made since the start or the resumption.
        resume_step: updates made before.

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
        self.trainer = Trainer(
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
        own = find_resume_checkpoint()
        self.resume_checkpoint = own or resume_checkpoint
        if self.resume_checkpoint:
            self._resume(str(self.resume_checkpoint))
        if own:
            logger.drop_after(self.resume_step)
        self._logged_at = (0, time.monotonic())

    @property
    def updates(self) -> int:
        """Updates in the weights, those before the resumption too."""
        return self.resume_step + self.step

    @property
    def samples(self) -> int:
        """Images that the updates have seen."""
        return self._samples_before + self.step * self.global_batch

    def run_loop(self) -> None:
        """Train until `max_steps` or `lr_anneal_steps` updates are made, or without end where both are 0.

        Ctrl-C saves and leaves, where there is one process.

        Raises:
            FloatingPointError: the loss is not finite any more.
        """
        bound = min((steps for steps in (self.max_steps, self.lr_anneal_steps) if steps), default=0)
        if not bound:
            logger.log("neither max_steps nor lr_anneal_steps: trains until it is stopped")
        saved = self.updates
        with _interruption() as interrupted:
            while not (bound and self.updates >= bound) and not interrupted():
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
            if interrupted():
                raise KeyboardInterrupt

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
        torch.manual_seed(_mix(self.seed, self.updates, dist_util.get_rank()))
        batch = batch.to(device, non_blocking=True)
        cond = {name: value.to(device, non_blocking=True) for name, value in cond.items()}
        t, weights = self.schedule_sampler.sample(len(batch), device)
        losses = self.trainer.accumulate(batch, t, torch.randn_like(batch), weights, cond)
        if isinstance(self.schedule_sampler, LossAwareSampler):
            self.schedule_sampler.update_with_local_losses(t, losses)

    def optimize_fp16(self) -> None:
        """Update the weights and the averages; a gradient that overflowed lowers the loss scale instead."""
        self.trainer.optimize(self.updates)

    def optimize_normal(self) -> None:
        """Update the weights and the averages."""
        self.trainer.optimize(self.updates)

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
        """Write the checkpoint of the updates made so far, each file whole or not at all."""
        folder, step = get_blob_logdir(), self.updates
        if dist_util.is_main():
            logger.log(f"saving model{step:06d}.pt and what belongs to it to {folder}")
            blob.make_dirs(folder)
            files = {f"ema_{rate}_{step:06d}.pt": ema.state_dict() for rate, ema in self.trainer.ema.items()}
            files[f"model{step:06d}.pt"] = self.model.state_dict()
            counts = {"step": step, "images_seen": self.samples}
            files[f"opt{step:06d}.pt"] = {**self.trainer.optimizer_state(), **counts, **self._sampler_state()}
            for name, state in files.items():
                with blob.open_file(blob.join(folder, name), "wb") as file:
                    torch.save(state, file)
            logger.upload()
        dist_util.barrier()

    def _sampler_state(self) -> dict[str, Any]:
        state_dict = getattr(self.schedule_sampler, "state_dict", None)
        return {"sampler": state_dict()} if state_dict else {}

    def _resume(self, path: str) -> None:
        """Load a network, and the averages, the optimizer and the sampler beside it where they are."""
        name = blob.basename(path)
        if name.startswith(("ema_", "opt")):
            raise ValueError(f"resume_checkpoint {path}: name the model<step>.pt beside it")
        step = self.resume_step = parse_resume_step_from_filename(path)
        self._samples_before = step * self.global_batch
        state = read_checkpoint(path)
        fill_network(self.model, state, path)
        missing = []
        for rate, ema in self.trainer.ema.items():
            ema_path = find_ema_checkpoint(path, step, rate)
            fill_network(ema, read_checkpoint(ema_path) if ema_path else state, ema_path or path)
            missing += [] if ema_path else [f"ema_{rate}_{step:06d}.pt (the average starts from the network)"]
        opt_path = blob.join(blob.dirname(path), f"opt{step:06d}.pt")
        if name == f"model{step:06d}.pt" and blob.exists(opt_path):
            self._load_optimizer(read_checkpoint(opt_path), opt_path)
        else:
            missing.append(f"opt{step:06d}.pt (the optimizer starts afresh)")
        logger.log(f"resuming from {path} after {step} updates")
        if missing:
            logger.warn(f"not beside {path}: {', '.join(missing)}")

    def _load_optimizer(self, state: dict[str, Any], path: str) -> None:
        try:
            self.trainer.load_optimizer_state(state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: does not fit the network ({error})") from None
        self._samples_before = state.get("images_seen", self._samples_before)
        load = getattr(self.schedule_sampler, "load_state_dict", None)
        if load and state.get("sampler"):
            load(state["sampler"])


def parse_resume_step_from_filename(filename: str) -> int:
    """Return the updates that the name of a checkpoint's file tells, as model002500.pt; 0 for any other name."""
    match = re.search(r"(?:model|ema_[\d.]+_|opt)(\d+)\.pt$", str(filename))
    return int(match[1]) if match else 0


def get_blob_logdir() -> str:
    """Return the folder of checkpoints: DIFFUSION_BLOB_LOGDIR, which may be remote, else the log's."""
    return os.environ.get("DIFFUSION_BLOB_LOGDIR") or logger.get_dir()


def find_resume_checkpoint() -> str | None:
    """Return the model's file of the newest whole checkpoint in `get_blob_logdir`, None where there is none."""
    folder = get_blob_logdir()
    names = set(blob.list_folder(folder)) if blob.isdir(folder) else set()
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"opt(\d+)\.pt", name))]
    whole = [step for step in steps if f"model{step:06d}.pt" in names]
    return blob.join(folder, f"model{max(whole):06d}.pt") if whole else None


def find_ema_checkpoint(main_checkpoint: str | None, step: int, rate: float | str) -> str | None:
    """Return the file of a moving average beside a model's file, None where there is none."""
    if not main_checkpoint:
        return None
    path = blob.join(blob.dirname(main_checkpoint), f"ema_{rate}_{step:06d}.pt")
    return path if blob.exists(path) else None


def log_loss_dict(diffusion: GaussianDiffusion, ts: Tensor, losses: dict[str, Tensor]) -> None:
    """Add losses to the means of the next log row, over all timesteps and by quartile of t.

    Waits for the device; `TrainLoop` gathers its losses there instead.

    Args:
        diffusion: whose timesteps they are.
        ts: (N,) int64 timesteps.
        losses: each (N,).
    """
    quartiles = (QUARTILES * ts // diffusion.num_timesteps).tolist()
    for name, values in losses.items():
        for quartile, value in zip(quartiles, values.tolist(), strict=True):
            logger.logkv_mean(name, value)
            logger.logkv_mean(f"{name}_q{quartile}", value)


def _half_dtype(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        logger.warn("use_fp16: computes in float32, for there is no GPU")
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _mix(*numbers: int) -> int:
    """Return one seed for several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Return a function that tells whether Ctrl-C was pressed; several processes are stopped at once, as ever."""
    pressed: list[bool] = []
    if dist_util.get_world_size() > 1:
        yield lambda: False
        return

    def press(*_: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    try:
        former = signal.signal(signal.SIGINT, press)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, former)
