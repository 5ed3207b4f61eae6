"""Means of the losses over updates, the discriminator's accuracy at each t, and a warning if it stops being useful."""

from collections.abc import Mapping

import torch
from torch import Tensor

HITS = "hits"  # name of `Objective.hits` in the metrics of an update


class LossMeter:
    """Means over updates, kept on the device until `take`.

    Attributes:
        sums: name -> sum and number of updates since the last `take`; a checkpoint holds them.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the scalars and the (3, T) hits of an update; a name may be absent from some updates (r1)."""
        for name, value in losses.items():
            total, count = self.sums.get(name, (torch.zeros_like(value), 0))
            self.sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and reset.

        Hits become accuracies in [0, 1]: `accuracy_real_t0`, `accuracy_fake_t0`, ...; 0.5, chance, for a t without
        images.
        """
        means: dict[str, float] = {}
        for name, (total, count) in self.sums.items():
            means |= accuracies(total) if name == HITS else {name: (total / count).item()}
        self.sums = {}
        return means


def accuracies(hits: Tensor) -> dict[str, float]:
    """Return the accuracy columns of (3, T) hits."""
    real, fake, count = hits.cpu()
    columns = {"real": real / count, "fake": fake / count}
    return {
        f"accuracy_{side}_t{t}": values[t].item() if count[t] else 0.5
        for t in range(len(count))
        for side, values in columns.items()
    }


def mean_accuracies(values: Mapping[str, float]) -> list[float]:
    """Return the accuracy at t = 0, 1, ..., the mean over real and fake pairs; empty without such columns."""
    means: list[float] = []
    while (real := values.get(f"accuracy_real_t{len(means)}")) is not None:
        means.append((real + values[f"accuracy_fake_t{len(means)}"]) / 2)
    return means


class DiscriminatorWatch:
    """Warn once if the discriminator has been useless for a long time.

    Attributes:
        UPDATES: number of updates before the warning.
        CHANCE: accuracy in [0, 1] up to which a discriminator is at chance.
        PERFECT: accuracy from which it is always right.
    """

    UPDATES = 500
    CHANCE = 0.55
    PERFECT = 0.995
    WARNINGS = {  # noqa: RUF012
        "chance": "been at chance at every t, so the generator learns nothing from it; try --discriminator plain, "
        "--discriminator_input x_0, --denoiser_fraction or a higher --lr_d",
        "perfect": "told every real pair from every fake one, so the generator learns little from it; try a lower "
        "--lr_d, a higher --r1_gamma or --penalty r1r2",
    }

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._warned = False

    def check(self, step: int, values: Mapping[str, float]) -> str | None:
        """Take the accuracies of a row at update `step`; return a warning if one is due for the first time."""
        means = mean_accuracies(values)
        if not means or self._warned:
            return None
        states = {"chance": max(means) <= self.CHANCE, "perfect": min(means) >= self.PERFECT}
        for name, holds in states.items():
            if not holds:
                self._since.pop(name, None)
            elif step - self._since.setdefault(name, step) >= self.UPDATES:
                self._warned = True
                return f"warning: for {step - self._since[name]} updates the discriminator has {self.WARNINGS[name]}"
        return None
