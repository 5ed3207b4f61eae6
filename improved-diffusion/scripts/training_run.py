"""Training as image_train.py and super_res_train.py share it: options, data, the run folder, then the loop.

The scripts differ in their `Task`: which network and process the flags mean, what conditions the network beside the
classes, and what a sample grid shows.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import (
    UserError,
    add_run_options,
    check_folder,
    data_root,
    default_run_folder,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    str2bool,
)
from comparison.data.sources import KINDS, check_source, source_name
from comparison.runs import Run
from comparison.schedule import Schedule, add_schedule_options, ema_rate
from comparison.training import Budget
from event_files import check_log_formats
from improved_diffusion.dist_util import barrier, broadcast_object, get_rank, get_world_size, is_main
from improved_diffusion.flags import unify_prediction
from remote import path_or_url, shown
from run_files import choose_dtype, connect, judge_flags, my_place, newest_model, place, trim_json

if TYPE_CHECKING:
    import torch
    from comparison.data.batches import BatchStream
    from comparison.data.folders import FileSet
    from comparison.data.images import ImageSet
    from comparison.data.streaming import FileStream
    from comparison.rng import SampleNoise
    from improved_diffusion.respace import SpacedDiffusion


# Options that runs had which began before the options existed.
IMPLIED = {
    **{"loss_weighting": "uniform", "snr_gamma": 5.0, "patch_size": 1},
    **{"lr_decay": "none", "ema_every": 1, "beta2": 0.999},
}


class Task:
    """What a script trains.

    Attributes:
        model: name of the family, in config.json and in checkpoints.
        flags: of the network and the process.
        image_size: S, of the training images, in pixels.
        run_name: what follows the data's name in the default run folder.
        class_cond: whether the network takes class labels.
    """

    model: str
    flags: dict[str, Any]
    image_size: int
    run_name: str
    class_cond: bool

    def build(self, image_set: "ImageSet | FileSet") -> "tuple[torch.nn.Module, SpacedDiffusion]":
        """Make the network, on the CPU, and the process of all timesteps."""
        raise NotImplementedError

    def condition(self, x_start: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Return what the network takes beside the classes, from (N, 3, S, S) images in [-1, 1]."""
        return {}

    def sample(
        self, network: "torch.nn.Module", noise: "SampleNoise", labels: "torch.Tensor | None", num_steps: int
    ) -> "torch.Tensor":
        """Draw the images of a grid, (N, 3, S, S), from their noise, in so many steps."""
        raise NotImplementedError


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of training that do not say what the network is."""
    add = parser.add_argument_group("training").add_argument
    add("--data_dir", "--data", default="", help=f"{KINDS}; '' for data/cifar_train")
    add("--run_dir", type=path_or_url, help="run folder; a run is continued by the same command")
    add("--lr", type=positive_float, default=1e-4, help="learning rate of AdamW")
    add("--weight_decay", type=non_negative_float, default=0.0, help="of AdamW")
    add("--beta2", type=fraction, default=0.999, help="AdamW's decay of the mean squared gradient, below 1")
    add(
        "--lr_anneal_steps",
        type=non_negative_int,
        default=0,
        help="updates until lr is 0 and training ends; 0 for never",
    )
    add("--batch_size", type=positive_int, default=128, help="images per update, of all processes together")
    add("--microbatch", type=int, default=-1, help="images per forward pass of a process, -1 for all of its own")
    add(
        "--num_workers",
        type=non_negative_int,
        help="processes that decode images which memory does not hold, for each training process; 0 decodes there; by "
        "default its share of the cores but one",
    )
    add("--random_flip", type=str2bool, default=True, help="mirror each image with probability 1/2")
    add(
        "--class_dropout",
        type=fraction,
        default=0.0,
        help="share of the labels withheld in training with --class_cond True, for classifier-free guidance",
    )
    add("--ema_rate", default="0.9999", help="rates of the moving averages of the weights, separated by commas")
    add("--ema_every", type=positive_int, default=1, help="updates between moves of the moving averages")
    add(
        "--schedule_sampler",
        choices=["uniform", "stratified", "loss-second-moment"],
        default="uniform",
        help="how timesteps are drawn; stratified: evenly within each batch; loss-second-moment, for --use_kl True: in "
        "proportion to the size of their loss",
    )
    add("--use_fp16", type=str2bool, help="compute in bf16 where the device can, else fp16 on CUDA, else float32")
    add(
        "--compile",
        type=str2bool,
        default=False,
        help="fuse the network's operations, for GPUs; the first update waits for minutes",
    )
    add(
        "--cuda_graph",
        type=str2bool,
        default=True,
        help="on one CUDA GPU: record the passes of an update and replay them, which spares the host's work",
    )
    add("--fp16_scale_growth", type=positive_float, default=1e-3, help="growth of log2 of fp16's loss scale per update")
    add("--log_interval", type=positive_int, default=10, help="updates between log rows")
    add("--save_interval", type=positive_int, default=10000, help="updates between checkpoints")
    add(
        "--resume_checkpoint",
        type=path_or_url,
        help="model<step>.pt of another folder to start from",
    )
    add("--grid_images", type=non_negative_int, default=64, help="images in the sample grids, 0 for no grids")
    add("--grid_steps", type=positive_int, default=20, help="DDIM steps of the sample grids")
    add_schedule_options(parser.add_argument_group("schedules over the budget"))
    add_run_options(parser)
    parser.set_defaults(max_steps=500_000)


def train_network(args: argparse.Namespace, task: Task) -> int:
    """Judge the flags, load the data, train until a budget is used up; return the exit status."""
    for flags in (task.flags, vars(args)):
        unify_prediction(flags)
    ema_rates, whole = judge_train_flags(args, task)
    budget, schedule = whole.cut(args.stop_after), Schedule.of(args)
    data_dir = data_source(args.data_dir)
    train_run = open_run(args, task, data_dir)
    folder = train_run.folder
    if reason := train_run.finished_reason(budget):
        print(f"{folder}: finished ({reason}); a larger budget continues it, --fresh starts over")
        return 0

    import torch
    from comparison import device as devices
    from comparison.gpu.replay import by_cuda_graph
    from improved_diffusion.training import Trainer
    from training_loop import Loop

    device = connect(args.device, args.threads)
    dtype = choose_dtype(args.precision, args.use_fp16, device)
    image_set = load_data(data_dir, task, train_run)
    stream = own_batches(image_set, args, device)

    torch.manual_seed(args.seed)
    model, diffusion = task.build(image_set)
    place(model, device, dtype)
    trainer = Trainer(
        model,
        diffusion,
        lr=args.lr,
        weight_decay=args.weight_decay,
        beta2=args.beta2,
        ema_rates=ema_rates,
        ema_rule=partial(ema_rate, horizon=args.ema_horizon),
        ema_every=args.ema_every,
        microbatch=args.microbatch,
        lr_anneal_steps=args.lr_anneal_steps,
        autocast_dtype=dtype,
        fp16_scale_growth=args.fp16_scale_growth,
        compile_network=args.compile,
        replayed=by_cuda_graph if args.cuda_graph and device.type == "cuda" and not args.use_checkpoint else None,
    )
    loop = Loop(train_run, trainer, stream, budget, lambda *used: schedule.factor(whole.progress(*used)), args, task)
    start_from = broadcast_object(newest_model(folder) if train_run.resumed else None)
    if start_from or args.resume_checkpoint:
        loop.restore(start_from or args.resume_checkpoint, saved=bool(start_from))

    barrier()  # every process has read what the first one is about to change
    if is_main():
        train_run.start(loop.step)
        trim_json(train_run)
        train_run.describe(
            parameters=sum(p.numel() for p in model.parameters()),
            num_classes=len(image_set.class_names) if task.class_cond else None,
            data={**train_run.config.get("data", {}), **image_set.describe()},
            device=devices.describe_device(device),
            processes=get_world_size(),
            precision=devices.precision_name(dtype),
        )
        begun = f"continues after {loop.step} updates" if loop.step else "starts"
        team = f", {get_world_size()} processes" if get_world_size() > 1 else ""
        where = devices.describe_device(device) + team
        train_run.log(f"{folder} {begun}: {len(image_set)} images, budget {budget.describe()}, {where}")
    with stream:
        return loop.run()


def open_run(args: argparse.Namespace, task: Task, data_dir: str) -> Run:
    """Open the run folder: --run_dir, else OPENAI_LOGDIR, else by the data's name.

    Raises:
        UserError: it holds another run, cannot be written, or lies where --data_dir reads or --fresh deletes.
    """
    log_dir = os.environ.get("OPENAI_LOGDIR")
    folder = args.run_dir or (log_dir and Path(log_dir))
    folder = folder or default_run_folder(task.model, f"{source_name(data_dir)}-{task.run_name}")
    flag = "OPENAI_LOGDIR" if log_dir and not args.run_dir else "--run_dir"
    check_folder(folder, flag)
    data, resolved = Path(data_dir), folder.resolve()
    if data.is_dir() and data.resolve() in (resolved, *resolved.parents):
        raise UserError(f"{flag} {folder}: inside --data_dir {data_dir}, whose images the run's pictures would join")
    if args.fresh and args.resume_checkpoint and args.resume_checkpoint.parent.resolve() == resolved:
        raise UserError(f"--resume_checkpoint {args.resume_checkpoint}: --fresh would delete it; copy it first")
    return Run.open(
        folder,
        {**vars(args), "data_dir": shown(data_dir)},
        model=task.model,
        may_change=("resume_checkpoint", "grid_images", "grid_steps", "compile", "cuda_graph"),
        implied={**IMPLIED, "prediction": "x_start" if args.predict_xstart else "epsilon"},
        fresh=args.fresh,
    )


def load_data(data_dir: str, task: Task, train_run: Run) -> "ImageSet | FileSet":
    """Load the images, or find them on disk where memory does not hold them all.

    Raises:
        UserError: they have no classes where these are wanted, are not those that the run began with, or not those
            of the first process.
    """
    from comparison.data.images import open_images

    image_set = open_images(data_dir, task.image_size, processes=my_place().local_world_size)
    if task.class_cond and image_set.labels is None:
        raise UserError(f"--class_cond True: {data_dir} has no classes (folders, or file names that begin with class_)")
    known, found = train_run.config.get("data", {}), image_set.describe()
    # In memory and on disk they are described by pixels and by files: what both tell must agree.
    if train_run.resumed and any(known[name] != found[name] for name in known.keys() & found.keys()):
        raise UserError(f"{train_run.folder}: trained on other images: {known} there, {found} here")
    if found != (first := broadcast_object(found)):
        raise UserError(f"{data_dir}: {found} for process {get_rank()}, {first} for the first one")
    return image_set


def own_batches(
    image_set: "ImageSet | FileSet", args: argparse.Namespace, device: "torch.device"
) -> "BatchStream | FileStream":
    """Return this process's part of the batches.

    Raises:
        UserError: the set holds fewer images than a batch.
    """
    from comparison.data.streaming import open_stream

    return open_stream(
        image_set,
        args.batch_size,
        args.seed,
        flip=args.random_flip,
        device=device,
        rank=get_rank(),
        world_size=get_world_size(),
        num_workers=args.num_workers,
        local_processes=my_place().local_world_size,
    )


def judge_train_flags(args: argparse.Namespace, task: Task) -> tuple[list[float], Budget]:
    """Return the EMA rates and the budget.

    Raises:
        UserError: a flag's value is not accepted.
    """
    judge_flags(task.flags, args)
    check_log_formats()
    if args.batch_size % (processes := my_place().world_size):
        raise UserError(f"--batch_size {args.batch_size}: of all processes together, so a multiple of {processes}")
    if args.beta2 == 1:
        raise UserError("--beta2 must be below 1, or no gradient ever counts")
    if args.class_dropout and not task.class_cond:
        raise UserError("--class_dropout needs --class_cond True")
    if args.fp16_scale_growth > 1 or 2.0**args.fp16_scale_growth <= 1:
        raise UserError(f"--fp16_scale_growth {args.fp16_scale_growth:g}: must be from 1e-15 to 1")
    try:
        rates = [float(rate) for rate in args.ema_rate.split(",")]
    except ValueError:
        rates = [-1.0]
    if not all(0 <= rate < 1 for rate in rates):
        raise UserError(f"--ema_rate must be rates of at least 0 and below 1 like 0.999,0.9999, not {args.ema_rate!r}")
    if args.resume_checkpoint and not args.resume_checkpoint.is_file():
        raise UserError(f"--resume_checkpoint {args.resume_checkpoint}: no such file")
    if args.resume_checkpoint and args.resume_checkpoint.name.startswith(("ema_", "opt")):
        raise UserError(f"--resume_checkpoint {args.resume_checkpoint}: name the model<step>.pt beside it")
    bounds = [steps for steps in (args.max_steps, args.lr_anneal_steps) if steps]
    budget = Budget(min(bounds, default=0), args.max_images, args.max_seconds)
    if not Schedule.of(args).is_constant():
        if args.lr_anneal_steps:
            raise UserError(
                f"--lr_anneal_steps {args.lr_anneal_steps} and --lr_warmup or --lr_decay exclude each other"
            )
        if budget == Budget():
            raise UserError("--lr_warmup and --lr_decay need a bound: --max_steps, --max_images or --max_seconds")
    return rates, budget


def data_source(data_dir: str) -> str:
    """Return the data source, by default the folder that datasets/cifar10.py writes.

    Raises:
        UserError: nothing there.
    """
    if not data_dir:
        folder = data_root() / "cifar_train"
        if not folder.is_dir():
            raise UserError(
                f"--data_dir: {folder} is not there; run python improved-diffusion/datasets/cifar10.py, or name a "
                "folder of images, shapes or cifar10"
            )
        data_dir = str(folder)
    check_source(data_dir, "--data_dir")
    return data_dir
