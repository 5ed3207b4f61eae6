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
