"""Published flags of training and sampling; standard library only, so that a wrong flag is reported at once."""

import argparse
import re
import socket
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from comparison import ranks
from comparison.cli import (
    UserError,
    add_oversubscribe,
    below_one,
    default_run_folder,
    fraction,
    non_negative_int,
    pixels,
    port_number,
    positive_float,
    positive_int,
    process_count,
)
from comparison.ranks import RankInfo

MODEL = "denoising-diffusion-gan"
DOMAINS = ("pixel", "patch", "haar")


# Flag -> (type, published default, help). The type is an argparse type, [type] for a list, a tuple of choices, "on" for
# a switch that is False unless given, or "off" for a published switch that is True unless given.
Flags = dict[str, tuple[Any, Any, str]]
_ARCHITECTURE: Flags = {
    "image_size": (pixels, 32, "height and width, pixels"),
    "num_channels": (positive_int, 3, "image channels; images are read as RGB, so 3"),
    "num_channels_dae": (positive_int, 128, "generator's base width, features"),
    "n_mlp": (non_negative_int, 3, "hidden layers of the latent's mapping"),
    "ch_mult": ([positive_int], [1, 2, 2, 2], "width of each resolution, in units of num_channels_dae"),
    "num_res_blocks": (positive_int, 2, "residual blocks per resolution"),
    "attn_resolutions": ([positive_int], [16], "resolutions with self-attention, pixels"),
    "dropout": (below_one, 0.0, "dropout probability of the generator"),
    "resamp_with_conv": ("off", True, "INVERTED as published: giving it resamples without convolution (ddpm blocks)"),
    "conditional": ("off", True, "INVERTED as published: giving it hides the timestep from the generator"),
    "fir": ("off", True, "INVERTED as published: giving it resamples by repeating and averaging pixels"),
    "fir_kernel": ([positive_int], [1, 3, 3, 1], "taps of the resampling filter, symmetric, an even number"),
    "skip_rescale": ("off", True, "INVERTED as published: giving it adds residuals without the factor sqrt(1/2)"),
    "resblock_type": (("biggan", "biggan_oneadagn", "ddpm"), "biggan", "generator's residual blocks"),
    "progressive": (("none", "output_skip", "residual"), "none", "how the resolutions contribute to the output"),
    "progressive_input": (("none", "input_skip", "residual"), "residual", "how lower resolutions receive the input"),
    "progressive_combine": (("sum", "cat"), "sum", "how input_skip combines input and features"),
    "embedding_type": (("positional", "fourier"), "positional", "generator's time embedding"),
    "fourier_scale": (positive_float, 16.0, "standard deviation of the fourier embedding's frequencies"),
    "not_use_tanh": ("on", False, "leave the generator's output unbounded"),
    "centered": ("off", True, "INVERTED as published: giving it makes the generator map its input x to 2 x - 1"),
    "class_cond": ("on", False, "condition both networks on the class of each image; the data must have labels"),
    "nz": (positive_int, 100, "length of the latent"),
    "z_emb_dim": (positive_int, 256, "length of the latent's embedding"),
    "t_emb_dim": (positive_int, 256, "length of the discriminator's time embedding, even"),
    "num_timesteps": (positive_int, 4, "T, denoising steps"),
    "beta_min": (positive_float, 0.1, "noise rate at the start; with --use_geometric the variance"),
    "beta_max": (positive_float, 20.0, "noise rate at the end; with --use_geometric the variance, below 1"),
    "use_geometric": ("on", False, "geometric growth of the variance instead of the VP-SDE's"),
    "domain": (DOMAINS, "pixel", "what is diffused: pixels, 2 x 2 squares as channels, or their Haar coefficients"),
    "detail_scale": (positive_float, 1.0, "factor of the detail coefficients of --domain haar"),
}
_OBJECTIVE: Flags = {
    "discriminator_input": (("x_t", "x_0"), "x_t", "what the discriminator compares, given x_{t+1}: x_t or x_0"),
    "discriminator_shift": ("on", False, "roll each pair by a random number of pixels; prevents grid artifacts"),
    "t_decay": (positive_float, 1.0, "frequency of t + 1 relative to t; below 1 favors the last sampling steps"),
    "penalty_estimate": (("exact", "finite"), "exact", "second derivatives, or finite differences (CUDA graphs work)"),
    "reconstruction": (("none", "constant", "decay"), "none", "generator's x_0 loss; decay falls to 0 as a cosine"),
    "reconstruction_weight": (positive_float, 1.0, "weight of the x_0 loss"),
}
_DENOISER: Flags = {
    "denoiser_fraction": (fraction, 0.0, "fraction of the budget for training the generator as a denoiser; 1 for all"),
    "lr_denoiser": (positive_float, 1e-3, "learning rate of the denoiser, a cosine after a warm-up"),
    "denoiser_d_every": (non_negative_int, 0, "updates per update of the discriminator in that phase; 0 for none"),
}
ARCHITECTURE = tuple(_ARCHITECTURE)
# Flags that sampling does not depend on; a sampling command may repeat them, and their values are not compared.
DISCRIMINATOR_ONLY = ("t_emb_dim",)
# Flags that fix the number of processes; a run records only that number, however it is reached.
PROCESS_OPTIONS = (
    *("num_process_per_node", "num_proc_node", "node_rank", "master_address", "master_port", "local_rank"),
    "oversubscribe",
)
MIN_LARGE = 64  # pixels; the large discriminator halves six times


def defaults() -> dict[str, Any]:
    """Return the published defaults of all flags that define the networks and the process."""
    return {name: default for name, (_, default, _) in _ARCHITECTURE.items()}


def is_value(name: str, value: Any) -> bool:
    """Return True if a flag of ARCHITECTURE accepts the value, such as one from a checkpoint."""
    kind = _ARCHITECTURE[name][0]
    if isinstance(kind, tuple):
        return value in kind
    if isinstance(kind, str):
        return isinstance(value, bool)
    if isinstance(kind, list):
        return isinstance(value, list | tuple) and bool(value) and all(_parses(kind[0], part) for part in value)
    return _parses(kind, value)


def _parses(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return kind(str(value)) == value
    except argparse.ArgumentTypeError:
        return False


def _add_flags(group: argparse._ArgumentGroup, flags: Flags, suppress: bool = False) -> None:
    for name, (kind, default, help_text) in flags.items():
        settings: dict[str, Any] = {"default": argparse.SUPPRESS if suppress else default, "help": help_text}
        if isinstance(kind, str):
            settings["action"] = "store_true" if kind == "on" else "store_false"
        elif isinstance(kind, list):
            settings.update(type=kind[0], nargs="+", metavar="N")
        elif isinstance(kind, tuple):
            settings["choices"] = kind
        else:
            settings.update(type=kind, metavar="X")
        group.add_argument(f"--{name}", **settings)


def add_architecture_options(parser: argparse.ArgumentParser, *, suppress: bool = False) -> None:
    """Add the flags of networks and process; with `suppress`, flags that are not given are absent from the result."""
    _add_flags(parser.add_argument_group("networks and process"), _ARCHITECTURE, suppress)


def add_objective_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ddgan.objective.Objective` and of the denoising phase."""
    _add_flags(parser.add_argument_group("objective; the defaults are the published one"), _OBJECTIVE)
    title = "denoising phase at the start; the other schedules cover the rest of the budget"
    _add_flags(parser.add_argument_group(title), _DENOISER)


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Add the published flags of several processes; `get_rank_info` validates them."""
    group = parser.add_argument_group("processes")
    add = group.add_argument
    help_text = "processes on this machine, one per GPU; they share GPUs if there are fewer, and cores without GPUs"
    add("--num_process_per_node", type=process_count, default=1, metavar="K", help=help_text)
    add("--num_proc_node", type=process_count, default=1, metavar="N", help="machines")
    help_text = "number of this machine, 0 to N - 1; the command is otherwise the same on all machines"
    add("--node_rank", type=non_negative_int, default=0, metavar="X", help=help_text)
    help_text = "address of machine 0, for several machines"
    add("--master_address", type=host_name, default="127.0.0.1", metavar="HOST", help=help_text)
    help_text = "port of machine 0, for several machines; on one machine a free port is found automatically"
    add("--master_port", type=port_number, default=6020, metavar="PORT", help=help_text)
    help_text = "accepted and ignored: every process knows its own"
    add("--local_rank", type=non_negative_int, default=0, metavar="X", help=help_text)
    add_oversubscribe(group)


def get_rank_info(args: argparse.Namespace) -> RankInfo:
    """Return the rank of this process, see `comparison.ranks.get_rank_info`.

    Raises:
        UserError: the flags contradict each other or a launcher.
    """
    if args.node_rank >= args.num_proc_node:
        raise UserError(f"--node_rank {args.node_rank}: must be below --num_proc_node {args.num_proc_node}")
    rank_info = ranks.get_rank_info(
        processes=args.num_process_per_node, nodes=args.num_proc_node, node_rank=args.node_rank,
        address=args.master_address, port=args.master_port, oversubscribe=args.oversubscribe,
    )  # fmt: skip
    if rank_info.is_first and rank_info.port and not rank_info.launcher:
        check_port(rank_info.port)
    return rank_info


def check_port(port: int) -> None:
    """Raise UserError unless this machine can listen at a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(f"--master_port {port}: not usable ({error.strerror}); name another port") from None


def host_name(text: str) -> str:
    """Parse a host name or address, an argparse type."""
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", text):
        raise argparse.ArgumentTypeError(f"must be a host name or address, not {text!r}")
    return text


def check_architecture(options: Mapping[str, Any]) -> None:
    """Raise UserError, naming the flag, if no network or process can be built from a combination of flags."""
    size, mults, nf = options["image_size"], options["ch_mult"], options["num_channels_dae"]
    domain = options.get("domain", "pixel")
    if options["num_channels"] != 3:
        raise UserError(f"--num_channels {options['num_channels']}: images are read as RGB, so it must be 3")
    fold = 1 if domain == "pixel" else 2
    parts = fold * 2 ** (len(mults) - 1)
    if size % parts or size < 8 * fold:
        flags = "this --ch_mult" if fold == 1 else f"this --ch_mult and --domain {domain}"
        raise UserError(f"--image_size {size}: must be at least {8 * fold} and divisible by {parts} for {flags}")
    if options.get("discriminator") == "large" and size < MIN_LARGE * fold:
        raise UserError(f"--discriminator large: halves six times, so --image_size must be at least {MIN_LARGE * fold}")
    for width in _widths(mults, options["progressive_input"], options["progressive_combine"]):
        if nf < 4 or (nf * width) % min(nf * width // 4, 32):
            raise UserError(
                f"--num_channels_dae {nf}: {nf * width} features do not divide into equal groups; try 16 or 32"
            )
    taps = options["fir_kernel"]
    if len(taps) % 2 or len(taps) < 4 or taps != taps[::-1]:
        raise UserError(f"--fir_kernel {' '.join(map(str, taps))}: must be symmetric, of 4, 6, ... taps")
    if options["t_emb_dim"] % 2 or options["t_emb_dim"] < 4:
        raise UserError(f"--t_emb_dim {options['t_emb_dim']}: must be even and at least 4")
    low, high = options["beta_min"], options["beta_max"]
    if options["use_geometric"] and not low < high < 1:
        raise UserError(f"--use_geometric: needs beta_min < beta_max < 1, such as 0.01 and 0.9, not {low} and {high}")
    if low >= high:
        raise UserError(f"--beta_min {low}: must be below --beta_max {high}")


def _widths(mults: Sequence[int], progressive_input: str, combine: str) -> set[int]:
    """Return every width of a group norm, in units of the base width."""
    joined = {2 * m for m in mults} if (progressive_input, combine) == ("input_skip", "cat") else set()
    encoder = {1, *mults, *joined}
    neighbors = {a + b for a, b in pairwise([mults[-1], *reversed(mults)])}
    return encoder | neighbors | {a + b for a in mults for b in encoder if b <= 2 * max(mults)}


def add_run_folder(group: argparse._ArgumentGroup) -> None:
    """Add --exp, and --run_dir as in the other models."""
    exp_help = "name of the run; with a slash, its folder"
    group.add_argument("--exp", default="experiment_cifar_default", help=exp_help)
    group.add_argument(
        "--run_dir",
        dest="exp",
        type=lambda path: path if "/" in path else f"./{path}",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="run folder, in place of --exp",
    )


def run_folder(exp: str) -> Path:
    """Return the run folder of --exp: in results/runs/, or a path if it has a slash; raise UserError if it is empty."""
    if exp in ("", ".", ".."):
        raise UserError(f"--exp {exp!r}: must be the name of a run, or a path with a slash")
    return Path(exp) if "/" in exp else default_run_folder(MODEL, exp)


def discriminator_size(choice: str, image_size: int) -> str:
    """Resolve `auto`, by which the published code uses the small one for 32 pixels and the large one for 256."""
    return choice if choice != "auto" else ("small" if image_size < 128 else "large")
