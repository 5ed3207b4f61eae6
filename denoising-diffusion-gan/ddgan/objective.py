"""What the networks are trained for: which pairs the discriminator judges, by which losses, and when."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from comparison.schedule import Schedule
from torch import Tensor

from ddgan.losses import fake_loss, real_loss, relativistic_loss

FINITE_DIFFERENCE = 0.01  # standard deviation of the noise behind a finite-difference penalty (Lin et al. 2025)


class Phase(NamedTuple):
    """What an update does: train the generator as a denoiser alone, or both networks; weight of the reconstruction."""

    denoiser: bool = False
    reconstruction_weight: float = 0.0


@dataclass(frozen=True)
class Objective:
    """The objective of both networks; the defaults are the published one (Xiao et al. 2022, Eq. 4 and 5).

    With `discriminator_input` "x_0" the discriminator judges (x_0, x_{t+1}) against (x_0_pred, x_{t+1}) instead of
    (x_t, x_{t+1}) against (x_t_pred, x_{t+1}). Its best logit for a pair is then
    log q(x_0 | x_{t+1}) - log p(x_0_pred | x_{t+1}), as x_{t+1} has the same distribution in both pairs, and the
    generator's optimum is p(x_0_pred | x_{t+1}) = q(x_0 | x_{t+1}). Noised by the posterior q(x_t | x_{t+1}, x_0),
    which both objectives share, this gives x_t the distribution q(x_t | x_{t+1}), the optimum of the published
    objective, so the sampler stays as it is. What changes is the signal: the posterior's noise, which at large t hides
    nearly all of x_0, no longer stands between the generator and the discriminator. The optimum is also stricter: many
    distributions of x_0 give the same q(x_t | x_{t+1}) up to this noise, one alone the same q(x_0 | x_{t+1}).

    Attributes:
        discriminator_input: "x_t" or "x_0".
        discriminator_shift: the discriminator sees each pair rolled by a random number of pixels. Without it, its
            gradient with respect to an image repeats with its strides, which may show as a grid in the samples.
        gan_loss: "softplus", the non-saturating loss of each logit, or "relativistic", of pairs of them.
        penalty: "r1", the squared gradient norm on real inputs, or "r1r2", on generated ones as well.
        penalty_estimate: "exact", by a second derivative, or "finite", by finite differences.
        reconstruction: of the clean image by the generator in the adversarial phase: "none", "constant", or "decay",
            whose weight falls to 0 along half a cosine.
        reconstruction_weight: of the reconstruction at the beginning of that phase.
        reconstruction_norm: "l1" or "l2".
        denoiser_fraction: share of the budget at the beginning in which the generator is trained as a denoiser alone.
    """

    discriminator_input: str = "x_t"
    discriminator_shift: bool = False
    gan_loss: str = "softplus"
    penalty: str = "r1"
    penalty_estimate: str = "exact"
    reconstruction: str = "none"
    reconstruction_weight: float = 1.0
    reconstruction_norm: str = "l2"
    denoiser_fraction: float = 0.0

    def phase(self, progress: float) -> Phase:
        """Return what an update does after a share of the budget in [0, 1]."""
        if progress < self.denoiser_fraction:
            return Phase(True)
        if self.reconstruction == "none":
            return Phase()
        if self.reconstruction == "constant":
            return Phase(False, self.reconstruction_weight)
        left = Schedule(decay="cosine").factor(self.adversarial_progress(progress))
        return Phase(False, self.reconstruction_weight * left)

    def adversarial_progress(self, progress: float) -> float:
        """Return the share of the adversarial phase that is over, in [0, 1]; 0 before it."""
        if self.denoiser_fraction == 1:
            return 0.0
        return max(0.0, (progress - self.denoiser_fraction) / (1 - self.denoiser_fraction))

    def discriminator_losses(self, logits_real: Tensor, logits_fake: Tensor) -> dict[str, Tensor]:
        """Return loss_d, for the softplus loss also loss_d_real and loss_d_fake, its terms; scalars float32."""
        if self.gan_loss == "relativistic":
            return {"loss_d": relativistic_loss(logits_real, logits_fake)}
        losses = {"loss_d_real": real_loss(logits_real), "loss_d_fake": fake_loss(logits_fake)}
        return {**losses, "loss_d": losses["loss_d_real"] + losses["loss_d_fake"]}

    def hits(self, logits_real: Tensor, logits_fake: Tensor, t: Tensor, num_timesteps: int) -> Tensor:
        """Count at each t how often the discriminator is right.

        Args:
            logits_real, logits_fake: (N, 1) float, at the same t.
            t: (N,) int64 in [0, T).
            num_timesteps: T.

        Returns:
            (3, T) float32: real pairs with a positive logit, generated ones with a negative one, and all pairs. With
            the relativistic loss, which knows differences alone, both counts are of pairs with real above generated.
        """
        one_hot = (t[:, None] == torch.arange(num_timesteps, device=t.device)).float()
        real, fake = logits_real.detach().flatten(), logits_fake.detach().flatten()
        if self.gan_loss == "relativistic":
            real = fake = real - fake
            right = torch.stack([real > 0, fake > 0])
        else:
            right = torch.stack([real > 0, fake < 0])
        return torch.cat([right.float() @ one_hot, one_hot.sum(0, keepdim=True)])
