"""Batches whose minibatch-stddev groups are those of their parts, so that the parts' mean gradient is theirs."""

import torch
from comparison import rng
from comparison.ranks import RankInfo
from ddgan.checkpoints import seeded_networks
from ddgan.draws import Batch, PairNoise
from ddgan.ema import Ema
from ddgan.process import DenoisingProcess
from ddgan.training import SINGLE_PROCESS, Trainer

CONFIG = {
    **{"image_size": 16, "num_channels": 3, "num_channels_dae": 8, "ch_mult": [1, 2], "num_res_blocks": 1},
    **{"attn_resolutions": [8], "nz": 4, "z_emb_dim": 8, "n_mlp": 1, "ngf": 2, "t_emb_dim": 8},
}
SHAPE = (3, 16, 16)
N = 8  # images of a part


def make_trainer(rank_info: RankInfo = SINGLE_PROCESS, **changes) -> Trainer:
    """A trainer of networks whose every layer matters; the published ones begin with layers of nearly zero."""
    generator, discriminator = seeded_networks(CONFIG, "small", seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for network in (generator, discriminator):
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    settings = {"seed": 0, "nz": 4, "lr_g": 1e-3, "lr_d": 1e-3, "r1_gamma": 1.0, "lazy_reg": 2, **changes}
    ema = Ema(generator, 0.9)
    return Trainer(generator, discriminator, DenoisingProcess(2), ema, rank_info=rank_info, **settings)


def images(number: int, n: int = N) -> torch.Tensor:
    return rng.normal((n, *SHAPE), "images", number)


def joint_batch(number: int) -> torch.Tensor:
    """The micro-batch of two processes."""
    return images(number, 2 * N)


def grouped_order(parts: int) -> torch.Tensor:
    """Numbers of the images of `parts` batches in one, so that each of its stddev groups is a group of one of them."""
    return torch.arange(parts * N).view(parts, 4, N // 4).transpose(0, 1).reshape(-1)


def draws(numbers: list[int], n: int, half: str) -> PairNoise:
    """The noise of some micro-batches of n images, one after another."""
    parts = [PairNoise((n, *SHAPE), 4, 2, (0, number, half), torch.device("cpu")) for number in numbers]
    for name in vars(parts[0]):
        setattr(parts[0], name, torch.cat([getattr(part, name) for part in parts]))
    return parts[0]


def let_draw(trainer: Trainer, numbers: list[int], n: int) -> Batch:
    """Let a trainer see micro-batches of n images as one, with their noise, in the grouped order; return that one."""
    order = grouped_order(len(numbers) * n // N)

    def draw(batch: Batch, half: str):
        noise = draws(numbers, n, half)
        for name in vars(noise):
            setattr(noise, name, getattr(noise, name)[order])
        return noise, *trainer.process.q_sample_pairs(batch.x_0, noise.t, noise.x_t, noise.x_t_plus_1)

    trainer._draw = draw
    return Batch(torch.cat([images(number, n) for number in numbers])[order], None, numbers[0])


def gradients(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])
