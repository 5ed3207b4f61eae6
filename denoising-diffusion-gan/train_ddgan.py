"""Train a denoising diffusion GAN (Xiao, Kreis and Vahdat 2022, https://arxiv.org/abs/2112.07804).

    python3 -u denoising-diffusion-gan/train_ddgan.py --dataset cifar10 --exp cifar10 --use_ema --num_epoch 50

--dataset takes shapes, cifar10, stackmnist, lsun, celeba_256 or any folder of images. The run folder,
results/runs/denoising-diffusion-gan/EXP, gets netG_<epoch>.pth (weights to sample with, and their configuration),
content.pth (all that a resumed run needs), progress.csv, loss.png, log.txt, config.json, grid.png and grid_<epoch>.png
(64 samples). The same command continues a run that was cut short; a finished one says so.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from comparison.cli import (
    UserError,
    add_run_options,
    check_folder,
    make_parser,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from comparison.data.sources import KINDS, check_source
from comparison.distributed import device_of, group, launch, run
from comparison.places import Place
from comparison.runs import Run
from comparison.schedule import DECAYS, Schedule, add_schedule_options
from comparison.training import Budget, Loop
from ddgan.files import RunFiles
from ddgan.options import (
    LATER,
    MODEL,
    PROCESS_OPTIONS,
    PUBLISHED_OBJECTIVE,
    add_architecture_options,
    add_objective_options,
    add_process_options,
    add_run_folder,
    below_one,
    check_architecture,
    defaults,
    place_of,
    run_folder,
)
from ddgan.setup import build_trainer, check_same_flags, class_facts, objective_of, open_batches, open_data
from ddgan.windows import Windows

if TYPE_CHECKING:
    from comparison.data.batches import BatchStream
    from comparison.data.folders import FileSet
    from comparison.data.images import ImageSet
    from comparison.data.streaming import FileStream
    from ddgan.training import Trainer

SPEED_OPTIONS = ("compile", "no_cuda_graph")
# Besides the run options: where and how often files are written, never what is computed.
MAY_CHANGE = (
    *("exp", "resume", "save_content", "save_content_every", "save_ckpt_every"),
    *SPEED_OPTIONS,
    *PROCESS_OPTIONS,
)
# What the options of runs that began before these existed mean.
IMPLIED = {"accum_iter": 1, "processes": 1, "lr_decay": "published", **PUBLISHED_OBJECTIVE}
IMPLIED |= {name: defaults()[name] for name in LATER}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the published flags keep their names and defaults."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group("data and output")
    group.add_argument("--dataset", "--data", default="cifar10", help=KINDS)
    group.add_argument(
        "--num_workers", type=non_negative_int, default=None,
        help="processes that decode images which memory does not hold, for each training process; 0 decodes there; by "
        "default its share of the cores but one",
    )  # fmt: skip
    group.add_argument("--no_flip", action="store_true", help="do not mirror training images at random")
    add_run_folder(group)
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
        help="images of a process and micro-batch; a multiple of 4 suits the networks",
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
        "--discriminator",
        default="auto",
        choices=["auto", "small", "large", "plain"],
        help="the published ones, auto: large from 128 pixels; plain learns within fewer updates",
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
    group.add_argument(
        "--compile", action="store_true", help="fuse the networks' operations, for GPUs; the first update waits"
    )
    group.add_argument(
        "--no_cuda_graph",
        action="store_true",
        help="on one CUDA GPU: launch every operation anew instead of replaying recorded updates",
    )
    add_schedule_options(
        parser.add_argument_group("schedules over the budget; --lr_decay published is the cosine over num_epoch"),
        decays=("published", *DECAYS),
        decay="published",
    )
    add_objective_options(parser)
    add_process_options(parser)
    add_run_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Train until the epochs or a bound end it; return the exit status, 130 after Ctrl-C."""
    place = place_of(args)
    record, budget = open_run(args, place)
    if reason := record.finished_reason(budget.cut(args.stop_after)):
        print(f"{record.folder}: finished ({reason}); --fresh starts over")
        return 0
    return launch(train, place, args, record, budget)


def open_run(args: argparse.Namespace, place: Place) -> tuple[Run, Budget]:
    """Judge every flag and the run folder."""
    check_architecture(vars(args))
    check_source(args.dataset, "--dataset")
    budget = Budget(args.max_steps, args.max_images, args.max_seconds)
    if not args.num_epoch and budget == Budget():
        raise UserError("--num_epoch 0: needs a bound, --max_steps, --max_images or --max_seconds")
    if args.ema_horizon and not args.use_ema:
        raise UserError(f"--ema_horizon {args.ema_horizon:g} needs --use_ema")
    if args.no_lr_decay and args.lr_decay in ("linear", "cosine"):
        raise UserError(f"--no_lr_decay and --lr_decay {args.lr_decay} exclude each other")
    Schedule.of(args)
    folder, data = run_folder(args.exp), Path(args.dataset)
    check_folder(folder, "--exp")
    if data.is_dir() and data.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"--exp {folder}: inside --dataset {data}, whose images the run's pictures would join")
    options = {**vars(args), "processes": place.world_size}
    record = Run.open(folder, options, model=MODEL, may_change=MAY_CHANGE, implied=IMPLIED, fresh=args.fresh)
    if args.resume and not (record.resumed and (folder / "content.pth").is_file()):
        raise UserError(f"--resume: {folder} holds no content.pth, so there is nothing to continue")
    return record, budget


def train(place: Place, args: argparse.Namespace, record: Run, budget: Budget) -> int:
    """Train as one of the processes of the job, of which the first one writes; return the exit status."""
    from comparison.device import peak_memory_bytes, set_threads

    device = device_of(place, args.device)
    set_threads(args.threads, place.local_world_size)
    with group(place, device):
        check_same_flags(args)
        images = open_data(args, place)
        classes = class_facts(args, images)
        trainer = build_trainer(args, classes, device, place)
        with open_batches(images, args, device, place) as stream:
            windows = Windows(stream.steps_per_epoch, args.accum_iter)
            step, seconds = resume(record, trainer, images)
            joint = args.batch_size * place.world_size
            loop = Loop(
                record if place.is_first else None,
                budget,
                lambda updates: windows.micro_done(updates) * joint,
                step=step,
                seconds=seconds,
                log_interval=args.log_interval,
                save_minutes=args.save_minutes,
                stop_after=args.stop_after,
                epochs=(args.num_epoch * windows.updates_per_epoch, f"num_epoch {args.num_epoch}"),
                advice="lower --lr_g and --lr_d or raise --r1_gamma, with --fresh",
            )
            announce(loop, trainer, args, images, windows)
            update(loop, trainer, stream, RunFiles(loop, trainer, args, windows, images.describe(), classes))
            return loop.finish(peak_memory_bytes=peak_memory_bytes(device))


def update(loop: Loop, trainer: "Trainer", stream: "BatchStream | FileStream", files: RunFiles) -> None:
    """Make updates until something ends the training, and write what is due."""
    from ddgan.draws import Batch
    from ddgan.meters import DiscriminatorWatch, LossMeter, mean_accuracies

    args, windows = files.args, files.windows
    meter, watch, objective, schedule = LossMeter(), DiscriminatorWatch(), objective_of(args), Schedule.of(args)
    published = args.lr_decay == "published" and not args.no_lr_decay
    by_epochs = args.num_epoch * windows.updates_per_epoch if published else 0
    phase = objective.phase(loop.progress)

    def log_row() -> dict[str, float]:
        own = {"lr": trainer.learning_rate(phase), **files.gradient_norms()}
        return loop.row(losses, own) if (losses := meter.take()) else {}

    for step in loop:
        micro_batches = []
        for number in windows.micro_steps(step):
            x_0, labels = stream.batch(number)
            micro_batches.append(Batch(x_0, labels if args.class_cond else None, number))
        phase = objective.phase(loop.progress)
        factor = schedule.factor(objective.adversarial_progress(loop.progress))
        trainer.set_learning_rates(step, by_epochs, factor, denoiser_factor(args, loop.progress))
        meter.add(trainer.update(micro_batches, step, phase))
        if loop.row_due:
            means = log_row()
            if accuracies := mean_accuracies(means):
                loop.bar.set_postfix_str("D right " + " ".join(f"{mean:.2f}" for mean in accuracies))
            # Beside a denoiser, whose images are smooth, a discriminator is right whatever it learns.
            if not phase.denoiser and (warning := watch.look(loop.step, means)):
                loop.log(warning)
        files.save_if_due()
    if loop.reason:
        log_row()
    files.end()


def denoiser_factor(args: argparse.Namespace, progress: float) -> float:
    """Return the denoiser's learning rate after a share of the budget, as a multiple of its peak."""
    if progress >= args.denoiser_fraction:
        return 0.0
    return Schedule(args.denoiser_warmup, "cosine", args.denoiser_warmup).factor(progress / args.denoiser_fraction)


def resume(record: Run, trainer: "Trainer", images: "ImageSet | FileSet") -> tuple[int, float]:
    """Restore the trainer of an earlier run; return updates done and wall seconds used, (0, 0.0) of a new one.

    Raises:
        UserError: its file does not fit.
    """
    from ddgan.checkpoints import load_content

    content = record.folder / "content.pth"
    resumes = record.resumed and content.is_file()
    return load_content(content, trainer, images.describe()) if resumes else (0, 0.0)


def announce(
    loop: Loop, trainer: "Trainer", args: argparse.Namespace, images: "ImageSet | FileSet", windows: Windows
) -> None:
    """Say and record what is about to be trained on what."""
    from comparison.device import describe_device, precision_name

    counts = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("generator", trainer.generator), ("discriminator", trainer.discriminator))
    }
    device, precision = describe_device(trainer.device), precision_name(trainer.autocast_dtype)
    data = {**loop.run.config.get("data", {}), **images.describe()} if loop.run else {}
    factors = [(args.batch_size, "images"), (trainer.place.world_size, "processes"), (args.accum_iter, "micro-batches")]
    joint = " x ".join(f"{count} {words}" for count, words in factors if count > 1 or words == "images")
    loop.begin(
        f"{images.name}, {len(images)} images, {windows.updates_per_epoch} updates per epoch, each of {joint}; "
        f"{counts['generator']:,} parameters of the generator, {counts['discriminator']:,} of the discriminator; "
        f"{device}, {precision}",
        parameters=counts,
        data=data,
        device=device,
        precision=precision,
    )


if __name__ == "__main__":
    run(lambda: main(parse_args()))
