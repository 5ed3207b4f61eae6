"""Options of cifar_gan.py and its presets; standard library only, so that a wrong flag is reported at once."""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comparison import cli
from comparison.ranks import get_rank_info
from comparison.schedule import add_schedule_options
from comparison.training import Budget

AUGMENTATIONS = ("color", "translation", "cutout")

# A preset only sets defaults: each of these is a flag, and a flag on the command line overrides it.
_PLAIN: dict[str, Any] = {  # of the DCGAN presets
    **{"network": "dcgan", "nz": 100, "ngf": 64, "ndf": 64, "max_width": 0, "blocks": 1, "group_size": 0},
    **{"penalty": "auto", "penalty_estimate": "exact", "penalty_fraction": 1.0, "r1_gamma": 0.0, "r1_every": 16},
    **{"burn_in": 0.0, "lr_end": 1.0, "gamma_end": 1.0, "beta2_end": 0.0, "ada_target": 0.0},
}
_R3GAN: dict[str, Any] = {
    **{"network": "residual", "nz": 64, "loss": "relativistic", "d_norm": "none", "g_lr": 2e-4, "d_lr": 2e-4},
    **{"beta1": 0.0, "beta2": 0.9, "beta2_end": 0.99, "burn_in": 0.4, "lr_end": 0.25, "gamma_end": 0.1},
    **{"penalty": "r1r2", "penalty_estimate": "exact", "penalty_fraction": 1.0, "r1_every": 1, "lr_decay": "none"},
    **{"ema_decay": 0.9999, "ema_horizon": 0.05, "diffaugment": "none", "flip": True, "ada_target": 0.0},
    "keep_best": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    "dcgan": {
        **_PLAIN,
        **{"loss": "bce", "d_norm": "batch", "g_lr": 1.6e-4, "d_lr": 1.25e-4, "beta1": 0.5, "beta2": 0.999},
        **{"lr_decay": "none", "ema_decay": 0.0, "diffaugment": "none", "flip": False, "keep_best": False},
    },
    "dcgan-plus": {
        **_PLAIN,
        **{"loss": "hinge", "d_norm": "spectral", "g_lr": 2e-4, "d_lr": 2e-4, "beta1": 0.0, "beta2": 0.9},
        **{"lr_decay": "linear", "ema_decay": 0.999, "diffaugment": "color,translation", "flip": True},
        "keep_best": True,
    },
    # Huang et al. 2024, CIFAR-10: 768 channels at every size; the published run has batch 512 and 250 M images
    "r3gan": {**_R3GAN, "ngf": 768, "ndf": 768, "max_width": 768, "blocks": 2, "group_size": 16, "r1_gamma": 0.05},
    # R3GAN's loss, penalties and schedules on DCGAN's networks, the discriminator without norm. After 4,100 updates on
    # `shapes` 50% of 1,000 samples show one of 133 modes at an acceptance of 0.15; residual networks of 32 to 64
    # channels 12% and 27 in the same time, one trial each
    "r3gan-tiny": {
        **_R3GAN,
        **{"network": "dcgan", "ngf": 32, "ndf": 32, "max_width": 128, "blocks": 1, "group_size": 0, "batch_size": 32},
        **{"g_lr": 2e-3, "d_lr": 2e-3, "lr_warmup": 0.02, "lr_decay": "cosine", "lr_end": 1.0, "ema_horizon": 0.1},
        **{"r1_gamma": 30.0, "gamma_end": 0.3, "penalty_fraction": 0.25},
    },
}
# Options that a resumed run may change. Held-out images change the training only if they are taken from the training
# images; the fingerprint of the data detects that.
MAY_CHANGE = ("oversubscribe", "preset", "num_epochs", "held_out", "score_every", "score_images", "cuda_graph")


def power_of_two(text: str) -> int:
    """Parse --image_size, an argparse type."""
    size = cli.pixels(text)
    if size < 16 or size & (size - 1):
        raise argparse.ArgumentTypeError(f"must be a power of two of at least 16, not {text}")
    return size


def policy(text: str) -> str:
    """Parse --diffaugment, an argparse type: comma-separated kinds of augmentation in any order, or none."""
    names = [name.strip() for name in text.split(",")]
    if names in (["none"], [""]):
        return "none"
    if wrong := [name for name in names if name not in AUGMENTATIONS]:
        raise argparse.ArgumentTypeError(f"must be none or a list of {', '.join(AUGMENTATIONS)}, not {wrong[0]!r}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must name each kind once, not {text}")
    return ",".join(name for name in AUGMENTATIONS if name in names)


def loss_name(text: str) -> str:
    """Parse --loss, an argparse type; ns (non-saturating) is another name of bce."""
    return {"ns": "bce"}.get(text, text)


@dataclass(frozen=True)
class BurnIn:
    """What changes over the first part of a training, by half a cosine (Huang et al. 2024, appendix).

    Attributes:
        fraction: of the budget.
        lr_end, gamma_end: multiples of the learning rates and of the penalty's weight at its end.
        beta2_end: Adam's beta2 at its end.
    """

    fraction: float
    lr_end: float
    gamma_end: float
    beta2_end: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "BurnIn | None":
        """Return the schedules of a run's options, None without."""
        if not options["burn_in"]:
            return None
        ends = options["lr_end"], options["gamma_end"], options["beta2_end"] or options["beta2"]
        return cls(options["burn_in"], *ends)

    def done(self, progress: float) -> float:
        """Return how far the changes are, from 0 to 1, at a fraction of the budget."""
        return 0.5 * (1 - math.cos(math.pi * min(1.0, progress / self.fraction)))


def penalty_of(options: Mapping[str, Any]) -> str:
    """Return the penalty of a run's options; without --penalty a weight above 0 is that of R1."""
    return {"auto": "r1" if options["r1_gamma"] else "none"}.get(options["penalty"], options["penalty"])


def parse(doc: str | None, argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line of cifar_gan.py; --preset sets the defaults of the other flags."""
    preset_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset_parser.add_argument("--preset", default="dcgan")
    preset = preset_parser.parse_known_args(argv)[0].preset
    parser = cli.make_parser(doc)
    _add_networks(parser)
    _add_training(parser)
    _add_enhancements(parser)
    _add_diagnostics(parser)
    cli.add_run_options(parser)
    parser.set_defaults(**PRESETS.get(preset, {}))
    args = parser.parse_args(argv)
    args.ngpu = get_rank_info(
        processes=args.ngpu, oversubscribe=args.oversubscribe
    ).world_size  # a launcher may have started the processes
    _check(parser, args)
    return args


def training_budget(args: argparse.Namespace, steps_per_epoch: int) -> Budget:
    """Return the bounds of the training: the --max_... flags, or num_epochs if there are none."""
    if args.max_steps or args.max_images or args.max_seconds:
        return Budget(args.max_steps, args.max_images, args.max_seconds)
    return Budget(max_steps=args.num_epochs * steps_per_epoch)


def _add_networks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="dcgan", help="defaults of all other flags")
    add("--data", default="cifar10", help="shapes, cifar10, a folder of images or an .npz file")
    add("--limit", type=cli.non_negative_int, default=0, help="number of training images, evenly spaced; 0 for all")
    add("--run_dir", type=cli.local_path, help="run folder; default: results/runs/gans/<data>-<image_size>")
    add("--image_size", type=power_of_two, default=64, help="pixels, a power of two of at least 16")
    add("--nz", type=cli.positive_int, help="length of the noise vector")
    add("--ngf", type=cli.positive_int, help="channels of the generator's finest stage")
    add("--ndf", type=cli.positive_int, help="channels of the discriminator's finest stage")
    add("--network", choices=["dcgan", "residual"], help="networks of DCGAN, or residual ones (Huang et al. 2024)")
    add("--max_width", type=cli.non_negative_int, help="residual: channels of the widest stages")
    add("--blocks", type=cli.positive_int, help="residual: blocks per stage")
    group_help = "residual: channels per group of the 3x3 convolutions; 0 for ordinary ones, faster on a CPU"
    add("--group_size", type=cli.non_negative_int, help=group_help)


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch_size", type=cli.positive_int, default=128, help="images per update, all processes together")
    add("--num_epochs", type=cli.non_negative_int, default=50, help="epochs, unless a --max_... flag is set")
    add("--g_lr", type=cli.positive_float, help="Adam's learning rate of the generator")
    add("--d_lr", type=cli.positive_float, help="Adam's learning rate of the discriminator")
    add("--beta1", type=cli.below_one, help="Adam's decay of the gradient mean")
    add("--beta2", type=cli.below_one, help="Adam's decay of the squared gradient mean")
    add("--flip", type=cli.str2bool, help="mirror each training image with probability 1/2")
    ngpu_help = "processes, one per GPU; if there are fewer GPUs they share them, without GPUs they share the cores"
    add("--ngpu", type=cli.process_count, default=1, help=ngpu_help)
    cli.add_oversubscribe(parser)
    graph_help = "replay iterations as a CUDA graph, on one CUDA GPU; removes kernel launch overhead"
    add("--cuda_graph", type=cli.str2bool, default=True, help=graph_help)
    add("--log_interval", type=cli.positive_int, default=50, help="updates per row of progress.csv")
    add("--grid_every", type=cli.positive_int, default=5, help="epochs per grid and checkpoint")
    add("--num_samples", type=cli.non_negative_int, default=50_000, help="images to sample after training, 0 for none")
    add("--sample_batch_size", type=cli.positive_int, default=128, help="images per batch of sampling")


def _add_enhancements(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("enhancements, independent of each other").add_argument
    loss_help = (
        "bce, or ns: cross entropy, non-saturating; hinge (Lim & Ye 2017); relativistic pairs (Huang et al. 2024)"
    )
    add("--loss", type=loss_name, choices=["bce", "hinge", "relativistic"], help=loss_help)
    norm_help = "discriminator's norm: batch norm, spectral norm (Miyato et al. 2018), or none"
    add("--d_norm", choices=["batch", "spectral", "none"], help=norm_help)
    ema_help = "decay of the generator's EMA (Yazici et al. 2019), which is then sampled; 0 for none"
    add("--ema_decay", type=cli.below_one, help=ema_help)
    augment_help = f"DiffAugment (Zhao et al. 2020): none, or a list of {', '.join(AUGMENTATIONS)}"
    add("--diffaugment", type=policy, help=augment_help)
    penalty_help = "gradient penalty at real images, or at generated ones too (Mescheder et al. 2018); "
    penalty_help += "auto: r1 if --r1_gamma is above 0"
    add("--penalty", choices=["auto", "none", "r1", "r1r2"], help=penalty_help)
    add("--penalty_estimate", choices=["exact", "finite"], help="by a second backward pass, or by finite differences")
    add("--penalty_fraction", type=cli.fraction, help="fraction of the batch at which the penalty is computed")
    add(
        "--r1_gamma",
        type=cli.non_negative_float,
        help="weight of the penalty; without --penalty that of r1, 0 for none",
    )
    add("--r1_every", type=cli.positive_int, help="updates per penalty, which is multiplied by this number")
    ada_help = "adapt the probability of --diffaugment: target of the mean sign of D's logits of real images; 0 for no"
    add("--ada_target", type=cli.fraction, help=ada_help)
    add("--keep_best", type=cli.str2bool, help="keep the checkpoint with the best score too, and sample it")
    schedules = parser.add_argument_group("schedules over the budget")
    add_schedule_options(schedules, decay=None)
    burn_help = "fraction of the budget over which the three below, and the probability of --diffaugment from 0 to 1, "
    burn_help += "move by half a cosine; 0 for none"
    schedules.add_argument("--burn_in", type=cli.fraction, help=burn_help)
    schedules.add_argument("--lr_end", type=cli.fraction, help="learning rates after --burn_in, as multiples")
    schedules.add_argument("--gamma_end", type=cli.fraction, help="penalty's weight after --burn_in, as a multiple")
    schedules.add_argument("--beta2_end", type=cli.below_one, help="Adam's beta2 after --burn_in; 0 for the same")


def _add_diagnostics(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("diagnostics, which change no weight").add_argument
    held_help = "images held out, from the test split if there is one, else at most a tenth of the data; 0 for none"
    add("--held_out", type=cli.non_negative_int, default=1000, help=held_help)
    every_help = "training images between scores (offline Frechet distance and coverage); 0 for none"
    add("--score_every", type=cli.non_negative_int, default=100_000, help=every_help)
    add("--score_images", type=cli.positive_int, default=1000, help="samples per score")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    bounds = sum(bool(bound) for bound in (args.max_steps, args.max_images, args.max_seconds))
    if args.batch_size % args.ngpu:
        parser.error(f"argument --batch_size: {args.batch_size} images do not divide among {args.ngpu} processes")
    if not (args.num_epochs or bounds):
        parser.error("argument --num_epochs: 0 needs one of --max_steps, --max_images and --max_seconds")
    penalty = penalty_of(vars(args))
    if penalty != "none" and not (args.r1_gamma and args.penalty_fraction):
        parser.error(f"argument --penalty: {penalty} needs --r1_gamma and --penalty_fraction above 0")
    if args.ada_target and args.diffaugment == "none":
        parser.error("argument --ada_target: needs --diffaugment")
    if args.network == "residual" and args.d_norm != "none":
        parser.error("argument --network: residual takes no --d_norm")
    inner = [2 * width for width in (args.ngf, args.ndf, args.max_width) if width] if args.group_size else []
    if args.network == "residual" and any(width % args.group_size for width in inner):
        parser.error(f"argument --group_size: {args.group_size} does not divide twice --ngf, --ndf and --max_width")
    if args.keep_best and not args.score_every:
        parser.error("argument --keep_best: needs scores; set --score_every above 0")
    if args.stop_after and bounds != 1:
        parser.error("argument --stop_after: needs exactly one of --max_steps, --max_images and --max_seconds")
    if args.ema_horizon and not args.ema_decay:
        parser.error("argument --ema_horizon: needs an EMA; set --ema_decay above 0")
