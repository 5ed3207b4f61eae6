"""The non-saturating GAN losses and the R1 penalty (Xiao et al. 2022, Eq. 4 and section 5; Mescheder et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def real_loss(logits_real: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(logits): small where the logits of real pairs, or of the generator's, are high.

    Args:
        logits_real: (N, 1) float.

    Returns:
        scalar float32.
    """
    return F.softplus(-logits_real.float()).mean()


def fake_loss(logits_fake: Tensor) -> Tensor:
    """Return the mean of -log(1 - sigmoid(logits)): small where the logits of generated pairs are low.

    Args:
        logits_fake: (N, 1) float.

    Returns:
        scalar float32.
    """
    return F.softplus(logits_fake.float()).mean()


def r1_penalty(logits_real: Tensor, x_t: Tensor) -> Tensor:
    """Return the mean squared norm of the logits' gradient with respect to x_t, to be scaled by gamma / 2.

    The pair's other half, x_{t+1}, is held fixed. The result can be differentiated.

    Args:
        logits_real: (N, 1) float32, computed from `x_t` with gradients.
        x_t: (N, C, H, W) float32 that requires a gradient.

    Returns:
        scalar float32.
    """
    (gradient,) = torch.autograd.grad(logits_real.sum(), x_t, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def relativistic_loss(logits_above: Tensor, logits_below: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(above - below): small where the first logit of each pair is the higher one.

    The discriminator's loss for (real, generated), the generator's for (generated, real), pair by pair at the same
    (t, x_{t+1}); a constant added to all logits changes nothing (Jolicoeur-Martineau 2019; Huang et al. 2024, Eq. 1).

    Args:
        logits_above, logits_below: (N, 1) float.

    Returns:
        scalar float32.
    """
    return F.softplus(logits_below.float() - logits_above.float()).mean()


def finite_difference_penalty(logits: Tensor, logits_moved: Tensor, size: float) -> Tensor:
    """Estimate the mean squared norm of the logits' gradient from their change under noise (Lin et al. 2025).

    With e standard normal, (D(x + size e) - D(x)) / size is e . grad D(x) up to terms of order `size`, and the mean
    of its square over e is the squared norm of the gradient. Needs first derivatives alone, unlike `r1_penalty`.

    Args:
        logits: (N, 1) float, of the inputs.
        logits_moved: (N, 1) float, of the inputs with independent normal noise of standard deviation `size` added.
        size: of the noise.

    Returns:
        scalar float32.
    """
    return ((logits_moved.float() - logits.float()) / size).square().mean()


def reconstruction_loss(x_0_pred: Tensor, x_0: Tensor, norm: str, weights: Tensor | None = None) -> Tensor:
    """Return the mean distance of predictions from the clean images.

    Args:
        x_0_pred, x_0: (N, C, H, W) float.
        norm: "l1", the mean absolute difference, or "l2", the mean squared one.
        weights: (N,) float32, of each image; None for 1.

    Returns:
        scalar float32.
    """
    difference = x_0_pred.float() - x_0
    distances = (difference.abs() if norm == "l1" else difference.square()).mean(dim=(1, 2, 3))
    return (distances if weights is None else distances * weights).mean()
