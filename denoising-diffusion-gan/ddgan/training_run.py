"""The training run of train_ddgan.py, from its flags to the last checkpoint."""

import argparse
from typing import Any

from comparison.data.batches import BatchStream
from comparison.data.folders import FileSet
from comparison.data.images import ImageSet
from comparison.data.streaming import FileStream
from comparison.device import describe_device, peak_memory_bytes, precision_name, set_threads
from comparison.distributed import device_of, group
from comparison.ranks import RankInfo
from comparison.runs import Run
from comparison.schedule import Schedule
from comparison.training import Budget, Loop

from ddgan.checkpoint_writer import CheckpointWriter
from ddgan.checkpoints import load_content
from ddgan.draws import Batch
from ddgan.grad_accumulation import AccumulationSchedule
from ddgan.training import Trainer
from ddgan.training_setup import build_trainer, check_same_flags, open_batches, open_data

DENOISER_WARMUP = 0.1  # fraction of the denoising phase in which its learning rate rises from 0


def train(rank_info: RankInfo, args: argparse.Namespace, run: Run, budget: Budget) -> int:
    """Train on this rank until the epochs or the budget end; rank 0 writes the files. Return the exit status."""
    device = device_of(rank_info, args.device)
    set_threads(args.threads, rank_info.local_world_size)
    with group(rank_info, device):
        check_same_flags(args)
        images = open_data(args, rank_info)
        classes: dict[str, Any] = {}
        if args.class_cond:
            classes = {"num_classes": len(images.class_names), "class_names": list(images.class_names)}
        trainer = build_trainer(args, classes, device, rank_info)
        with open_batches(images, args, device, rank_info) as stream:
            accumulation = AccumulationSchedule(stream.steps_per_epoch, args.accum_iter)
            state = run.folder / "content.pth"
            resumes = run.resumed and state.is_file()
            step, seconds = load_content(state, trainer, images.describe()) if resumes else (0, 0.0)
            images_per_micro_batch = args.batch_size * rank_info.world_size
            loop = Loop(
                run if rank_info.is_first else None,
                budget,
                lambda updates: accumulation.micro_done(updates) * images_per_micro_batch,
                step=step,
                seconds=seconds,
                log_interval=args.log_interval,
                save_minutes=args.save_minutes,
                stop_after=args.stop_after,
                epochs=(args.num_epoch * accumulation.updates_per_epoch, f"num_epoch {args.num_epoch}"),
                advice="lower --lr_g and --lr_d or raise --r1_gamma, with --fresh",
            )
            log_start(loop, trainer, args, images, accumulation)
            writer = CheckpointWriter(loop, trainer, args, accumulation, images.describe(), classes)
            run_updates(loop, trainer, stream, writer, args, accumulation)
            return loop.finish(peak_memory_bytes=peak_memory_bytes(device))


def run_updates(
    loop: Loop,
    trainer: Trainer,
    stream: BatchStream | FileStream,
    writer: CheckpointWriter,
    args: argparse.Namespace,
    accumulation: AccumulationSchedule,
) -> None:
    """Run the updates until the loop ends, and write what is due after each."""
    meter, objective, schedule = trainer.meter, trainer.objective, Schedule.of(args)
    published = args.lr_decay == "published" and not args.no_lr_decay
    cosine_updates = args.num_epoch * accumulation.updates_per_epoch if published else 0
    phase = objective.phase(loop.progress)

    def log_row() -> None:
        if losses := meter.take():
            loop.row(losses, {"lr": trainer.learning_rate(phase), **trainer.gradient_norms()})

    for step in loop:
        micro_batches = []
        for number in accumulation.micro_steps(step):
            x_0, labels = stream.batch(number)
            micro_batches.append(Batch(x_0, labels if args.class_cond else None, number))
        phase = objective.phase(loop.progress)
        factor = schedule.factor(objective.adversarial_progress(loop.progress))
        trainer.set_learning_rates(step, cosine_updates, factor, denoiser_factor(args, loop.progress))
        meter.add(trainer.update(micro_batches, step, phase))
        if loop.row_due:
            log_row()
        writer.save_if_due()
    if loop.reason:
        log_row()
    writer.end()


def denoiser_factor(args: argparse.Namespace, progress: float) -> float:
    """Return the denoiser's learning rate as a multiple of its peak, after a fraction of the budget."""
    if progress >= args.denoiser_fraction:
        return 0.0
    return Schedule(DENOISER_WARMUP, "cosine", DENOISER_WARMUP).factor(progress / args.denoiser_fraction)


def log_start(
    loop: Loop,
    trainer: Trainer,
    args: argparse.Namespace,
    images: ImageSet | FileSet,
    accumulation: AccumulationSchedule,
) -> None:
    """Log the data, the batch, the networks and the device, and record them in config.json."""
    counts = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("generator", trainer.generator), ("discriminator", trainer.discriminator))
    }
    device, precision = describe_device(trainer.device), precision_name(trainer.autocast_dtype)
    data = {**loop.run.config.get("data", {}), **images.describe()} if loop.run else {}
    world_size = trainer.rank_info.world_size
    factors = [(args.batch_size, "images"), (world_size, "processes"), (args.accum_iter, "micro-batches")]
    batch = " x ".join(f"{count} {unit}" for count, unit in factors if count > 1 or unit == "images")
    loop.begin(
        f"{images.name}, {len(images)} images, {accumulation.updates_per_epoch} updates per epoch, {batch} per update; "
        f"generator {counts['generator']:,} parameters, discriminator {counts['discriminator']:,}; "
        f"{device}, {precision}",
        parameters=counts,
        data=data,
        device=device,
        precision=precision,
    )
