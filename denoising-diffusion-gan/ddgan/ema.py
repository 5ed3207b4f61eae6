"""Exponential moving average of a network's weights."""

from collections.abc import Mapping
from typing import Any

import torch
from comparison.schedule import ema_rate
from torch import Tensor, nn


class Ema:
    """A second set of weights that follows a network.

    Args:
        network: whose parameters and persistent buffers are followed.
        decay: share of the old average kept by an update.
        warm_up: lower the decay at first, see `comparison.schedule.ema_rate`, so that a short run is not dominated by
            its first weights; the published code does not.
        horizon: length of the average as a share of the updates so far, 0 for that of the decay.
    """

    def __init__(self, network: nn.Module, decay: float, warm_up: bool = False, horizon: float = 0.0):
        self.decay, self.warm_up, self.horizon = decay, warm_up, horizon
        self.updates = 0
        self._followed = network.state_dict()  # tensors that share the network's memory
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._followed.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's present weights; the first update copies them (Xiao et al. 2022's code)."""
        decay = self.decay
        if self.warm_up or self.horizon:
            decay = ema_rate(decay, self.updates, self.horizon)
        share = 1.0 if self.updates == 0 else 1 - decay
        torch._foreach_lerp_(list(self.weights.values()), list(self._followed.values()), share)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved average."""
        self.updates = state["updates"]
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])
