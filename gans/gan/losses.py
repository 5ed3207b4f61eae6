"""GAN losses on logits, and the R1 gradient penalty."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Labels of (real, fake) images. Salimans et al. 2016, section 3.4, recommend one-sided smoothing: smoothing the fake
# label as well moves the optimal discriminator towards fakes where there is no data.
LABELS = {"none": (1.0, 0.0), "one_sided": (0.9, 0.0), "two_sided": (0.9, 0.1)}


def bce_discriminator_loss(logits_real: Tensor, logits_fake: Tensor, label_smoothing: str = "none") -> Tensor:
    """Compute the discriminator's cross entropy, summed over the real and the fake half.

    Goodfellow et al. 2014, Eq. 1; label smoothing: Salimans et al. 2016, section 3.4.

    Args:
        logits_real: (N,) logits of real images.
        logits_fake: (M,) logits of generated images.
        label_smoothing: "none" (labels 1 and 0), "one_sided" (0.9 and 0) or "two_sided" (0.9 and 0.1).

    Returns:
        () float32, in nats; 2 ln 2 for logits of 0.

    Raises:
        ValueError: label_smoothing has another value.
    """
    label_real, label_fake = _labels(label_smoothing)
    return _cross_entropy(logits_real, label_real) + _cross_entropy(logits_fake, label_fake)


def bce_generator_loss(logits_fake: Tensor, label_smoothing: str = "none") -> Tensor:
    """Compute the generator's non-saturating loss; its target is the discriminator's label for real images.

    Goodfellow et al. 2014, section 3.

    Args:
        logits_fake: (N,) logits of generated images.
        label_smoothing: see `bce_discriminator_loss`.

    Returns:
        () float32, in nats; ln 2 for logits of 0.

    Raises:
        ValueError: label_smoothing has another value.
    """
    label_real, _ = _labels(label_smoothing)
    return _cross_entropy(logits_fake, label_real)


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Compute the discriminator's hinge loss, with margins 1 for real and -1 for generated images.

    Lim & Ye 2017, "Geometric GAN", Eq. 18; Miyato et al. 2018, Eq. 16.

    Args:
        logits_real: (N,) logits of real images.
        logits_fake: (M,) logits of generated images.

    Returns:
        () float32, summed over both halves; 2 for logits of 0.
    """
    return F.relu(1 - logits_real.float()).mean() + F.relu(1 + logits_fake.float()).mean()


def hinge_generator_loss(logits_fake: Tensor) -> Tensor:
    """Compute the generator's loss beside a hinge discriminator, () float32: the negated mean of the (N,) logits.

    Lim & Ye 2017, Eq. 19; Miyato et al. 2018, Eq. 17.
    """
    return -logits_fake.float().mean()


def r1_penalty(logits_real: Tensor, real: Tensor, gamma: float) -> Tensor:
    """Compute the penalty on the discriminator's gradient at real images, gamma / 2 E ||grad D(x)||^2.

    Mescheder et al. 2018, "Which training methods for GANs do actually converge?", Eq. 9.

    Args:
        logits_real: (N,) logits, computed from `real` with a graph.
        real: (N, C, H, W), requires a gradient.
        gamma: weight.

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
    logits = logits.float()  # bf16 has too few bits of mantissa for the mean of a batch
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
