"""Schedules of learning rate and EMA decay over the used fraction of the budget. Standard library only.

`Budget.progress` gives the fraction, so a setting fits budgets of seconds, images or updates, and resumes exactly.
"""

import argparse
import math
from dataclasses import dataclass

from comparison.cli import UserError, fraction

DECAYS = ("none", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A learning rate as a multiple of its peak, over the used fraction of the budget.

    Attributes:
        warmup: fraction of the budget over which the rate rises linearly from 0 to its peak.
        decay: none, linear or cosine (half a period; Loshchilov & Hutter 2017, Eq. 5).
        decay_from: fraction of the budget at which the decay begins.
        floor: multiple of the peak at which the decay ends.
    """

    warmup: float = 0.0
    decay: str = "none"
    decay_from: float = 0.0
    floor: float = 0.0

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Schedule":
        """Return the schedule of the flags of `add_schedule_options`, without decay for a value outside DECAYS.

        Raises:
            UserError: the warm-up overlaps the decay, or a flag has no effect.
        """
        decay = args.lr_decay if args.lr_decay in DECAYS else "none"
        begin = args.lr_warmup if args.lr_decay_from is None else args.lr_decay_from
        if decay == "none":
            for name in ("lr_decay_from", "lr_floor"):
                if getattr(args, name):
                    raise UserError(f"--{name} {getattr(args, name):g} needs --lr_decay linear or cosine")
        elif args.lr_warmup > begin:
            raise UserError(f"--lr_warmup {args.lr_warmup:g} ends after --lr_decay_from {begin:g}")
        return cls(args.lr_warmup, decay, begin, args.lr_floor)

    def is_constant(self) -> bool:
        """Return True if the factor is always 1."""
        return not self.warmup and self.decay == "none"

    def factor(self, progress: float) -> float:
        """Return the multiple of the peak rate at a fraction of the budget in [0, 1]."""
        rise = min(1.0, progress / self.warmup) if self.warmup else 1.0
        if self.decay == "none" or progress <= self.decay_from:
            return rise
        done = min(1.0, (progress - self.decay_from) / (1 - self.decay_from))
        left = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return rise * (self.floor + (1 - self.floor) * left)


def ema_rate(most: float, updates: int, horizon: float = 0.0) -> float:
    """Return the EMA decay at an update, which is lower early in training.

    With a horizon h, the average covers the last h * n updates (Karras et al. 2024, section 3.1, has the closed form).
    Without, the decay is (1 + n) / (10 + n).

    Args:
        most: maximum of the decay, in [0, 1).
        updates: n, the number of updates so far.
        horizon: h, a fraction of the updates so far; 0 for none.
    """
    if not horizon:
        return min(most, (1 + updates) / (10 + updates))
    return min(most, 1 - 1 / max(1.0, horizon * updates))


def add_schedule_options(
    group: argparse._ActionsContainer, *, decays: tuple[str, ...] = DECAYS, decay: str | None = "none"
) -> None:
    """Add --lr_warmup, --lr_decay (with its choices and default), --lr_decay_from, --lr_floor and --ema_horizon."""
    add = group.add_argument
    add("--lr_warmup", type=fraction, default=0.0, help="fraction of the budget over which learning rates rise from 0")
    add("--lr_decay", choices=decays, default=decay, help="shape of the decay from --lr_decay_from to the end")
    decay_help = "fraction of the budget at which --lr_decay begins; by default the end of the warm-up"
    add("--lr_decay_from", type=fraction, help=decay_help)
    add("--lr_floor", type=fraction, default=0.0, help="fraction of the learning rates that remains at the end")
    horizon_help = "length of the EMA as a fraction of the updates so far; 0 for the length of its rate alone"
    add("--ema_horizon", type=fraction, default=0.0, help=horizon_help)
