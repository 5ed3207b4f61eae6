"""The published flags of training and sampling. Standard library only: they are judged before torch is imported."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from comparison.cli import (
    UserError,
    default_run_folder,
    fraction,
    non_negative_int,
    pixels,
    positive_float,
    positive_int,
)
from comparison.places import Place, find_place

MODEL = "denoising-diffusion-gan"
DOMAINS = ("pixel", "patch", "haar")


def below_one(text: str) -> float:
    """Read a number in [0, 1), an argparse type."""
    value = fraction(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0 and below 1, not {text}")
    return value


# name -> (type or "switch", published default, help). A switch is False unless given; a "published" one inverts.
_ARCHITECTURE: dict[str, tuple[Any, Any, str]] = {
    "image_size": (pixels, 32, "height and width, pixels"),
    "num_channels": (positive_int, 3, "of an image; images are read as RGB, so 3"),
    "num_channels_dae": (positive_int, 128, "generator's base width, features"),
    "n_mlp": (non_negative_int, 3, "hidden layers of the latent's mapping"),
    "ch_mult": ([positive_int], [1, 2, 2, 2], "width of each resolution, in units of num_channels_dae"),
    "num_res_blocks": (positive_int, 2, "residual blocks per resolution"),
    "attn_resolutions": ([positive_int], [16], "resolutions with self-attention, pixels"),
    "dropout": (below_one, 0.0, "probability, generator"),
    "resamp_with_conv": ("off", True, "INVERTED as published: giving it resamples without convolution (ddpm blocks)"),
    "conditional": ("off", True, "INVERTED as published: giving it hides the time index from the generator"),
    "fir": ("off", True, "INVERTED as published: giving it resamples by repeating and averaging pixels"),
    "fir_kernel": ([positive_int], [1, 3, 3, 1], "taps of the resampling filter, symmetric, an even number"),
    "skip_rescale": ("off", True, "INVERTED as published: giving it adds residuals without the factor sqrt(1/2)"),
    "resblock_type": (("biggan", "biggan_oneadagn", "ddpm"), "biggan", "generator's residual blocks"),
    "progressive": (("none", "output_skip", "residual"), "none", "how the output is gathered over resolutions"),
    "progressive_input": (("none", "input_skip", "residual"), "residual", "how the input enters lower resolutions"),
    "progressive_combine": (("sum", "cat"), "sum", "how input_skip joins it"),
    "embedding_type": (("positional", "fourier"), "positional", "generator's time embedding"),
    "fourier_scale": (positive_float, 16.0, "standard deviation of the fourier embedding's frequencies"),
    "not_use_tanh": ("on", False, "leave the generator's output unbounded"),
    "centered": ("off", True, "INVERTED as published: giving it makes the generator map its input x to 2 x - 1"),
    "class_cond": ("on", False, "give both networks the class of each image; the data must have labels"),
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
ARCHITECTURE = tuple(_ARCHITECTURE)
LATER = ("class_cond", "domain", "detail_scale")  # checkpoints from before these have their defaults
# What sampling does not depend on; a sampling command may repeat it, and nothing is compared.
DISCRIMINATOR_ONLY = ("t_emb_dim",)
MOST_PROCESSES = 1024  # more on one machine are a slip of the hand that would bring it down
LARGE_FROM = 64  # pixels; the large discriminator halves six times


def defaults() -> dict[str, Any]:
    """Return the published defaults of all flags that fix networks and process."""
    return {name: default for name, (_, default, _) in _ARCHITECTURE.items()}


def is_value(name: str, value: Any) -> bool:
    """Tell whether a value, such as one in a checkpoint, could have been given to a flag of ARCHITECTURE."""
    kind = _ARCHITECTURE[name][0]
    if isinstance(kind, tuple):
        return value in kind
    if isinstance(kind, str):
        return isinstance(value, bool)
    if isinstance(kind, list):
        return isinstance(value, list | tuple) and bool(value) and all(_reads(kind[0], part) for part in value)
    return _reads(kind, value)


def _reads(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return kind(str(value)) == value
    except argparse.ArgumentTypeError:
        return False


def add_architecture_options(parser: argparse.ArgumentParser, *, suppress: bool = False) -> None:
    """Add the flags that fix networks and process.

    Args:
        parser: to add to.
        suppress: leave flags that were not given out of the result, for a script that knows them from a checkpoint.
    """
    group = parser.add_argument_group("networks and process")
    for name, (kind, default, words) in _ARCHITECTURE.items():
        settings: dict[str, Any] = {"default": argparse.SUPPRESS if suppress else default, "help": words}
        if kind == "on":
            settings["action"] = "store_true"
        elif kind == "off":
            settings["action"] = "store_false"
        elif isinstance(kind, list):
            settings.update(type=kind[0], nargs="+", metavar="N")
        elif isinstance(kind, tuple):
            settings["choices"] = kind
        else:
            settings.update(type=kind, metavar="X")
        group.add_argument(f"--{name}", **settings)


def add_objective_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ddgan.objective.Objective` and of the denoiser's phase; the defaults are the published ones."""
    group = parser.add_argument_group("objective")
    add = group.add_argument
    words = (
        "the discriminator judges x_t, as published, or the clean image before the posterior's noise, beside x_{t+1}"
    )
    add("--discriminator_input", default="x_t", choices=["x_t", "x_0"], help=words)
    words = "show it each pair rolled by a random number of pixels, against grids with the period of its strides"
    add("--discriminator_shift", action="store_true", help=words)
    words = (
        "frequency of each index t in the batches relative to that of t - 1; below 1 favours the last steps of sampling"
    )
    add("--t_decay", type=positive_float, default=1.0, metavar="X", help=words)
    words = "of each logit, as published, or of pairs of a real and a generated one"
    add("--gan_loss", default="softplus", choices=["softplus", "relativistic"], help=words)
    words = "squared gradient norm of the discriminator on real inputs, or on generated ones as well"
    add("--penalty", default="r1", choices=["r1", "r1r2"], help=words)
    words = "second derivatives, or finite differences, which CUDA graphs and --compile can take"
    add("--penalty_estimate", default="exact", choices=["exact", "finite"], help=words)
    words = "distance of the generator's x_0 from the true one in its loss; decay lets it fall to 0 along half a cosine"
    add("--reconstruction", default="none", choices=["none", "constant", "decay"], help=words)
    add("--reconstruction_weight", type=positive_float, default=1.0, metavar="W", help="of that distance")
    words = "mean absolute or mean squared difference, of the denoiser too"
    add("--reconstruction_norm", default="l2", choices=["l1", "l2"], help=words)
    group = parser.add_argument_group("denoiser first; the other schedules cover what is left of the budget")
    add = group.add_argument
    words = "share of the budget in which the generator is trained as a denoiser alone; 1 for the whole"
    add("--denoiser_fraction", type=fraction, default=0.0, metavar="F", help=words)
    add("--lr_denoiser", type=positive_float, default=1e-3, help="its learning rate, falling to 0 along half a cosine")
    add("--denoiser_warmup", type=fraction, default=0.1, metavar="F", help="share of that phase over which it rises")
    words = "update the discriminator beside it in every N-th update; 0 for never"
    add("--denoiser_d_every", type=non_negative_int, default=0, metavar="N", help=words)


# What the flags of the objective mean in runs that began before them.
PUBLISHED_OBJECTIVE: dict[str, Any] = {
    **{
        "discriminator_input": "x_t",
        "discriminator_shift": False,
        "gan_loss": "softplus",
        "penalty": "r1",
        "t_decay": 1.0,
    },
    **{"penalty_estimate": "exact", "reconstruction": "none", "reconstruction_weight": 1.0},
    **{"reconstruction_norm": "l2", "denoiser_fraction": 0.0, "lr_denoiser": 1e-3, "denoiser_warmup": 0.1},
    "denoiser_d_every": 0,
}


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Add the published flags about several processes, which `place_of` judges."""
    group = parser.add_argument_group("processes")
    words = "processes on this machine, each on its GPU; more than there are GPUs share them, on CPUs the cores"
    group.add_argument("--num_process_per_node", type=process_count, default=1, metavar="K", help=words)
    group.add_argument("--num_proc_node", type=process_count, default=1, metavar="N", help="machines")
    words = "of this machine, 0 to N - 1; each is given the same command but for this"
    group.add_argument("--node_rank", type=non_negative_int, default=0, metavar="X", help=words)
    words = "of machine 0, for several machines"
    group.add_argument("--master_address", type=host_name, default="127.0.0.1", metavar="HOST", help=words)
    words = "at which machine 0 waits for several machines; one finds a free port by itself"
    group.add_argument("--master_port", type=port_number, default=6020, metavar="PORT", help=words)
    words = "accepted and ignored: every process knows its own"
    group.add_argument("--local_rank", type=non_negative_int, default=0, metavar="X", help=words)


# What decides how many processes there are is recorded as their number, however it is reached.
PROCESS_OPTIONS = (
    *("num_process_per_node", "num_proc_node", "node_rank", "master_address", "master_port", "local_rank"),
)


def place_of(args: argparse.Namespace) -> Place:
    """Return the place of this process, see `comparison.places.find_place`.

    Raises:
        UserError: the flags contradict each other, or a launcher.
    """
    if args.node_rank >= args.num_proc_node:
        raise UserError(f"--node_rank {args.node_rank}: must be below --num_proc_node {args.num_proc_node}")
    return find_place(
        processes=args.num_process_per_node, nodes=args.num_proc_node, node_rank=args.node_rank,
        address=args.master_address, port=args.master_port,
    )  # fmt: skip


def process_count(text: str) -> int:
    """Read how many processes or machines work together, an argparse type."""
    value = positive_int(text)
    if value > MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MOST_PROCESSES}, not {text}")
    return value


def host_name(text: str) -> str:
    """Read the name or number of a machine, an argparse type."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be the name of a machine, not empty")
    return text


def port_number(text: str) -> int:
    """Read a port, an argparse type."""
    value = positive_int(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text}")
    return value


def check_architecture(options: Mapping[str, Any]) -> None:
    """Refuse a combination of flags from which no network or process can be built.

    Raises:
        UserError: naming the flag.
    """
    size, mults, nf = options["image_size"], options["ch_mult"], options["num_channels_dae"]
    domain = options.get("domain", "pixel")
    if options["num_channels"] != 3:
        raise UserError(f"--num_channels {options['num_channels']}: images are read as RGB, so it must be 3")
    fold = 1 if domain == "pixel" else 2
    parts = fold * 2 ** (len(mults) - 1)
    if size % parts or size < 8 * fold:
        words = "this --ch_mult" if fold == 1 else f"this --ch_mult and --domain {domain}"
        raise UserError(f"--image_size {size}: must be at least {8 * fold} and divisible by {parts} for {words}")
    if options.get("discriminator") == "large" and size < LARGE_FROM * fold:
        limit = LARGE_FROM * fold
        raise UserError(f"--discriminator large: halves six times, so --image_size must be at least {limit}")
    for width in _widths(mults, options["progressive_input"], options["progressive_combine"]):
        if nf < 4 or (nf * width) % min(nf * width // 4, 32):
            raise UserError(f"--num_channels_dae {nf}: {nf * width} features make no equal groups; try 16 or 32")
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
    """Return every width that a group normalisation meets, in units of the base width."""
    joined = {2 * m for m in mults} if (progressive_input, combine) == ("input_skip", "cat") else set()
    encoder = {1, *mults, *joined}
    neighbours = {a + b for a, b in pairwise([mults[-1], *reversed(mults)])}
    return encoder | neighbours | {a + b for a in mults for b in encoder if b <= 2 * max(mults)}


def add_run_folder(group: argparse._ArgumentGroup) -> None:
    """Add --exp, and --run_dir as the other models have it."""
    group.add_argument("--exp", default="experiment_cifar_default", help="name of the run; with a slash, its folder")
    group.add_argument(
        "--run_dir",
        dest="exp",
        type=lambda path: path if "/" in path else f"./{path}",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="folder of the run, in place of --exp",
    )


def run_folder(exp: str) -> Path:
    """Return the run folder that --exp names: below results/runs/, or a path if it has a slash.

    Raises:
        UserError: no name, or one that means the folder of all runs.
    """
    if exp in ("", ".", ".."):
        raise UserError(f"--exp {exp!r}: must be the name of a run, or a path with a slash")
    return Path(exp) if "/" in exp else default_run_folder(MODEL, exp)


def discriminator_size(choice: str, image_size: int) -> str:
    """Resolve `auto`: the published code uses the small one for 32 pixels and the large one for 256."""
    return choice if choice != "auto" else ("small" if image_size < 128 else "large")
