"""Exponential moving average of a network."""

import copy

import torch
from comparison.schedule import ema_rate
from torch import nn


class EMA:
    """Keep the moving average of a network's weights and of its floating-point buffers.

    The buffers are batch norm's running statistics: averaged weights with the last step's statistics would
    be a network that never existed. Yazici et al. 2019, "The unusual effectiveness of averaging in GAN training".

    torch.optim.swa_utils.AveragedModel does the same without the warm-up, and reads its counter back from the
    device at every step.
    """

    def __init__(self, network: nn.Module, decay: float, horizon: float = 0.0) -> None:
        """Start from a copy of the network.

        Args:
            network: what is averaged.
            decay: weight of the past at each step, in [0, 1).
            horizon: length of the average as a share of the updates so far, 0 for that of the decay alone.
        """
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.horizon = decay, horizon

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the network.

        Args:
            network: the trained network, of the same architecture.
            step: updates done before this one; the decay rises with them, see `comparison.schedule.ema_rate`, or a
                short run's average would still hold its initial noise.
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
