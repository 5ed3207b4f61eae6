"""Gradient accumulation: which micro-batches form an update, and which updates form an epoch; standard library only."""


class AccumulationSchedule:
    """Assign `accum_iter` micro-batches to each update; the last update of an epoch may have fewer.

    Steps are updates; updates and micro-batches count from 0.

    Args:
        micro_per_epoch: micro-batches per epoch, at least 1.
        accum_iter: micro-batches per update, at least 1.

    Attributes:
        updates_per_epoch: updates per epoch, the shorter one included.
    """

    def __init__(self, micro_per_epoch: int, accum_iter: int = 1):
        self.micro_per_epoch, self.accum_iter = micro_per_epoch, accum_iter
        self.updates_per_epoch = -(-micro_per_epoch // accum_iter)

    def micro_done(self, step: int) -> int:
        """Return the number of micro-batches before update `step`."""
        epoch, position = divmod(step, self.updates_per_epoch)
        return epoch * self.micro_per_epoch + position * self.accum_iter

    def micro_steps(self, step: int) -> range:
        """Return the indices of the micro-batches of update `step`."""
        return range(self.micro_done(step), self.micro_done(step + 1))
