"""Checkpoint files, and what is wrong with one that does not fit."""

import pickle
from typing import Any

import torch
from torch import Tensor, nn

from . import dist_util


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint's file in every process by itself.

    Raises:
        ValueError: damaged, or not a checkpoint.
    """
    try:
        state = dist_util.load_state_dict(path, map_location="cpu")
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise ValueError(f"{path}: not readable as a checkpoint ({reason})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def is_dense(value: object) -> bool:
    """Tell whether this is a tensor that is stored whole."""
    return isinstance(value, Tensor) and value.layout == torch.strided


def fill_network(module: nn.Module, state: dict[str, Any], path: str) -> None:
    """Load a state dict into a network.

    Raises:
        ValueError: names the first parameter that does not fit.
    """
    own = module.state_dict()
    for name in {**own, **state}:
        if name not in state:
            raise ValueError(f"{path}: holds no {name}; do --num_channels, --num_res_blocks and the others fit it?")
        if name not in own:
            raise ValueError(f"{path}: {name} is what the network has not; do the model's flags fit it?")
        if not is_dense(state[name]) or state[name].is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{path}: {name} is not a dense tensor of such numbers as the network has")
        if own[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)} there, {tuple(own[name].shape)} by the flags"
            raise ValueError(f"{path}: {name} is {shapes}")
    module.load_state_dict(state)
