"""Means of the losses over updates, and the discriminator's accuracy at each t."""

from collections.abc import Mapping

import torch
from torch import Tensor

HITS = "hits"  # name of `count_hits` in the metrics of an update


def count_hits(logits_real: Tensor, logits_fake: Tensor, t: Tensor, num_timesteps: int) -> Tensor:
    """Count the discriminator's correct decisions at each t, from (N, 1) logits of real and fake pairs.

    Returns:
        (3, T) float32 counts: real pairs with a positive logit, fake pairs with a negative one, and all pairs.
    """
    one_hot = (t[:, None] == torch.arange(num_timesteps, device=t.device)).float()
    right = torch.stack([logits_real.detach().flatten() > 0, logits_fake.detach().flatten() < 0])
    return torch.cat([right.float() @ one_hot, one_hot.sum(0, keepdim=True)])


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
