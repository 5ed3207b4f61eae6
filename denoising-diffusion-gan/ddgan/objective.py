"""Training objective: the discriminator's pairs, the losses and penalties, and the phases of the training."""

from dataclasses import dataclass
from typing import NamedTuple

from comparison.schedule import Schedule

FINITE_DIFFERENCE = 0.01  # standard deviation of the noise of a finite-difference penalty (Lin et al. 2025)


class Phase(NamedTuple):
    """Whether an update trains only the generator, as a denoiser, and the weight of the reconstruction loss."""

    denoiser: bool = False
    reconstruction_weight: float = 0.0


@dataclass(frozen=True)
class Objective:
    """Objective of both networks; the defaults are the published one (Xiao et al. 2022, Eq. 4 and 5).

    With `discriminator_input` "x_0" the discriminator compares (x_0, x_{t+1}) with (x_0_pred, x_{t+1}) instead of
    (x_t, x_{t+1}) with (x_t_pred, x_{t+1}). As x_{t+1} has the same distribution in both pairs, the optimal logit is
    log q(x_0 | x_{t+1}) - log p(x_0_pred | x_{t+1}), and the generator's optimum is p(x_0_pred | x_{t+1}) =
    q(x_0 | x_{t+1}). The posterior q(x_t | x_{t+1}, x_0), which both objectives share, then gives x_t the distribution
    q(x_t | x_{t+1}), the optimum of the published objective, so the sampler does not change. The signal changes: the
    posterior's noise, which at large t hides nearly all of x_0, is no longer between generator and discriminator. The
    optimum is also stricter: many distributions of x_0 give the same q(x_t | x_{t+1}), one gives q(x_0 | x_{t+1}).

    Attributes:
        discriminator_input: "x_t" or "x_0".
        discriminator_shift: whether each pair is rolled by a random number of pixels. Otherwise the discriminator's
            gradient repeats with its strides, which can cause grid artifacts in the samples.
        penalty_estimate: estimate of R1: "exact", by a second derivative, or "finite", by finite differences.
        reconstruction: generator's x_0 loss in the adversarial phase: "none", "constant", or "decay", whose weight
            falls to 0 by half a cosine.
        reconstruction_weight: weight of that loss at the start of the phase.
        denoiser_fraction: fraction of the budget, at its start, for training only the generator, as a denoiser.
    """

    discriminator_input: str = "x_t"
    discriminator_shift: bool = False
    penalty_estimate: str = "exact"
    reconstruction: str = "none"
    reconstruction_weight: float = 1.0
    denoiser_fraction: float = 0.0

    def phase(self, progress: float) -> Phase:
        """Return the phase of an update after a fraction of the budget in [0, 1]."""
        if progress < self.denoiser_fraction:
            return Phase(True)
        if self.reconstruction == "none":
            return Phase()
        if self.reconstruction == "constant":
            return Phase(False, self.reconstruction_weight)
        left = Schedule(decay="cosine").factor(self.adversarial_progress(progress))
        return Phase(False, self.reconstruction_weight * left)

    def adversarial_progress(self, progress: float) -> float:
        """Return the fraction of the adversarial phase that is over, in [0, 1]; 0 before it."""
        if self.denoiser_fraction == 1:
            return 0.0
        return max(0.0, (progress - self.denoiser_fraction) / (1 - self.denoiser_fraction))
