"""GAN training step: generator, discriminator, their optimizers and the EMA."""

from typing import Any

import torch
from comparison import rng
from comparison.distributed import world_size
from comparison.gpu.cuda_graphs import GraphCapture, GraphedFunction, Outputs
from torch import Tensor, nn
from torch.nn.utils import get_total_norm, parametrize

from . import losses
from .augmentation import DiffAugment
from .distributed import average, average_buffers, average_gradients
from .ema import EMA
from .networks import Discriminator, Generator, count_parameters
from .options import BurnIn
from .residual import ResidualDiscriminator, ResidualGenerator

ADA_IMAGES = 200_000  # images in which adaptation can take the augmentation's probability from 0 to 1


class GAN:
    """Generator, discriminator, their Adam optimizers and, optionally, the generator's EMA.

    An iteration updates the discriminator once and the generator once, on the same fakes.

    Args:
        generator: maps (N, nz) noise to images; on its device.
        discriminator: maps images to (N,) logits; on the same device.
        g_lr: learning rate of the generator.
        d_lr: learning rate of the discriminator.
        beta1: Adam's decay of the gradient mean.
        beta2: Adam's decay of the squared gradient mean.
        loss: "bce", "hinge" or "relativistic".
        ema_decay: decay of the generator's EMA, 0 for no EMA.
        ema_horizon: see `EMA`.
        augment: augmentation of every image that the discriminator sees; None for none.
        penalty: gradient penalty of the discriminator: "none", "r1" at real images, or "r1r2" at generated ones too.
        penalty_estimate: "exact", or "finite" for `losses.finite_penalty`.
        penalty_fraction: fraction of the batch at which the penalty is computed.
        r1_gamma: weight of the penalty.
        r1_every: updates per penalty, which is multiplied by this number.
        burn_in: schedules of the first part of the training.
        ada_target: value that the augmentation's probability is adapted to: the mean sign of the logits of real
            images, for relativistic pairs above those of fakes (Karras et al. 2020, section 3.1); 0 for a fixed one.
        seed: seed of the penalty's noise.
        first_row: row of the global batch that this rank's slice begins with.
        dtype: autocast dtype of the networks; None computes in float32.
        capture: `comparison.gpu.cuda_graphs` recorder that captures an iteration for later ones to replay; None runs
            eagerly, as do augmentation and the gradient penalty. With it the learning rates must be constant.

    Attributes:
        first_nonfinite_step: () int64 on the device: updates before the first one with a loss or gradient that was
            not finite, -1 without one. It stays on the device so that no update synchronizes with a GPU.
    """

    def __init__(
        self,
        generator: Generator | ResidualGenerator,
        discriminator: Discriminator | ResidualDiscriminator,
        *,
        g_lr: float,
        d_lr: float,
        beta1: float = 0.5,
        beta2: float = 0.999,
        loss: str = "bce",
        ema_decay: float = 0.0,
        ema_horizon: float = 0.0,
        augment: DiffAugment | None = None,
        penalty: str = "none",
        penalty_estimate: str = "exact",
        penalty_fraction: float = 1.0,
        r1_gamma: float = 0.0,
        r1_every: int = 16,
        burn_in: BurnIn | None = None,
        ada_target: float = 0.0,
        seed: int = 0,
        first_row: int = 0,
        dtype: torch.dtype | None = None,
        capture: GraphCapture | None = None,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.g_lr, self.d_lr = g_lr, d_lr
        self._graphed_step: GraphedFunction | None = None
        if capture is not None and augment is None and penalty == "none":
            self._graphed_step = GraphedFunction(
                lambda inputs: self._train_iteration(inputs["real"], inputs["z"], 0), [], capture
            )
        graphed = self._graphed_step is not None
        self.optimizer_g = _adam(generator, g_lr, (beta1, beta2), graphed)
        self.optimizer_d = _adam(discriminator, d_lr, (beta1, beta2), graphed)
        self.ema = EMA(generator, ema_decay, ema_horizon) if ema_decay else None
        self.loss, self.augment, self.dtype = loss, augment, dtype
        self.penalty, self.penalty_estimate, self.penalty_fraction = penalty, penalty_estimate, penalty_fraction
        self.r1_gamma, self.r1_every, self.gamma_factor = r1_gamma, r1_every, 1.0
        self.seed, self.first_row = seed, first_row
        self.betas, self.burn_in, self.ada_target = (beta1, beta2), burn_in, ada_target
        device = next(generator.parameters()).device
        self.augment_p = torch.tensor(0.0 if ada_target else 1.0, device=device)
        self.first_nonfinite_step = torch.full((), -1, device=device)

    def set_schedule(self, factor: float, progress: float) -> None:
        """Set what changes over the training.

        Args:
            factor: multiple of the initial learning rates, from --lr_warmup and --lr_decay.
            progress: used fraction of the budget.
        """
        beta2 = self.betas[1]
        if self.burn_in:
            done = self.burn_in.done(progress)
            factor *= 1 + done * (self.burn_in.lr_end - 1)
            self.gamma_factor = 1 + done * (self.burn_in.gamma_end - 1)
            beta2 += done * (self.burn_in.beta2_end - beta2)
            if not self.ada_target:
                self.augment_p.fill_(done)
        for optimizer, lr in ((self.optimizer_g, self.g_lr), (self.optimizer_d, self.d_lr)):
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = factor * lr, (self.betas[0], beta2)

    def train_step(self, real: Tensor, z: Tensor, step: int) -> dict[str, Tensor]:
        """Update the discriminator, then the generator, then the EMA.

        Real and fake images are separate batches (Radford et al. 2016): in a mixed batch, batch-norm statistics
        would leak which images are real.

        Args:
            real: (N, C, H, W) float32 in [-1, 1], this rank's slice of the batch.
            z: (N, nz) float32, standard normal.
            step: updates before this one.

        Returns:
            () float32 tensors: loss_d without the gradient penalty; loss_g; the mean sigmoid of the discriminator's
            logits of real images (d_real), of fakes before its update (d_fake) and after it (d_fake_after); the
            gradient norms grad_norm_d and grad_norm_g. With relativistic pairs also margin, the mean logit of real
            images minus that of fakes; with a penalty penalty_real and penalty_fake, 0 in updates without it; with
            ada_target augment_p.
        """
        if self._graphed_step:
            metrics = self._graphed_step({"real": real, "z": z})
        else:
            metrics = self._train_iteration(real, z, step)
        if self.ema:
            self.ema.update(self.generator, step)
        finite = torch.stack(list(metrics.values())).isfinite().all()
        self.first_nonfinite_step = torch.where(
            finite | (self.first_nonfinite_step >= 0), self.first_nonfinite_step, step
        )
        return metrics

    def _train_iteration(self, real: Tensor, z: Tensor, step: int) -> Outputs:
        """Update both networks; see `train_step`."""
        with self._autocast():
            fake = self.generator(z)
        loss_d, penalties, logits_real, logits_fake = self._discriminator_loss(real, fake.detach(), step)
        grad_norm_d = _update(self.discriminator, self.optimizer_d, loss_d + self.r1_every * sum(penalties.values()))
        if self.ada_target:
            self._adapt_augmentation(logits_real, logits_fake)

        # Skip the discriminator's weight gradients: a third of this backward pass, and unused.
        self.discriminator.requires_grad_(False)
        try:
            augmented_fake = self.augment_batch(fake, step, "fake for the generator")
            with self._autocast():
                logits_fake_after = self.discriminator(augmented_fake)
            if self.loss == "hinge":
                loss_g = losses.hinge_generator_loss(logits_fake_after)
            elif self.loss == "relativistic":
                with torch.no_grad(), self._autocast():
                    others = self.discriminator(self.augment_batch(real, step, "real for the generator"))
                loss_g = losses.relativistic_loss(logits_fake_after, others)
            else:
                loss_g = losses.bce_generator_loss(logits_fake_after)
            grad_norm_g = _update(self.generator, self.optimizer_g, loss_g)
        finally:
            self.discriminator.requires_grad_(True)
        average_buffers(self.generator)
        average_buffers(self.discriminator)
        return {
            "loss_d": loss_d.detach(),
            "loss_g": loss_g.detach(),
            "d_real": mean_probability(logits_real),
            "d_fake": mean_probability(logits_fake),
            "d_fake_after": mean_probability(logits_fake_after),
            "grad_norm_d": grad_norm_d,
            "grad_norm_g": grad_norm_g,
            **({"margin": (logits_real - logits_fake).detach().float().mean()} if self.loss == "relativistic" else {}),
            **{f"penalty_{name}": value.detach() for name, value in penalties.items()},
            **({"augment_p": self.augment_p.clone()} if self.ada_target else {}),
        }

    def _discriminator_loss(
        self, real: Tensor, fake: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Return the loss, the penalties by name (0 if none is due), and the logits of real and of fake images."""
        batches = {"real": real, "fake": fake}
        batches = {name: self.augment_batch(images, step, name) for name, images in batches.items()}
        batches["real"] = batches["real"].to(memory_format=torch.channels_last)
        names = {"none": (), "r1": ("real",), "r1r2": ("real", "fake")}[self.penalty]
        due = names if step % self.r1_every == 0 else ()
        whole = self.penalty_estimate == "exact" and self.penalty_fraction == 1  # uses the logits of the loss
        for name in due if whole else ():
            batches[name] = batches[name].detach().float().requires_grad_()
        logits, penalties = {}, {name: real.new_zeros(()) for name in names}
        with parametrize.cached():  # one power iteration of spectral norm for all batches
            for name, images in batches.items():
                with self._autocast(not (whole and name in due)):  # bf16 is too coarse for squared gradients
                    logits[name] = self.discriminator(images)
            gamma = self.gamma_factor * self.r1_gamma
            for name in due:
                if whole:
                    penalties[name] = losses.gradient_penalty(logits[name], batches[name], gamma)
                else:
                    penalties[name] = self._penalty(batches[name], gamma, step, name)
        if self.loss == "hinge":
            loss = losses.hinge_discriminator_loss(logits["real"], logits["fake"])
        elif self.loss == "relativistic":
            loss = losses.relativistic_loss(logits["real"], logits["fake"])
        else:
            loss = losses.bce_discriminator_loss(logits["real"], logits["fake"])
        return loss, penalties, logits["real"], logits["fake"]

    def _penalty(self, images: Tensor, gamma: float, step: int, name: str) -> Tensor:
        """Return the penalty at evenly spaced images of the global batch, () float32, from passes of their own.

        It is this rank's part of their mean: averaged over the ranks, it is that of one process.
        """
        total, ranks = len(images) * world_size(), world_size()
        count = max(1, round(self.penalty_fraction * total))
        rows = torch.arange(count) * total // count
        rows = rows[(rows >= self.first_row) & (rows < self.first_row + len(images))]
        if not len(rows):
            return torch.zeros((), device=images.device)
        part = images.detach()[(rows - self.first_row).to(images.device)].float().to(memory_format=torch.channels_last)
        if self.penalty_estimate == "exact":
            part.requires_grad_()
            value = losses.gradient_penalty(self.discriminator(part), part, gamma)
        else:
            noise = rng.normal((total, *images.shape[1:]), self.seed, step, name, "penalty")[rows].to(part.device)
            value = losses.finite_penalty(self.discriminator, self.discriminator(part), part, gamma, noise)
        return len(rows) * ranks / count * value

    @torch.no_grad()
    def _adapt_augmentation(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        """Move the augmentation's probability one step up where the discriminator is too sure, else down."""
        logits = logits_real - logits_fake if self.loss == "relativistic" else logits_real
        sure = average(logits.float().sign().mean())
        change = len(logits_real) * world_size() / ADA_IMAGES * (sure - self.ada_target).sign()
        self.augment_p.add_(change).clamp_(0, 1)

    def augment_batch(self, images: Tensor, step: int, name: str) -> Tensor:
        """Augment images for the discriminator; without augmentation, return them unchanged."""
        if self.augment is None:
            return images
        return self.augment(images, step, name, self.augment_p if self.burn_in or self.ada_target else None)

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        device_type = self.first_nonfinite_step.device.type
        return torch.autocast(device_type, dtype=self.dtype, enabled=enabled and self.dtype is not None)

    def count_parameters(self) -> dict[str, int]:
        """Return the number of trainable parameters of each network."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        return {name: count_parameters(network) for name, network in networks.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that resuming needs, as plain types and tensors."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "ema": self.ema.network.state_dict() if self.ema else None,
            "augment_p": float(self.augment_p),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a result of `state_dict`; other keys are ignored."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        for name, optimizer in (("optimizer_g", self.optimizer_g), ("optimizer_d", self.optimizer_d)):
            capturable = [group["capturable"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state[name])
            for group, current_capturable in zip(optimizer.param_groups, capturable, strict=True):
                group["capturable"] = current_capturable  # depends on this start's device, not on the saved one
        if self.ema:
            self.ema.network.load_state_dict(state["ema"])
        self.augment_p.fill_(state["augment_p"])

    @property
    def sampling_generator(self) -> Generator | ResidualGenerator:
        """Network to sample from: the EMA if there is one."""
        return self.ema.network if self.ema else self.generator  # type: ignore[return-value]


def mean_probability(logits: Tensor) -> Tensor:
    """Return the mean sigmoid of (N,) logits, () float32; under bce it is the mean probability of being real."""
    return logits.detach().float().sigmoid().mean()


def _adam(network: nn.Module, lr: float, betas: tuple[float, float], graphed: bool) -> torch.optim.Adam:
    device_type = next(network.parameters()).device.type
    fused, capturable = device_type in ("cpu", "cuda"), graphed and device_type == "cuda"
    return torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=fused, capturable=capturable)


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Take one optimizer step on the loss, and return the norm of its gradient, () float32."""
    optimizer.zero_grad()
    loss.backward()
    average_gradients(network)
    norm = get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    optimizer.step()
    return norm
