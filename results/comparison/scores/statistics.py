"""Reference statistics: mean and covariance of Inception features, in the file formats of pytorch-fid and DDGAN.

Imports no torch, so that scripts can check such a file first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from comparison.cli import UserError
from comparison.files import ArraysOnly, atomic, digest

DIMENSIONS = 2048  # features of the standard Inception's last pooling layer
ASYMMETRY = 1e-4  # relative tolerance, for covariances computed in single precision


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the Inception features of a reference set.

    Attributes:
        mu: (2048,) float64.
        sigma: (2048, 2048) float64, symmetric.
        name: file name without folder and suffix.
        fingerprint: 16 hexadecimal digits of the SHA-256 of both arrays.
        made_by: library and version of the network, None if unknown.
        images: number of images, None if unknown.
    """

    mu: np.ndarray = field(repr=False)
    sigma: np.ndarray = field(repr=False)
    name: str
    fingerprint: str
    made_by: str | None = None
    images: int | None = None

    def describe(self) -> dict[str, Any]:
        """Return the entry `reference` of metrics.json."""
        file = {"kind": "statistics", "name": self.name, "n": self.images}
        return {**file, "fingerprint": self.fingerprint, "made_by": self.made_by}


def is_statistics(path: Path | str) -> bool:
    """Return True if a path is a file of mean and covariance: an .npy, or a readable .npz with mu or sigma."""
    path = Path(path)
    if path.suffix not in (".npz", ".npy") or not path.is_file():
        return False
    if path.suffix == ".npy":
        return True
    try:
        with np.load(path, allow_pickle=False) as archive:
            return bool({"mu", "sigma"} & set(archive.files))
    except Exception:  # zipfile, struct and NumPy each raise their own on a damaged file
        return False


def read_statistics(path: Path) -> Statistics:
    """Read mean and covariance of 2048 features; no code in the file is run.

    Args:
        path: an .npz with mu and sigma, as written by `python -m pytorch_fid --save-stats` and `write_statistics`, or
            an .npy with a pickled dictionary of them, as published with DDGAN.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in (".npz", ".npy"):
        raise UserError(f"{path}: not a file of statistics (.npz or .npy)")
    try:
        content = _read_archive(path) if path.suffix == ".npz" else _read_dictionary(path)
        mu, sigma = (np.asarray(content[name], np.float64) for name in ("mu", "sigma"))
    except Exception as error:  # zipfile, pickle, struct and NumPy each raise their own
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{path}: holds no readable arrays mu and sigma ({reason})") from None
    if fault := _fault(mu, sigma):
        raise UserError(f"{path}: {fault}")
    made_by, images = content.get("made_by"), content.get("images")
    made_by, images = None if made_by is None else str(made_by), None if images is None else int(images)
    return Statistics(mu, sigma, path.stem, digest(mu.tobytes(), sigma.tobytes()), made_by, images)


def write_statistics(
    path: Path, mu: np.ndarray, sigma: np.ndarray, *, made_by: str | None = None, images: int | None = None
) -> None:
    """Write mean (2048,) and covariance (2048, 2048) atomically, as an .npz that pytorch-fid reads.

    Raises:
        ValueError: the arrays are no mean and covariance, or the path does not end in .npz.
        UserError: the file cannot be written.
    """
    mu, sigma = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if path.suffix != ".npz":
        raise ValueError(f"{path} must end in .npz: pytorch-fid takes everything else for a folder")
    if fault := _fault(mu, sigma):
        raise ValueError(fault)
    facts = {"made_by": made_by, "images": images}
    arrays = {"mu": mu, "sigma": sigma, **{k: np.asarray(v) for k, v in facts.items() if v is not None}}
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from None


def _fault(mu: np.ndarray, sigma: np.ndarray) -> str | None:
    """Return why two arrays are no mean and covariance of 2048 features, None if they are."""
    if mu.shape != (DIMENSIONS,) or sigma.shape != (DIMENSIONS, DIMENSIONS):
        wanted = f"({DIMENSIONS},) and ({DIMENSIONS}, {DIMENSIONS})"
        return f"mu {mu.shape} and sigma {sigma.shape} are not of the shapes {wanted}"
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "mu or sigma holds values that are not finite"
    if np.abs(sigma - sigma.T).max() > ASYMMETRY * np.abs(sigma).max() or (sigma.diagonal() < 0).any():
        return "sigma is not a covariance: not symmetric, or with variances below 0"
    return None


def _read_archive(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in ("mu", "sigma", "made_by", "images") if name in archive.files}


def _read_dictionary(path: Path) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read_header(file)
        content = ArraysOnly(file, encoding="latin1").load().item()
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not a dictionary")
    return content
