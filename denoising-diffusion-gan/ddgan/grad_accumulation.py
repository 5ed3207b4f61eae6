"""How micro-batches make up updates, and updates epochs. Standard library only."""


class Windows:
    """Windows of `accum_iter` micro-batches, each the gradient of one update; an epoch's last one may be shorter.

    Everything counts from 0, and steps are updates.

    Args:
        micro_per_epoch: micro-batches of an epoch, at least 1.
        accum_iter: of an update, at least 1.

    Attributes:
        updates_per_epoch: windows of an epoch, the shorter one included.
    """

    def __init__(self, micro_per_epoch: int, accum_iter: int = 1):
        self.micro_per_epoch, self.accum_iter = micro_per_epoch, accum_iter
        self.updates_per_epoch = -(-micro_per_epoch // accum_iter)

    def epoch(self, step: int) -> int:
        """Return the epoch that update `step` belongs to."""
        return step // self.updates_per_epoch

    def micro_done(self, step: int) -> int:
        """Return how many micro-batches were used before update `step`."""
        epoch, position = divmod(step, self.updates_per_epoch)
        return epoch * self.micro_per_epoch + position * self.accum_iter

    def micro_steps(self, step: int) -> range:
        """Return the numbers of the micro-batches of update `step`."""
        return range(self.micro_done(step), self.micro_done(step + 1))
