"""A small MNIST, drawn with a font, in the layout of the published files."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def draw_digits(labels, seed=0):
    """Return (N, 28, 28) uint8 digits, white on black, at random places and sizes."""
    rng = np.random.default_rng(seed)
    fonts = [ImageFont.load_default(size) for size in (18, 20, 22)]
    pictures = np.empty((len(labels), 28, 28), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        canvas = Image.new("L", (28, 28))
        place = (14 + rng.integers(-2, 3), 14 + rng.integers(-2, 3))
        ImageDraw.Draw(canvas).text(place, str(label), 255, fonts[rng.integers(3)], anchor="mm")
        picture[:] = np.asarray(canvas)
    return pictures


def write_mnist(root, train=60, test=30):
    """Write both splits below a data root; return their labels."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    written = {}
    for name, count in (("train", train), ("t10k", test)):
        labels = np.random.default_rng(count).permutation(np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", draw_digits(labels, count)), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())
        written["test" if name == "t10k" else name] = labels
    return written
