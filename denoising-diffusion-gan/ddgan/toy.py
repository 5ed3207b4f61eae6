"""25 Gaussians: a mixture in the plane whose modes can be counted, small networks for it, and their training.

Points are images of two channels and one pixel, (N, 2, 1, 1), so process, losses and training are those of the image
model. Xiao et al. 2022 show such a mixture without its numbers; these are common ones: centers at -2, -1, 0, 1, 2 in
both directions, standard deviation 0.05, high quality within three standard deviations. All is divided by sqrt(2), so
that each coordinate has variance 1, as a variance-preserving process needs.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from comparison import rng
from comparison.progress import bar
from comparison.rng import SampleNoise
from torch import Tensor, nn

from ddgan.ema import Ema
from ddgan.process import DenoisingProcess
from ddgan.sampling import sample
from ddgan.training import Trainer

SIDE = 5  # modes in each direction
MODES = SIDE**2
NEAR = 3.0  # standard deviations; closer samples are of high quality
MIN_SHARE = 0.25  # fraction of an equal share of the samples that covers a mode
SCALE = math.sqrt(2)
STD = 0.05 / SCALE
FREQUENCIES = 64  # sines and cosines in the networks' inputs
FREQUENCY_SCALE = 5.0  # standard deviation of the frequencies, radians per unit


def centers() -> Tensor:
    """Return the (25, 2) float32 centers of the modes."""
    line = (torch.arange(SIDE, dtype=torch.float32) - SIDE // 2) / SCALE
    return torch.cartesian_prod(line, line)


def draw_data(count: int, *key: rng.Key, device: torch.device | str = "cpu") -> Tensor:
    """Sample (count, 2, 1, 1) float32 points of the mixture, a function of the key."""
    modes = rng.randint(MODES, (count,), *key, "mode", device=device)
    points = centers().to(device)[modes] + STD * rng.normal((count, 2), *key, "point", device=device)
    return points[:, :, None, None]


def measure(points: Tensor) -> dict[str, Any]:
    """Measure how (N, 2) float32 samples cover the mixture.

    Returns:
        high_quality: fraction of samples within NEAR standard deviations of a mode; modes: number of modes with at
            least MIN_SHARE of N / 25 such samples; kl: divergence of the modes' frequencies among such samples from
            equal ones, nats, None without any.
    """
    distance, nearest = torch.cdist(points.cpu(), centers()).min(1)
    counts = nearest[distance <= NEAR * STD].bincount(minlength=MODES).double()
    good = int(counts.sum())
    shares = counts[counts > 0] / good
    return {
        "modes": int((counts >= MIN_SHARE * len(points) / MODES).sum()),
        "high_quality": good / len(points),
        "kl": (shares * (shares * MODES).log()).sum().item() if good else None,
    }


class PointFeatures(nn.Module):
    """Coordinates, and sines and cosines along fixed random directions (Tancik et al. 2020).

    From coordinates alone a small network is slow to learn details of a fiftieth of their range: a generator then
    covers 14 of the 25 modes instead of all (T = 4). Frequencies along the axes would favor lines along them.
    """

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        frequencies = FREQUENCY_SCALE * rng.normal((2, FREQUENCIES), "frequencies of the toy")
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 2 + 2 * FREQUENCIES) for (N, 2, 1, 1)."""
        points = x.flatten(1)
        angles = points @ self.frequencies
        return torch.cat([points, angles.sin(), angles.cos()], 1)


class _Layers(nn.Module):
    """Fully connected layers on a vector; the time is a learned shift after the first layer."""

    def __init__(self, inputs: int, outputs: int, num_timesteps: int, width: int, depth: int):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.time = nn.Embedding(num_timesteps, width)
        rest: list[nn.Module] = []
        for _ in range(depth - 1):
            rest += [nn.Linear(width, width), nn.LeakyReLU(0.2)]
        self.rest = nn.Sequential(nn.LeakyReLU(0.2), *rest, nn.Linear(width, outputs))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # He et al. 2015: the initial points are as wide as the mixture
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.rest(self.first(x) + self.time(t))


class ToyGenerator(nn.Module):
    """Predict x_0, unbounded, from x_{t+1}, t and a latent of length nz."""

    def __init__(self, num_timesteps: int, nz: int, width: int, depth: int = 3):
        super().__init__()
        self.nz = nz
        self.features = PointFeatures()
        self.layers = _Layers(2 + 2 * FREQUENCIES + nz, 2, num_timesteps, width, depth)

    def forward(self, x_t_plus_1: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return (N, 2, 1, 1) from (N, 2, 1, 1), (N,) int64 in [0, T) and (N, nz)."""
        return self.layers(torch.cat([self.features(x_t_plus_1), z], 1), t)[:, :, None, None]


class ToyDiscriminator(nn.Module):
    """Map a real or generated x_t to a logit, given x_{t+1} and t."""

    def __init__(self, num_timesteps: int, width: int, depth: int = 3):
        super().__init__()
        self.features = PointFeatures()
        self.layers = _Layers(2 + 2 * FREQUENCIES + 2, 1, num_timesteps, width, depth)

    def forward(self, x_t: Tensor, t: Tensor, x_t_plus_1: Tensor, y: Tensor | None = None, *, parts: int = 1) -> Tensor:
        """Return (N, 1) logits from (N, 2, 1, 1), (N,) and (N, 2, 1, 1); `y` and `parts` have no effect."""
        return self.layers(torch.cat([self.features(x_t), x_t_plus_1.flatten(1)], 1), t)


@dataclass(frozen=True)
class ToySettings:
    """Settings of a training; the names are those of the flags."""

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
    """Train a model of T steps by the image model's update, on new points of the mixture at every update.

    Returns:
        The generator with its EMA weights, its process, and `measure` of 2,500 samples every `eval_every` updates and
        at the end, each with its `step`.
    """
    rng.seed_default(seed, "weights")
    generator = ToyGenerator(num_timesteps, settings.nz, settings.width).to(device)
    discriminator = ToyDiscriminator(num_timesteps, settings.width).to(device)
    averaged = copy.deepcopy(generator)
    betas = settings.beta_min, settings.beta_max, settings.use_geometric
    process = DenoisingProcess(num_timesteps, *betas).to(device)
    ema = Ema(generator, settings.ema_decay, warm_up=True)
    options = {name: getattr(settings, name) for name in ("nz", "lr_g", "lr_d", "r1_gamma", "lazy_reg")}
    trainer = Trainer(generator, discriminator, process, ema, seed=seed, **options)
    history = []
    with bar(settings.max_steps, 0, f"T = {num_timesteps}, seed {seed}", "update") as progress:
        for step in range(settings.max_steps):
            trainer.set_learning_rates(step, settings.max_steps)
            trainer.update(draw_data(settings.batch_size, seed, step, "data", device=device), step)
            progress.update()
            if (step + 1) % settings.eval_every == 0 or step + 1 == settings.max_steps:
                averaged.load_state_dict(trainer.generator_weights())
                history.append({"step": step + 1, **measure(sample_points(averaged, process, 2500, seed))})
    return averaged, process, history


@torch.inference_mode()
def sample_points(generator: ToyGenerator, process: DenoisingProcess, count: int, seed: int) -> Tensor:
    """Sample (count, 2) float32 points in T steps."""
    noise = SampleNoise(seed, range(count), process.betas.device)
    return sample(noise, generator, process, generator.nz, (2, 1, 1)).flatten(1)
