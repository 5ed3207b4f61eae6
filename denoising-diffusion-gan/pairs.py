"""What results/benchmark.py measures in this folder: a training update and a batch of samples.

Goals are the ratios that the known levers gave on two cores of a CPU that multiplies bfloat16 in hardware.
"""

from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from comparison.pairs import Pair, Settings, Sides, difference, pictures, stir
from ddgan.options import defaults

if TYPE_CHECKING:
    import torch

FULL = {**defaults(), "n_mlp": 4, "ngf": 64, "batch_size": 8, "drawn": 16}
SMALL = {
    **{**defaults(), "image_size": 16, "num_channels_dae": 8, "ch_mult": [1, 2], "num_res_blocks": 1},
    **{"attn_resolutions": [8], "nz": 4, "z_emb_dim": 8, "t_emb_dim": 8, "n_mlp": 1, "num_timesteps": 2},
    **{"ngf": 2, "batch_size": 8, "drawn": 4},
}
LAZY_REG = 15


def pairs(small: bool) -> list[Pair]:
    """Return the pairs of this folder, of tiny networks if `small`."""
    sizes = SMALL if small else FULL
    n, drawn, steps = sizes["batch_size"], sizes["drawn"], sizes["num_timesteps"]
    facts: dict[str, dict[str, Any]] = {"training": {}, "sampling": {}}
    if not small:
        facts["training"] = {
            **{"goals": {"bfloat16": 3.66, "float32": 2.62}, "reference_seconds": (9.27, 9.27)},
            **{"reference_gflop": n * 108.0},
        }
        facts["sampling"] = {
            **{"goals": {"bfloat16": 2.05, "float32": 1.43}, "reference_seconds": (6.69, 6.69)},
            **{"reference_gflop": drawn * steps * 14.08},
        }
    return [
        Pair(
            "training", f"both networks and the average updated once, batch {n}, an update without the R1 penalty",
            partial(build_training, sizes), n, "update", check=partial(check_training, sizes), **facts["training"],
        ),
        Pair(
            "sampling", f"a batch of {drawn} images drawn in {steps} steps", partial(samplers, sizes), drawn, "batch",
            check=partial(check_sampling, sizes), **facts["sampling"],
        ),
    ]  # fmt: skip


def networks(sizes: dict[str, Any], settings: Settings, stirred: bool) -> tuple:
    """Return generator, discriminator and process; the first two over interleaved channels, as in training."""
    import torch
    from ddgan.checkpoints import seeded_networks
    from ddgan.process import DenoisingProcess

    nets = seeded_networks(sizes, "small", 0)
    for net in nets:
        if stirred:
            stir(net)
        net.to(settings.device).to(memory_format=torch.channels_last)
    return *nets, DenoisingProcess(sizes["num_timesteps"]).to(settings.device)


def trainers(
    sizes: dict[str, Any], settings: Settings, *, lr_g: float = 1.6e-4, lr_d: float = 1.25e-4, stirred: bool = False
) -> tuple:
    """Build the plain and the fast trainer with the same weights, and the documented run's flags."""
    from ddgan.ema import Ema
    from ddgan.training import Trainer
    from plain import PlainTrainer, plain_copy

    generator, discriminator, process = networks(sizes, settings, stirred)
    common = {"nz": sizes["nz"], "lr_g": lr_g, "lr_d": lr_d, "r1_gamma": 0.02, "lazy_reg": LAZY_REG}
    plain = PlainTrainer(plain_copy(generator), plain_copy(discriminator), process, ema_decay=0.9999, **common)
    ema = Ema(generator, 0.9999)
    how = {"autocast_dtype": settings.dtype, "record": settings.record}
    return plain, Trainer(generator, discriminator, process, ema, seed=0, **how, **common)


def real_images(sizes: dict[str, Any], device: "torch.device") -> "torch.Tensor":
    """Return a training batch, (N, 3, S, S) float32 in [-1, 1]."""
    from comparison.images import from_uint8

    return from_uint8(pictures(sizes["batch_size"], sizes["image_size"])).to(device)


def build_training(sizes: dict[str, Any], settings: Settings) -> Sides:
    """Train on one batch again and again; the penalty is never due."""
    plain, fast = trainers(sizes, settings)
    x_0 = real_images(sizes, settings.device)
    plain_steps, fast_steps = (cycle(range(1, LAZY_REG)) for _ in range(2))
    return Sides(lambda: plain.update(x_0, next(plain_steps)), lambda: fast.update(x_0, next(fast_steps)))


def check_training(sizes: dict[str, Any], device: "torch.device") -> float:
    """Compare losses and gradients of an update with the R1 penalty, from the same noise.

    A learning rate of 0 keeps both discriminators equal: Adam's first step is a sign, which rounding can turn.
    """
    from ddgan.draws import PairNoise

    plain, fast = trainers(sizes, Settings(device, None), lr_g=0.0, lr_d=0.0, stirred=True)
    x_0 = real_images(sizes, device)
    shape = tuple(x_0.shape)
    draws = [PairNoise(shape, sizes["nz"], sizes["num_timesteps"], (0, 0, half), device) for half in ("d", "g")]
    losses = plain.update(x_0, 0, draws)
    found = fast.update(x_0, 0)
    return max(
        difference(losses, [found["loss_d"], found["loss_g"]]),
        difference(*([p.grad for p in trainer.discriminator.parameters()] for trainer in (plain, fast))),
        difference(*([p.grad for p in trainer.generator.parameters()] for trainer in (plain, fast))),
    )


def samplers(sizes: dict[str, Any], settings: Settings, stirred: bool = False) -> Sides:
    """Return the two ways to draw the images 0, 1, ... of seed 0."""
    import torch
    from comparison.rng import SampleNoise
    from ddgan.sampling import sample
    from plain import plain_copy
    from plain import sample as sample_plainly

    generator, _, process = networks(sizes, settings, stirred)
    generator.eval().requires_grad_(False)
    plain, indices = plain_copy(generator), range(sizes["drawn"])
    generator = settings.replayed(generator)
    shape = (3, sizes["image_size"], sizes["image_size"])

    def draw_plain() -> torch.Tensor:
        noise = SampleNoise(0, indices, settings.device)

        def step_noise(t: int) -> tuple[torch.Tensor, torch.Tensor]:
            return noise.normal((sizes["nz"],), f"z {t}"), noise.normal(shape, f"posterior {t}")

        return sample_plainly(plain, process, noise.normal(shape, "x_T"), step_noise)

    def draw_fast() -> torch.Tensor:
        where = {"seed": 0, "nz": sizes["nz"], "shape": shape, "device": settings.device}
        with torch.inference_mode():
            return sample(generator, process, indices, autocast_dtype=settings.dtype, **where)

    return Sides(draw_plain, draw_fast)


def check_sampling(sizes: dict[str, Any], device: "torch.device") -> float:
    """Compare the images."""
    sides = samplers(sizes, Settings(device, None), stirred=True)
    return difference([sides.plain()], [sides.fast()])  # type: ignore[list-item]
