"""What results/benchmark.py measures in this folder: a training iteration, a batch of samples, the reading of images.

Goals are the ratios that the known levers gave on two cores of a CPU that multiplies bfloat16 in hardware.
"""

import importlib
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from comparison.pairs import Pair, Settings, Sides, difference, pictures

if TYPE_CHECKING:
    import torch

FULL = {"image_size": 64, "nz": 100, "ngf": 64, "ndf": 64, "batch_size": 128, "drawn": 64, "read": 8192}
SMALL = {"image_size": 16, "nz": 8, "ngf": 4, "ndf": 4, "batch_size": 16, "drawn": 8, "read": 64}


def pairs(small: bool) -> list[Pair]:
    """Return the pairs of this folder, of tiny networks if `small`."""
    sizes = SMALL if small else FULL
    pixels = f"{sizes['image_size']} pixels"
    facts: dict[str, dict[str, Any]] = {"training": {}, "sampling": {}, "reading": {}}
    if not small:
        facts["training"] = {"goals": {"bfloat16": 2.26, "float32": 1.25}, "reference_seconds": (2.09, 2.32)}
        facts["sampling"] = {"goals": {"bfloat16": 1.88, "float32": 1.11}, "reference_seconds": (0.09, 0.09)}
        facts["reading"] = {"goals": {"bfloat16": 20, "float32": 20}}
    return [
        Pair(
            "training", f"both networks updated once, batch {sizes['batch_size']}, {pixels}",
            partial(build_training, sizes), sizes["batch_size"], "iteration",
            check=partial(check_training, sizes), **facts["training"],
        ),
        Pair(
            "sampling", f"a batch of {sizes['drawn']} images drawn, {pixels}", partial(samplers, sizes),
            sizes["drawn"], "batch", check=partial(check_sampling, sizes), **facts["sampling"],
        ),
        Pair(
            "reading", f"an epoch of {sizes['read']} pictures of 32 pixels as batches of {pixels}, two workers",
            partial(build_reading, sizes), 1, "image", units=sizes["read"], counted=False, **facts["reading"],
        ),
    ]  # fmt: skip


def plain_module() -> Any:
    """Return plain.py of this folder; every model folder has a module of that name, which confuses type checkers."""
    return importlib.import_module("plain")


def gan_options(sizes: dict[str, int], g_lr: float = 1.6e-4, d_lr: float = 1.25e-4) -> dict[str, Any]:
    """Return the flags of cifar_gan.py with its defaults, the sizes apart."""
    networks = {name: sizes[name] for name in ("image_size", "nz", "ngf", "ndf")}
    training = {"g_lr": g_lr, "d_lr": d_lr, "beta1": 0.5, "ema_decay": 0.0, "label_smoothing": "none"}
    return {**networks, **training, "nc": 3, "seed": 0}


def both(sizes: dict[str, int], settings: Settings, g_lr: float = 1.6e-4, d_lr: float = 1.25e-4, **plain: Any) -> tuple:
    """Build the plain and the fast game with the same initial weights."""
    from copy import deepcopy

    import torch
    from gan.training import build_gan

    fast = build_gan(gan_options(sizes, g_lr, d_lr), settings.device, settings.dtype, record=settings.record)
    networks = (deepcopy(net).to(memory_format=torch.contiguous_format) for net in (fast.generator, fast.discriminator))
    return plain_module().PlainDCGAN(*networks, g_lr=g_lr, d_lr=d_lr, **plain), fast


def real_images(sizes: dict[str, int], device: "torch.device") -> "torch.Tensor":
    """Return a training batch, (N, 3, S, S) float32 in [-1, 1]."""
    from comparison.images import from_uint8

    return from_uint8(pictures(sizes["batch_size"], sizes["image_size"])).to(device)


def build_training(sizes: dict[str, int], settings: Settings) -> Sides:
    """Train on one batch again and again; reading is measured apart."""
    import torch
    from comparison import rng

    plain, fast = both(sizes, settings)
    real, steps = real_images(sizes, settings.device), count()
    shape = (sizes["batch_size"], sizes["nz"])

    def train_fast() -> None:
        step = next(steps)
        fast.train_step(real, rng.normal(shape, 0, step, "z", device=settings.device), step)

    return Sides(lambda: plain.train_step(real, torch.randn(shape, device=settings.device)), train_fast)


def check_training(sizes: dict[str, int], device: "torch.device") -> float:
    """Compare gradients and losses of an iteration without the plain path's noise and smoothing.

    In float64: in float32 rounding turns some leaky ReLUs near zero, which moves gradients by a thousandth. A learning
    rate of 0 keeps both discriminators equal: Adam's first step is a sign, which rounding can turn too.
    """
    from comparison import rng

    plain, fast = both(sizes, Settings(device, None), 0.0, 0.0, labels=(1.0, 0.0), noise=0.0)
    for network in (plain.generator, plain.discriminator, fast.generator, fast.discriminator):
        network.double()
    real = real_images(sizes, device).double()
    z = rng.normal((sizes["batch_size"], sizes["nz"]), 0, "z", device=device).double()
    loss_d, fake = plain.update_discriminator(real, z)
    gradients_d = [p.grad.clone() for p in plain.discriminator.parameters()]  # the generator's update adds to them
    loss_g = plain.update_generator(fake)
    found = fast.train_step(real, z, 0)
    return max(
        difference([loss_d, loss_g], [found["loss_d"], found["loss_g"]]),
        difference(gradients_d, [p.grad for p in fast.discriminator.parameters()]),
        difference(*([p.grad for p in game.generator.parameters()] for game in (plain, fast))),
    )


def samplers(sizes: dict[str, int], settings: Settings) -> Sides:
    """Return the two ways to draw images 0, 1, ... of seed 0 from an untrained generator in eval mode."""
    import torch
    from comparison.rng import SampleNoise
    from gan.sampling import make_draw

    plain, fast = both(sizes, settings)
    for generator in (plain.generator, fast.generator):
        generator.eval().requires_grad_(False)
    indices = range(sizes["drawn"])
    draw = make_draw(fast.generator, 0, settings.device, settings.dtype)

    def draw_fast() -> torch.Tensor:
        with torch.inference_mode():
            return draw(indices)

    def draw_plain() -> torch.Tensor:
        return plain_module().sample(
            plain.generator, SampleNoise(0, indices, settings.device).normal((sizes["nz"],), "z")
        )

    return Sides(draw_plain, draw_fast)


def check_sampling(sizes: dict[str, int], device: "torch.device") -> float:
    """Compare the images."""
    sides = samplers(sizes, Settings(device, None))
    return difference([sides.plain()], [sides.fast()])  # type: ignore[list-item]


def build_reading(sizes: dict[str, int], settings: Settings) -> Sides:
    """Read an epoch: pictures resized by two workers each time, or once for all and then kept as uint8."""
    from comparison.batches import BatchStream
    from comparison.images import ImageSet, fingerprint, resize

    source = pictures(sizes["read"], 32)
    kept = resize(source, sizes["image_size"])
    images = ImageSet(kept, None, (), "pictures", fingerprint(kept))
    stream = BatchStream(images, sizes["batch_size"], 0, flip=False, device=settings.device)
    arrays, epochs = source.permute(0, 2, 3, 1).contiguous().numpy(), count()

    def read_plain() -> None:
        for _ in plain_module().epoch(arrays, sizes["image_size"], sizes["batch_size"], settings.device):
            pass

    def read_fast() -> None:
        first = next(epochs) * stream.steps_per_epoch
        for step in range(first, first + stream.steps_per_epoch):
            stream.batch(step)

    return Sides(read_plain, read_fast)
