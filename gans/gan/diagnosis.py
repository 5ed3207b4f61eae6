"""What is watched while a GAN trains: whether the discriminator knows its images by heart, and the offline score.

Nothing here changes a weight, a running average or a random number of the training.
"""

import numpy as np
import torch
from comparison import rng
from comparison.data.images import ImageSet, from_uint8, to_uint8
from comparison.scores import features
from comparison.scores.metrics import MIN_IMAGES, frechet_from, moments
from comparison.scores.neighbours import radii, squared_distances
from torch import Tensor
from torch.func import functional_call

from .networks import Generator
from .sampling import draw_in_eval_mode
from .training import DCGAN, mean_probability, to_channels

COLLAPSED = 0.5  # of its best coverage


class Probe:
    """Asks the discriminator about images that it was never trained on.

    The gap between its answers to training images and to these is its overfitting: Karras et al. 2020, "Training
    generative adversarial networks with limited data", section 2, watch the same.

    Args:
        held_out: (M, 3, S, S) uint8.
        nc: colour channels of the networks.
        seed: of the order in which they are asked about.
        group: images per group of minibatch standard deviation, 0 for none.
    """

    def __init__(self, held_out: Tensor, nc: int, seed: int, group: int = 0):
        self.held_out, self.nc, self.seed, self.group = held_out, nc, seed, group

    @torch.no_grad()
    def __call__(self, gan: DCGAN, real: Tensor, step: int) -> dict[str, float]:
        """Compare held-out images with the training images of an update, under the same augmentation.

        Batch norm normalises each set by itself, as in training.

        Args:
            gan: with its discriminator as it is after the update.
            real: (n, C, S, S) float32, the update's training images.
            step: updates done before that one.

        Returns:
            d_held_out, the mean sigmoid of the logits of held-out images, and gap, the mean logit of the training
            images less theirs; nothing where the images are too few.
        """
        count = min(len(real), len(self.held_out))
        count -= count % self.group if self.group else 0
        if count < 2:
            return {}
        order = torch.randperm(len(self.held_out), generator=rng.generator("cpu", self.seed, step, "held out"))
        unseen = to_channels(from_uint8(self.held_out[order[:count]].to(real.device)), self.nc)
        logits_real, logits_unseen = (
            _ask(gan, gan.changed(images, step, "probe")).float() for images in (real[:count], unseen)
        )
        gap = logits_real.mean() - logits_unseen.mean()
        return {"d_held_out": mean_probability(logits_unseen).item(), "gap": gap.item()}


def _ask(gan: DCGAN, images: Tensor) -> Tensor:
    """Return the (N,) logits in training mode; only copies of the buffers take part, which are thrown away."""
    buffers = {name: buffer.clone() for name, buffer in gan.discriminator.named_buffers()}
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, dtype=gan.dtype, enabled=gan.dtype is not None):
        return functional_call(gan.discriminator, buffers, (images,))


class Scorer:
    """The offline score of a generator: few images, the features of results/evaluate.py, no interval.

    Args:
        data: the training images; some of them are the reference.
        count: images drawn, and of the reference; as many as there are training images at most.
        nc: colour channels of the networks.
        seed: of the reference's draw and of the noise, which is the same at every score.
        device: of the networks.
        batch_size: images drawn at a time.
    """

    def __init__(self, data: ImageSet, count: int, nc: int, seed: int, device: torch.device, batch_size: int):
        self.count, self.seed, self.device, self.batch_size = min(count, len(data)), seed, device, batch_size
        order = np.random.Generator(np.random.PCG64([seed, 0])).permutation(len(data))[: self.count]
        chosen = data.images[torch.from_numpy(np.sort(order))]
        if nc == 1:
            chosen = to_uint8(to_channels(from_uint8(chosen), 1).expand(-1, 3, -1, -1))
        self._extractor = features.make_extractor(features.choose_key("auto", data), device)
        raw = self._embed(chosen)
        self._scale = features.Scale.of(raw)
        self._reference = self._scale(raw)
        self._distance = frechet_from(*moments(self._reference))
        self._radii = radii(self._reference)

    @staticmethod
    def is_possible(images: int, count: int) -> bool:
        """Say whether so many training images and drawn ones are enough for a score."""
        return min(images, count) >= MIN_IMAGES

    def __call__(self, generator: Generator, dtype: torch.dtype | None) -> dict[str, float]:
        """Score a generator, whose mode and random numbers stay as they are.

        Returns:
            frechet_distance (Heusel et al. 2017, Eq. 6, in these features) and coverage (Naeem et al. 2020, Eq. 6),
            the share of reference images with a drawn one closer than their fifth neighbour.
        """
        parts = []
        for start in range(0, self.count, self.batch_size):
            indices = range(start, min(start + self.batch_size, self.count))
            parts.append(to_uint8(draw_in_eval_mode(generator, indices, self.seed, self.device, dtype)).cpu())
        found = self._scale(self._embed(torch.cat(parts)))
        covered = torch.zeros(len(self._reference), dtype=torch.bool)
        for part in found.split(512):
            covered |= (squared_distances(part, self._reference) <= self._radii).any(0)
        return {
            "frechet_distance": self._distance(*moments(found)),
            "coverage": covered.double().mean().item(),
        }

    def _embed(self, images: Tensor) -> Tensor:
        parts = images.split(features.batch_size(self._extractor, images.shape[-1]))
        return torch.cat([self._extractor(part) for part in parts])


def collapses(coverages: list[float]) -> tuple[float, bool]:
    """Judge the last of a run's coverages, in order.

    Returns:
        The best one so far, and whether the last one has just fallen below half of it: it says so once, until the
        coverage has recovered.
    """
    best, below, fell = 0.0, False, False
    for coverage in coverages:
        best = max(best, coverage)
        fell = not below and coverage < COLLAPSED * best
        below = coverage < COLLAPSED * best
    return best, fell
