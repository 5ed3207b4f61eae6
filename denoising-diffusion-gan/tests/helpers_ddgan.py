"""What the tests of this folder share: reference arrays, weights by recipe, a tiny run."""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ddgan.discriminator import Discriminator
from ddgan.generator import Generator
from ddgan.nvlabs import Entry, _generator_entries, _layer, _translate, rename
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1]
REFERENCE = FOLDER.parent / "tests" / "reference"

TINY_NETWORK = [
    *("--image_size", "16", "--num_channels_dae", "8", "--ch_mult", "1", "2", "--num_res_blocks", "1"),
    *("--attn_resolutions", "8", "--nz", "4", "--z_emb_dim", "8", "--n_mlp", "1", "--num_timesteps", "2"),
]
TINY_TRAINING = [
    *("--ngf", "2", "--t_emb_dim", "8", "--batch_size", "8", "--lazy_reg", "2", "--use_ema", "--ema_decay", "0.9"),
    *("--device", "cpu", "--precision", "float32", "--threads", "1", "--dropout", "0.1", "--log_interval", "2"),
]


def archive(name: str) -> np.lib.npyio.NpzFile:
    return np.load(REFERENCE / name, allow_pickle=False)


def config_of(arrays: np.lib.npyio.NpzFile, case: str) -> dict:
    return json.loads(str(arrays[f"{case}/config"]))


def weights_by_recipe(arrays: np.lib.npyio.NpzFile, case: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Fill every published name as the reference's README says."""
    state = {}
    for name, shape in json.loads(str(arrays[f"{case}/names"])).items():
        value = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
        if len(shape) >= 2:
            value = value / math.sqrt(np.prod(shape[1:]))
        else:
            value = 0.1 * value + (1.0 if name.endswith("weight") else 0.0)
        state[prefix + name] = torch.tensor(value, dtype=torch.float32)
    return state


def published_state(network: torch.nn.Module, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """Return a network's weights under the names that NVlabs's code saves."""
    entries = _generator_entries(network) if isinstance(network, Generator) else discriminator_entries(network)
    return {prefix + name.removeprefix("module."): v for name, v in rename(network.state_dict(), entries).items()}


def discriminator_entries(discriminator: Discriminator) -> Iterator[Entry]:
    yield from _layer("time_in", "t_embed.main.0")
    yield from _layer("time_out", "t_embed.main.2")
    yield from _layer("conv_in", "start_conv")
    for number, _ in enumerate(discriminator.blocks):
        here, there = f"blocks.{number}", f"conv{number + 1}"
        yield from _layer(f"{here}.conv_in", f"{there}.conv1.0")
        yield from _layer(f"{here}.conv_out", f"{there}.conv2.0")
        yield from _layer(f"{here}.time", f"{there}.dense_t1")
        yield from _layer(f"{here}.shortcut", f"{there}.skip.0", bias=False)
    yield from _layer("conv_out", "final_conv")
    yield from _layer("head", "end_linear")


def discriminator_from_nvlabs(state: dict[str, torch.Tensor], config: dict) -> Discriminator:
    """Load a published discriminator; `nc` of the configuration counts the channels of both images."""
    size = config["cls"].removeprefix("Discriminator_")
    discriminator = Discriminator(size, config["nc"] // 2, config["ngf"], config["t_emb_dim"])
    discriminator.load_state_dict(_translate(state, discriminator_entries(discriminator)))
    return discriminator


def make_images(folder: Path, count: int = 20) -> Path:
    """Write a folder of small pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        picture = np.full((16, 16, 3), rng.integers(256, size=3), np.uint8)
        picture[4:12, 4:12] = rng.integers(256, size=3)
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return folder
