"""Trained weights in 16 bits, as one safetensors file in a run folder, which every sampling script reads."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from comparison import cli
from comparison.cli import UserError
from comparison.files import atomic, digest

NAME = "weights.safetensors"
PREFIX = "pretrained:"  # of --checkpoint
OUT = "pretrained"  # subfolder of the run for what is sampled from these weights
CONTENT, CHECK_SUM = "checkpoint", "sha256"  # keys in the file's header


def save_weights(path: Path, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint with its floating-point tensors in float16.

    Args:
        path: file to write, which ends in .safetensors.
        payload: nested dictionaries with text as keys; their values are tensors or have a form in JSON.

    Raises:
        UserError: a weight is not finite in float16, or the file could not be written.
    """
    import torch
    from safetensors.torch import save_file

    tensors, plain = {}, _without_tensors(payload)
    for name, value in _tensors(payload):
        tensors[name] = value.to(torch.float16).contiguous() if value.is_floating_point() else value.contiguous()
        if value.is_floating_point() and not tensors[name].isfinite().all():
            raise UserError(f"{path}: {name} has values that float16 cannot hold")
    content = json.dumps(plain)
    with atomic(path) as temporary:
        save_file(tensors, temporary, {CONTENT: content, CHECK_SUM: _check_sum(content, tensors)})


def _check_sum(content: str, tensors: Mapping[str, Any]) -> str:
    kinds = [f"{name} {value.dtype} {tuple(value.shape)}" for name, value in sorted(tensors.items())]
    return digest(content, *kinds, *(tensors[name].numpy() for name in sorted(tensors)))


def _tensors(payload: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in payload.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{name}/")
        elif hasattr(value, "is_floating_point"):
            yield prefix + name, value


def _without_tensors(payload: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: _without_tensors(v) if isinstance(v, Mapping) else v for name, v in payload.items()}
    return {name: value for name, value in parts.items() if not hasattr(value, "is_floating_point")}


def load_weights(path: Path) -> dict[str, Any]:
    """Return what `save_weights` got, with floating-point tensors in float32, on the CPU.

    Raises:
        UserError: the file is missing, damaged or of another origin.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        payload = json.loads(header[CONTENT])
        if _check_sum(header[CONTENT], tensors) != header[CHECK_SUM]:
            raise UserError(f"{path}: damaged; the check sum of its weights is wrong")
        for key, value in tensors.items():
            *parents, name = key.split("/")
            node = payload
            for parent in parents:
                node = node[parent]
            node[name] = value.to(torch.float32) if value.is_floating_point() else value
    except UserError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: not readable as weights of this project ({reason})") from None
    return payload


def read_facts(path: Path) -> dict[str, Any]:
    """Return the entries of `save_weights` that hold no tensors, without reading these; raises as `load_weights`."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        content = json.loads(header["__metadata__"][CONTENT])
    except (OSError, KeyError, TypeError, ValueError, MemoryError, OverflowError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not readable as weights of this project")
    return content


def checkpoint_path(model: str) -> Callable[[str], Path]:
    """Return the argparse type of a model's --checkpoint: a path, or pretrained:NAME for the weights of a run.

    Args:
        model: folder of the model's runs.
    """

    def read(text: str) -> Path:
        if not text.startswith(PREFIX):
            return cli.local_path(text)
        path = cli.default_run_folder(model, cli.run_name(text.removeprefix(PREFIX))) / NAME
        if not path.is_file():
            found = sorted(path.parent.name for path in path.parents[1].glob(f"*/{NAME}"))
            raise argparse.ArgumentTypeError(f"no {text}; there are: {', '.join(found) or 'none'}")
        return path

    return read


def is_weights(path: Path) -> bool:
    """Return True for a file of `save_weights`, by its name."""
    return path.suffix == ".safetensors"


def out_folder(checkpoint: Path) -> Path:
    """Return the default folder of samples: that of the checkpoint, for weights a subfolder."""
    return checkpoint.parent / OUT if is_weights(checkpoint) else checkpoint.parent
