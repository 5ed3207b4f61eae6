"""Class-conditional networks: embeddings of class labels, and which classes are drawn."""

from collections.abc import Sequence

import torch
from comparison.cli import UserError
from torch import Tensor, nn

GRID_COLUMNS = 8
GRID_ROWS = (8, 16)  # at least and at most


def label_embedding(num_classes: int, features: int) -> nn.Embedding | None:
    """Return one vector per class, or None for 0 classes; initialised as by Miyato and Koyama 2018 (Glorot uniform)."""
    if num_classes == 0:
        return None
    embedding = nn.Embedding(num_classes, features)
    nn.init.xavier_uniform_(embedding.weight)
    return embedding


def check_labels(embedding: nn.Embedding | None, y: Tensor | None) -> None:
    """Refuse labels for a network without classes, and a network with classes without labels.

    Raises:
        ValueError: so.
    """
    if (embedding is None) != (y is None):
        raise ValueError("labels are for networks with num_classes > 0, and these need them")


def cyclic_labels(indices: range, num_classes: int, only: int | None = None) -> Tensor | None:
    """Return the classes of some images of a sample set: image i has class i mod num_classes.

    Args:
        indices: consecutive image numbers.
        num_classes: of the network; 0 for one without classes.
        only: the class of all images instead.

    Returns:
        (N,) int64 on the CPU, or None for a network without classes.
    """
    if num_classes == 0:
        return None
    return (
        torch.arange(indices.start, indices.stop) % num_classes if only is None else torch.full((len(indices),), only)
    )


def grid_labels(num_classes: int) -> Tensor | None:
    """Return the classes of a grid's images, whose number is the result's length: row k of 8 images has class k.

    Fewer than 8 classes begin again; of more than 16 the first are shown.

    Returns:
        (N,) int64 on the CPU, or None for 0 classes.
    """
    if num_classes == 0:
        return None
    rows = min(max(num_classes, GRID_ROWS[0]), GRID_ROWS[1])
    return (torch.arange(rows) % num_classes).repeat_interleave(GRID_COLUMNS)


def find_class(text: str, num_classes: int, class_names: Sequence[str]) -> int:
    """Return the number of the class that --class_label names, by its name or its number.

    Raises:
        UserError: the network knows no classes, or not this one.
    """
    if num_classes == 0:
        raise UserError(f"--class_label {text}: the network knows no classes; train one with --class_cond")
    if text in class_names:
        return list(class_names).index(text)
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    names = f" or {', '.join(class_names)}" if 0 < len(class_names) <= 20 else ""
    raise UserError(f"--class_label {text}: must be 0 to {num_classes - 1}{names}")
