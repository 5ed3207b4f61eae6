"""The digit classifier that counts the modes of StackedMNIST.

A small convolutional network, trained once on the training digits and cached below the data root. Its eleventh
class, no digit, is trained on noise, even surfaces and shuffled pieces of digits, so that such images count as no mode.
Two overlapping digits still count as one, as in published counts, which reject nothing.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from comparison import rng
from comparison.cli import data_root
from comparison.data.images import fingerprint
from comparison.data.stacked_mnist import SIZE, load_digits
from comparison.files import atomic, digest
from comparison.progress import bar

DIGITS = 10
NONE = DIGITS  # class of images without a digit
CONFIDENT = 0.5  # minimum probability of a digit that counts
EPOCHS, BATCH, RATE = 4, 128, 4e-3
VERSION = 1  # raise it with any change of network or training


class DigitClassifier(nn.Module):
    """Maps (N, 1, 32, 32) float in [0, 1] to (N, 11) logits, the last one for no digit."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, side, stride in ((1, 16, 5, 2), (16, 32, 3, 2), (32, 64, 3, 1)):
            conv = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, DIGITS + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class DigitCounter:
    """Reads the digits in the channels of images.

    Attributes:
        network: the classifier in eval mode.
        facts: test scores and fingerprints of data and weights, for metrics.json.
    """

    network: DigitClassifier
    facts: dict[str, Any]

    @torch.inference_mode()
    def digits(self, images: Tensor) -> Tensor:
        """Return the (N, C) int64 digits in the channels of (N, C, S, S) uint8 images, -1 for none."""
        device = next(self.network.parameters()).device
        x = images.to(device).float() / 255
        if x.shape[-1] != SIZE:
            x = functional.interpolate(x, size=(SIZE, SIZE), mode="area")
        chance, digit = self.network(x.flatten(0, 1)[:, None]).softmax(1).max(1)
        counts = (digit != NONE) & (chance >= CONFIDENT)
        return torch.where(counts, digit, -1).view(images.shape[:2]).cpu()

    def modes(self, images: Tensor) -> Tensor:
        """Return the (N,) int64 modes, 0 to 999, of (N, 3, S, S) uint8 images, -1 where a channel shows no digit."""
        digits = torch.cat([self.digits(part) for part in images.split(500)])
        return torch.where((digits >= 0).all(1), digits @ torch.tensor([100, 10, 1]), -1)


def load_counter(source: str = "stackmnist", device: torch.device | str = "cpu") -> DigitCounter:
    """Load the classifier of a source's digits from the data root, or train it, about a minute on a CPU.

    Raises:
        UserError: the digits are damaged, or missing and cannot be downloaded.
    """
    digits, labels = load_digits(source, "train")
    data = digest(f"{fingerprint(digits)} {labels.tolist()}")
    path = data_root() / "cache" / f"digits-{VERSION}-{data}.pt"
    network = DigitClassifier()
    try:
        saved = torch.load(path, weights_only=True)
        network.load_state_dict(saved["weights"])
        facts = dict(saved["facts"])
    except Exception:  # missing, or damaged: torch, zipfile and pickle each raise their own
        train(network, digits, labels)
        facts = {"name": "digit classifier", "training_fingerprint": data, **judge(network, source)}
        with contextlib.suppress(OSError):  # a full or read-only disk
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                torch.save({"weights": network.state_dict(), "facts": facts}, temporary)
    return DigitCounter(network.eval().to(device), facts)


def train(network: DigitClassifier, digits: Tensor, labels: Tensor) -> None:
    """Train on (N, 32, 32) uint8 digits and (N,) int64 labels, reproducibly on one machine."""
    rng.seed_default("digits", VERSION)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    batch = min(BATCH, len(digits))
    steps = len(digits) // batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    network.train()
    with bar(EPOCHS * steps, 0, "train the digit classifier", "steps") as progress:
        for step in range(EPOCHS * steps):
            epoch, position = divmod(step, steps)
            if not position:
                order = torch.randperm(len(digits), generator=rng.generator("cpu", "digits", epoch))
            numbers = order[position * batch : (position + 1) * batch]
            x = digits[numbers].float() / 255
            inputs = torch.cat([_augment(x, step), no_digits(x[: batch // 4], step)])
            targets = torch.cat([labels[numbers], torch.full((batch // 4,), NONE)])
            loss = functional.cross_entropy(network(inputs[:, None]), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update()
    network.eval()


def _augment(x: Tensor, step: int) -> Tensor:
    """Shift by up to 2 pixels and add faint noise, since generated digits are less clean than real ones."""
    generator = rng.generator("cpu", "digits", step, "varied")
    parts = x.chunk(8)  # each is shifted as a whole, for speed
    shifts = torch.randint(-2, 3, (len(parts), 2), generator=generator).tolist()
    shifted = torch.cat([part.roll(shift, (1, 2)) for part, shift in zip(parts, shifts, strict=True)])
    strength = 0.1 * torch.rand(len(x), 1, 1, generator=generator)
    return (shifted + strength * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def no_digits(x: Tensor, step: int) -> Tensor:
    """Return one image without a digit for each of (N, 32, 32) float digits in [0, 1].

    In turn: white noise, smooth noise, an even surface with faint noise, and the digit's 16 pieces in random order.
    """
    generator = rng.generator("cpu", "digits", step, "none")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    n, size = len(x), x.shape[-1]
    white = uniform(n, size, size)
    coarse = uniform(n, 1, 6, 6)
    smooth = functional.interpolate(coarse, size=(size, size), mode="bilinear")[:, 0]
    smooth = (smooth - 0.5) * (0.5 + 2.5 * uniform(n, 1, 1)) + uniform(n, 1, 1)
    even = uniform(n, 1, 1) + 0.2 * uniform(n, 1, 1) * (white - 0.5)
    pieces = x.unfold(1, 8, 8).unfold(2, 8, 8).reshape(n, 16, 8, 8)
    order = torch.argsort(uniform(n, 16), 1)[:, :, None, None].expand(-1, -1, 8, 8)
    cut = pieces.gather(1, order).view(n, 4, 4, 8, 8).permute(0, 1, 3, 2, 4).reshape(n, size, size)
    kinds = torch.stack([white, smooth.clamp(0, 1), even.clamp(0, 1), cut])
    return kinds[torch.arange(n) % len(kinds), torch.arange(n)]


def judge(network: DigitClassifier, source: str) -> dict[str, Any]:
    """Return accuracy and share of confident digits on the source's test digits, and the weights' fingerprint."""
    digits, labels = load_digits(source, "test")
    counter = DigitCounter(network, {})
    hits = accepted = 0
    with torch.inference_mode():
        for part, targets in zip(digits[:, None].split(500), labels.split(500), strict=True):
            hits += int((network(part.float() / 255)[:, :DIGITS].argmax(1) == targets).sum())
            accepted += int((counter.digits(part) >= 0).sum())
    weights = (name.encode() + tensor.numpy().tobytes() for name, tensor in network.state_dict().items())
    return {
        "test_images": len(labels),
        "test_accuracy": hits / len(labels),
        "test_confident": accepted / len(labels),
        "fingerprint": digest(f"{VERSION} {CONFIDENT}", *weights),
    }
