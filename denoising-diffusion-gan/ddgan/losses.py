"""Non-saturating GAN losses and the R1 penalty (Xiao et al. 2022, Eq. 4 and section 5; Mescheder et al. 2018).

Logits are (N, 1) float; every loss is a scalar float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def real_loss(logits_real: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(logits): the loss of real pairs, and of the generator on its own pairs."""
    return F.softplus(-logits_real.float()).mean()


def fake_loss(logits_fake: Tensor) -> Tensor:
    """Return the mean of -log(1 - sigmoid(logits)): the discriminator's loss of generated pairs."""
    return F.softplus(logits_fake.float()).mean()


def r1_penalty(logits_real: Tensor, x_t: Tensor) -> Tensor:
    """Return the mean squared norm of the logits' gradient with respect to (N, C, H, W) x_t, with a graph.

    It is to be multiplied by gamma / 2. x_{t+1}, the other half of the pair, is constant.
    """
    (gradient,) = torch.autograd.grad(logits_real.sum(), x_t, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def finite_difference_penalty(logits: Tensor, logits_moved: Tensor, size: float) -> Tensor:
    """Estimate the mean squared norm of the logits' gradient from their change under noise (Lin et al. 2025).

    With standard normal noise e, (D(x + size e) - D(x)) / size is e . grad D(x) up to terms of order `size`, and the
    mean of its square over e is the squared norm of the gradient. Unlike `r1_penalty` it needs first derivatives only.
    """
    return ((logits_moved.float() - logits.float()) / size).square().mean()


def reconstruction_loss(x_0_pred: Tensor, x_0: Tensor) -> Tensor:
    """Return the mean squared error of predicted (N, C, H, W) clean images."""
    return (x_0_pred.float() - x_0).square().mean(dim=(1, 2, 3)).mean()
