"""Train a denoising diffusion GAN (Xiao, Kreis and Vahdat 2022, https://arxiv.org/abs/2112.07804).

    python3 -u denoising-diffusion-gan/train_ddgan.py --dataset cifar10 --exp cifar10 --use_ema --num_epoch 50

--dataset takes shapes, cifar10 or any folder of images. The run folder, results/runs/denoising-diffusion-gan/EXP,
gets netG_<epoch>.pth (weights to sample with, and their configuration), content.pth (all that a resumed run needs),
progress.csv, loss.png, log.txt, config.json, grid.png and grid_<epoch>.png (64 samples). The same command continues a
run that was cut short; a finished one says so.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from comparison.budget import Budget, Clock, StopSignal
from comparison.cli import (
    UserError,
    add_run_options,
    data_root,
    make_parser,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    run,
)
from comparison.runs import Run
from comparison.sources import check_source
from ddgan.files import RunFiles
from ddgan.options import (
    MODEL,
    ONE_PROCESS,
    add_architecture_options,
    add_process_options,
    below_one,
    check_architecture,
    check_process_options,
    discriminator_size,
    run_folder,
)
from ddgan.windows import Windows

if TYPE_CHECKING:
    from comparison.images import ImageSet
    from ddgan.training import Trainer

# Besides the run options: where and how often files are written, never what is computed.
MAY_CHANGE = ("exp", "resume", "save_content", "save_content_every", "save_ckpt_every", *ONE_PROCESS)

# What the options of runs that began before these existed mean.
IMPLIED = {"accum_iter": 1}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the published flags keep their names and defaults."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group("data and output")
    group.add_argument("--dataset", default="cifar10", help="shapes, cifar10, a folder of images or an .npz file")
    group.add_argument("--exp", default="experiment_cifar_default", help="name of the run; with a slash, its folder")
    group.add_argument("--resume", action="store_true", help="insist on an earlier run; without it both are fine")
    group.add_argument("--save_content", action="store_true", help="accepted; content.pth is always written")
    group.add_argument("--save_content_every", type=positive_int, default=50, help="epochs between content.pth")
    group.add_argument("--save_ckpt_every", type=positive_int, default=25, help="epochs between netG_<epoch>.pth")
    group.add_argument("--log_interval", type=positive_int, default=20, help="updates between rows of progress.csv")
    add_architecture_options(parser)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--batch_size",
        type=positive_int,
        default=128,
        help="images of a micro-batch; a multiple of 4 suits the networks",
    )
    group.add_argument(
        "--accum_iter",
        type=positive_int,
        default=1,
        help="micro-batches of --batch_size whose gradients make an update",
    )
    group.add_argument("--num_epoch", type=non_negative_int, default=1200, help="epochs; 0: a bound below ends it")
    group.add_argument("--ngf", type=positive_int, default=64, help="discriminator's base width, features")
    group.add_argument(
        "--discriminator", default="auto", choices=["auto", "small", "large"], help="auto: large from 128 pixels"
    )
    group.add_argument("--lr_g", type=positive_float, default=1.5e-4, help="generator's learning rate")
    group.add_argument("--lr_d", type=positive_float, default=1e-4, help="discriminator's learning rate")
    group.add_argument("--beta1", type=below_one, default=0.5, help="of Adam")
    group.add_argument("--beta2", type=below_one, default=0.9, help="of Adam")
    group.add_argument("--no_lr_decay", action="store_true", help="constant rates instead of a cosine over num_epoch")
    group.add_argument("--use_ema", action="store_true", help="average the generator's weights and sample with them")
    group.add_argument("--ema_decay", type=below_one, default=0.9999, help="share of the old average per update")
    group.add_argument("--ema_warmup", action="store_true", help="smaller decay at first, for short runs")
    group.add_argument("--r1_gamma", type=non_negative_float, default=0.05, help="weight of the R1 penalty, 0 for none")
    group.add_argument("--lazy_reg", type=positive_int, default=1, help="updates from one R1 penalty to the next")
    add_process_options(parser)
    add_run_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Train until the epochs or a bound end it; return the exit status, 130 after Ctrl-C."""
    record, budget = open_run(args)
    if reason := record.finished_reason(budget):
        print(f"{record.folder}: finished ({reason}); --fresh starts over")
        return 0

    from comparison.batches import BatchStream
    from comparison.progress import bar
    from ddgan.checkpoints import load_content
    from ddgan.training import Batch, LossMeter

    trainer, images = prepare(args)
    stream = BatchStream(images, args.batch_size, args.seed, device=trainer.device)
    windows = Windows(stream.steps_per_epoch, args.accum_iter)
    content = record.folder / "content.pth"
    resumes = record.resumed and content.is_file()
    step, elapsed = load_content(content, trainer, images.fingerprint) if resumes else (0, 0.0)
    record.start(step)
    announce(record, trainer, images, windows.updates_per_epoch, step)
    files = RunFiles(record, trainer, args, windows, args.batch_size, images.fingerprint, Clock(elapsed))
    last = args.num_epoch * windows.updates_per_epoch
    total = total_updates(last, budget, windows, args.batch_size)
    meter = LossMeter()
    with StopSignal() as stop, bar(total, step, "train", "update") as progress:
        while not (reason := ending(step, files.images_seen(step), last, args.num_epoch, budget, files.clock)):
            lr = trainer.set_learning_rates(step, 0 if args.no_lr_decay else last)
            micro_batches = [Batch(stream.batch(number)[0], None, number) for number in windows.micro_steps(step)]
            meter.add(trainer.update(micro_batches, step))
            step += 1
            progress.update()
            if step % args.log_interval == 0:
                files.log_row(step, meter.take(), lr)
            files.save_if_due(step)
            if stop.requested:
                files.stop(step)
                return 130
    if losses := meter.take():
        files.log_row(step, losses, lr)
    files.finish(step, reason)
    return 0


def open_run(args: argparse.Namespace) -> tuple[Run, Budget]:
    """Judge every flag and the run folder."""
    check_architecture(vars(args))
    check_process_options(args)
    check_source(args.dataset, "--dataset")
    budget = Budget(args.max_steps, args.max_images, args.max_seconds)
    if not args.num_epoch and budget == Budget():
        raise UserError("--num_epoch 0: needs a bound, --max_steps, --max_images or --max_seconds")
    record = Run.open(
        run_folder(args.exp), vars(args), model=MODEL, may_change=MAY_CHANGE, fresh=args.fresh,
        implied=IMPLIED,
    )  # fmt: skip
    if args.resume and not (record.resumed and (record.folder / "content.pth").is_file()):
        raise UserError(f"--resume: {record.folder} holds no content.pth, so there is nothing to continue")
    return record, budget


def prepare(args: argparse.Namespace) -> "tuple[Trainer, ImageSet]":
    """Read the data and build the networks on their device."""
    import torch
    from comparison.device import autocast_dtype, pick_device, set_threads
    from comparison.images import load_images
    from ddgan.checkpoints import seeded_networks
    from ddgan.ema import Ema
    from ddgan.process import DenoisingProcess
    from ddgan.training import Trainer

    device = pick_device(args.device)
    set_threads(args.threads)
    images = load_images(args.dataset, args.image_size)
    if args.dataset == "cifar10":
        link_data(Path(__file__).resolve().parent / "data", data_root())
    networks = seeded_networks(vars(args), discriminator_size(args.discriminator, args.image_size), args.seed)
    # Convolutions over interleaved channels: 1.15 to 1.6 times faster on a CPU, and what tensor cores want.
    generator, discriminator = (net.to(device).to(memory_format=torch.channels_last) for net in networks)
    process = DenoisingProcess(args.num_timesteps, args.beta_min, args.beta_max, args.use_geometric).to(device)
    trainer = Trainer(
        generator,
        discriminator,
        process,
        Ema(generator, args.ema_decay, args.ema_warmup) if args.use_ema else None,
        seed=args.seed,
        nz=args.nz,
        lr_g=args.lr_g,
        lr_d=args.lr_d,
        beta1=args.beta1,
        beta2=args.beta2,
        r1_gamma=args.r1_gamma,
        lazy_reg=args.lazy_reg,
        autocast_dtype=autocast_dtype(args.precision, device),
    )
    return trainer, images


def link_data(link: Path, target: Path) -> None:
    """Let `link` lead to the data root, so that documented paths below this folder exist."""
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))


def announce(record: Run, trainer: "Trainer", images: "ImageSet", steps_per_epoch: int, step: int) -> None:
    """Say and record what is about to be trained on what."""
    from comparison.device import describe_device, precision_name

    counts = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("generator", trainer.generator), ("discriminator", trainer.discriminator))
    }
    precision = precision_name(trainer.autocast_dtype)
    record.describe(
        parameters=counts, data=images.describe(), device=describe_device(trainer.device), precision=precision
    )
    record.log(
        f"{record.folder}: {images.name}, {len(images)} images, {steps_per_epoch} updates per epoch; "
        f"generator {counts['generator']:,}, discriminator {counts['discriminator']:,} parameters; "
        f"{describe_device(trainer.device)}, {precision}" + (f"; continues at update {step}" if step else "")
    )


def total_updates(last: int, budget: Budget, windows: Windows, images_per_micro: int) -> int | None:
    """Return the update at which epochs, steps or images end the training, for a progress bar; None for no such end."""
    by_images = windows.updates_for(-(-budget.max_images // images_per_micro))
    return min((n for n in (last, budget.max_steps, by_images) if n), default=None)


def ending(step: int, images_seen: int, last: int, num_epoch: int, budget: Budget, clock: Clock) -> str | None:
    """Name what ends the training before update `step`, or None."""
    if last and step >= last:
        return f"num_epoch {num_epoch}"
    return budget.exhausted(step, images_seen, clock.seconds())


if __name__ == "__main__":
    run(lambda: main(parse_args()))
