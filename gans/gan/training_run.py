"""The training run of cifar_gan.py, from its flags to the last checkpoint."""

import argparse

import torch
from comparison import cli, rng
from comparison.checkpoints import newest_whole, numbered
from comparison.data.batches import BatchStream
from comparison.data.held_out import load_data, test_split
from comparison.device import autocast_dtype, describe_device, peak_memory_bytes, precision_name, set_threads
from comparison.distributed import device_of, first_on_machine, group
from comparison.gpu.cuda_graphs import cuda_graph
from comparison.ranks import RankInfo
from comparison.runs import Run
from comparison.schedule import Schedule
from comparison.scores.metrics import MIN_IMAGES
from comparison.training import Loop

from .build import build_gan
from .diagnostics import HeldOutProbe, Scorer
from .options import training_budget
from .run_paths import CHECKPOINTS
from .training_logger import TrainingLogger, restore


def train(rank_info: RankInfo, args: argparse.Namespace, run: Run) -> int:
    """Train on this rank until the budget ends; rank 0 writes the files.

    Returns:
        0, or 130 after Ctrl-C; a checkpoint is written in both cases.
    """
    set_threads(args.threads, rank_info.local_world_size)
    device = device_of(rank_info, args.device)
    with group(rank_info, device):
        return _train_on(device, rank_info, args, run)


def _train_on(device: torch.device, rank_info: RankInfo, args: argparse.Namespace, run: Run) -> int:
    dtype = autocast_dtype(args.precision, device)
    with first_on_machine(rank_info):
        images, held_out = load_data(args.data, args.image_size, args.limit, args.held_out, args.batch_size)
    trained_on = run.config.get("data")
    if run.resumed and trained_on and trained_on != images.describe():
        raise cli.UserError(
            f"{run.folder}: the run was trained on {trained_on}, but --data now gives {images.describe()}; restore "
            "the images or start over with --fresh (--held_out 0 keeps all images for training)"
        )
    rank, world_size = rank_info.rank, rank_info.world_size
    stream = BatchStream(
        images, args.batch_size, args.seed, flip=args.flip, device=device, rank=rank, world_size=world_size
    )
    capture = args.cuda_graph and device.type == "cuda" and world_size == 1
    gan = build_gan(vars(args), device, dtype, stream.rows, cuda_graph if capture else None)
    probe = scorer = None
    if rank_info.is_first and len(held_out):
        probe = HeldOutProbe(held_out, args.seed)
    if rank_info.is_first and args.score_every and min(len(images), args.score_images) >= MIN_IMAGES:
        scorer = Scorer(images, args.score_images, args.seed, device, args.sample_batch_size)
    saved = [[path] for path in numbered(run.folder, CHECKPOINTS)] if run.resumed else []
    checkpoint = newest_whole(saved, rank_info.is_first)
    step, seconds = restore(checkpoint, gan) if checkpoint else (0, 0.0)
    loop = Loop(
        run if rank_info.is_first else None,
        training_budget(args, stream.steps_per_epoch),
        lambda updates: updates * args.batch_size,
        step=step,
        seconds=seconds,
        log_interval=args.log_interval,
        save_minutes=args.save_minutes,
        stop_after=args.stop_after,
        advice="a smaller --g_lr or --d_lr may help",
    )
    logger = TrainingLogger(loop, gan, vars(args), stream.steps_per_epoch, probe, scorer)
    logger.begin(
        data=images.describe(), steps_per_epoch=stream.steps_per_epoch, parameters=gan.count_parameters(),
        device=describe_device(device), precision=precision_name(dtype),
        held_out={"images": len(held_out), "from": "test split" if test_split(args.data) else "training images"},
    )  # fmt: skip
    schedule = Schedule.of(args)
    for step in loop:
        real, _ = stream.batch(step)
        z = rng.normal((args.batch_size, args.nz), args.seed, step, "z", device=device, rows=stream.rows)
        if gan.burn_in or not schedule.is_constant():
            gan.set_schedule(schedule.factor(loop.progress), loop.progress)
        logger.after_update(gan.train_step(real, z, step), real)
    logger.end()
    return loop.finish(peak_memory_bytes=peak_memory_bytes(device))
