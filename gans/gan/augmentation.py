"""DiffAugment: the same random changes to real and generated images, differentiable, so that the generator learns
through them.

Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training", section 3.2 and appendix: T is applied
to the real images, to the fakes of the discriminator's update and to those of the generator's update, each with its
own draws.
"""

import torch
from comparison import rng
from torch import Tensor

from .options import AUGMENTATIONS

SHIFT = 1 / 8  # of the image size, at most
HOLE = 1 / 2  # of the image size, a side of the square


class DiffAugment:
    """Random changes of colour, place and completeness, a function of (seed, step, name, place in the global batch).

    Args:
        policy: kinds of change separated by commas, of color, translation and cutout.
        seed: of the draws.
        batch_size: of the global batch, for which is drawn.
        rows: of the global batch that are this process's.

    Raises:
        ValueError: the policy names another kind.
    """

    def __init__(self, policy: str, seed: int, batch_size: int, rows: slice):
        self.kinds = policy.split(",")
        if wrong := [kind for kind in self.kinds if kind not in AUGMENTATIONS]:
            raise ValueError(f"policy must list {', '.join(AUGMENTATIONS)}, not {wrong[0]!r}")
        self.seed, self.batch_size, self.rows = seed, batch_size, rows

    def __call__(self, images: Tensor, step: int, name: str) -> Tensor:
        """Change each image in its own way.

        Args:
            images: (n, C, S, S) in [-1, 1], the first n of this process's rows.
            step: updates done before this one.
            name: of the batch, such as "real": other names, other draws.

        Returns:
            (n, C, S, S) float32, unbounded where colours change; what lies outside or is cut out is 0.
        """
        # Seven draws an image, whatever the policy: a kind that is left out does not change the others' draws.
        generator = rng.generator("cpu", self.seed, step, name, "diffaugment")
        u = torch.rand(self.batch_size, 7, generator=generator)[self.rows][: len(images)].to(images.device)
        x = images.float()
        if "color" in self.kinds:
            x = change_colours(x, *u[:, :3].unbind(1))
        if "translation" in self.kinds:
            x = translate(x, *_integers(u[:, 3:5], -_shift(x), _shift(x)).unbind(1))
        if "cutout" in self.kinds:
            x = cut_out(x, *_integers(u[:, 5:7], 0, x.shape[-1] - 1).unbind(1))
        return x


def change_colours(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add to each image's brightness, then stretch its colours about grey, then all values about their mean.

    Zhao et al. 2020, appendix A: brightness moves by U[-0.5, 0.5), saturation multiplies by U[0, 2), contrast by
    U[0.5, 1.5); the three steps are one weighted sum of the image, its grey picture and its mean.

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
    """Move each image by whole pixels; 0 comes in from outside.

    A product with a matrix of zeros and ones on either side: exact (but for a GPU's TF32), and its gradient needs no
    scattered addition, which is slow on CPUs and in random order on GPUs.

    Args:
        x: (N, C, H, W) float32.
        down, right: (N,) int64 pixels.

    Returns:
        (N, C, H, W) float32.
    """
    rows, columns = _moves(x.shape[2], down, x), _moves(x.shape[3], right, x)
    return torch.einsum("nij,ncjk,nlk->ncil", rows, x, columns)


def cut_out(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Set a square of half the image's side, centred at a pixel and cut at the border, to 0.

    Args:
        x: (N, C, H, W) float32.
        row, column: (N,) int64, the centres.

    Returns:
        (N, C, H, W) float32.
    """
    inside = [
        (torch.arange(size, device=x.device) - centre[:, None] + int(size * HOLE) // 2) // max(int(size * HOLE), 1) == 0
        for size, centre in ((x.shape[2], row), (x.shape[3], column))
    ]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x * ~hole


def _shift(x: Tensor) -> int:
    return int(x.shape[-1] * SHIFT + 0.5)


def _integers(u: Tensor, low: int, high: int) -> Tensor:
    """Map U[0, 1) to whole numbers from low to high, both included."""
    return (u * (high - low + 1)).long().clamp(max=high - low) + low


def _moves(size: int, by: Tensor, like: Tensor) -> Tensor:
    """Return (N, size, size) matrices of 0 and 1 that move a column of numbers by (N,) places."""
    places = torch.arange(size, device=like.device)
    return (places[:, None] - places == by[:, None, None]).to(like.dtype)
