"""Frechet Inception distance (Heusel et al. 2017) for test_ddgan.py, by pytorch-fid's network with checked weights."""

from pathlib import Path

import torch
from comparison.data.folders import FileSet
from comparison.data.images import open_images
from comparison.scores.inception import check_weights, embed, find_weights, image_statistics, require
from comparison.scores.metrics import frechet, moments
from comparison.scores.statistics import is_statistics, read_statistics
from torch import Tensor

PART = 2000  # images decoded at a time from a set that does not fit in memory


def frechet_inception_distance(
    images: Tensor, real: str, image_size: int, weights: Path | None, device: torch.device
) -> float:
    """Return the FID of (N, 3, S, S) uint8 images, N > 1, against --real_img_dir.

    Args:
        images: samples.
        real: a data source, an .npz with mu and sigma, or an .npy dictionary of them.
        image_size: S, pixels; real images of another size are resized to it.
        weights: file of the standard Inception weights; None looks in torch's cache, then downloads them.
        device: device of the Inception passes.

    Raises:
        UserError: the package or the weights are missing, or the weights are not the standard ones.
    """
    require("pytorch-fid")
    weights = find_weights(weights)

    def statistics(part: Tensor) -> tuple[Tensor, Tensor]:
        return image_statistics(part, "pytorch-fid", weights=weights, device=device)

    if is_statistics(real):
        saved = read_statistics(Path(real))
        reference = torch.from_numpy(saved.mu), torch.from_numpy(saved.sigma)
    elif isinstance(data := open_images(real, image_size), FileSet):
        check_weights(weights)
        parts = torch.arange(len(data)).split(PART)
        reference = moments(torch.cat([embed(data.pick(part), "pytorch-fid", weights, device)[0] for part in parts]))
    else:
        reference = statistics(data.images)
    return frechet(*statistics(images), *reference)
