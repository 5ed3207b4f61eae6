"""Reference statistics: mean and covariance of Inception features, in the files that other tools write and read.

Imports NumPy only, so that a script can judge such a file before torch is loaded.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from comparison.cli import UserError
from comparison.files import atomic, digest

DIMENSIONS = 2048  # of the standard Inception's last pooling layer
ASYMMETRY = 1e-4  # relative; what single precision leaves of a symmetric matrix


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the Inception features of a reference set.

    Attributes:
        mu: (2048,) float64.
        sigma: (2048, 2048) float64, symmetric.
        name: of the file, without folder and suffix.
        fingerprint: 16 hexadecimal digits of the SHA-256 of both arrays.
        made_by: library and version whose network gave the features, None where the file does not say.
        images: number of images, None where the file does not say.
    """

    mu: np.ndarray = field(repr=False)
    sigma: np.ndarray = field(repr=False)
    name: str
    fingerprint: str
    made_by: str | None = None
    images: int | None = None

    def describe(self) -> dict[str, Any]:
        """Return what metrics.json says of the reference."""
        return {
            "kind": "statistics",
            "name": self.name,
            "n": self.images,
            "fingerprint": self.fingerprint,
            "made_by": self.made_by,
        }


def is_statistics(path: Path | str) -> bool:
    """Tell whether a path is a file of mean and covariance: an .npy, or an .npz that holds mu or sigma.

    A missing or damaged .npz is none; whoever reads it as images says what is wrong with it.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".npy") or not path.is_file():
        return False
    if path.suffix == ".npy":
        return True
    try:
        with np.load(path, allow_pickle=False) as archive:
            return bool({"mu", "sigma"} & set(archive.files))
    except Exception:  # zipfile, struct and NumPy raise each their own on a damaged file
        return False


def read_statistics(path: Path) -> Statistics:
    """Read mean and covariance.

    Args:
        path: an .npz with mu and sigma, as `python -m pytorch_fid --save-stats` and `write_statistics` write it, or an
            .npy with a pickled dictionary of them, as the statistics that come with DDGAN; no code in it is run.

    Raises:
        UserError: missing, damaged, or not the mean and covariance of 2048 features.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in (".npz", ".npy"):
        raise UserError(f"{path}: not a file of statistics, which end in .npz or .npy")
    try:
        content = _read_archive(path) if path.suffix == ".npz" else _read_dictionary(path)
        mu, sigma = (np.asarray(content[name], np.float64) for name in ("mu", "sigma"))
    except Exception as error:  # as many kinds of error as there are kinds of damage
        raise UserError(f"{path}: holds no readable arrays mu and sigma ({_one_line(error)})") from None
    if fault := _fault(mu, sigma):
        raise UserError(f"{path}: {fault}")
    made_by, images = content.get("made_by"), content.get("images")
    return Statistics(
        mu,
        sigma,
        path.stem,
        digest(mu.tobytes(), sigma.tobytes()),
        None if made_by is None else str(made_by),
        None if images is None else int(images),
    )


def write_statistics(
    path: Path, mu: np.ndarray, sigma: np.ndarray, *, made_by: str | None = None, images: int | None = None
) -> None:
    """Write mean and covariance atomically, as an .npz that pytorch-fid reads.

    Args:
        path: ends in .npz.
        mu: (2048,).
        sigma: (2048, 2048).
        made_by: library and version whose network gave the features.
        images: how many there were.

    Raises:
        ValueError: not the mean and covariance of 2048 features, or another suffix.
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
    """Say in a clause why two arrays are no mean and covariance of 2048 features, None where they are."""
    if mu.shape != (DIMENSIONS,) or sigma.shape != (DIMENSIONS, DIMENSIONS):
        wanted = f"({DIMENSIONS},) and ({DIMENSIONS}, {DIMENSIONS})"
        return f"mu {mu.shape} and sigma {sigma.shape} are not of the shapes {wanted}"
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "mu or sigma holds values that are not finite"
    if np.abs(sigma - sigma.T).max() > ASYMMETRY * np.abs(sigma).max() or (sigma.diagonal() < 0).any():
        return "sigma is not a covariance: not symmetric, or with variances below 0"
    return None


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _read_archive(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in ("mu", "sigma", "made_by", "images") if name in archive.files}


class _ArraysOnly(pickle.Unpickler):
    """Loads NumPy arrays and plain types, so that a statistics file runs no code of its own."""

    _PARTS = {  # noqa: RUF012
        "numpy": ("ndarray", "dtype"),
        "multiarray": ("_reconstruct", "scalar"),
        "numeric": ("_frombuffer",),
        "_codecs": ("encode",),
    }

    def find_class(self, module: str, name: str) -> object:
        part = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if name not in self._PARTS.get(part, ()):
            raise pickle.UnpicklingError(f"refused: {module}.{name}")
        return super().find_class(module, name)


def _read_dictionary(path: Path) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read_header(file)
        content = _ArraysOnly(file, encoding="latin1").load().item()
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not a dictionary")
    return content
