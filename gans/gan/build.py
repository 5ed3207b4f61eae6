"""Networks and training of a run's options."""

from collections.abc import Mapping
from typing import Any

import torch
from comparison import rng
from comparison.gpu.cuda_graphs import GraphCapture

from .augmentation import DiffAugment
from .networks import Discriminator, Generator, init_weights, normalize_spectrally
from .options import PRESETS, BurnIn, penalty_of
from .residual import ResidualDiscriminator, ResidualGenerator, init_residual
from .training import GAN

Network = Generator | ResidualGenerator


def build_generator(options: Mapping[str, Any]) -> Network:
    """Build the generator of a run's options on the CPU, with undefined weights."""
    if options.get("network") == "residual":
        return ResidualGenerator(options["image_size"], options["nz"], options["ngf"], *_residual(options))
    return Generator(options["image_size"], options["nz"], options["ngf"])


def _residual(options: Mapping[str, Any]) -> list[Any]:
    return [options[name] for name in ("max_width", "blocks", "group_size")]


def build_gan(
    options: Mapping[str, Any],
    device: torch.device | str,
    dtype: torch.dtype | None,
    rows: slice | None = None,
    capture: GraphCapture | None = None,
) -> GAN:
    """Build a GAN on the device, channels last, with the initial weights of its seed.

    The weights are drawn on the CPU, so they do not depend on the device.

    Args:
        options: values of the flags image_size, nz, ngf, ndf, seed and those of the presets; missing ones are those of
            the preset dcgan. DiffAugment needs batch_size too.
        device: device of the networks.
        dtype: autocast dtype; None computes in float32.
        rows: this rank's rows of the global batch; None for all.
        capture: see `GAN`; ignored with a learning rate schedule.
    """
    options = {**PRESETS["dcgan"], **options}
    options["penalty"] = penalty_of(options)
    generator, residual = build_generator(options), options["network"] == "residual"
    if residual:
        discriminator: Discriminator | ResidualDiscriminator = ResidualDiscriminator(
            options["image_size"], options["ndf"], *_residual(options)
        )
    else:
        discriminator = Discriminator(options["image_size"], options["ndf"], options["d_norm"])
    initialize = init_residual if residual else init_weights
    for network, name in ((generator, "generator"), (discriminator, "discriminator")):
        initialize(network, rng.generator("cpu", options["seed"], name, "init"))
    if options["d_norm"] == "spectral" and not residual:
        normalize_spectrally(discriminator, rng.mix(options["seed"], "spectral norm"))
    for network in (generator, discriminator):
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    augment = None
    if options["diffaugment"] != "none":
        count = options["batch_size"]
        augment = DiffAugment(options["diffaugment"], options["seed"], count, rows or slice(0, count))
    training = "g_lr d_lr beta1 beta2 loss ema_decay ada_target seed"
    names = f"{training} penalty penalty_estimate penalty_fraction r1_gamma r1_every".split()
    settings = {name: options[name] for name in names} | {"ema_horizon": options.get("ema_horizon", 0.0)}
    burn_in = BurnIn.of(options)
    if options["lr_decay"] != "none" or options.get("lr_warmup") or burn_in:
        capture = None
    settings |= {"augment": augment, "burn_in": burn_in, "first_row": rows.start if rows else 0}
    return GAN(generator, discriminator, dtype=dtype, capture=capture, **settings)
