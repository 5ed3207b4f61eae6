"""A trained network for the scripts that use one: its flags from the run's config.json, its weights on the device."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import UserError, check_folder, str2bool
from comparison.files import digest
from comparison.runs import read_config
from improved_diffusion.flags import unify_prediction
from improved_diffusion.script_util import add_dict_to_argparser
from remote import path_or_url
from run_files import choose_dtype, connect, judge_flags, load_network, load_state, place

if TYPE_CHECKING:
    import torch
    from improved_diffusion.respace import SpacedDiffusion
    from improved_diffusion.unet import UNetModel

# Flags that may differ from training's: how many steps are taken, and what only training uses.
SAMPLING_FLAGS = frozenset({"timestep_respacing", "use_checkpoint", "loss_weighting", "snr_gamma"})


def add_network_flags(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """Add the flags of the network and the process; they appear in the result only where given."""
    group = parser.add_argument_group("model and process, by default those of the run")
    add_dict_to_argparser(group, defaults)
    for action in group._group_actions:
        action.default = argparse.SUPPRESS


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Add --model_path, --out_dir, --compile, --cuda_graph and --use_fp16."""
    add = parser.add_argument_group("checkpoint").add_argument
    add("--model_path", "--checkpoint", type=path_or_url, required=True, help="model<step>.pt or ema_<rate>_<step>.pt")
    add(
        "--out_dir",
        "--out",
        type=path_or_url,
        help="output folder; by default OPENAI_LOGDIR, else the model file's folder",
    )
    add(
        "--compile",
        type=str2bool,
        default=False,
        help="fuse the network's operations: a minute's wait, then faster GPUs",
    )
    add(
        "--cuda_graph",
        type=str2bool,
        default=True,
        help="on a CUDA GPU: record the network's evaluations of small batches and replay them",
    )
    add("--use_fp16", type=str2bool, help="compute in bf16 where the device can, else fp16 on CUDA, else float32")


def out_folder(args: argparse.Namespace) -> Path:
    """Return where a script writes.

    Raises:
        UserError: nothing can be written there.
    """
    variable = os.environ.get("OPENAI_LOGDIR")
    folder = args.out_dir or Path(variable or args.model_path.parent)
    check_folder(folder, "OPENAI_LOGDIR" if variable and not args.out_dir else "--out_dir")
    return folder


def run_flags(args: argparse.Namespace, defaults: dict[str, Any], model: str) -> dict[str, Any]:
    """Merge the flags given with those of the run that wrote the model's file, and judge them; without torch.

    Args:
        args: of the command line, with `add_network_flags`.
        defaults: of the flags.
        model: family that the run must be of.

    Raises:
        UserError: there is no file, they disagree, the folder is a run of another family, or nothing can be written.
    """
    if not args.model_path.is_file():
        raise UserError(f"--model_path {args.model_path}: no such file")
    out_folder(args)
    given = {name: value for name, value in vars(args).items() if name in defaults}
    unify_prediction(given)
    flags, path = {**defaults, **given}, args.model_path.parent / "config.json"
    if path.is_file():
        config = read_config(path)
        if config.get("model") != model:
            raise UserError(f"--model_path {args.model_path}: of a run of {config.get('model')}, not of {model}")
        trained = {name: value for name, value in config["options"].items() if name in defaults}
        unify_prediction(trained)
        for name, value in given.items():
            if name not in SAMPLING_FLAGS and trained.get(name, defaults[name]) != value:
                raise UserError(f"--{name} {value}: the model was trained with {trained.get(name, defaults[name])}")
        flags = {**defaults, **trained, **given}
    judge_flags(flags, args)
    return flags


@dataclass(frozen=True)
class Trained:
    """A network ready to be evaluated.

    Attributes:
        network: on `device`, in eval mode.
        diffusion: its process, with the steps of --timestep_respacing.
        num_classes: 0 for an unconditional network.
        device: where it computes.
        dtype: of autocast; None computes in float32.
        facts: what files about its output say of it: checkpoint, network, precision.
    """

    network: "torch.nn.Module"
    diffusion: "SpacedDiffusion"
    num_classes: int
    device: "torch.device"
    dtype: "torch.dtype | None"
    facts: dict[str, Any]

    def autocast(self) -> "torch.autocast":
        """Return the context in which the network is evaluated."""
        import torch

        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


def load_trained(
    args: argparse.Namespace,
    flags: dict[str, Any],
    create: "Callable[..., tuple[UNetModel, SpacedDiffusion]]",
) -> Trained:
    """Rebuild a network from its flags and its file, in each process of the job, which is connected first.

    Args:
        args: of the command line: model_path, device, threads, precision, use_fp16.
        flags: of the network and the process.
        create: makes both from the flags and `num_classes`.

    Raises:
        UserError: the file is damaged or does not fit the flags.
    """
    from comparison.device import precision_name
    from comparison.gpu.replay import for_sampling

    device = connect(args.device, args.threads)
    dtype = choose_dtype(args.precision, args.use_fp16, device)
    state = load_state(args.model_path)
    num_classes = state["label_emb.weight"].shape[:1].numel() if "label_emb.weight" in state else 0
    network, diffusion = create(**flags, num_classes=num_classes)
    load_network(network, args.model_path, state)
    place(network, device, dtype)
    facts = {
        "checkpoint": args.model_path.name,
        "checkpoint_sha256": digest(args.model_path),
        "network": "ema" if args.model_path.name.startswith("ema_") else "raw",
        "precision": precision_name(dtype),
        **({"compiled": True} if args.compile else {}),
    }
    network.eval()
    quickened = compiled(network, device) if args.compile else for_sampling(network, device, args.cuda_graph)
    return Trained(quickened, diffusion, num_classes, device, dtype, facts)


def compiled(network: "torch.nn.Module", device: "torch.device") -> "torch.nn.Module":
    """Return a network whose operations are fused, on CUDA replayed as one graph; its first call compiles."""
    import torch

    class Compiled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self._call = torch.compile(network, mode="reduce-overhead" if device.type == "cuda" else None)

        def forward(self, *args: "torch.Tensor", **kwargs: "torch.Tensor") -> "torch.Tensor":
            torch.compiler.cudagraph_mark_step_begin()
            return self._call(*args, **kwargs).clone()  # a graph's next replay overwrites its output

    return Compiled()
