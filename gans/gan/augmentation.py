"""DiffAugment: the same random changes to real and generated images, differentiable for the generator.

Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training", section 3.2 and appendix: real images,
the fakes of the discriminator's update and the fakes of the generator's update are changed by independent draws.
"""

import torch
from comparison import rng
from torch import Tensor

from .options import AUGMENTATIONS

MAX_SHIFT = 1 / 8  # fraction of the image size
HOLE = 1 / 2  # side of the square, fraction of the image size


class DiffAugment:
    """Random color, translation and cutout; a function of (seed, step, name, index in the global batch).

    Args:
        policy: comma-separated kinds among color, translation and cutout.
        seed: seed of the draws.
        batch_size: size of the global batch, for which numbers are drawn.
        rows: this rank's rows of the global batch.
    """

    def __init__(self, policy: str, seed: int, batch_size: int, rows: slice):
        self.kinds = policy.split(",")
        self.seed, self.batch_size, self.rows = seed, batch_size, rows

    def __call__(self, images: Tensor, step: int, name: str, probability: Tensor | None = None) -> Tensor:
        """Change each image by its own draws.

        Args:
            images: (n, C, S, S) in [-1, 1], the first n of this rank's rows.
            step: updates before this one.
            name: name of the batch, such as "real"; each name has its own draws.
            probability: () float32, with which each kind changes an image; None for always.

        Returns:
            (n, C, S, S) float32; color makes it unbounded, translation and cutout fill with 0.
        """
        # Always seven numbers per image, so that leaving out a kind does not change the draws of the other kinds.
        generator = rng.generator("cpu", self.seed, step, name, "diffaugment")
        u = torch.rand(self.batch_size, 7, generator=generator)[self.rows][: len(images)].to(images.device)
        x = images.float()
        size = x.shape[-1]
        shift = int(size * MAX_SHIFT + 0.5)
        changes = {
            "color": lambda x: change_colors(x, *u[:, :3].unbind(1)),
            "translation": lambda x: translate(x, *_integers(u[:, 3:5], -shift, shift).unbind(1)),
            "cutout": lambda x: cut_out(x, *_integers(u[:, 5:7], 0, size - 1).unbind(1)),
        }
        changes = {kind: change for kind, change in changes.items() if kind in self.kinds}
        if probability is None:
            for change in changes.values():
                x = change(x)
            return x
        generator = rng.generator("cpu", self.seed, step, name, "diffaugment probability")
        u_kinds = torch.rand(self.batch_size, len(AUGMENTATIONS), generator=generator)[self.rows][: len(images)]
        changed = u_kinds.to(images.device) < probability
        for kind, change in changes.items():
            x = torch.where(changed[:, AUGMENTATIONS.index(kind), None, None, None], change(x), x)
        return x


def change_colors(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Change each image's brightness, then its saturation, then its contrast.

    Zhao et al. 2020, appendix A: brightness is shifted by U[-0.5, 0.5), saturation is multiplied by U[0, 2), contrast
    by U[0.5, 1.5). The three steps together are one weighted sum of the image, its grey version and its mean.

    Args:
        x: (N, C, H, W) float32.
        brightness, saturation, contrast: (N,) float32 in [0, 1); 0.5 changes nothing.

    Returns:
        (N, C, H, W) float32.
    """
    factors = torch.stack([brightness - 0.5, 2 * saturation, contrast + 0.5])
    added, stretch, spread = factors[..., None, None, None]
    grey = x.mean(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    return spread * stretch * x + (spread * (1 - stretch) * grey + (1 - spread) * mean + added)


def translate(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift each (N, C, H, W) image by its (N,) int64 pixels down and right; empty pixels become 0.

    Implemented as products with 0/1 matrices: exact (except for a GPU's TF32), and the gradient needs no scatter-add,
    which is slow on CPUs and has no fixed order on GPUs.
    """
    rows, columns = _shift_matrices(x.shape[2], down, x), _shift_matrices(x.shape[3], right, x)
    return torch.einsum("nij,ncjk,nlk->ncil", rows, x, columns)


def cut_out(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Set a square of half the image's side to 0 in each (N, C, H, W) image, clipped at the border.

    `row` and `column` are the (N,) int64 centers.
    """
    inside = [
        (torch.arange(size, device=x.device) - center[:, None] + int(size * HOLE) // 2) // max(int(size * HOLE), 1) == 0
        for size, center in ((x.shape[2], row), (x.shape[3], column))
    ]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x * ~hole


def _integers(u: Tensor, low: int, high: int) -> Tensor:
    """Map U[0, 1) to integers in [low, high]."""
    return (u * (high - low + 1)).long().clamp(max=high - low) + low


def _shift_matrices(size: int, shift: Tensor, like: Tensor) -> Tensor:
    """Return (N, size, size) 0/1 matrices that shift a column vector by (N,) positions."""
    positions = torch.arange(size, device=like.device)
    return (positions[:, None] - positions == shift[:, None, None]).to(like.dtype)
