"""Two players, their optimizers, and one iteration of their game."""

from collections.abc import Mapping
from typing import Any

import torch
from comparison import rng
from torch import Tensor, nn

from .distributed import average_buffers, average_gradients
from .ema import EMA
from .losses import bce_discriminator_loss, bce_generator_loss
from .networks import Discriminator, Generator, count_parameters, init_weights


class DCGAN:
    """Generator, discriminator, their Adam optimizers and, if asked for, the generator's moving average.

    Radford et al. 2016; one discriminator update and one generator update per iteration, on the same fakes.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        *,
        g_lr: float,
        d_lr: float,
        beta1: float = 0.5,
        ema_decay: float = 0.0,
        label_smoothing: str = "none",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take over two networks that are already on their device.

        Args:
            generator: maps (N, nz) noise to images.
            discriminator: maps images to (N,) logits.
            g_lr: learning rate of the generator.
            d_lr: learning rate of the discriminator.
            beta1: Adam's decay of the gradient mean.
            ema_decay: of the generator's moving average, 0 for none.
            label_smoothing: "none", "one_sided" or "two_sided".
            dtype: of autocast in the network passes; None computes in float32.
        """
        self.generator, self.discriminator = generator, discriminator
        self.optimizer_g = _adam(generator, g_lr, beta1)
        self.optimizer_d = _adam(discriminator, d_lr, beta1)
        self.ema = EMA(generator, ema_decay) if ema_decay else None
        self.label_smoothing, self.dtype = label_smoothing, dtype

    def train_step(self, real: Tensor, z: Tensor, step: int) -> dict[str, Tensor]:
        """Update the discriminator, then the generator.

        Batch norm sees real and fake batches apart, as Radford et al. 2016 trained it: mixed, their statistics
        would give the answer away.

        Args:
            real: (N, C, H, W) float32 in [-1, 1], this process's slice of the batch.
            z: (N, nz) float32, standard normal.
            step: updates done before this one.

        Returns:
            () float32 tensors: loss_d, loss_g, and the mean probability of being real that the discriminator
            gives to real images (d_real), to fakes before its update (d_fake) and after it (d_fake_after).
        """
        device_type = real.device.type
        real = real.to(memory_format=torch.channels_last)
        with torch.autocast(device_type, dtype=self.dtype, enabled=self.dtype is not None):
            fake = self.generator(z)
            logits_real = self.discriminator(real)
            logits_fake = self.discriminator(fake.detach())
        loss_d = bce_discriminator_loss(logits_real, logits_fake, self.label_smoothing)
        _update(self.discriminator, self.optimizer_d, loss_d)

        self.discriminator.requires_grad_(False)  # its weight gradients are not needed here: a third of the work
        with torch.autocast(device_type, dtype=self.dtype, enabled=self.dtype is not None):
            logits_fake_after = self.discriminator(fake)
        loss_g = bce_generator_loss(logits_fake_after, self.label_smoothing)
        _update(self.generator, self.optimizer_g, loss_g)
        self.discriminator.requires_grad_(True)
        average_buffers(self.generator)
        average_buffers(self.discriminator)

        if self.ema:
            self.ema.update(self.generator, step)
        return {
            "loss_d": loss_d.detach(),
            "loss_g": loss_g.detach(),
            "d_real": _mean_probability(logits_real),
            "d_fake": _mean_probability(logits_fake),
            "d_fake_after": _mean_probability(logits_fake_after),
        }

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
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        if self.ema:
            self.ema.network.load_state_dict(state["ema"])

    @property
    def sampled(self) -> Generator:
        """The network that is sampled: the moving average if there is one."""
        return self.ema.network if self.ema else self.generator  # type: ignore[return-value]


def build_generator(options: Mapping[str, Any]) -> Generator:
    """Build the generator that a run's options describe, its weights undefined, on the CPU."""
    return Generator(options["image_size"], options["nz"], options["ngf"], options["nc"])


def build_gan(options: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype | None) -> DCGAN:
    """Build a GAN with the initial weights of its seed, channels last, on the device.

    The weights are drawn on the CPU, so that they do not depend on the device.

    Args:
        options: the flags image_size, nz, ngf, ndf, nc, seed, g_lr, d_lr, beta1, ema_decay, label_smoothing.
        device: where the networks go.
        dtype: of autocast; None computes in float32.

    Raises:
        ValueError: image_size is no power of two, or below 16.
    """
    generator = build_generator(options)
    discriminator = Discriminator(options["image_size"], options["ndf"], options["nc"])
    for network, name in ((generator, "generator"), (discriminator, "discriminator")):
        init_weights(network, rng.generator("cpu", options["seed"], name, "init"))
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = ("g_lr", "d_lr", "beta1", "ema_decay", "label_smoothing")
    return DCGAN(generator, discriminator, dtype=dtype, **{name: options[name] for name in names})


def to_channels(images: Tensor, nc: int) -> Tensor:
    """Return (N, 3, H, W) images as they are for nc = 3, or as (N, 1, H, W) luma (ITU-R BT.601) for nc = 1."""
    if nc == 3:
        return images
    weights = images.new_tensor([0.299, 0.587, 0.114])
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def _adam(network: nn.Module, lr: float, beta1: float) -> torch.optim.Adam:
    device_type = next(network.parameters()).device.type
    return torch.optim.Adam(network.parameters(), lr=lr, betas=(beta1, 0.999), fused=device_type in ("cpu", "cuda"))


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    average_gradients(network)
    optimizer.step()


def _mean_probability(logits: Tensor) -> Tensor:
    return logits.detach().float().sigmoid().mean()
