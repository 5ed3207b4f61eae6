"""Measurements during training: whether the discriminator memorizes its training images, and the offline score.

They change no weight, running statistic or random number of the training.
"""

import numpy as np
import torch
from comparison import rng
from comparison.data.images import ImageSet, from_uint8, to_uint8
from comparison.scores import features
from comparison.scores.metrics import frechet_from, moments
from comparison.scores.neighbours import radii, squared_distances
from torch import Tensor
from torch.func import functional_call

from .build import Network
from .sampling import sample_in_eval_mode
from .training import GAN, mean_probability


class HeldOutProbe:
    """Compare the discriminator's logits of training images and of held-out images.

    A growing gap indicates that the discriminator overfits (Karras et al. 2020, "Training generative adversarial
    networks with limited data", section 2).

    Args:
        held_out: (M, 3, S, S) uint8.
        seed: seed of the random order of the held-out images.
    """

    def __init__(self, held_out: Tensor, seed: int):
        self.held_out, self.seed = held_out, seed

    @torch.no_grad()
    def __call__(self, gan: GAN, real: Tensor, step: int) -> dict[str, float]:
        """Evaluate the discriminator on held-out images and on the training images, under the same augmentation.

        Batch norm normalizes each set by itself, as in training.

        Args:
            gan: networks after the update.
            real: (n, C, S, S) float32, training images of the update.
            step: updates before that one.

        Returns:
            d_held_out, the mean sigmoid of the held-out logits, and gap, the mean training logit minus the mean
            held-out logit; {} if there are too few images.
        """
        count = min(len(real), len(self.held_out))
        if count < 2:
            return {}
        order = torch.randperm(len(self.held_out), generator=rng.generator("cpu", self.seed, step, "held out"))
        held_out = from_uint8(self.held_out[order[:count]].to(real.device))
        logits_real, logits_held_out = (
            _probe_logits(gan, gan.augment_batch(images, step, "probe")).float() for images in (real[:count], held_out)
        )
        gap = logits_real.mean() - logits_held_out.mean()
        return {"d_held_out": mean_probability(logits_held_out).item(), "gap": gap.item()}


def _probe_logits(gan: GAN, images: Tensor) -> Tensor:
    """Return the (N,) logits in training mode, computed on copies of the buffers that are then discarded."""
    buffers = {name: buffer.clone() for name, buffer in gan.discriminator.named_buffers()}
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, dtype=gan.dtype, enabled=gan.dtype is not None):
        return functional_call(gan.discriminator, buffers, (images,))


class Scorer:
    """Offline score of a generator from few samples: the features of results/evaluate.py, without intervals.

    Args:
        data: training images; a random subset is the reference.
        count: number of samples and of reference images, at least `metrics.MIN_IMAGES` and at most len(data).
        seed: seed of the reference subset and of the noise, which is the same for every score.
        device: device of the networks.
        batch_size: samples per batch.
    """

    def __init__(self, data: ImageSet, count: int, seed: int, device: torch.device, batch_size: int):
        self.count, self.seed, self.device, self.batch_size = min(count, len(data)), seed, device, batch_size
        order = np.random.Generator(np.random.PCG64([seed, 0])).permutation(len(data))[: self.count]
        subset = data.images[torch.from_numpy(np.sort(order))]
        self._extractor = features.make_extractor(features.choose_key("auto", data), device)
        embedded = self._embed(subset)
        self._scale = features.Scale.of(embedded)
        self._reference = self._scale(embedded)
        self._distance = frechet_from(*moments(self._reference))
        self._radii = radii(self._reference)

    def __call__(self, generator: Network, dtype: torch.dtype | None) -> dict[str, float]:
        """Score a generator; its mode and random state do not change.

        Returns:
            frechet_distance (Heusel et al. 2017, Eq. 6, in these features) and coverage (Naeem et al. 2020, Eq. 6),
            the fraction of reference images that have a sample within the distance of their fifth neighbor.
        """
        parts = []
        for start in range(0, self.count, self.batch_size):
            indices = range(start, min(start + self.batch_size, self.count))
            parts.append(to_uint8(sample_in_eval_mode(generator, indices, self.seed, self.device, dtype)).cpu())
        samples = self._scale(self._embed(torch.cat(parts)))
        covered = torch.zeros(len(self._reference), dtype=torch.bool)
        for part in samples.split(512):
            covered |= (squared_distances(part, self._reference) <= self._radii).any(0)
        return {"frechet_distance": self._distance(*moments(samples)), "coverage": covered.double().mean().item()}

    def _embed(self, images: Tensor) -> Tensor:
        parts = images.split(features.batch_size(self._extractor, images.shape[-1]))
        return torch.cat([self._extractor(part) for part in parts])
