"""The 25 Gaussians: a mixture in the plane whose modes can be counted, and networks small enough for it.

Points are images of two channels and one pixel, (N, 2, 1, 1), so that process, losses and training are those of the
image model. The mixture is of the kind that Xiao et al. 2022 show; its numbers are a choice usual for GANs, not known
to be theirs: centres at -2, -1, 0, 1, 2 in both directions, standard deviation 0.05, high quality within three of them.
All is divided by sqrt(2), so that each coordinate has variance 1, which a variance-preserving process expects.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from comparison import rng
from comparison.progress import bar
from torch import Tensor, nn

from ddgan.ema import Ema
from ddgan.process import DenoisingProcess
from ddgan.sampling import sample
from ddgan.training import Trainer

SIDE = 5  # modes in each direction
MODES = SIDE**2
NEAR = 3.0  # standard deviations within which a sample is of high quality
LEAST_SHARE = 0.25  # of the 25th part of all samples, that a mode must get to count as covered
SCALE = math.sqrt(2)
STD = 0.05 / SCALE
FREQUENCIES = 64  # of the sines and cosines that the networks see
FREQUENCY_SCALE = 5.0  # their standard deviation in each coordinate, radians per unit


def centres() -> Tensor:
    """Return the (25, 2) float32 centres of the modes."""
    line = (torch.arange(SIDE, dtype=torch.float32) - SIDE // 2) / SCALE
    return torch.cartesian_prod(line, line)


def draw_data(count: int, *key: rng.Key, device: torch.device | str = "cpu") -> Tensor:
    """Draw (count, 2, 1, 1) float32 points of the mixture, a function of the key."""
    modes = rng.randint(MODES, (count,), *key, "mode", device=device)
    points = centres().to(device)[modes] + STD * rng.normal((count, 2), *key, "point", device=device)
    return points[:, :, None, None]


def measure(points: Tensor) -> dict[str, Any]:
    """Count what samples of the mixture show.

    Args:
        points: (N, 2) float32.

    Returns:
        modes: of the 25, those with at least LEAST_SHARE of their equal share of all N samples within NEAR standard
            deviations; high_quality: share of samples that lie so near to any mode; kl: divergence of the modes'
            frequencies among these from equal ones, nats, None where there are none.
    """
    distance, nearest = torch.cdist(points.cpu(), centres()).min(1)
    counts = nearest[distance <= NEAR * STD].bincount(minlength=MODES).double()
    good = int(counts.sum())
    shares = counts[counts > 0] / good
    return {
        "modes": int((counts >= LEAST_SHARE * len(points) / MODES).sum()),
        "high_quality": good / len(points),
        "kl": (shares * (shares * MODES).log()).sum().item() if good else None,
    }


class PointFeatures(nn.Module):
    """Coordinates with sines and cosines of their products with fixed random frequencies (Tancik et al. 2020).

    From coordinates alone a small network is slow to learn what changes over a fiftieth of their range: a generator
    without them covers 14 of the 25 modes where one with them covers all (T = 4). Frequencies along the axes alone
    would favour lines along them.
    """

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        drawn = rng.normal((2, FREQUENCIES), "frequencies of the toy")
        self.register_buffer("frequencies", FREQUENCY_SCALE * drawn, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 2 + 2 * FREQUENCIES) for (N, 2, 1, 1)."""
        points = x.flatten(1)
        angles = points @ self.frequencies
        return torch.cat([points, angles.sin(), angles.cos()], 1)


class _Layers(nn.Module):
    """Fully connected layers on a vector, told the time by a learned shift of the first layer."""

    def __init__(self, inputs: int, outputs: int, num_timesteps: int, width: int, depth: int):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.time = nn.Embedding(num_timesteps, width)
        rest: list[nn.Module] = []
        for _ in range(depth - 1):
            rest += [nn.Linear(width, width), nn.LeakyReLU(0.2)]
        self.rest = nn.Sequential(nn.LeakyReLU(0.2), *rest, nn.Linear(width, outputs))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # He et al. 2015: the first points spread as widely as the mixture
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.rest(self.first(x) + self.time(t))


class ToyGenerator(nn.Module):
    """Predicts x_0 from x_{t+1}, t and a latent; unbounded.

    Args:
        num_timesteps: T.
        nz: length of the latent.
        width, depth: features and number of hidden layers.
    """

    def __init__(self, num_timesteps: int, nz: int, width: int, depth: int = 3):
        super().__init__()
        self.nz = nz
        self.features = PointFeatures()
        self.layers = _Layers(2 + 2 * FREQUENCIES + nz, 2, num_timesteps, width, depth)

    def forward(self, x_t_plus_1: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return (N, 2, 1, 1) from (N, 2, 1, 1), (N,) int64 in [0, T) and (N, nz)."""
        return self.layers(torch.cat([self.features(x_t_plus_1), z], 1), t)[:, :, None, None]


class ToyDiscriminator(nn.Module):
    """Tells a real x_t from a generated one, given x_{t+1} and t.

    Args:
        num_timesteps: T.
        width, depth: features and number of hidden layers.
    """

    def __init__(self, num_timesteps: int, width: int, depth: int = 3):
        super().__init__()
        self.features = PointFeatures()
        self.layers = _Layers(2 + 2 * FREQUENCIES + 2, 1, num_timesteps, width, depth)

    def forward(self, x_t: Tensor, t: Tensor, x_t_plus_1: Tensor, y: Tensor | None = None, *, parts: int = 1) -> Tensor:
        """Return (N, 1) logits from (N, 2, 1, 1), (N,) and (N, 2, 1, 1).

        `y` and `parts` are those of the image model's discriminator; without classes and statistics of the batch
        neither changes anything.
        """
        return self.layers(torch.cat([self.features(x_t), x_t_plus_1.flatten(1)], 1), t)


@dataclass(frozen=True)
class ToySettings:
    """How a network of the toy is trained; the names are those of the flags."""

    max_steps: int
    batch_size: int
    lr_g: float
    lr_d: float
    r1_gamma: float
    lazy_reg: int
    ema_decay: float
    width: int
    nz: int
    beta_min: float
    beta_max: float
    use_geometric: bool
    eval_every: int


def train(
    num_timesteps: int, seed: int, settings: ToySettings, device: torch.device
) -> tuple[ToyGenerator, DenoisingProcess, list[dict[str, Any]]]:
    """Train a network for T steps, as the image model is trained, on points that are drawn anew for every update.

    Args:
        num_timesteps: T.
        seed: of weights, data and noise.
        settings: see ToySettings.
        device: where.

    Returns:
        the generator with its averaged weights, its process, and `measure` of 2,500 samples of it every
        `eval_every` updates and at the end, each with its `step`.
    """
    rng.seed_default(seed, "weights")
    generator = ToyGenerator(num_timesteps, settings.nz, settings.width).to(device)
    discriminator = ToyDiscriminator(num_timesteps, settings.width).to(device)
    averaged = copy.deepcopy(generator)
    schedule = settings.beta_min, settings.beta_max, settings.use_geometric
    process = DenoisingProcess(num_timesteps, *schedule).to(device)
    trainer = Trainer(
        generator,
        discriminator,
        process,
        Ema(generator, settings.ema_decay, warm_up=True),
        seed=seed,
        nz=settings.nz,
        lr_g=settings.lr_g,
        lr_d=settings.lr_d,
        r1_gamma=settings.r1_gamma,
        lazy_reg=settings.lazy_reg,
    )
    history = []
    with bar(settings.max_steps, 0, f"T = {num_timesteps}, seed {seed}", "update") as progress:
        for step in range(settings.max_steps):
            trainer.set_learning_rates(step, settings.max_steps)
            trainer.update(draw_data(settings.batch_size, seed, step, "data", device=device), step)
            progress.update()
            if (step + 1) % settings.eval_every == 0 or step + 1 == settings.max_steps:
                averaged.load_state_dict(trainer.generator_weights())
                history.append({"step": step + 1, **measure(draw_samples(averaged, process, 2500, seed))})
    return averaged, process, history


@torch.inference_mode()
def draw_samples(generator: ToyGenerator, process: DenoisingProcess, count: int, seed: int) -> Tensor:
    """Draw (count, 2) float32 points by T steps."""
    x = sample(
        generator, process, range(count), seed=seed, nz=generator.nz, shape=(2, 1, 1), device=process.betas.device
    )
    return x.flatten(1)
