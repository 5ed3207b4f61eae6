"""Exponential moving average of a network."""

import copy

import torch
from comparison.schedule import ema_rate
from torch import nn


class EMA:
    """Exponential moving average of a network's weights and floating-point buffers (Yazici et al. 2019).

    The buffers are batch norm's running statistics; those of the last step would not fit averaged weights.
    torch.optim.swa_utils.AveragedModel has no warm-up, and reads its counter back from the device at every step.

    Args:
        network: network to copy.
        decay: weight of the old average at each step, in [0, 1).
        horizon: length of the average as a fraction of the updates so far; 0 uses the decay alone.
    """

    def __init__(self, network: nn.Module, decay: float, horizon: float = 0.0) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.horizon = decay, horizon

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average from the trained network's weights, after `step` earlier updates.

        The decay starts low (`comparison.schedule.ema_rate`): a short run's average would keep its initial noise.
        """
        decay = ema_rate(self.decay, step, self.horizon)
        averages, values = [], []
        for average, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:  # batch norm's counter of batches
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
