"""The group of processes that train or evaluate together, on torch.distributed."""

from typing import Any


def init_process_group(*args: Any, **kwargs: Any) -> None:
    """Call `torch.distributed.init_process_group`, for a group that ends with `destroy_process_group`.

    Functions of `torch.distributed.nn` keep, as a default argument, the group that is there when they are imported,
    and torch imports them by itself, with the first optimizer. The group's threads then outlive it, and one that lets
    go of a tensor while the interpreter ends aborts the process.

    Args:
        args: of `torch.distributed.init_process_group`.
        kwargs: of the same.
    """
    import torch.distributed.nn.functional

    torch.distributed.init_process_group(*args, **kwargs)
