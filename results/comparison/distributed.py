"""The group of processes that train or evaluate together, on torch.distributed. Imports torch inside functions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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


def processes() -> int:
    """Return the number of processes that work together; 1 outside a group."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def agree(stop: bool, seconds: float) -> tuple[bool, float]:
    """Return whether any process was asked to stop, and the first one's clock, so that all end at the same update."""
    if processes() == 1:
        return stop, seconds
    import torch

    first = torch.distributed.get_rank() == 0
    values = torch.tensor([float(stop), seconds if first else 0.0], dtype=torch.float64)
    torch.distributed.all_reduce(values)
    return bool(values[0]), float(values[1])


def mean(values: "Mapping[str, Tensor | float]") -> dict[str, float]:
    """Return the mean of each scalar over the processes, all of which have the same names."""
    numbers = [float(value) for value in values.values()]
    if processes() > 1 and numbers:
        import torch

        sums = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        numbers = (sums / processes()).tolist()
    return dict(zip(values, numbers, strict=True))
