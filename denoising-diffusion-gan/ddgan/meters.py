"""Means of what the updates report, and the discriminator's accuracy by noise level with a word of warning."""

from collections.abc import Mapping

import torch
from torch import Tensor

HITS = "hits"  # the name under which an update reports `Objective.hits`


class LossMeter:
    """Means of what the updates report, kept on the device until asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take in scalars, and (3, T) hits; a name may be absent from some updates (r1)."""
        for name, value in losses.items():
            total, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """Return the means since the last call and forget them.

        Hits become accuracies, `accuracy_real_t0`, `accuracy_fake_t0` and so on, in [0, 1]; an index t that no image
        had counts as 0.5, chance.
        """
        means: dict[str, float] = {}
        for name, (total, count) in self._sums.items():
            means |= accuracies(total) if name == HITS else {name: (total / count).item()}
        self._sums = {}
        return means


def accuracies(hits: Tensor) -> dict[str, float]:
    """Return the columns of (3, T) hits."""
    real, fake, count = hits.cpu()
    shares = {"real": real / count, "fake": fake / count}
    found = [
        (t, side, values[t].item() if count[t] else 0.5) for t in range(len(count)) for side, values in shares.items()
    ]
    return {f"accuracy_{side}_t{t}": value for t, side, value in found}


def mean_accuracies(values: Mapping[str, float]) -> list[float]:
    """Return the accuracy at t = 0, 1, ..., the mean of real and generated pairs; empty where there is none."""
    means: list[float] = []
    while (real := values.get(f"accuracy_real_t{len(means)}")) is not None:
        means.append((real + values[f"accuracy_fake_t{len(means)}"]) / 2)
    return means


class DiscriminatorWatch:
    """Notices once that the discriminator has taught nothing for long.

    Attributes:
        UPDATES: how long, updates.
        CHANCE: the accuracy, in [0, 1], up to which a discriminator is at chance.
        PERFECT: the accuracy from which it is never wrong.
    """

    UPDATES = 500
    CHANCE = 0.55
    PERFECT = 0.995

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._done = False

    def look(self, step: int, values: Mapping[str, float]) -> str | None:
        """Take in a row's accuracies at update `step`, and return a warning when one is due, the first time."""
        means = mean_accuracies(values)
        if not means or self._done:
            return None
        states = {"chance": max(means) <= self.CHANCE, "perfect": min(means) >= self.PERFECT}
        for name, holds in states.items():
            if not holds:
                self._since.pop(name, None)
            elif step - self._since.setdefault(name, step) >= self.UPDATES:
                self._done = True
                return _words(name, step - self._since[name])
        return None


def _words(state: str, updates: int) -> str:
    if state == "chance":
        return (
            f"warning: for {updates} updates the discriminator has been at chance at every t, so the generator learns "
            "nothing from it; try --discriminator plain, --discriminator_input x_0, --denoiser_fraction or a higher "
            "--lr_d"
        )
    return (
        f"warning: for {updates} updates the discriminator has told every real pair from every generated one, which "
        "teaches the generator little; try a lower --lr_d, a higher --r1_gamma or --penalty r1r2"
    )
