"""GAN training step: generator, discriminator, their optimizers and the EMA."""

from collections.abc import Mapping
from typing import Any

import torch
from comparison import rng
from comparison.gpu.cuda_graphs import GraphCapture, GraphedFunction, Outputs
from torch import Tensor, nn
from torch.nn.utils import get_total_norm, parametrize

from . import losses
from .augmentation import DiffAugment
from .distributed import average_buffers, average_gradients
from .ema import EMA
from .networks import Discriminator, Generator, count_parameters, init_weights, normalize_spectrally
from .options import PRESETS


class DCGAN:
    """Generator, discriminator, their Adam optimizers and, optionally, the generator's EMA.

    Radford et al. 2016; an iteration updates the discriminator once and the generator once, on the same fakes.

    Args:
        generator: maps (N, nz) noise to images; on its device.
        discriminator: maps images to (N,) logits; on the same device.
        g_lr: learning rate of the generator.
        d_lr: learning rate of the discriminator.
        beta1: Adam's decay of the gradient mean.
        beta2: Adam's decay of the squared gradient mean.
        loss: "bce" or "hinge".
        label_smoothing: smoothing of the bce labels: "none", "one_sided" or "two_sided".
        ema_decay: decay of the generator's EMA, 0 for no EMA.
        ema_horizon: see `EMA`.
        augment: augmentation of every image that the discriminator sees; None for none.
        r1_gamma: weight of the gradient penalty, 0 for none.
        r1_every: updates per penalty, which is multiplied by this number.
        dtype: autocast dtype of the networks; None computes in float32.
        capture: `comparison.gpu.cuda_graphs` recorder that captures an iteration for later ones to replay; None runs
            eagerly, as do augmentation and the gradient penalty. With it the learning rates must be constant.

    Attributes:
        first_nonfinite_step: () int64 on the device: updates before the first one with a loss or gradient that was
            not finite, -1 without one. It stays on the device so that no update synchronizes with a GPU.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        *,
        g_lr: float,
        d_lr: float,
        beta1: float = 0.5,
        beta2: float = 0.999,
        loss: str = "bce",
        label_smoothing: str = "none",
        ema_decay: float = 0.0,
        ema_horizon: float = 0.0,
        augment: DiffAugment | None = None,
        r1_gamma: float = 0.0,
        r1_every: int = 16,
        dtype: torch.dtype | None = None,
        capture: GraphCapture | None = None,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.g_lr, self.d_lr = g_lr, d_lr
        self._graphed_step: GraphedFunction | None = None
        if capture is not None and augment is None and not r1_gamma:
            self._graphed_step = GraphedFunction(
                lambda inputs: self._train_iteration(inputs["real"], inputs["z"], 0), [], capture
            )
        graphed = self._graphed_step is not None
        self.optimizer_g = _adam(generator, g_lr, (beta1, beta2), graphed)
        self.optimizer_d = _adam(discriminator, d_lr, (beta1, beta2), graphed)
        self.ema = EMA(generator, ema_decay, ema_horizon) if ema_decay else None
        self.loss, self.label_smoothing, self.augment, self.dtype = loss, label_smoothing, augment, dtype
        self.r1_gamma, self.r1_every = r1_gamma, r1_every
        self.first_nonfinite_step = torch.full((), -1, device=next(generator.parameters()).device)

    def set_learning_rates(self, factor: float) -> None:
        """Set both learning rates to a multiple of their initial values."""
        for optimizer, lr in ((self.optimizer_g, self.g_lr), (self.optimizer_d, self.d_lr)):
            for group in optimizer.param_groups:
                group["lr"] = factor * lr

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
            gradient norms grad_norm_d and grad_norm_g.
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
        loss_d, penalty, logits_real, logits_fake = self._discriminator_loss(real, fake.detach(), step)
        grad_norm_d = _update(self.discriminator, self.optimizer_d, loss_d + penalty)

        # Skip the discriminator's weight gradients: a third of this backward pass, and unused.
        self.discriminator.requires_grad_(False)
        try:
            augmented_fake = self.augment_batch(fake, step, "fake for the generator")
            with self._autocast():
                logits_fake_after = self.discriminator(augmented_fake)
            if self.loss == "hinge":
                loss_g = losses.hinge_generator_loss(logits_fake_after)
            else:
                loss_g = losses.bce_generator_loss(logits_fake_after, self.label_smoothing)
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
        }

    def _discriminator_loss(
        self, real: Tensor, fake: Tensor, step: int
    ) -> tuple[Tensor, Tensor | float, Tensor, Tensor]:
        """Return the loss, the penalty (0 if none is due), and the logits of real and of fake images."""
        real = self.augment_batch(real, step, "real").to(memory_format=torch.channels_last)
        fake = self.augment_batch(fake, step, "fake")
        penalty_due = bool(self.r1_gamma) and step % self.r1_every == 0
        if penalty_due:
            real = real.detach().requires_grad_()
        with parametrize.cached():  # one power iteration of spectral norm for both batches
            with self._autocast(not penalty_due):  # bf16 is too coarse for squared gradients
                logits_real = self.discriminator(real)
            with self._autocast():
                logits_fake = self.discriminator(fake)
        if self.loss == "hinge":
            loss = losses.hinge_discriminator_loss(logits_real, logits_fake)
        else:
            loss = losses.bce_discriminator_loss(logits_real, logits_fake, self.label_smoothing)
        penalty = self.r1_every * losses.r1_penalty(logits_real, real, self.r1_gamma) if penalty_due else 0.0
        return loss, penalty, logits_real, logits_fake

    def augment_batch(self, images: Tensor, step: int, name: str) -> Tensor:
        """Augment images for the discriminator; without augmentation, return them unchanged."""
        return images if self.augment is None else self.augment(images, step, name)

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

    @property
    def sampling_generator(self) -> Generator:
        """Network to sample from: the EMA if there is one."""
        return self.ema.network if self.ema else self.generator  # type: ignore[return-value]


def build_generator(options: Mapping[str, Any]) -> Generator:
    """Build the generator of a run's options on the CPU, with undefined weights."""
    return Generator(options["image_size"], options["nz"], options["ngf"], options["nc"])


def build_gan(
    options: Mapping[str, Any],
    device: torch.device | str,
    dtype: torch.dtype | None,
    rows: slice | None = None,
    capture: GraphCapture | None = None,
) -> DCGAN:
    """Build a GAN on the device, channels last, with the initial weights of its seed.

    The weights are drawn on the CPU, so they do not depend on the device.

    Args:
        options: values of the flags image_size, nz, ngf, ndf, nc, seed, label_smoothing and those of the presets;
            missing ones are those of the preset dcgan. DiffAugment needs batch_size too.
        device: device of the networks.
        dtype: autocast dtype; None computes in float32.
        rows: this rank's rows of the global batch; None for all.
        capture: see `DCGAN`; ignored with a learning rate schedule.

    Raises:
        ValueError: image_size is not a power of two, or below 16.
    """
    options = {**PRESETS["dcgan"], **options}
    generator = build_generator(options)
    flags = [options[name] for name in ("image_size", "ndf", "nc", "d_norm", "minibatch_stddev")]
    discriminator = Discriminator(*flags)
    for network, name in ((generator, "generator"), (discriminator, "discriminator")):
        init_weights(network, rng.generator("cpu", options["seed"], name, "init"))
    if options["d_norm"] == "spectral":
        normalize_spectrally(discriminator, rng.mix(options["seed"], "spectral norm"))
    for network in (generator, discriminator):
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    augment = None
    if options["diffaugment"] != "none":
        count = options["batch_size"]
        augment = DiffAugment(options["diffaugment"], options["seed"], count, rows or slice(0, count))
    names = ("g_lr", "d_lr", "beta1", "beta2", "loss", "label_smoothing", "ema_decay", "r1_gamma", "r1_every")
    settings = {name: options[name] for name in names} | {"ema_horizon": options.get("ema_horizon", 0.0)}
    if options["lr_decay"] != "none" or options.get("lr_warmup"):
        capture = None
    return DCGAN(generator, discriminator, augment=augment, dtype=dtype, capture=capture, **settings)


def to_channels(images: Tensor, nc: int) -> Tensor:
    """Return (N, 3, H, W) images unchanged for nc = 3, as (N, 1, H, W) luma (ITU-R BT.601) for nc = 1."""
    if nc == 3:
        return images
    weights = images.new_tensor([0.299, 0.587, 0.114])
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


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
