"""The Frechet Inception distance of Heusel et al. 2017: pytorch-fid's network with its published weights, or none.

Imports torch only inside functions, so that the script can judge --real_img_dir first.
"""

import hashlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from comparison.cli import UserError
from comparison.sources import check_source

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS}"
WEIGHTS_SHA256 = "6726825d"  # how the file's hash begins
BATCH = 50

Statistics = tuple[np.ndarray, np.ndarray]  # mean (D,) and covariance (D, D), float64


def check_reference(real: str) -> None:
    """Refuse a --real_img_dir from which no statistics can be had, before anything is drawn.

    Args:
        real: a data source of `comparison.sources`, an .npz with mu and sigma, or an .npy dictionary of them.

    Raises:
        UserError: one sentence.
    """
    if is_statistics(real):
        read_statistics(Path(real))
    else:
        check_source(real, "--real_img_dir")


def is_statistics(real: str) -> bool:
    """Tell whether a reference is a file of mean and covariance rather than images.

    Raises:
        UserError: such a file is named but missing or damaged.
    """
    path = Path(real)
    if path.suffix not in (".npz", ".npy"):
        return False
    if not path.is_file():
        raise UserError(f"--real_img_dir {real}: no such file")
    return path.suffix == ".npy" or "mu" in _npz_names(path)


def _npz_names(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return list(archive.files)
    except Exception as error:  # zipfile, struct and NumPy raise each their own on a damaged file
        raise UserError(f"--real_img_dir {path}: not readable as an .npz file ({error})") from None


def read_statistics(path: Path) -> Statistics:
    """Read mu (D,) and sigma (D, D) from an .npz, or from the published .npy dictionary.

    Raises:
        UserError: the file holds no such arrays.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                content = {name: archive[name] for name in ("mu", "sigma")}
        else:
            content = _read_dictionary(path)
        mu, sigma = (np.asarray(content[name], np.float64) for name in ("mu", "sigma"))
    except Exception as error:  # as many kinds of error as there are kinds of damage
        raise UserError(f"--real_img_dir {path}: holds no arrays mu and sigma ({error})") from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"--real_img_dir {path}: mu {mu.shape} and sigma {sigma.shape} are not a mean and covariance")
    return mu, sigma


class _ArraysOnly(pickle.Unpickler):
    """Loads NumPy arrays and plain types, so that a statistics file runs no code of its own."""

    def find_class(self, module: str, name: str) -> object:
        allowed = ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer")
        if (module.split(".")[0] == "numpy" and name in allowed) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused: {module}.{name}")


def _read_dictionary(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read_header(file)
        return _ArraysOnly(file, encoding="latin1").load().item()


def find_weights() -> Path:
    """Return pytorch-fid's weights from torch's cache, downloaded if possible, their hash checked.

    Raises:
        UserError: they are neither there nor to be had, or not what they should be.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(WEIGHTS_URL, str(path), hash_prefix=WEIGHTS_SHA256)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"--compute_fid: needs {WEIGHTS} in {path.parent} and could not download it ({error}); "
                f"put the file from {WEIGHTS_URL} there and run the command again"
            ) from None
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(WEIGHTS_SHA256):
        raise UserError(f"--compute_fid: {path} is damaged (SHA-256 {digest[:8]}...); delete it and run again")
    return path


def make_inception(device: "torch.device") -> "torch.nn.Module":
    """Build pytorch-fid's feature network, 2048 features per image, from checked weights.

    Raises:
        UserError: weights or package are missing.
    """
    find_weights()
    try:
        from pytorch_fid.inception import InceptionV3
    except ImportError:
        raise UserError("--compute_fid: needs the package pytorch-fid; pip install pytorch-fid") from None
    return InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval().to(device)


def image_statistics(images: "Tensor", inception: "torch.nn.Module", device: "torch.device") -> Statistics:
    """Return mean and covariance of the features of (N, 3, H, W) uint8 images."""
    import torch
    from comparison.progress import bar

    features = []
    with torch.inference_mode(), bar(len(images), 0, "features", "images") as progress:
        for part in images.split(BATCH):
            features.append(inception(part.to(device).float() / 255)[0].flatten(1).double().cpu().numpy())
            progress.update(len(part))
    values = np.concatenate(features)
    return values.mean(axis=0), np.cov(values, rowvar=False)


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Return the squared Frechet distance of two Gaussians (Dowson and Landau 1982, Eq. 4).

    The trace of the root of S1 S2 is the sum of the roots of the eigenvalues of R S2 R, where R R = S1: symmetric
    problems only, which need no correction for singular covariances.
    """
    (mean_1, cov_1), (mean_2, cov_2) = first, second
    values, vectors = np.linalg.eigh(cov_1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_2 @ root).clip(min=0)
    distance = np.square(mean_1 - mean_2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * np.sqrt(product).sum()
    return float(distance)
