"""Losses of the two players, on logits, and the gradient penalty."""

import torch
import torch.nn.functional as F
from torch import Tensor

# What the discriminator is asked to answer for (real, fake).
# One-sided smoothing is what Salimans et al. 2016, section 3.4, recommend; smoothing the fake side as well
# pulls the optimal discriminator towards fakes where the data is absent.
LABELS = {"none": (1.0, 0.0), "one_sided": (0.9, 0.0), "two_sided": (0.9, 0.1)}


def bce_discriminator_loss(logits_real: Tensor, logits_fake: Tensor, label_smoothing: str = "none") -> Tensor:
    """Compute the discriminator's cross entropy, summed over the real and the fake half.

    Goodfellow et al. 2014, Eq. 1; label smoothing: Salimans et al. 2016, section 3.4.

    Args:
        logits_real: (N,) scores of real images.
        logits_fake: (M,) scores of generated images.
        label_smoothing: "none" (labels 1 and 0), "one_sided" (0.9 and 0) or "two_sided" (0.9 and 0.1).

    Returns:
        () float32, in nats; 2 ln 2 for a discriminator that cannot tell.

    Raises:
        ValueError: label_smoothing has another value.
    """
    label_real, label_fake = _labels(label_smoothing)
    return _cross_entropy(logits_real, label_real) + _cross_entropy(logits_fake, label_fake)


def bce_generator_loss(logits_fake: Tensor, label_smoothing: str = "none") -> Tensor:
    """Compute the non-saturating loss of the generator: its images should be scored as real.

    Goodfellow et al. 2014, section 3. The target is the discriminator's label for real images.

    Args:
        logits_fake: (N,) scores of generated images.
        label_smoothing: as for the discriminator.

    Returns:
        () float32, in nats; ln 2 for a discriminator that cannot tell.

    Raises:
        ValueError: label_smoothing has another value.
    """
    label_real, _ = _labels(label_smoothing)
    return _cross_entropy(logits_fake, label_real)


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Compute the discriminator's hinge loss: real images should score above 1, generated ones below -1.

    Lim & Ye 2017, "Geometric GAN", Eq. 18; Miyato et al. 2018, Eq. 16.

    Args:
        logits_real: (N,) scores of real images.
        logits_fake: (M,) scores of generated images.

    Returns:
        () float32, summed over both halves; 2 for a discriminator that answers 0 to all.
    """
    return F.relu(1 - logits_real.float()).mean() + F.relu(1 + logits_fake.float()).mean()


def hinge_generator_loss(logits_fake: Tensor) -> Tensor:
    """Compute the generator's loss in the hinge game: the mean score of its images, negated.

    Lim & Ye 2017, Eq. 19; Miyato et al. 2018, Eq. 17.

    Args:
        logits_fake: (N,) scores of generated images.

    Returns:
        () float32, unbounded.
    """
    return -logits_fake.float().mean()


def r1_penalty(logits_real: Tensor, real: Tensor, gamma: float) -> Tensor:
    """Compute the penalty on the discriminator's gradient at real images, gamma / 2 E ||grad D(x)||^2.

    Mescheder et al. 2018, "Which training methods for GANs do actually converge?", Eq. 9.

    Args:
        logits_real: (N,) scores, computed from `real` with a graph.
        real: (N, C, H, W), requires a gradient.
        gamma: the weight.

    Returns:
        () float32 with a graph to the discriminator's weights.
    """
    (gradient,) = torch.autograd.grad(logits_real.float().sum(), real, create_graph=True)
    return gamma / 2 * gradient.float().square().flatten(1).sum(1).mean()


def _labels(label_smoothing: str) -> tuple[float, float]:
    if label_smoothing not in LABELS:
        raise ValueError(f"label_smoothing must be one of {', '.join(LABELS)}, not {label_smoothing!r}")
    return LABELS[label_smoothing]


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    logits = logits.float()  # 8 bits of mantissa are too few to average a batch
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
