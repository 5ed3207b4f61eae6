"""What image_train.py and image_sample.py share: flags, precision, and the checkpoint files of a run.

After n updates a run holds model<n>.pt and ema_<rate>_<n>.pt, plain state dicts, and opt<n>.pt with the optimizer
and the counters. The optimizer's file is written last: a step counts as saved when it is there.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.checkpoints import load_checkpoint, load_torch, save_checkpoint, trained_facts
from comparison.cli import UserError
from comparison.files import write_text
from comparison.runs import Run, read_progress
from improved_diffusion import dist_util
from improved_diffusion.flags import check_flags
from improved_diffusion.launch import LaunchError, Place, find_place

if TYPE_CHECKING:
    import torch
    from improved_diffusion.training import Trainer

MODEL = "improved-diffusion"


def judge_flags(flags: dict[str, Any], args: argparse.Namespace) -> None:
    """Refuse values that no network or process can have; without torch.

    Raises:
        UserError: one sentence that names the flag.
    """
    try:
        check_flags(flags)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    if args.use_fp16 and args.precision == "float32":
        raise UserError("--use_fp16 True and --precision float32 contradict each other")


def choose_dtype(precision: str, use_fp16: bool | None, device: "torch.device") -> "torch.dtype | None":
    """Return the type of the network's passes, None for float32.

    --use_fp16 means bf16 where the device computes in it, else float16 on CUDA, else float32 with a warning.
    """
    import torch
    from comparison.device import autocast_dtype, computes_bf16

    if not use_fp16:
        return autocast_dtype("float32" if use_fp16 is False and precision == "auto" else precision, device)
    if precision == "bf16" or computes_bf16(device):
        return torch.bfloat16
    if device.type == "cuda":
        return torch.float16
    print("warning: --use_fp16: this device has no fast bf16, so the network computes in float32", flush=True)
    return None


def my_place() -> Place:
    """Return this process's place among those that the launcher started; without torch.

    Raises:
        UserError: the launcher's variables contradict each other.
    """
    try:
        return find_place()
    except LaunchError as error:
        raise UserError(str(error)) from None


def connect(device_name: str, threads: int) -> "torch.device":
    """Connect the processes of this job; return this one's device, and give it its share of the CPU.

    Args:
        device_name: of --device; auto and cuda give each process of a machine its own GPU.
        threads: of --threads.

    Raises:
        UserError: no such device, or the processes do not find each other.
    """
    from comparison.device import pick_device, set_threads

    own = my_place()
    device = pick_device(device_name) if own.world_size == 1 else None
    try:
        dist_util.setup_dist(device_name if device is None else str(device))
    except LaunchError as error:
        raise UserError(str(error)) from None
    set_threads(threads, own.local_world_size)
    return device or pick_device(str(dist_util.dev()))


def place(model: "torch.nn.Module", device: "torch.device", dtype: "torch.dtype | None") -> None:
    """Move a network to its device, in the memory format that is fastest there, with the kernels for it."""
    import torch
    from comparison.gpu.group_norm import group_norm, is_fused
    from improved_diffusion.nn import NormKernel, use_norm_kernel

    # Convolutions prefer channels_last everywhere; a CPU's bf16 GroupNorm loses more in it than they gain.
    slow = device.type == "cpu" and dtype == torch.bfloat16
    model.to(device).to(memory_format=torch.contiguous_format if slow else torch.channels_last)
    use_norm_kernel(model, NormKernel(is_fused, group_norm) if device.type == "cuda" else None)


def load_network(module: "torch.nn.Module", path: Path, state: dict[str, Any] | None = None) -> None:
    """Load a plain state dict into a network; `state` where `load_state` has read the file already.

    Raises:
        UserError: missing, truncated, of another model, or of other shapes.
    """
    from improved_diffusion.checkpoints import fill_network

    try:
        fill_network(module, load_state(path) if state is None else state, str(path))
    except ValueError as error:
        raise UserError(str(error)) from None


def load_state(path: Path) -> dict[str, Any]:
    """Read a network's state dict.

    Raises:
        UserError: missing, truncated, or not a network of this family.
    """
    from improved_diffusion.checkpoints import is_dense

    state = load_torch(path)
    if isinstance(state, dict) and "param_groups" in state:
        raise UserError(f"{path}: an optimizer's file; name model*.pt or ema_*.pt")
    if not isinstance(state, dict) or "time_embed.0.weight" not in state:
        found = state.get("model") if isinstance(state, dict) else None
        of = f"a checkpoint of {found}" if isinstance(found, str) else "not a network"
        raise UserError(f"{path}: {of}, not of {MODEL}")
    for name, value in state.items():
        if not is_dense(value):
            raise UserError(f"{path}: {name} is not a dense tensor")
    return state


def training_of(path: Path) -> dict[str, Any]:
    """Say how long a network's file was trained, by its name and the files of its run; None where unknown."""
    match = re.fullmatch(r"(?:model|ema_[\d.]+_)(\d+)\.pt", path.name)
    if not match:
        return trained_facts(path.parent, None)
    facts = trained_facts(path.parent, int(match[1]))
    optimizer_file = path.with_name(f"opt{match[1]}.pt")
    if None in facts.values() and optimizer_file.is_file():  # large, so only where config.json does not tell
        counters = counters_of(load_torch(optimizer_file), optimizer_file)
        facts = trained_facts(path.parent, int(match[1]), counters.get("images_seen"), counters.get("wall_seconds"))
    return facts


def counters_of(payload: Any, path: Path) -> dict[str, Any]:
    """Return what the content of an optimizer's file counts: images_seen and wall_seconds, where it tells them.

    Raises:
        UserError: they are not numbers.
    """
    found = {name: payload.get(name) for name in ("images_seen", "wall_seconds")} if isinstance(payload, dict) else {}
    for name, value in found.items():
        if value is not None and not (isinstance(value, int | float) and 0 <= value < 2**63):
            raise UserError(f"{path}: {name} is {value!r}, not a number of at least 0")
    return {name: value for name, value in found.items() if value is not None}


def saved_steps(folder: Path) -> list[int]:
    """Return the steps whose files are complete, ascending."""
    steps = [int(m[1]) for p in folder.glob("opt*.pt") if (m := re.fullmatch(r"opt(\d+)\.pt", p.name))]
    return sorted(steps)


def save(trainer: "Trainer", folder: Path, step: int, counters: dict[str, Any], model: str = MODEL) -> None:
    """Write the files of a step of a family's run; `counters` go into the optimizer's file: images_seen, wall_seconds,
    and the state of the timestep sampler where it has one.
    """
    from improved_diffusion.training import save_state

    try:
        for rate, ema in trainer.ema.items():
            save_state(folder / f"ema_{rate}_{step:06d}.pt", ema.state_dict())
        save_state(folder / f"model{step:06d}.pt", trainer.model.state_dict())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: checkpoint not written ({error})") from None
    save_checkpoint(folder / f"opt{step:06d}.pt", {**trainer.optimizer_state(), "step": step, **counters}, model=model)


def restore(trainer: "Trainer", model_file: Path, model: str = MODEL) -> dict[str, Any]:
    """Load the files of a step of a family's run by the name of its model's file, and return what `save` was given.

    A network alone, from elsewhere, is accepted: averages start from it, the optimizer afresh.

    Raises:
        UserError: a file is damaged or does not fit.
    """
    match = re.fullmatch(r"model(\d+)\.pt", model_file.name)
    load_network(trainer.model, model_file)
    step = int(match[1]) if match else 0
    for rate, ema in trainer.ema.items():
        ema_file = model_file.with_name(f"ema_{rate}_{step:06d}.pt")
        load_network(ema, ema_file if match and ema_file.is_file() else model_file)
    optimizer_file = model_file.with_name(f"opt{step:06d}.pt")
    if not match or not optimizer_file.is_file():
        return {"step": step}
    payload = load_torch(optimizer_file)
    if isinstance(payload, dict) and "model" in payload:
        payload = load_checkpoint(optimizer_file, model=model)
    try:
        trainer.load_optimizer_state(payload)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{optimizer_file}: does not fit the network ({error})") from None
    sampler = {"sampler": payload["sampler"]} if "sampler" in payload else {}
    return {"step": step, **counters_of(payload, optimizer_file), **sampler}


def prune(folder: Path, save_interval: int, keep: int) -> None:
    """Delete old checkpoints: of the planned ones all but the newest `keep` (0 keeps all), of the others all but the
    newest of all.
    """
    steps = saved_steps(folder)
    planned = [step for step in steps if step % save_interval == 0]
    retained = set(planned[-keep:]) | set(steps[-1:])
    for step in set(steps) - retained:
        # The optimizer's file first: without it the step no longer counts.
        for pattern in (f"opt{step:06d}.pt", f"model{step:06d}.pt", f"ema_*_{step:06d}.pt"):
            _unlink(folder.glob(pattern))


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def newest_model(folder: Path) -> Path | None:
    """Return the newest checkpoint's model file, None before the first one."""
    steps = saved_steps(folder)
    return folder / f"model{steps[-1]:06d}.pt" if steps else None


def trim_json(train_run: Run) -> None:
    """Make progress.json hold the rows of progress.csv, which `Run.start` has trimmed."""
    rows = read_progress(path) if (path := train_run.folder / "progress.csv").is_file() else []
    write_text(train_run.folder / "progress.json", "".join(json.dumps(row) + "\n" for row in rows))
