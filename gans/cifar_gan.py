"""Train DCGAN on a set of images, then sample it.

    python -u gans/cifar_gan.py > gans/out/train_test.log

The same command continues a run that was interrupted. Into the run folder go config.json, progress.csv, log.txt,
checkpoint_<step>.pt, grid_<step>.png (the first 64 samples while training goes on), loss.png, and at the end
samples.npz, samples.png and sampling.json.

Radford, Metz, Chintala 2016, "Unsupervised representation learning with deep convolutional GANs".
"""

import argparse
from pathlib import Path

from comparison import cli
from comparison.budget import Budget, Clock, StopSignal
from comparison.runs import Run, newest
from comparison.sources import KINDS, check_source, source_name
from gan.files import CHECKPOINTS, MODEL, is_drawn

INTERRUPTED = 130


def power_of_two(text: str) -> int:
    """Read --image_size, an argparse type."""
    size = cli.positive_int(text)
    if size < 16 or size & (size - 1):
        raise argparse.ArgumentTypeError(f"must be a power of two of at least 16, not {text}")
    return size


def decay(text: str) -> float:
    """Read a decay in [0, 1), an argparse type."""
    value = cli.fraction(text)
    if value == 1:
        raise argparse.ArgumentTypeError("must be below 1, or nothing ever moves")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the documented run."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--data", default="cifar10", help=KINDS)
    add("--run_dir", type=Path, help="folder of the run, results/runs/gans/<data>-<image_size> unless given")
    add("--image_size", type=power_of_two, default=64, help="pixels, a power of two of at least 16")
    add("--nc", type=int, choices=[1, 3], default=3, help="colour channels; 1 trains on grey images")
    add("--nz", type=cli.positive_int, default=100, help="length of the noise vector")
    add("--ngf", type=cli.positive_int, default=64, help="channels of the generator's finest stage")
    add("--ndf", type=cli.positive_int, default=64, help="channels of the discriminator's finest stage")
    add("--batch_size", type=cli.positive_int, default=128, help="images per update, of all processes together")
    add("--num_epochs", type=cli.non_negative_int, default=50, help="passes over the data, unless a --max_... is set")
    add("--g_lr", type=cli.positive_float, default=1.6e-4, help="Adam's learning rate of the generator")
    add("--d_lr", type=cli.positive_float, default=1.25e-4, help="Adam's learning rate of the discriminator")
    add("--beta1", type=decay, default=0.5, help="Adam's decay of the mean gradient")
    smoothings = ["none", "one_sided", "two_sided"]
    smoothing_help = "labels of real and fake images: 1 and 0, 0.9 and 0, or 0.9 and 0.1"
    add("--label_smoothing", choices=smoothings, default="none", help=smoothing_help)
    add("--flip", type=cli.str2bool, default=False, help="mirror each training image with probability 1/2")
    add("--ema_decay", type=decay, default=0.0, help="of the generator's moving average, then sampled; 0 is off")
    add("--ngpu", type=cli.positive_int, default=1, help="processes, each on its GPU, or on the CPU with --device cpu")
    add("--log_interval", type=cli.positive_int, default=50, help="updates between rows of progress.csv")
    add("--grid_every", type=cli.positive_int, default=5, help="epochs between grids, each with a checkpoint")
    add("--num_samples", type=cli.non_negative_int, default=50_000, help="images drawn after training, 0 for none")
    add("--sample_batch_size", type=cli.positive_int, default=128, help="images drawn at a time")
    cli.add_run_options(parser)
    args = parser.parse_args(argv)
    if args.batch_size % args.ngpu:
        parser.error(f"argument --batch_size: {args.batch_size} images do not divide among {args.ngpu} processes")
    if not (args.num_epochs or args.max_steps or args.max_images or args.max_seconds):
        parser.error("argument --num_epochs: 0 needs one of --max_steps, --max_images and --max_seconds")
    return args


def main(args: argparse.Namespace) -> int:
    """Train unless the run is finished, then sample unless the samples are there; return the exit status."""
    check_source(args.data, "--data")
    folder = args.run_dir or cli.default_run_folder(MODEL, f"{source_name(args.data)}-{args.image_size}")
    options = {name: value for name, value in vars(args).items() if name != "run_dir"}
    run = Run.open(folder, options, model=MODEL, may_change=["num_epochs"], fresh=args.fresh)
    reason = run.finished_reason(training_budget(args, run.config.get("steps_per_epoch", 0)))
    if reason:
        print(f"{folder}: training is finished ({reason}); a larger budget continues it, --fresh starts over")
    else:
        status = train(0, args, run) if args.ngpu == 1 else train_in_processes(args, run)
        if status:
            return status
    if args.num_samples:
        sample(args, folder)
    return 0


def training_budget(args: argparse.Namespace, steps_per_epoch: int) -> Budget:
    """Return where training ends: at the --max_... bounds, or without any after num_epochs."""
    if args.max_steps or args.max_images or args.max_seconds:
        return Budget(args.max_steps, args.max_images, args.max_seconds)
    return Budget(max_steps=args.num_epochs * steps_per_epoch)


def train(rank: int, args: argparse.Namespace, run: Run) -> int:
    """Train until the budget ends, as one of args.ngpu processes, of which the first one writes.

    Returns:
        0, or 130 when Ctrl-C asked to stop; a checkpoint is written in both cases.
    """
    from comparison import rng
    from comparison.batches import BatchStream
    from comparison.device import autocast_dtype, describe_device, peak_memory_bytes, precision_name, set_threads
    from comparison.images import load_images
    from comparison.progress import bar
    from gan.distributed import agree, local_device
    from gan.record import Recorder
    from gan.training import build_gan, to_channels

    set_threads(args.threads, args.ngpu)
    device = local_device(args.device, rank, args.ngpu)
    dtype = autocast_dtype(args.precision, device)
    images = load_images(args.data, args.image_size)
    known = run.config.get("data")
    if run.resumed and known and known != images.describe():
        raise cli.UserError(f"{run.folder}: trained on other images: {known} there, {images.describe()} here")
    stream = BatchStream(
        images, args.batch_size, args.seed, flip=args.flip, device=device, rank=rank, world_size=args.ngpu
    )
    gan = build_gan(vars(args), device, dtype)
    record = Recorder(run if rank == 0 else None, gan, vars(args), stream.steps_per_epoch)
    if run.resumed and (checkpoint := newest(run.folder, CHECKPOINTS)):
        record.restore(checkpoint)
    budget = training_budget(args, stream.steps_per_epoch)
    record.begin(
        f"until {budget.describe()}", data=images.describe(), steps_per_epoch=stream.steps_per_epoch,
        parameters=gan.count_parameters(), device=describe_device(device), precision=precision_name(dtype),
    )  # fmt: skip

    clock = Clock(record.wall_seconds)
    steps = budget.total_steps(args.batch_size)
    with StopSignal() as stop, bar(steps, record.step, "train", "steps") as progress:
        while True:
            wall_seconds, interrupted = agree([clock.seconds(), float(stop.requested)])
            reason = budget.exhausted(record.step, record.images_seen, wall_seconds)
            if reason or interrupted:
                break
            real, _ = stream.batch(record.step)
            z = rng.normal((args.batch_size, args.nz), args.seed, record.step, "z", device=device, rows=stream.rows)
            losses = gan.train_step(to_channels(real, args.nc), z, record.step)
            record.after_update(losses, args.batch_size, clock.seconds())
            progress.update()
    record.save()
    if not reason:
        record.log(f"interrupted after step {record.step}; the same command continues")
        return INTERRUPTED
    record.finish(reason, peak_memory_bytes=peak_memory_bytes(device))
    return 0


def train_in_processes(args: argparse.Namespace, run: Run) -> int:
    """Train in args.ngpu processes on this machine and return the exit status."""
    from gan.distributed import launch

    return launch(train, args.ngpu, args, run)


def sample(args: argparse.Namespace, folder: Path) -> None:
    """Draw args.num_samples images from the folder's newest checkpoint, unless they are there."""
    checkpoint, out = newest(folder, CHECKPOINTS), folder / "samples.npz"
    if checkpoint is None:
        raise cli.UserError(f"{folder}: no checkpoint to draw samples from; train anew with --fresh")
    options = {"num_samples": args.num_samples, "batch_size": args.sample_batch_size, "seed": args.seed}
    if is_drawn(out, checkpoint, **options):
        return
    from gan.sampling import sample_checkpoint

    sample_checkpoint(checkpoint, out, **options, device=args.device, precision=args.precision, threads=args.threads)
    print(f"{args.num_samples} images in {out}")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
