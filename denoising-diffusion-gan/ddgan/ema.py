"""Exponential moving average of a network's weights."""

from collections.abc import Mapping
from typing import Any

import torch
from comparison.schedule import ema_rate
from torch import nn


class Ema:
    """Exponential moving average of a network's parameters and persistent buffers; call `update` after each step.

    Args:
        network: network to average.
        decay: weight of the old average at each update.
        warm_up: whether to lower the decay at first, see `comparison.schedule.ema_rate`, so that the initial weights
            do not dominate a short run's average; the published code does not.
        horizon: length of the average as a fraction of the updates so far; 0 uses the decay alone.
    """

    def __init__(self, network: nn.Module, decay: float, warm_up: bool = False, horizon: float = 0.0):
        self.decay, self.warm_up, self.horizon = decay, warm_up, horizon
        self.updates = 0
        self._network_weights = network.state_dict()  # shares the network's memory
        self.weights = {name: value.detach().clone() for name, value in self._network_weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the EMA from the current weights; the first update copies them, as in Xiao et al. 2022's code."""
        decay = self.decay
        if self.warm_up or self.horizon:
            decay = ema_rate(decay, self.updates, self.horizon)
        new_weight = 1.0 if self.updates == 0 else 1 - decay
        torch._foreach_lerp_(list(self.weights.values()), list(self._network_weights.values()), new_weight)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state that resuming needs."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        self.updates = state["updates"]
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])
