"""The samplers' plans: which timesteps are evaluated, and the weights that lead from one to the next. No torch.

Every sampler here takes x from one timestep to the next, less noisy one by

    x_next = w_0 x + w_1 x_0_pred(now) + w_2 x_0_pred(one step ago) + ... + std noise

and ends with the image predicted at its last timestep. So a sampler is a table of weights, computed once in float64.
Their natural time is lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), half the log-SNR; in it the image predicted
at the end of a step of length h counts exp(tau - h) at tau (Lu et al. 2022, DPM-Solver++, Eq. 9).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .schedules import ddim_std, ddim_weights, posterior, space_timesteps

SAMPLERS = ("ancestral", "ddim", "dpmpp", "dpmpp-sde", "unipc")
SPACINGS = ("uniform", "logsnr", "karras")
NOISY = ("ancestral", "ddim", "dpmpp-sde")  # samplers that add noise; ddim where eta is above 0

# Of noise to signal. Above 80 nothing of an image is left (Karras et al. 2022, Table 1), yet a cosine schedule spends
# half of its log-SNR there. Below 0.01, a grey level, the last prediction removes what noise there is.
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0
RHO = 7.0  # Karras et al. 2022, Eq. 5
THIRD_ORDER_FROM = 10  # evaluations; steps longer than these are extrapolated worse by a parabola than by a line


class Step(NamedTuple):
    """What happens at one timestep.

    Attributes:
        t: the timestep of the network's evaluation.
        corrector: weights that compute x at t anew once the network has seen it: of x after the step before (as
            corrected), then of the predicted images, newest first. Empty where x stays.
        predictor: weights of x at t and of the predicted images, newest first, in x at the next timestep. Empty at
            the last one.
        std: standard deviation of the noise that is then added.
        log_variances: logarithms between which learned variances interpolate: (posterior's, beta).
    """

    t: int
    corrector: tuple[float, ...] = ()
    predictor: tuple[float, ...] = ()
    std: float = 0.0
    log_variances: tuple[float, float] | None = None


def check_settings(
    sampler: str,
    num_sampling_steps: int,
    spacing: str,
    eta: float,
    num_timesteps: int,
    sigma_max: float | None = None,
) -> None:
    """Validate the settings of a sampler.

    Raises:
        ValueError: one sentence that names the setting, its value and what is accepted.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {sampler!r}")
    if spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, not {spacing!r}")
    whole = isinstance(num_sampling_steps, int | np.integer) and not isinstance(num_sampling_steps, bool)
    if not whole or not 1 <= num_sampling_steps <= num_timesteps:
        raise ValueError(
            f"num_sampling_steps must be a whole number from 1 to the process's {num_timesteps}, "
            f"not {num_sampling_steps!r}"
        )
    if sigma_max is not None and spacing == "uniform":
        raise ValueError(f"sigma_max is of the spacings logsnr and karras, so with uniform it cannot be {sigma_max!r}")
    if sigma_max is not None and not SIGMA_MIN < sigma_max < math.inf:
        raise ValueError(f"sigma_max must be above {SIGMA_MIN}, not {sigma_max!r}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, not {eta!r}")
    if eta and sampler != "ddim":
        raise ValueError(f"eta is of the sampler ddim alone, so with {sampler} it must be 0, not {eta!r}")


def choose_timesteps(
    alpha_bar: np.ndarray, num_sampling_steps: int, spacing: str, sigma_max: float | None = None
) -> list[int]:
    """Choose the timesteps that a sampler evaluates.

    Whole ones, those that the network was trained on: the plan's weights follow from alpha_bar there, so that
    rounding moves an evaluation but costs no accuracy.

    Args:
        alpha_bar: (T,) float64, decreasing.
        num_sampling_steps: N, from 1 to T.
        spacing: 'uniform' in t, from T - 1 to 0 as `space_timesteps`; 'logsnr', or 'karras' (Karras et al. 2022,
            Eq. 5) in the ratio of noise to signal, from sigma_max to SIGMA_MIN.
        sigma_max: SIGMA_MAX where None; as high as the process goes if that is lower.

    Returns:
        N timesteps in [0, T), decreasing.
    """
    num_timesteps = len(alpha_bar)
    if spacing == "uniform":
        if num_sampling_steps == 1:
            return [num_timesteps - 1]
        return sorted(space_timesteps(num_timesteps, [num_sampling_steps]), reverse=True)
    log_snr = half_log_snr(alpha_bar)
    first, last = max(log_snr[-1], -math.log(sigma_max or SIGMA_MAX)), min(log_snr[0], -math.log(SIGMA_MIN))
    if spacing == "logsnr":
        wanted = np.linspace(first, last, num_sampling_steps)
    else:
        roots = np.linspace(math.exp(-first / RHO), math.exp(-last / RHO), num_sampling_steps)
        wanted = -RHO * np.log(roots)
    t = np.rint(np.interp(wanted, log_snr[::-1], np.arange(num_timesteps)[::-1])).astype(int)
    rank = np.arange(num_sampling_steps)
    t = np.minimum.accumulate(t + rank) - rank  # no timestep twice
    return np.maximum(t, rank[::-1]).tolist()


def half_log_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Return lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), float64."""
    return 0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar))


def make_plan(
    alpha_bar: np.ndarray, sampler: str, timesteps: Sequence[int], *, eta: float = 0.0, large_variance: bool = False
) -> list[Step]:
    """Compute the weights of a sampler.

    ancestral: Ho et al. 2020, Algorithm 2, over the kept steps (Nichol & Dhariwal 2021, Eq. 19). ddim: Song et al.
    2021, Eqs. 12 and 16. dpmpp: DPM-Solver++(2M), Lu et al. 2022, Algorithm 2; dpmpp-sde: its SDE-DPM-Solver++(2M),
    Eq. 19. unipc: UniPC with B(h) = exp(h) - 1, Zhao et al. 2023, Algorithms 5 and 6, of order 3, or 2 below
    THIRD_ORDER_FROM evaluations; its corrector reuses the evaluation of the next step.

    Args:
        alpha_bar: (T,) float64.
        sampler: one of SAMPLERS.
        timesteps: timesteps to evaluate, decreasing.
        eta: DDIM's noise, from 0 to 1.
        large_variance: ancestral steps add noise of variance beta instead of the posterior's.

    Returns:
        A step for each timestep.
    """
    levels = alpha_bar[list(timesteps)]
    lam = half_log_snr(levels)
    order = {"dpmpp": 2, "dpmpp-sde": 2, "unipc": 3 if len(timesteps) >= THIRD_ORDER_FROM else 2}.get(sampler, 1)
    plan = []
    for i, t in enumerate(timesteps):
        corrector: tuple[float, ...] = ()
        if sampler == "unipc" and i == 0:
            # Pure noise stands in for x_t at the first timestep, which lacks sqrt(alpha_bar) x_0. Half of that is
            # added: the trapezoid between no image and the one predicted here.
            corrector = (1.0, 0.5 * math.sqrt(levels[0]))
        elif sampler == "unipc":
            nodes = [lam[i], *lam[max(i - order, 0) : i][::-1]]  # this evaluation, and those of the step's predictor
            corrector = _deterministic(levels[i - 1], levels[i], nodes, lam[i - 1], lam[i])
        if i + 1 == len(timesteps):
            plan.append(Step(t, corrector))
            continue
        now, then = float(levels[i]), float(levels[i + 1])
        if sampler == "ancestral":
            plan.append(_ancestral(t, now, then, large_variance))
        elif sampler == "ddim":
            plan.append(_ddim(t, now, then, eta))
        else:
            nodes = list(lam[max(i + 1 - order, 0) : i + 1][::-1])
            if sampler == "dpmpp-sde":
                plan.append(_stochastic(t, now, then, nodes, lam[i + 1]))
            else:
                plan.append(Step(t, corrector, _deterministic(now, then, nodes, lam[i], lam[i + 1])))
    return plan


def _ancestral(t: int, now: float, then: float, large_variance: bool) -> Step:
    beta = 1 - now / then
    of_image, of_x, variance = map(float, posterior(beta, now, then))
    std = math.sqrt(beta if large_variance else variance)
    return Step(t, (), (of_x, of_image), std, (math.log(variance), math.log(beta)))


def _ddim(t: int, now: float, then: float, eta: float) -> Step:
    std = ddim_std(now, then, eta)
    of_image, of_eps = ddim_weights(then, std)
    of_x = of_eps / math.sqrt(1 - now)  # eps = (x - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)
    return Step(t, (), (of_x, of_image - of_x * math.sqrt(now)), std)


def _deterministic(now: float, then: float, nodes: Sequence[float], start: float, stop: float) -> tuple[float, ...]:
    """Return the weights of x and of the images predicted at `nodes` for a step from `start` to `stop`, in lambda."""
    x_weight = math.sqrt((1 - then) / (1 - now))
    return (x_weight, *(math.sqrt(then) * weight for weight in _integrals(nodes, start, stop)))


def _stochastic(t: int, now: float, then: float, nodes: Sequence[float], stop: float) -> Step:
    h = stop - nodes[0]
    gain = -math.expm1(-2 * h)
    images = (math.sqrt(then) * gain * weight for weight in _line(nodes, nodes[0] + h / 2))
    weights = (math.sqrt((1 - then) / (1 - now)) * math.exp(-h), *images)
    return Step(t, (), weights, math.sqrt((1 - then) * gain))


def _integrals(nodes: Sequence[float], start: float, stop: float) -> list[float]:
    """Return the weight of each node's value in the integral of exp(tau - stop) value(tau) from start to stop.

    One or two nodes: the value halfway, on the line through them, stands for all (rho = 1/2 in Zhao et al. 2023,
    section 3.3; for past nodes DPM-Solver++(2M)). More: the polynomial through them, integrated exactly, which is
    what UniPC's linear system for rho amounts to, whatever its B(h).
    """
    if len(nodes) <= 2:
        gain = -math.expm1(start - stop)
        return [gain * weight for weight in _line(nodes, (start + stop) / 2)]
    points, shares = np.polynomial.legendre.leggauss(32)
    tau = start + (stop - start) * (points + 1) / 2
    kernel = np.exp(tau - stop) * shares * (stop - start) / 2
    weights = []
    for k, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != k]
        basis = np.prod([(tau - other) / (node - other) for other in others], axis=0)
        weights.append(float(kernel @ basis))
    return weights


def _line(nodes: Sequence[float], at: float) -> list[float]:
    """Return the weights of the nodes' values in the value at `at` of the line through them; one node is constant."""
    if len(nodes) == 1:
        return [1.0]
    share = float((at - nodes[0]) / (nodes[1] - nodes[0]))
    return [1 - share, share]
