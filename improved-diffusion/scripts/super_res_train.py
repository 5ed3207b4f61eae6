#!/usr/bin/env python3
"""Train a diffusion model that enlarges images.

    python improved-diffusion/scripts/super_res_train.py --data_dir path/to/images --large_size 64 --small_size 32 \\
        --num_channels 64 --learn_sigma True --noise_schedule cosine --batch_size 32

The network sees each image of large_size reduced by area to small_size, and learns to restore the large one. Options
and files are those of image_train.py; the run folder is --run_dir, else OPENAI_LOGDIR, else
results/runs/improved-diffusion-sr/<data>-<small_size>to<large_size>. In grid_<step>.png rows of eight follow each
other: small images, what the network makes of them, the originals.

Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models", section 5.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from comparison.cli import make_parser, run
from improved_diffusion.dist_util import run_guarded
from improved_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_diffusion,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from remote import with_local_paths
from training_run import Task, add_train_options, train_network

if TYPE_CHECKING:
    import torch
    from comparison.data.folders import FileSet
    from comparison.data.images import ImageSet
    from comparison.rng import SampleNoise
    from improved_diffusion.respace import SpacedDiffusion

MODEL = "improved-diffusion-sr"
COLUMNS = 8  # of the grids


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; the network's and the process's flags are those of `sr_model_and_diffusion_defaults`."""
    parser = make_parser(__doc__)
    add_dict_to_argparser(parser.add_argument_group("model and process"), sr_model_and_diffusion_defaults())
    add_train_options(parser)
    parser.set_defaults(grid_images=16)
    return parser.parse_args(argv)


@with_local_paths
def main(args: argparse.Namespace) -> int:
    """Train."""
    return train_network(args, SuperResTask(args))


class SuperResTask(Task):
    """Large images from small ones.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.model = MODEL
        self.flags = args_to_dict(args, sr_model_and_diffusion_defaults())
        self.image_size, self.small_size = args.large_size, args.small_size
        self.run_name = f"{args.small_size}to{args.large_size}"
        self.class_cond = args.class_cond
        self.grid_images = args.grid_images

    def build(self, image_set: "ImageSet | FileSet") -> "tuple[torch.nn.Module, SpacedDiffusion]":
        """Make the network, with the classes of the data, and the process; keep images for the grids."""
        import torch

        chosen = torch.linspace(0, len(image_set) - 1, self.grid_images).round().long()
        self.originals = image_set.pick(chosen)
        self.labels = None if image_set.labels is None else image_set.labels[chosen]
        return sr_create_model_and_diffusion(**self.flags, num_classes=len(image_set.class_names))

    def condition(self, x_start: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Return the batch reduced by area."""
        import torch.nn.functional as F

        return {"low_res": F.interpolate(x_start, self.small_size, mode="area")}

    def sample(
        self, network: "torch.nn.Module", noise: "SampleNoise", labels: "torch.Tensor | None", num_steps: int
    ) -> "torch.Tensor":
        """Enlarge by DDIM with eta 1; return rows of small images, enlarged ones and originals, in turn."""
        from comparison.data.images import from_uint8

        rows = slice(noise.indices.start, noise.indices.stop)
        originals = from_uint8(self.originals[rows].to(noise.device))
        condition = self.condition(originals)
        if labels is not None and self.labels is not None:  # not drawn ones: the images have theirs
            condition["y"] = self.labels[rows].to(noise.device)
        diffusion = create_diffusion({**self.flags, "timestep_respacing": f"ddim{num_steps}"})
        step_noise = partial(noise.normal, (3, self.image_size, self.image_size))
        x = step_noise("x_T")
        made = diffusion.ddim_sample_loop(network, x.shape, x, model_kwargs=condition, eta=1.0, step_noise=step_noise)
        return in_rows(enlarge(condition["low_res"], self.image_size), made, originals)


def enlarge(images: "torch.Tensor", size: int) -> "torch.Tensor":
    """Show (N, C, s, s) images at (N, C, size, size), each pixel as a square."""
    import torch.nn.functional as F

    return F.interpolate(images, size, mode="nearest")


def in_rows(*sets: "torch.Tensor") -> "torch.Tensor":
    """Lay out sets of (N, 3, S, S) images in [-1, 1] for `save_grid`: a row of each in turn, the last ones padded."""
    import torch

    pad = -len(sets[0]) % COLUMNS
    padded = [torch.cat([images, images.new_ones(pad, *images.shape[1:])]) for images in sets]
    return torch.cat([part for parts in zip(*(p.split(COLUMNS) for p in padded), strict=True) for part in parts])


if __name__ == "__main__":
    run(lambda: run_guarded(lambda: main(parse_args())))
