"""Learning rates and moving averages that follow the share of the budget that has been used. Standard library only.

The share comes from `Budget.progress`, so that one setting fits a budget of seconds, images or updates, and a resumed
run goes on where it stopped.
"""

import argparse
import math
from dataclasses import dataclass

from comparison.cli import UserError, fraction

DECAYS = ("none", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A learning rate as a multiple of its peak, over the share of the budget that is used.

    Attributes:
        warmup: share of the budget over which the rate rises linearly from 0 to its peak.
        decay: none, linear or cosine (half a period; Loshchilov & Hutter 2017, Eq. 5).
        decay_from: share of the budget at which the decay begins.
        floor: multiple of the peak at which the decay ends.
    """

    warmup: float = 0.0
    decay: str = "none"
    decay_from: float = 0.0
    floor: float = 0.0

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Schedule":
        """Read the flags of `add_schedule_options`; a decay that is none of DECAYS is the script's own, here none.

        Raises:
            UserError: the warm-up reaches into the decay, or a flag has no effect.
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
        """Return the multiple of the peak rate at a share of the budget in [0, 1]."""
        rise = min(1.0, progress / self.warmup) if self.warmup else 1.0
        if self.decay == "none" or progress <= self.decay_from:
            return rise
        done = min(1.0, (progress - self.decay_from) / (1 - self.decay_from))
        left = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return rise * (self.floor + (1 - self.floor) * left)


def ema_rate(most: float, updates: int, horizon: float = 0.0) -> float:
    """Return the decay of an exponential moving average at an update, lowered while few updates have been made.

    With a horizon h the average reaches back over h times the updates so far, so that its length grows with the run
    (Karras et al. 2024, section 3.1, has the same in closed form). Without one the rule is (1 + n) / (10 + n).

    Args:
        most: decay that is never exceeded, in [0, 1).
        updates: n, the updates made so far.
        horizon: h, a share of the updates so far; 0 for none.
    """
    if not horizon:
        return min(most, (1 + updates) / (10 + updates))
    return min(most, 1 - 1 / max(1.0, horizon * updates))


def add_schedule_options(
    group: argparse._ActionsContainer, *, decays: tuple[str, ...] = DECAYS, decay: str | None = "none"
) -> None:
    """Add --lr_warmup, --lr_decay, --lr_decay_from, --lr_floor and --ema_horizon.

    Args:
        group: of the parser.
        decays: values of --lr_decay, DECAYS among them.
        decay: its default.
    """
    add = group.add_argument
    add("--lr_warmup", type=fraction, default=0.0, help="share of the budget over which learning rates rise from 0")
    add("--lr_decay", choices=decays, default=decay, help="how learning rates fall from --lr_decay_from to the end")
    decay_help = "share of the budget at which --lr_decay begins; by default where the warm-up ends"
    add("--lr_decay_from", type=fraction, help=decay_help)
    add("--lr_floor", type=fraction, default=0.0, help="share of the learning rates that is left at the end")
    add(
        "--ema_horizon",
        type=fraction,
        default=0.0,
        help="length of the moving average as a share of the updates so far; 0 for the length of its rate alone",
    )
