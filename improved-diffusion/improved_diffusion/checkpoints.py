"""The files of a step: model<step>.pt and ema_<rate>_<step>.pt, plain state dicts, and opt<step>.pt.

opt<step>.pt holds the optimizer, the counters and the state of the timestep sampler. It is written last: a step counts
as saved once this file exists.
"""

import io
import os
import re
from typing import Any

import torch
from torch import Tensor, nn

from . import archive, blob
from .training import Trainer


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint file, in each rank by itself.

    Raises:
        ValueError: damaged, or not a checkpoint.
        OSError, ImportError: see `blob.open_file`.
    """
    with blob.open_file(path, "rb") as file:
        content = io.BytesIO(file.read())
    try:
        state = archive.load(content, path, map_location="cpu")
    except archive.DamagedError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise their own on a damaged file
        if "Weights only load failed" in str(error):
            raise ValueError(f"{path}: not a checkpoint of plain types and tensors") from None
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise ValueError(f"{path}: not readable as a checkpoint, perhaps truncated ({reason})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def read_weights(path: str) -> dict[str, Tensor]:
    """Read the state dict of any network.

    Raises:
        ValueError: damaged, or a file of another kind.
        OSError, ImportError: see `blob.open_file`.
    """
    state = read_checkpoint(path)
    if "param_groups" in state:
        raise ValueError(f"{path}: an optimizer's file; give model<step>.pt or ema_<rate>_<step>.pt")
    if isinstance(state.get("model"), str):
        raise ValueError(f"{path}: a checkpoint of {state['model']}, not of improved-diffusion")
    return state


def read_network(path: str) -> dict[str, Tensor]:
    """Read the state dict of a `UNetModel` or `SuperResModel`; raises as `read_weights`."""
    state = read_weights(path)
    if "time_embed.0.weight" not in state:
        raise ValueError(f"{path}: not a network of improved-diffusion")
    return state


def fill_network(module: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load a state dict of `read_weights` into a network.

    Raises:
        ValueError: names the first parameter that does not fit.
    """
    own = module.state_dict()
    for name in {**own, **state}:
        if name not in state:
            raise ValueError(f"{path}: has no {name}; check the model flags, such as --num_channels")
        if name not in own:
            raise ValueError(f"{path}: unexpected key {name}; check the model flags")
        value = state[name]
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(f"{path}: {name} is not a dense tensor")
        if value.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{path}: {name} has the dtype {value.dtype}, not {own[name].dtype}")
        if own[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)} in the file, {tuple(own[name].shape)} by the flags"
            raise ValueError(f"{path}: {name} is {shapes}")
    module.load_state_dict(state)


def save_step(folder: str, step: int, trainer: Trainer, counters: dict[str, Any]) -> None:
    """Write the files of a step into a local or remote folder; `counters` go into the optimizer's file."""
    blob.backend(folder).makedirs(folder)
    files = {f"ema_{rate}_{step:06d}.pt": ema.state_dict() for rate, ema in trainer.ema.items()}
    files[f"model{step:06d}.pt"] = trainer.model.state_dict()
    files[f"opt{step:06d}.pt"] = {**trainer.optimizer_state(), "step": step, **counters}
    for name, state in files.items():
        with blob.open_file(os.path.join(folder, name), "wb") as file:
            torch.save(state, file)


def load_step(path: str, trainer: Trainer) -> tuple[dict[str, Any], list[str]]:
    """Load a network, and the EMA weights and the optimizer of its step where they lie beside it.

    Args:
        path: model<step>.pt, or any file with a network.
        trainer: receives them.

    Returns:
        The content of the optimizer's file, which has the counters, or {}; and the names of files that are missing.

    Raises:
        ValueError: a file is damaged or does not fit.
        OSError, ImportError: see `blob.open_file`.
    """
    folder, name = os.path.split(path)
    if name.startswith(("ema_", "opt")):
        raise ValueError(f"resume_checkpoint {path}: give the model<step>.pt beside it")
    state = read_weights(path)
    fill_network(trainer.model, state, path)
    step = f"{step_of(path):06d}"
    whole, missing = name == f"model{step}.pt", []
    for rate, ema in trainer.ema.items():
        ema_path = os.path.join(folder, f"ema_{rate}_{step}.pt")
        saved = whole and blob.backend(ema_path).exists(ema_path)
        fill_network(ema, read_weights(ema_path) if saved else state, ema_path if saved else path)
        missing += [] if saved else [f"ema_{rate}_{step}.pt (the average starts from the network)"]
    opt_path = os.path.join(folder, f"opt{step}.pt")
    if not (whole and blob.backend(opt_path).exists(opt_path)):
        return {}, [*missing, f"opt{step}.pt (the optimizer starts afresh)"]
    payload = read_checkpoint(opt_path)
    try:
        trainer.load_optimizer_state(payload)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{opt_path}: does not fit the network ({error})") from None
    check_counters(payload, opt_path)
    return payload, missing


def check_counters(payload: dict[str, Any], path: str) -> None:
    """Raise ValueError unless images_seen and wall_seconds, where the file has them, are numbers of at least 0."""
    for name in ("images_seen", "wall_seconds"):
        value = payload.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value < 2**63):
            raise ValueError(f"{path}: {name} is {value!r}, not a number of at least 0")


def step_of(path: str) -> int:
    """Return the step in the name of a checkpoint's file, such as model002500.pt; 0 for any other name."""
    match = re.search(r"(?:model|ema_[\d.]+_|opt)(\d+)\.pt$", path)
    return int(match[1]) if match else 0


def saved_steps(folder: str) -> list[int]:
    """Return the steps that are saved completely in a local or remote folder, ascending."""
    files = blob.backend(folder)
    names = {name.rstrip("/") for name in files.listdir(folder)} if files.isdir(folder) else set()
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"opt(\d+)\.pt", name))]
    return sorted(step for step in steps if f"model{step:06d}.pt" in names)
