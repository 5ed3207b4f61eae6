"""The options of cifar_gan.py and its presets; standard library only, so that a wrong flag is answered at once."""

import argparse
from typing import Any

from comparison import cli
from comparison.places import find_place
from comparison.schedule import add_schedule_options

MOST_PROCESSES = 1024  # more on one machine are a slip of the hand that would bring it down
AUGMENTATIONS = ("color", "translation", "cutout")

# A preset sets defaults and nothing else: each of these is a flag, and a flag given on the command line wins.
PRESETS: dict[str, dict[str, Any]] = {
    "dcgan": {
        **{"loss": "bce", "d_norm": "batch", "g_lr": 1.6e-4, "d_lr": 1.25e-4, "beta1": 0.5, "beta2": 0.999},
        **{"lr_decay": "none", "ema_decay": 0.0, "diffaugment": "none", "flip": False},
        **{"r1_gamma": 0.0, "r1_every": 16, "minibatch_stddev": 0, "keep_best": False},
    },
    "dcgan-plus": {
        **{"loss": "hinge", "d_norm": "spectral", "g_lr": 2e-4, "d_lr": 2e-4, "beta1": 0.0, "beta2": 0.9},
        **{"lr_decay": "linear", "ema_decay": 0.999, "diffaugment": "color,translation", "flip": True},
        **{"r1_gamma": 0.0, "r1_every": 16, "minibatch_stddev": 0, "keep_best": True},
    },
}
# What may differ when a run is continued: a preset is only its flags, diagnosis changes no weight, and held-out images
# do so only where they are taken from the training images, which the data's fingerprint tells.
MAY_CHANGE = ("preset", "num_epochs", "held_out", "score_every", "score_images", "cuda_graph")


def power_of_two(text: str) -> int:
    """Read --image_size, an argparse type."""
    size = cli.pixels(text)
    if size < 16 or size & (size - 1):
        raise argparse.ArgumentTypeError(f"must be a power of two of at least 16, not {text}")
    return size


def process_count(text: str) -> int:
    """Read --ngpu, an argparse type."""
    count = cli.positive_int(text)
    if count > MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MOST_PROCESSES}, not {text}")
    return count


def decay(text: str) -> float:
    """Read a decay in [0, 1), an argparse type."""
    value = cli.fraction(text)
    if value == 1:
        raise argparse.ArgumentTypeError("must be below 1, or nothing ever moves")
    return value


def policy(text: str) -> str:
    """Read --diffaugment, an argparse type: kinds of augmentation separated by commas, in any order, or none."""
    names = [name.strip() for name in text.split(",")]
    if names in (["none"], [""]):
        return "none"
    if wrong := [name for name in names if name not in AUGMENTATIONS]:
        raise argparse.ArgumentTypeError(f"must be none or a list of {', '.join(AUGMENTATIONS)}, not {wrong[0]!r}")
    return ",".join(name for name in AUGMENTATIONS if name in names)


def parse(doc: str | None, argv: list[str] | None) -> argparse.Namespace:
    """Read the command line of cifar_gan.py; the preset that it names gives the defaults of the other flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="dcgan")
    preset = first.parse_known_args(argv)[0].preset
    parser = cli.make_parser(doc)
    _add_networks(parser)
    _add_training(parser)
    _add_enhancements(parser)
    _add_diagnosis(parser)
    cli.add_run_options(parser)
    parser.set_defaults(**PRESETS.get(preset, {}))
    args = parser.parse_args(argv)
    args.ngpu = find_place(processes=args.ngpu).world_size  # a launcher may have started them
    _check(parser, args)
    return args


def _add_networks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="dcgan", help="the defaults of all other flags")
    add("--data", default="cifar10", help="shapes, cifar10, a folder of images or an .npz file")
    add("--limit", type=cli.non_negative_int, default=0, help="training images, evenly spread over the data; 0 for all")
    add("--run_dir", type=cli.local_path, help="folder of the run, results/runs/gans/<data>-<image_size> unless given")
    add("--image_size", type=power_of_two, default=64, help="pixels, a power of two of at least 16")
    add("--nc", type=int, choices=[1, 3], default=3, help="colour channels; 1 trains on grey images")
    add("--nz", type=cli.positive_int, default=100, help="length of the noise vector")
    add("--ngf", type=cli.positive_int, default=64, help="channels of the generator's finest stage")
    add("--ndf", type=cli.positive_int, default=64, help="channels of the discriminator's finest stage")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch_size", type=cli.positive_int, default=128, help="images per update, of all processes together")
    add("--num_epochs", type=cli.non_negative_int, default=50, help="passes over the data, unless a --max_... is set")
    add("--g_lr", type=cli.positive_float, help="Adam's learning rate of the generator")
    add("--d_lr", type=cli.positive_float, help="Adam's learning rate of the discriminator")
    add("--beta1", type=decay, help="Adam's decay of the mean gradient")
    add("--beta2", type=decay, help="Adam's decay of the mean squared gradient")
    smoothings = ["none", "one_sided", "two_sided"]
    smoothing_help = "labels of real and fake images under bce: 1 and 0, 0.9 and 0, or 0.9 and 0.1"
    add("--label_smoothing", choices=smoothings, default="none", help=smoothing_help)
    add("--flip", type=cli.str2bool, help="mirror each training image with probability 1/2")
    add(
        "--ngpu",
        type=process_count,
        default=1,
        help="processes, each on its GPU; more than there are GPUs share them, on CPUs the cores",
    )
    graph_help = "on one CUDA GPU: record an iteration and replay it, to spare the host's work"
    add("--cuda_graph", type=cli.str2bool, default=True, help=graph_help)
    add("--log_interval", type=cli.positive_int, default=50, help="updates between rows of progress.csv")
    add("--grid_every", type=cli.positive_int, default=5, help="epochs between grids, each with a checkpoint")
    add("--num_samples", type=cli.non_negative_int, default=50_000, help="images drawn after training, 0 for none")
    add("--sample_batch_size", type=cli.positive_int, default=128, help="images drawn at a time")


def _add_enhancements(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("enhancements, each one switch").add_argument
    add("--loss", choices=["bce", "hinge"], help="cross entropy, or hinge (Lim & Ye 2017)")
    norms = "of the discriminator: batch norm, spectral norm (Miyato et al. 2018), or none"
    add("--d_norm", choices=["batch", "spectral", "none"], help=norms)
    add(
        "--ema_decay", type=decay, help="of the generator's moving average (Yazici et al. 2019), then sampled; 0 is off"
    )
    augment_help = f"DiffAugment (Zhao et al. 2020): none, or a list of {', '.join(AUGMENTATIONS)}"
    add("--diffaugment", type=policy, help=augment_help)
    r1_help = "weight of the gradient penalty on real images (Mescheder et al. 2018); 0 is off"
    add("--r1_gamma", type=cli.non_negative_float, help=r1_help)
    add("--r1_every", type=cli.positive_int, help="updates between penalties, each multiplied by their number")
    std_help = "images whose deviation the discriminator sees (Karras et al. 2018); 0 is off"
    add("--minibatch_stddev", type=cli.non_negative_int, help=std_help)
    add("--keep_best", type=cli.str2bool, help="keep the checkpoint of the best score too, and sample it")
    add_schedule_options(parser.add_argument_group("schedules over the budget"), decay=None)


def _add_diagnosis(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("diagnosis, which changes no weight").add_argument
    held_help = "images kept aside, of the test split where there is one; at most a tenth of the data; 0 for none"
    add("--held_out", type=cli.non_negative_int, default=1000, help=held_help)
    every_help = "training images between scores (offline Frechet distance and coverage); 0 for none"
    add("--score_every", type=cli.non_negative_int, default=100_000, help=every_help)
    add("--score_images", type=cli.positive_int, default=1000, help="images drawn for a score")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.batch_size % args.ngpu:
        parser.error(f"argument --batch_size: {args.batch_size} images do not divide among {args.ngpu} processes")
    if args.minibatch_stddev == 1 or (args.minibatch_stddev and args.batch_size // args.ngpu % args.minibatch_stddev):
        parser.error(
            f"argument --minibatch_stddev: groups of {args.minibatch_stddev} images do not divide the "
            f"{args.batch_size // args.ngpu} of a process, or have no deviation"
        )
    if not (args.num_epochs or args.max_steps or args.max_images or args.max_seconds):
        parser.error("argument --num_epochs: 0 needs one of --max_steps, --max_images and --max_seconds")
    if args.label_smoothing != "none" and args.loss != "bce":
        parser.error(f"argument --label_smoothing: the {args.loss} loss has no labels; use --loss bce")
    if args.keep_best and not args.score_every:
        parser.error("argument --keep_best: needs scores, --score_every above 0")
    if args.stop_after and sum(bool(bound) for bound in (args.max_steps, args.max_images, args.max_seconds)) != 1:
        parser.error("argument --stop_after: needs exactly one of --max_steps, --max_images and --max_seconds")
    if args.ema_horizon and not args.ema_decay:
        parser.error("argument --ema_horizon: needs a moving average, --ema_decay above 0")
