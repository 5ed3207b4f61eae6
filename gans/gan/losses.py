"""GAN losses on (N,) logits, and the gradient penalties R1 and R2; every loss is () float32.

Cross entropy (ns, non-saturating): Goodfellow et al. 2014, Eq. 1, with the generator loss of section 3; in nats.
Hinge: Lim & Ye 2017, "Geometric GAN", Eqs. 18 and 19; Miyato et al. 2018, Eqs. 16 and 17.
Relativistic: Jolicoeur-Martineau 2019; as pairs, Huang et al. 2024, Eq. 2; in nats.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FINITE_STEP = 0.01  # of `finite_penalty`, in the images' range [-1, 1]


def bce_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Compute the cross entropy, summed over the real and the fake half; 2 ln 2 for logits of 0."""
    return _cross_entropy(logits_real, 1.0) + _cross_entropy(logits_fake, 0.0)


def bce_generator_loss(logits_fake: Tensor) -> Tensor:
    """Compute the non-saturating loss, the cross entropy with the label of real images; ln 2 for logits of 0."""
    return _cross_entropy(logits_fake, 1.0)


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Compute the hinge loss with margins 1 and -1, summed over the real and the fake half; 2 for logits of 0."""
    return F.relu(1 - logits_real.float()).mean() + F.relu(1 + logits_fake.float()).mean()


def hinge_generator_loss(logits_fake: Tensor) -> Tensor:
    """Compute the generator's loss against a hinge discriminator: the negated mean logit."""
    return -logits_fake.float().mean()


def relativistic_loss(logits: Tensor, others: Tensor) -> Tensor:
    """Compute the loss of a player who wants `logits` above `others`, pair by pair; ln 2 for equal logits.

    The discriminator's logits are those of real images and the others those of fakes; the generator's the reverse.
    """
    return F.softplus(others.float() - logits.float()).mean()


def gradient_penalty(logits: Tensor, images: Tensor, gamma: float) -> Tensor:
    """Compute the penalty on the discriminator's gradient at images, gamma / 2 E ||grad D(x)||^2, with a graph.

    R1 at real and R2 at generated images: Mescheder et al. 2018, "Which training methods for GANs do actually
    converge?", Eqs. 9 and 10. `logits` are computed from the (N, C, H, W) `images`, which require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
    return gamma / 2 * gradient.float().square().flatten(1).sum(1).mean()


def finite_penalty(
    discriminator: Callable[[Tensor], Tensor], logits: Tensor, images: Tensor, gamma: float, noise: Tensor
) -> Tensor:
    """Estimate `gradient_penalty` from one more evaluation, without a second backward pass.

    gamma / 2 E (D(x + e n) - D(x))^2 / e^2 with standard normal n has its expectation as e goes to 0 (Lin et al.
    2025, "Diffusion adversarial post-training", section 3.3).

    Args:
        discriminator: maps images to (N,) logits.
        logits: (N,) logits of the images.
        images: (N, C, H, W).
        gamma: weight of the penalty.
        noise: n, of the images' shape.
    """
    moved = discriminator(images + FINITE_STEP * noise).float()
    return gamma / 2 * ((moved - logits.float()) / FINITE_STEP).square().mean()


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    logits = logits.float()  # bf16 has too few bits of mantissa for the mean of a batch
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
