"""Two players, their optimizers, and one iteration of their game."""

from collections.abc import Mapping
from typing import Any

import torch
from comparison import rng
from comparison.gpu.replay import Outputs, Recorder, Replay
from torch import Tensor, nn
from torch.nn.utils import get_total_norm, parametrize

from .augmentation import DiffAugment
from .distributed import average_buffers, average_gradients
from .ema import EMA
from .losses import (
    bce_discriminator_loss,
    bce_generator_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalty,
)
from .networks import Discriminator, Generator, count_parameters, init_weights, normalise_spectrally
from .options import PRESETS


class DCGAN:
    """Generator, discriminator, their Adam optimizers and, if asked for, the generator's moving average.

    Radford et al. 2016; one discriminator update and one generator update per iteration, on the same fakes.

    Attributes:
        first_bad: () int64 on the device: the number of updates before the first one whose losses or gradients were
            not all finite, -1 while there is none. Kept there, so that no update waits for a GPU.
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
        record: Recorder | None = None,
    ) -> None:
        """Take over two networks that are already on their device.

        Args:
            generator: maps (N, nz) noise to images.
            discriminator: maps images to (N,) logits.
            g_lr: learning rate of the generator.
            d_lr: learning rate of the discriminator.
            beta1: Adam's decay of the gradient mean.
            beta2: Adam's decay of the squared gradient mean.
            loss: "bce" or "hinge".
            label_smoothing: of bce; "none", "one_sided" or "two_sided".
            ema_decay: of the generator's moving average, 0 for none.
            ema_horizon: of that average, see `EMA`.
            augment: changes every image that the discriminator sees; None for nothing.
            r1_gamma: weight of the gradient penalty, 0 for none.
            r1_every: updates between penalties, which count so many times.
            dtype: of autocast in the network passes; None computes in float32.
            record: records an iteration, so that later ones replay it, see `comparison.gpu.replay`; None for none,
                as is with augmentation or the gradient penalty. The learning rates must stay then.
        """
        self.generator, self.discriminator = generator, discriminator
        self.g_lr, self.d_lr = g_lr, d_lr
        recorded = record is not None and augment is None and not r1_gamma
        self._replay: Replay | None = None
        if recorded:
            assert record is not None
            self._replay = Replay(lambda inputs: self._play(inputs["real"], inputs["z"], 0), [], record)
        self.optimizer_g = _adam(generator, g_lr, (beta1, beta2), recorded)
        self.optimizer_d = _adam(discriminator, d_lr, (beta1, beta2), recorded)
        self.ema = EMA(generator, ema_decay, ema_horizon) if ema_decay else None
        self.loss, self.label_smoothing, self.augment, self.dtype = loss, label_smoothing, augment, dtype
        self.r1_gamma, self.r1_every = r1_gamma, r1_every
        self.first_bad = torch.full((), -1, device=next(generator.parameters()).device)

    def set_learning_rates(self, factor: float) -> None:
        """Multiply the learning rates that the game began with by a factor."""
        for optimizer, lr in ((self.optimizer_g, self.g_lr), (self.optimizer_d, self.d_lr)):
            for group in optimizer.param_groups:
                group["lr"] = factor * lr

    def train_step(self, real: Tensor, z: Tensor, step: int) -> dict[str, Tensor]:
        """Update the discriminator, then the generator.

        Batch norm sees real and fake batches apart, as Radford et al. 2016 trained it: mixed, their statistics
        would give the answer away.

        Args:
            real: (N, C, H, W) float32 in [-1, 1], this process's slice of the batch.
            z: (N, nz) float32, standard normal.
            step: updates done before this one.

        Returns:
            () float32 tensors: loss_d without the gradient penalty, loss_g, the mean sigmoid of the logits that the
            discriminator gives to real images (d_real), to fakes before its update (d_fake) and after it
            (d_fake_after), and the norms of both gradients (grad_norm_d, grad_norm_g).
        """
        found = self._replay({"real": real, "z": z}) if self._replay else self._play(real, z, step)
        if self.ema:
            self.ema.update(self.generator, step)
        finite = torch.stack(list(found.values())).isfinite().all()
        self.first_bad = torch.where(finite | (self.first_bad >= 0), self.first_bad, step)
        return found

    def _play(self, real: Tensor, z: Tensor, step: int) -> Outputs:
        """Update both networks; arguments and result of `train_step`."""
        with self._autocast():
            fake = self.generator(z)
        loss_d, penalty, logits_real, logits_fake = self._discriminator_loss(real, fake.detach(), step)
        grad_norm_d = _update(self.discriminator, self.optimizer_d, loss_d + penalty)

        self.discriminator.requires_grad_(False)  # its weight gradients are not needed here: a third of the work
        try:
            seen = self.changed(fake, step, "fake for the generator")
            with self._autocast():
                logits_fake_after = self.discriminator(seen)
            if self.loss == "hinge":
                loss_g = hinge_generator_loss(logits_fake_after)
            else:
                loss_g = bce_generator_loss(logits_fake_after, self.label_smoothing)
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
        """Return the loss, the penalty (0 where none is due) and the logits of both batches."""
        real = self.changed(real, step, "real").to(memory_format=torch.channels_last)
        fake = self.changed(fake, step, "fake")
        penalised = bool(self.r1_gamma) and step % self.r1_every == 0
        if penalised:
            real = real.detach().requires_grad_()
        with parametrize.cached():  # one power iteration of spectral norm for both batches
            with self._autocast(not penalised):  # squared gradients need more than 8 bits of mantissa
                logits_real = self.discriminator(real)
            with self._autocast():
                logits_fake = self.discriminator(fake)
        if self.loss == "hinge":
            loss = hinge_discriminator_loss(logits_real, logits_fake)
        else:
            loss = bce_discriminator_loss(logits_real, logits_fake, self.label_smoothing)
        penalty = self.r1_every * r1_penalty(logits_real, real, self.r1_gamma) if penalised else 0.0
        return loss, penalty, logits_real, logits_fake

    def changed(self, images: Tensor, step: int, name: str) -> Tensor:
        """Augment images for the discriminator, or return them as they are."""
        return images if self.augment is None else self.augment(images, step, name)

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        return torch.autocast(self.first_bad.device.type, dtype=self.dtype, enabled=enabled and self.dtype is not None)

    def count_parameters(self) -> dict[str, int]:
        """Count the trainable numbers of both networks."""
        return {
            "generator": count_parameters(self.generator),
            "discriminator": count_parameters(self.discriminator),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that training needs to go on, as plain types and tensors."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "ema": self.ema.network.state_dict() if self.ema else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, other keys ignored."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        for name, optimizer in (("optimizer_g", self.optimizer_g), ("optimizer_d", self.optimizer_d)):
            capturable = [group["capturable"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state[name])
            for group, own in zip(optimizer.param_groups, capturable, strict=True):
                group["capturable"] = own  # of this start, whatever it was when the state was saved
        if self.ema:
            self.ema.network.load_state_dict(state["ema"])

    @property
    def sampled(self) -> Generator:
        """The network that is sampled: the moving average if there is one."""
        return self.ema.network if self.ema else self.generator  # type: ignore[return-value]


def build_generator(options: Mapping[str, Any]) -> Generator:
    """Build the generator that a run's options describe, its weights undefined, on the CPU."""
    return Generator(options["image_size"], options["nz"], options["ngf"], options["nc"])


def build_gan(
    options: Mapping[str, Any],
    device: torch.device | str,
    dtype: torch.dtype | None,
    rows: slice | None = None,
    record: Recorder | None = None,
) -> DCGAN:
    """Build a GAN with the initial weights of its seed, channels last, on the device.

    The weights are drawn on the CPU, so that they do not depend on the device.

    Args:
        options: the flags image_size, nz, ngf, ndf, nc, seed, label_smoothing, and those of the presets; what is not
            there is as in the preset dcgan. With diffaugment also batch_size.
        device: where the networks go.
        dtype: of autocast; None computes in float32.
        rows: of the global batch that are this process's; None for all.
        record: as for `DCGAN`; not used where the learning rates fall.

    Raises:
        ValueError: image_size is no power of two, or below 16.
    """
    options = {**PRESETS["dcgan"], **options}
    generator = build_generator(options)
    networks = [options[name] for name in ("image_size", "ndf", "nc", "d_norm", "minibatch_stddev")]
    discriminator = Discriminator(*networks)
    for network, name in ((generator, "generator"), (discriminator, "discriminator")):
        init_weights(network, rng.generator("cpu", options["seed"], name, "init"))
    if options["d_norm"] == "spectral":
        normalise_spectrally(discriminator, rng.mix(options["seed"], "spectral norm"))
    for network in (generator, discriminator):
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    augment = None
    if options["diffaugment"] != "none":
        count = options["batch_size"]
        augment = DiffAugment(options["diffaugment"], options["seed"], count, rows or slice(0, count))
    names = ("g_lr", "d_lr", "beta1", "beta2", "loss", "label_smoothing", "ema_decay", "r1_gamma", "r1_every")
    flags = {name: options[name] for name in names} | {"ema_horizon": options.get("ema_horizon", 0.0)}
    if options["lr_decay"] != "none" or options.get("lr_warmup"):
        record = None
    return DCGAN(generator, discriminator, augment=augment, dtype=dtype, record=record, **flags)


def to_channels(images: Tensor, nc: int) -> Tensor:
    """Return (N, 3, H, W) images as they are for nc = 3, or as (N, 1, H, W) luma (ITU-R BT.601) for nc = 1."""
    if nc == 3:
        return images
    weights = images.new_tensor([0.299, 0.587, 0.114])
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def mean_probability(logits: Tensor) -> Tensor:
    """Return the mean sigmoid of (N,) logits, () float32; under bce that is the probability of being real."""
    return logits.detach().float().sigmoid().mean()


def _adam(network: nn.Module, lr: float, betas: tuple[float, float], recorded: bool) -> torch.optim.Adam:
    kind = next(network.parameters()).device.type
    fused, capturable = kind in ("cpu", "cuda"), recorded and kind == "cuda"
    return torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=fused, capturable=capturable)


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Take one step down the loss and return the norm of its gradient, () float32."""
    optimizer.zero_grad()
    loss.backward()
    average_gradients(network)
    norm = get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    optimizer.step()
    return norm
