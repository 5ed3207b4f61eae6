"""The Frechet Inception distance of Heusel et al. 2017 for test_ddgan.py: pytorch-fid's network with checked weights.

Imports torch only inside functions, so that the script can judge --real_img_dir first.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from comparison.cli import UserError
from comparison.data.sources import check_source
from comparison.scores.inception import check_weights, embed, find_weights, image_statistics, require
from comparison.scores.statistics import Statistics, is_statistics, read_statistics

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PART = 2000  # images of a set on disk that are decoded at a time


def check_reference(real: str) -> Statistics | None:
    """Refuse a --real_img_dir from which no statistics can be had, before anything is drawn.

    Args:
        real: a data source of `comparison.data.sources`, an .npz with mu and sigma, or an .npy dictionary of them.

    Returns:
        The statistics, or None for a source of images.

    Raises:
        UserError: one sentence.
    """
    if not is_statistics(real):
        check_source(real, "--real_img_dir")
        return None
    try:
        return read_statistics(Path(real))
    except UserError as error:
        raise UserError(f"--real_img_dir {error}") from None


def frechet_inception_distance(
    images: "Tensor", real: str, image_size: int, weights: Path | None, device: "torch.device"
) -> float:
    """Return the FID of (N, 3, S, S) uint8 images, N > 1, against --real_img_dir.

    Args:
        images: the samples.
        real: as for `check_reference`.
        image_size: S, pixels; real images of another size are resized to it.
        weights: of the standard Inception; None looks in torch's cache, then downloads them.
        device: of the Inception passes.

    Raises:
        UserError: the package or the weights are missing, or the weights are not the standard ones.
    """
    import torch
    from comparison.data.folders import FileSet
    from comparison.data.images import open_images
    from comparison.scores.metrics import frechet, moments

    require("pytorch-fid")
    weights = find_weights(weights)

    def statistics(part: "Tensor") -> tuple[torch.Tensor, torch.Tensor]:
        return image_statistics(part, "pytorch-fid", weights=weights, device=device)

    given = check_reference(real)
    if given is not None:
        reference = torch.from_numpy(given.mu), torch.from_numpy(given.sigma)
    elif isinstance(data := open_images(real, image_size), FileSet):  # more than memory holds
        check_weights(weights)
        parts = torch.arange(len(data)).split(PART)
        reference = moments(torch.cat([embed(data.pick(part), "pytorch-fid", weights, device)[0] for part in parts]))
    else:
        reference = statistics(data.images)
    return frechet(*statistics(images), *reference)
