"""The standard Inception network: its checked weights of 2015, and features by torch-fidelity and pytorch-fid.

The two libraries prepare images differently: 255 becomes 0.992 in torch-fidelity, as in the TensorFlow code of Heusel
et al. 2017, and 1 in pytorch-fid; resized pixels differ by half a pixel. Their FIDs therefore differ a little, and
reference statistics should come from the library that reads them.

Imports torch inside functions only, so that scripts can check --inception_weights first.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from unittest import mock

from comparison.cli import UserError, data_root
from comparison.progress import bar
from comparison.scores.statistics import DIMENSIONS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Library = Literal["torch-fidelity", "pytorch-fid"]
VERSIONS = {"torch-fidelity": "0.4.0", "pytorch-fid": "0.3.0"}  # as in requirements.txt

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_ELSEWHERE = "pt_inception-2015-12-05-6726825d.pth"  # pytorch-fid's name of the same file
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SHA256_PREFIX = "6726825d"  # first digits of the file's SHA-256
BATCH = 50
CACHE_FROM = 100  # fewer images are not cached; an Inception pass takes about 0.1 s per image on a CPU


def installed(library: Library) -> bool:
    """Return True if a library is installed, without importing it."""
    return importlib.util.find_spec(library.replace("-", "_")) is not None


def require(library: Library = "torch-fidelity") -> None:
    """Raise UserError if a library is not installed."""
    if not installed(library):
        raise UserError(f"the standard scores need the package {library}: pip install {library}=={VERSIONS[library]}")


def made_by(library: Library) -> str:
    """Return a library's name and version."""
    return f"{library} {metadata.version(library)}"


def find_weights(path: Path | None) -> Path:
    """Return the file of the standard Inception's weights, whose hash `check_weights` checks.

    Args:
        path: value of --inception_weights; None looks in torch's cache under the names of torch-fidelity and
            pytorch-fid, then downloads the file into it.

    Raises:
        UserError: the file is missing, or the download failed.
    """
    if path is not None:
        if not path.is_file():
            raise UserError(f"--inception_weights {path}: no such file")
        return path
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    folder = Path(home, "hub", "checkpoints").expanduser()
    for name in (WEIGHTS, WEIGHTS_ELSEWHERE):
        if (folder / name).is_file():
            return folder / name
    return _download(folder / WEIGHTS)


def _download(path: Path) -> Path:
    import torch

    print(f"downloading {WEIGHTS_URL}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(WEIGHTS_URL, str(path), hash_prefix=SHA256_PREFIX)
    except Exception as error:  # urllib, http.client, ssl and torch raise each their own
        raise UserError(
            f"the standard scores need the Inception weights, and the download failed ({error}): put {WEIGHTS} from "
            f"{WEIGHTS_URL} into {path.parent}, or name the file with --inception_weights"
        ) from None
    return path


def check_weights(path: Path, expected: str | None = None) -> str:
    """Return the SHA-256 of a weight file, 64 hexadecimal digits.

    Args:
        path: file of the weights.
        expected: required first digits of the hash; None for those of the standard Inception.

    Raises:
        UserError: the file has another hash, or is not readable.
    """
    expected = SHA256_PREFIX if expected is None else expected
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror or error})") from None
    if not digest.startswith(expected):
        raise UserError(
            f"{path}: not the standard Inception weights, or damaged: its SHA-256 begins {digest[:8]} instead of "
            f"{expected[:8]}; take {WEIGHTS} from {WEIGHTS_URL}"
        )
    return digest


def _network(library: Library, weights: Path, device: torch.device | str) -> Callable[[Tensor], tuple]:
    """Return a library's Inception: (N, 3, H, W) uint8 to (N, 2048), with torch-fidelity also (N, 1008) logits."""
    import torch

    if library == "torch-fidelity":
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        layers = [str(DIMENSIONS), "logits_unbiased"]
        network = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=weights)
        return network.to(device, memory_format=torch.channels_last)  # 1.6 times as fast on a CPU, equal to 1e-6

    from pytorch_fid import inception

    def checked_weights(*_: object, **__: object) -> dict[str, Tensor]:
        return torch.load(weights, map_location="cpu", weights_only=True)

    # pytorch-fid takes no path and checks no hash: the checked file replaces its download
    with mock.patch.object(inception, "load_state_dict_from_url", checked_weights):
        second = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[DIMENSIONS]])
    second.eval().to(device, memory_format=torch.channels_last)
    return lambda images: (second(images.float() / 255)[0].flatten(1),)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Turn TF32 off for convolutions and matrix products inside the `with` block."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def embed(
    images: Tensor, library: Library, weights: Path, device: torch.device | str = "cpu", desc: str = "Inception"
) -> list[Tensor]:
    """Map (N, 3, H, W) uint8 images to (N, 2048) float32 features, with torch-fidelity also (N, 1008) logits.

    The features are on the CPU. The weights must have passed `check_weights`.
    """
    import torch

    network = _network(library, weights, device)
    parts = []
    with torch.inference_mode(), full_float32(), bar(len(images), 0, desc, "images") as progress:
        for part in images.split(BATCH):
            parts.append([output.float().cpu() for output in network(part.to(device))])
            progress.update(len(part))
    return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


def embed_reference(images: Tensor, library: Library, weights: Path, digest: str, device: torch.device | str) -> Tensor:
    """Return the features of `embed`, from the cache below the data root if it holds them."""
    import torch

    from comparison.data.images import fingerprint, read_cache, write_cache

    desc = f"reference, {library}"
    if len(images) < CACHE_FROM:
        return embed(images, library, weights, device, desc)[0]
    name = f"inception-{made_by(library).replace(' ', '-')}-{digest[:16]}-{fingerprint(images)}.npy"
    path = data_root() / "cache" / name
    if (saved := read_cache(path, (len(images), DIMENSIONS))) is not None:
        return torch.from_numpy(saved)
    features = embed(images, library, weights, device, desc)[0]
    write_cache(path, features.numpy())
    return features


def image_statistics(
    images: Tensor,
    library: Library = "torch-fidelity",
    *,
    weights: Path,
    expected: str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return mean (2048,) and unbiased covariance (2048, 2048) of the features of (N, 3, H, W) uint8 images, float64.

    Raises:
        UserError: the weights fail `check_weights`, or the library is missing.
    """
    from comparison.scores.metrics import moments

    require(library)
    digest = check_weights(weights, expected)
    return moments(embed_reference(images, library, weights, digest, device))
