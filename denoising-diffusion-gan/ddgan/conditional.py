"""Class-conditional networks: label embeddings, and the classes of samples."""

from collections.abc import Sequence

import torch
from comparison.cli import UserError
from torch import Tensor, nn

GRID_COLUMNS = 8
GRID_ROWS = (8, 16)  # minimum and maximum


def label_embedding(num_classes: int, features: int) -> nn.Embedding | None:
    """Return an embedding (Glorot uniform as in Miyato and Koyama 2018), or None for 0 classes."""
    if num_classes == 0:
        return None
    embedding = nn.Embedding(num_classes, features)
    nn.init.xavier_uniform_(embedding.weight)
    return embedding


def cyclic_labels(indices: range, num_classes: int, only: int | None = None) -> Tensor | None:
    """Return the classes of samples, (N,) int64 on the CPU; None for 0 classes.

    Sample i has class i mod num_classes, or the class `only` if it is given.
    """
    if num_classes == 0:
        return None
    return (
        torch.arange(indices.start, indices.stop) % num_classes if only is None else torch.full((len(indices),), only)
    )


def grid_labels(num_classes: int) -> Tensor | None:
    """Return the classes of a grid's images, (N,) int64 on the CPU; None for 0 classes.

    Row k of 8 images has class k. Fewer than 8 classes repeat; only the first 16 classes are shown.
    """
    if num_classes == 0:
        return None
    rows = min(max(num_classes, GRID_ROWS[0]), GRID_ROWS[1])
    return (torch.arange(rows) % num_classes).repeat_interleave(GRID_COLUMNS)


def find_class(text: str, num_classes: int, class_names: Sequence[str]) -> int:
    """Return the number of the class that --class_label names or numbers; raise UserError if there is none."""
    if num_classes == 0:
        raise UserError(f"--class_label {text}: the network is unconditional; train one with --class_cond")
    if text in class_names:
        return list(class_names).index(text)
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    names = f" or {', '.join(class_names)}" if 0 < len(class_names) <= 20 else ""
    raise UserError(f"--class_label {text}: must be 0 to {num_classes - 1}{names}")
