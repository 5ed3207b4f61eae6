"""What distill_train.py trains: the teacher's network, towards images in one to four evaluations."""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from comparison.cli import UserError
from comparison.data.folders import FileSet
from comparison.data.images import ImageSet
from comparison.rng import SampleNoise
from improved_diffusion.checkpoints import fill_network
from improved_diffusion.distillation import GridSampler, TrajectoryLoss
from improved_diffusion.few_steps import sample_few_steps
from improved_diffusion.respace import SpacedDiffusion
from model_loading import read_state
from torch import Tensor, nn
from train_network import ImageTask


class DistillTask(ImageTask):
    """Generate images in few evaluations.

    Args:
        flags: flags of the network and the process.
        teacher: file of the network to start from.
        few_step: `levels` by number of evaluations.
    """

    def __init__(self, flags: dict[str, Any], teacher: Path, few_step: dict[str, Any]) -> None:
        super().__init__(flags)
        self.teacher = teacher
        self.grids = {int(count): values for count, values in few_step["levels"].items()}

    def build(self, images: ImageSet | FileSet) -> tuple[nn.Module, SpacedDiffusion]:
        """Create the network with the teacher's weights, and its process."""
        model, self.diffusion = super().build(images)
        try:
            fill_network(model, read_state(self.teacher), str(self.teacher))
        except ValueError as error:
            raise UserError(str(error)) from None
        return model, self.diffusion

    def objective(
        self, args: argparse.Namespace, model: nn.Module, diffusion: SpacedDiffusion, dtype: torch.dtype | None
    ) -> tuple[Any, Any]:
        """Return the loss, and what takes the numbers of evaluations in turn."""
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        device = next(frozen.parameters()).device

        def teacher(*inputs: Tensor, **kwargs: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                return frozen(*inputs, **kwargs)

        loss = TrajectoryLoss(diffusion, teacher, self.grids, args.teacher_steps)
        return loss, GridSampler(loss.starts)

    def sample(self, network: nn.Module, noise: SampleNoise, labels: Tensor | None, num_steps: int) -> Tensor:
        """Return the images of a grid, (N, 3, S, S), of the most evaluations."""
        return sample_few_steps(
            network,
            self.diffusion,
            self.grids[max(self.grids)],
            noise.normal((3, self.size, self.size), "x_T"),
            model_kwargs={} if labels is None else {"y": labels},
        )
