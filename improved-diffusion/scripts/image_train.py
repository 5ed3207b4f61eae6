#!/usr/bin/env python3
"""Train an improved diffusion model on a set of images.

    source flags.sh
    python improved-diffusion/scripts/image_train.py $MODEL_FLAGS $DIFFUSION_FLAGS $TRAIN_FLAGS

Without --data_dir it trains on the folder that improved-diffusion/datasets/cifar10.py writes. The same command
again continues the run. Into the run folder (--run_dir, else OPENAI_LOGDIR, else
results/runs/improved-diffusion/<data>-<image_size>) it writes config.json, log.txt, progress.csv, progress.json,
loss.png, grid_<step>.png, and checkpoints: model<step>.pt, ema_<rate>_<step>.pt, opt<step>.pt.

Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models".
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
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from remote import with_local_paths
from run_files import MODEL
from training_run import Task, add_train_options, train_network

if TYPE_CHECKING:
    import torch
    from comparison.data.folders import FileSet
    from comparison.data.images import ImageSet
    from comparison.rng import SampleNoise
    from improved_diffusion.respace import SpacedDiffusion


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; the network's and the process's flags are those of `model_and_diffusion_defaults`."""
    parser = make_parser(__doc__)
    add_dict_to_argparser(parser.add_argument_group("model and process"), model_and_diffusion_defaults())
    add_train_options(parser)
    return parser.parse_args(argv)


@with_local_paths
def main(args: argparse.Namespace) -> int:
    """Train."""
    return train_network(args, ImageTask(args))


class ImageTask(Task):
    """Images from noise.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.model = MODEL
        self.flags = args_to_dict(args, model_and_diffusion_defaults())
        self.image_size = args.image_size
        self.run_name = str(args.image_size)
        self.class_cond = args.class_cond

    def build(self, image_set: "ImageSet | FileSet") -> "tuple[torch.nn.Module, SpacedDiffusion]":
        """Make the network, with the classes of the data, and the process."""
        return create_model_and_diffusion(**self.flags, num_classes=len(image_set.class_names))

    def sample(
        self, network: "torch.nn.Module", noise: "SampleNoise", labels: "torch.Tensor | None", num_steps: int
    ) -> "torch.Tensor":
        """Draw by DDIM with eta 1: each step's noise washes out the errors that a young network made before it."""
        diffusion = create_diffusion({**self.flags, "timestep_respacing": f"ddim{num_steps}"})
        step_noise = partial(noise.normal, (3, self.image_size, self.image_size))
        x = step_noise("x_T")
        kwargs = {} if labels is None else {"y": labels}
        return diffusion.ddim_sample_loop(network, x.shape, x, model_kwargs=kwargs, eta=1.0, step_noise=step_noise)


if __name__ == "__main__":
    run(lambda: run_guarded(lambda: main(parse_args())))
