"""GAN losses on (N,) logits, and the R1 gradient penalty; every loss is () float32.

Cross entropy: Goodfellow et al. 2014, Eq. 1, with the non-saturating generator loss of section 3; in nats.
Hinge: Lim & Ye 2017, "Geometric GAN", Eqs. 18 and 19; Miyato et al. 2018, Eqs. 16 and 17.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Labels of (real, fake) images. Salimans et al. 2016, section 3.4, recommend one-sided smoothing: smoothing the fake
# label as well moves the optimal discriminator towards fakes where there is no data.
LABELS = {"none": (1.0, 0.0), "one_sided": (0.9, 0.0), "two_sided": (0.9, 0.1)}


def bce_discriminator_loss(logits_real: Tensor, logits_fake: Tensor, label_smoothing: str = "none") -> Tensor:
    """Compute the cross entropy, summed over the real and the fake half; 2 ln 2 for logits of 0."""
    label_real, label_fake = _labels(label_smoothing)
    return _cross_entropy(logits_real, label_real) + _cross_entropy(logits_fake, label_fake)


def bce_generator_loss(logits_fake: Tensor, label_smoothing: str = "none") -> Tensor:
    """Compute the non-saturating loss, the cross entropy with the label of real images; ln 2 for logits of 0."""
    label_real, _ = _labels(label_smoothing)
    return _cross_entropy(logits_fake, label_real)


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Compute the hinge loss with margins 1 and -1, summed over the real and the fake half; 2 for logits of 0."""
    return F.relu(1 - logits_real.float()).mean() + F.relu(1 + logits_fake.float()).mean()


def hinge_generator_loss(logits_fake: Tensor) -> Tensor:
    """Compute the generator's loss against a hinge discriminator: the negated mean logit."""
    return -logits_fake.float().mean()


def r1_penalty(logits_real: Tensor, real: Tensor, gamma: float) -> Tensor:
    """Compute the penalty on the discriminator's gradient at real images, gamma / 2 E ||grad D(x)||^2, with a graph.

    Mescheder et al. 2018, "Which training methods for GANs do actually converge?", Eq. 9. `logits_real` are computed
    from the (N, C, H, W) images `real`, which require a gradient.
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
