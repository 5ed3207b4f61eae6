"""Train DCGAN on a set of images, then sample it.

    python -u gans/cifar_gan.py > gans/out/train_test.log
    python -u gans/cifar_gan.py --preset dcgan-plus --image_size 32

The same command continues a run that was interrupted. Into the run folder go config.json, progress.csv, scores.csv,
log.txt, checkpoint_<step>.pt, grid_<step>.png (the first 64 samples while training goes on), loss.png, diagnosis.png,
and at the end samples.npz, samples.png and sampling.json.

Radford, Metz, Chintala 2016, "Unsupervised representation learning with deep convolutional GANs". The preset
dcgan-plus: spectral norm of Miyato et al. 2018, hinge loss of Lim & Ye 2017, moving average of Yazici et al. 2019,
DiffAugment of Zhao et al. 2020.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from comparison import cli, distributed
from comparison.checkpoints import newest
from comparison.data.sources import check_source, source_name
from comparison.places import Place, find_place
from comparison.runs import Run
from comparison.schedule import Schedule
from comparison.training import Budget, Loop
from gan import options as gan_options
from gan.files import CHECKPOINTS, MODEL, is_drawn, sampled_checkpoint

if TYPE_CHECKING:
    import torch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the documented run."""
    return gan_options.parse(__doc__, argv)


def main(args: argparse.Namespace) -> int:
    """Train unless the run is finished, then sample unless the samples are there; return the exit status."""
    place = find_place(processes=args.ngpu)
    check_source(args.data, "--data")
    name = f"{source_name(args.data)}-{args.image_size}" + ("" if args.preset == "dcgan" else f"-{args.preset}")
    folder = args.run_dir or cli.default_run_folder(MODEL, name)
    options = {name: value for name, value in vars(args).items() if name != "run_dir"}
    implied = gan_options.PRESETS["dcgan"]  # what runs did that began before there were presets
    run = Run.open(folder, options, model=MODEL, may_change=gan_options.MAY_CHANGE, implied=implied, fresh=args.fresh)
    Schedule.of(args)
    reason = run.finished_reason(training_budget(args, run.config.get("steps_per_epoch", 0)).cut(args.stop_after))
    if reason:
        print(f"{folder}: training is finished ({reason}); a larger budget continues it, --fresh starts over")
    elif status := distributed.launch(train, place, args, run):
        return status
    if args.num_samples and place.is_first:
        sample(args, folder)
    return 0


def training_budget(args: argparse.Namespace, steps_per_epoch: int) -> Budget:
    """Return where training ends: at the --max_... bounds, or without any after num_epochs."""
    if args.max_steps or args.max_images or args.max_seconds:
        return Budget(args.max_steps, args.max_images, args.max_seconds)
    return Budget(max_steps=args.num_epochs * steps_per_epoch)


def train(place: Place, args: argparse.Namespace, run: Run) -> int:
    """Train until the budget ends, as one of the processes of the job, of which the first one writes.

    Returns:
        0, or 130 when Ctrl-C asked to stop; a checkpoint is written in both cases.
    """
    from comparison.device import set_threads

    set_threads(args.threads, place.local_world_size)
    device = distributed.device_of(place, args.device)
    with distributed.group(place, device):
        return train_on(device, place, args, run)


def train_on(device: "torch.device", place: Place, args: argparse.Namespace, run: Run) -> int:
    """Train on a device, connected with the other processes; the rest is as of `train`."""
    from comparison import rng
    from comparison.data.batches import BatchStream
    from comparison.data.held_out import load_data, test_split
    from comparison.device import autocast_dtype, describe_device, peak_memory_bytes, precision_name
    from comparison.gpu.replay import cuda_graph
    from gan.diagnosis import Probe, Scorer
    from gan.record import Recorder, restore
    from gan.training import build_gan, to_channels

    dtype = autocast_dtype(args.precision, device)
    with distributed.first_on_machine(place):
        images, held_out = load_data(args.data, args.image_size, args.limit, args.held_out, args.batch_size)
    known = run.config.get("data")
    if run.resumed and known and known != images.describe():
        raise cli.UserError(
            f"{run.folder}: trained on other images: {known} there, {images.describe()} here; "
            "--held_out 0 takes none of them away"
        )
    stream = BatchStream(
        images, args.batch_size, args.seed, flip=args.flip, device=device, rank=place.rank, world_size=place.world_size
    )
    recorded = args.cuda_graph and device.type == "cuda" and place.world_size == 1
    gan = build_gan(vars(args), device, dtype, stream.rows, cuda_graph if recorded else None)
    probe = scorer = None
    if place.is_first and len(held_out):
        probe = Probe(held_out, args.nc, args.seed, args.minibatch_stddev)
    if place.is_first and args.score_every and Scorer.is_possible(len(images), args.score_images):
        scorer = Scorer(images, args.score_images, args.nc, args.seed, device, args.sample_batch_size)
    checkpoint = newest(run.folder, CHECKPOINTS) if run.resumed else None
    step, seconds = restore(checkpoint, gan) if checkpoint else (0, 0.0)
    loop = Loop(
        run if place.is_first else None,
        training_budget(args, stream.steps_per_epoch),
        lambda updates: updates * args.batch_size,
        step=step,
        seconds=seconds,
        log_interval=args.log_interval,
        save_minutes=args.save_minutes,
        stop_after=args.stop_after,
        advice="a smaller --g_lr or --d_lr may help",
    )
    record = Recorder(loop, gan, vars(args), stream.steps_per_epoch, probe, scorer)
    record.begin(
        data=images.describe(), steps_per_epoch=stream.steps_per_epoch, parameters=gan.count_parameters(),
        device=describe_device(device), precision=precision_name(dtype),
        held_out={"images": len(held_out), "from": "test split" if test_split(args.data) else "training images"},
    )  # fmt: skip
    schedule = Schedule.of(args)
    for step in loop:
        real, _ = stream.batch(step)
        z = rng.normal((args.batch_size, args.nz), args.seed, step, "z", device=device, rows=stream.rows)
        real = to_channels(real, args.nc)
        if not schedule.is_constant():
            gan.set_learning_rates(schedule.factor(loop.progress))
        record.after_update(gan.train_step(real, z, step), real)
    record.end()
    return loop.finish(peak_memory_bytes=peak_memory_bytes(device))


def sample(args: argparse.Namespace, folder: Path) -> None:
    """Draw args.num_samples images from the folder's best or newest checkpoint, unless they are there."""
    checkpoint, out = sampled_checkpoint(folder), folder / "samples.npz"
    if checkpoint is None:
        raise cli.UserError(f"{folder}: no checkpoint to draw samples from; train anew with --fresh")
    options = {"num_samples": args.num_samples, "batch_size": args.sample_batch_size, "seed": args.seed}
    if is_drawn(out, checkpoint, **options):
        return
    from gan.sampling import sample_checkpoint

    sample_checkpoint(checkpoint, out, **options, device=args.device, precision=args.precision, threads=args.threads)
    print(f"{args.num_samples} images in {out}")


if __name__ == "__main__":
    distributed.run(lambda: main(parse_args()))
