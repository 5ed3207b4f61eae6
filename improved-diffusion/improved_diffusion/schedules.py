"""Noise schedules, the steps back that follow from them, and which timesteps a shortened process keeps. No torch."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> np.ndarray:
    """Compute the noise variances beta_t of a named schedule.

    linear: Ho et al. 2020, section 4 (1e-4 to 0.02 at 1,000 steps), scaled by 1000 / T so that every T
    destroys the signal equally. cosine: Nichol & Dhariwal 2021, Eq. 17.

    Args:
        schedule_name: 'linear' or 'cosine'.
        num_diffusion_timesteps: T, at least 1; the linear schedule needs more than 20.

    Returns:
        (T,) float64 in (0, 1), index 0 is the least noisy step.

    Raises:
        ValueError: unknown name, or so few linear steps that a beta would reach 1.
    """
    if num_diffusion_timesteps < 1:
        raise ValueError(f"diffusion_steps must be at least 1, not {num_diffusion_timesteps}")
    if schedule_name == "linear":
        if num_diffusion_timesteps <= 20:
            raise ValueError(
                "diffusion_steps must be above 20 for the linear schedule "
                f"(its last beta is 20 / T), not {num_diffusion_timesteps}"
            )
        scale = 1000 / num_diffusion_timesteps
        return np.linspace(scale * 1e-4, scale * 0.02, num_diffusion_timesteps, dtype=np.float64)
    if schedule_name == "cosine":
        return betas_for_alpha_bar(num_diffusion_timesteps, lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2)
    raise ValueError(f"noise_schedule must be 'linear' or 'cosine', not {schedule_name!r}")


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> np.ndarray:
    """Discretize a continuous signal level alpha_bar(u) into beta_t = 1 - alpha_bar(t + 1) / alpha_bar(t).

    Nichol & Dhariwal 2021, Eq. 17 and the text below it.

    Args:
        num_diffusion_timesteps: T.
        alpha_bar: decreasing function of u in [0, 1] with values in [0, 1].
        max_beta: upper bound; alpha_bar(1) = 0 would make the last beta 1 and its inverse infinite.

    Returns:
        (T,) float64.
    """
    levels = [alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)]
    return np.array([min(1 - after / before, max_beta) for before, after in pairwise(levels)])


def posterior(beta: Any, alpha_bar: Any, alpha_bar_prev: Any) -> tuple[Any, Any, Any]:
    """Return q(x_{t-1} | x_t, x_0): the weights of x_0 and of x_t in its mean, and its variance.

    Ho et al. 2020, Eqs. 6 and 7. Floats or float64 arrays: beta_t, and alpha_bar at t and at t - 1.
    """
    of_x_start = beta * np.sqrt(alpha_bar_prev) / (1 - alpha_bar)
    of_x_t = (1 - alpha_bar_prev) * np.sqrt(1 - beta) / (1 - alpha_bar)
    return of_x_start, of_x_t, beta * (1 - alpha_bar_prev) / (1 - alpha_bar)


def ddim_std(alpha_bar: Any, alpha_bar_to: Any, eta: float) -> Any:
    """Return the standard deviation of the noise that a DDIM step adds, eta times the posterior's.

    Song et al. 2021, Eq. 16. Floats or tensors: alpha_bar at t and at the timestep that the step leads to.
    """
    return eta * ((1 - alpha_bar_to) / (1 - alpha_bar)) ** 0.5 * (1 - alpha_bar / alpha_bar_to) ** 0.5


def ddim_weights(alpha_bar_to: Any, std: Any) -> tuple[Any, Any]:
    """Return the weights of x_0 and of the noise in x_t, both as predicted, in the mean of a DDIM step.

    Song et al. 2021, Eq. 12. Floats or tensors: alpha_bar at the timestep that the step leads to, and `ddim_std`.
    """
    return alpha_bar_to**0.5, (1 - alpha_bar_to - std**2) ** 0.5


def space_timesteps(num_timesteps: int, section_counts: str | Sequence[int]) -> set[int]:
    """Choose which timesteps of a process a shortened one keeps.

    Args:
        num_timesteps: T of the full process.
        section_counts: numbers of steps, one for each of as many equal sections of [0, T): "250",
            "10,15,20" or a list of them; each section's first and last step are kept. Or "ddimN": N steps
            at a constant stride from 0, as in Song et al. 2021 (DDIM), appendix D.2. Where T has no
            integer stride for N, the nearest steps to a constant one.

    Returns:
        The kept timesteps, each in [0, T).

    Raises:
        ValueError: not of this form, or a section is shorter than its count.
    """
    if isinstance(section_counts, str):
        if section_counts.startswith("ddim"):
            return _ddim_timesteps(num_timesteps, section_counts)
        try:
            section_counts = [int(count) for count in section_counts.split(",")]
        except ValueError:
            raise ValueError(
                f"timestep_respacing must be like '250', '10,15,20' or 'ddim50', not {section_counts!r}"
            ) from None
    size, extra = divmod(num_timesteps, len(section_counts))
    kept: set[int] = set()
    start = 0
    for i, count in enumerate(section_counts):
        section = size + (1 if i < extra else 0)
        if not 1 <= count <= section:
            raise ValueError(
                f"timestep_respacing: {count} steps do not fit a section of {section} of {num_timesteps} steps"
            )
        # Added up rather than multiplied: published step lists depend on how the halves round.
        strides = [(section - 1) / max(count - 1, 1)] * (count - 1)
        kept.update(start + round(position) for position in accumulate(strides, initial=0.0))
        start += section
    return kept


def _ddim_timesteps(num_timesteps: int, name: str) -> set[int]:
    digits = name.removeprefix("ddim")
    if not digits.isdecimal() or not 1 <= int(digits) <= num_timesteps:
        raise ValueError(f"timestep_respacing 'ddimN' needs N from 1 to {num_timesteps}, not {name!r}")
    count = int(digits)
    # The smallest integer stride that gives N steps, as DDIM's and OpenAI's code choose it.
    stride = math.ceil(num_timesteps / count)
    if len(range(0, num_timesteps, stride)) == count:
        return set(range(0, num_timesteps, stride))
    return {round(i * num_timesteps / count) for i in range(count)}
