"""The 256-pixel configuration of LSUN church and CelebA-HQ, and the large discriminator, at a size for tests."""

import re
import shlex

import numpy as np
import pytest
import test_ddgan as sampling
import torch
import train_ddgan
from comparison.cli import UserError
from ddgan.checkpoints import make_generator
from ddgan.discriminator import Discriminator
from ddgan.options import check_architecture, defaults, discriminator_size
from helpers_ddgan import FOLDER, published_state

PAGE = (FOLDER.parent / "docs" / "ddgan.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python3.*--image_size 256.*$", PAGE, re.MULTILINE)
NAMES = ("num_timesteps", "batch_size", "num_epoch", "ema_decay", "r1_gamma", "lr_g")
RECIPES = {"lsun": (4, 8, 500, 0.999, 1.0, 1.6e-4), "celeba_256": (2, 4, 800, 0.9999, 2.0, 2e-4)}
CPU = ["--device", "cpu", "--precision", "float32", "--threads", "1"]
NARROW = ["--num_channels_dae", "8", "--ch_mult", "1", "1", "2", "2", "4", "4", "--num_res_blocks", "1"]
NARROW += ["--nz", "8", "--z_emb_dim", "8", "--n_mlp", "1"]


def commands(script):
    return [shlex.split(line.split(" > ")[0]) for line in COMMANDS if script in line]


@pytest.mark.parametrize("dataset", RECIPES)
def test_readme_has_the_published_recipe_and_it_builds_the_published_networks(dataset):
    (words,) = [words for words in commands("train_ddgan.py") if dataset in words]
    args = train_ddgan.parse_args(words[words.index("--dataset") :])
    assert tuple(getattr(args, name) for name in NAMES) == RECIPES[dataset]
    assert (args.lr_d, args.lazy_reg, args.use_ema, args.no_lr_decay) == (1e-4, 10, True, False)
    check_architecture(vars(args))
    size = discriminator_size(args.discriminator, args.image_size)
    with torch.device("meta"):
        generator = make_generator(vars(args))
        discriminator = Discriminator(size, args.num_channels, args.ngf, args.t_emb_dim)
    counts = [sum(p.numel() for p in network.parameters()) for network in (generator, discriminator)]
    assert counts == [39_726_979, 27_737_217]


def test_large_discriminator_is_taken_from_128_pixels_and_refused_below_64():
    assert [discriminator_size("auto", pixels) for pixels in (32, 64, 128, 256)] == ["small", "small", "large", "large"]
    with pytest.raises(UserError, match="--discriminator large"):
        check_architecture({**defaults(), "discriminator": "large"})


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_published_file_of_a_256_pixel_shape_is_sampled(prefix, tmp_path):
    config = {**defaults(), "image_size": 64, "num_channels_dae": 8, "ch_mult": [1, 1, 2, 2, 4, 4], "num_res_blocks": 1}
    config |= {"nz": 8, "z_emb_dim": 8, "n_mlp": 1, "num_timesteps": 2}
    torch.manual_seed(0)
    generator = make_generator(config).eval()
    for p in generator.parameters():
        torch.nn.init.normal_(p, std=0.2)
    torch.save(published_state(generator, prefix), tmp_path / "netG_1200.pth")
    common = ["--exp", f"{tmp_path}/", "--epoch_id", "1200", *NARROW, "--image_size", "64", *CPU, "--num_samples", "2"]
    assert sampling.main(sampling.parse_args([*common, "--num_timesteps", "2"])) == 0
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert images.shape == (2, 64, 64, 3)
    assert images.std() > 0
    with pytest.raises(UserError, match="do not fit the given flags"):
        sampling.main(sampling.parse_args([*common, "--ch_mult", "1", "1", "2", "2", "4", "2"]))
    with pytest.raises(UserError, match="published weights are unconditional"):
        sampling.main(sampling.parse_args([*common, "--class_cond"]))
