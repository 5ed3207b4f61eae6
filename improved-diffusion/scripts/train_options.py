"""Options of image_train.py and super_res_train.py, their validation, and the run folder; without torch."""

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison.cli import (
    UserError,
    add_run_options,
    check_folder,
    data_root,
    default_run_folder,
    fraction,
    local_path,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    str2bool,
)
from comparison.data.sources import DATA_HELP, check_source, source_name
from comparison.ranks import get_rank_info
from comparison.runs import Run
from comparison.schedule import Schedule, add_schedule_options
from comparison.training import Budget
from improved_diffusion.blob import is_remote
from improved_diffusion.flags import LOG_FORMATS, unify_prediction
from model_options import download_data, download_model, folder_of_environment, log_formats, path_or_url, validate_flags

GRID_STEPS = 20  # of the sample grids, by default
# Options of runs that were started before the options existed, as the kept run cifar10-jpeg-gpu.
IMPLIED = {
    **{"loss_weighting": "uniform", "snr_gamma": 5.0, "patch_size": 1},
    **{"lr_decay": "none", "ema_every": 1, "beta2": 0.999},
}


@dataclass(frozen=True)
class Training:
    """A validated training.

    Attributes:
        run: the run folder.
        data_dir: local path or name of the data.
        ema_rates: EMA rates of the weights.
        budget: bounds of the whole training; --stop_after cuts it.
    """

    run: Run
    data_dir: str
    ema_rates: list[float]
    budget: Budget


def microbatch(text: str) -> int:
    """Parse --microbatch, an argparse type."""
    return -1 if text.strip() == "-1" else positive_int(text)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of training, which the network and the process do not depend on."""
    add = parser.add_argument_group("training").add_argument
    add("--data_dir", "--data", default="", help=f"{DATA_HELP}; '' for data/cifar_train")
    add("--run_dir", type=local_path, help="run folder; the same command resumes a run")
    add("--lr", type=positive_float, default=1e-4, help="learning rate of AdamW")
    add("--weight_decay", type=non_negative_float, default=0.0, help="weight decay of AdamW")
    add("--beta2", type=fraction, default=0.999, help="AdamW's decay of the mean squared gradient, below 1")
    add(
        "--lr_anneal_steps",
        type=non_negative_int,
        default=0,
        help="updates until lr is 0 and training ends; 0 for never",
    )
    add("--batch_size", type=positive_int, default=128, help="images per update, over all ranks")
    add("--microbatch", type=microbatch, default=-1, help="images per forward pass of a rank, -1 for all of its batch")
    add(
        "--num_workers",
        type=non_negative_int,
        help="workers per rank that decode images which do not fit in memory; 0 decodes in the rank itself; default: "
        "its share of the cores but one",
    )
    add("--random_flip", type=str2bool, default=True, help="mirror each image with probability 1/2")
    add(
        "--class_dropout",
        type=fraction,
        default=0.0,
        help="fraction of the labels dropped in training with --class_cond True, for classifier-free guidance",
    )
    add("--ema_rate", default="0.9999", help="EMA rates of the weights, separated by commas")
    add("--ema_every", type=positive_int, default=1, help="updates between updates of the EMA weights")
    add(
        "--schedule_sampler",
        choices=["uniform", "stratified", "loss-second-moment"],
        default="uniform",
        help="how timesteps are sampled; stratified: evenly within each batch; loss-second-moment, for --use_kl True: "
        "in proportion to the size of their loss",
    )
    add("--use_fp16", type=str2bool, help="compute in bf16 where the device can, else fp16 on CUDA, else float32")
    add(
        "--compile",
        type=str2bool,
        default=False,
        help="compile the network by torch.compile, for GPUs; the first update takes minutes",
    )
    add(
        "--cuda_graph",
        type=str2bool,
        default=True,
        help="on one CUDA GPU: capture the passes of an update as a CUDA graph, which removes launch overhead",
    )
    add("--fp16_scale_growth", type=positive_float, default=1e-3, help="growth of log2 of fp16's loss scale per update")
    add("--log_interval", type=positive_int, default=10, help="updates between log rows")
    add("--save_interval", type=positive_int, default=10000, help="updates between checkpoints")
    add(
        "--resume_checkpoint",
        type=path_or_url,
        help="model<step>.pt of another folder to start from; local or remote",
    )
    add("--grid_images", type=non_negative_int, default=64, help="images in the sample grids, 0 for no grids")
    add("--grid_steps", type=positive_int, default=GRID_STEPS, help="DDIM steps of the sample grids")
    add_schedule_options(parser.add_argument_group("schedules over the budget"))
    add_run_options(parser)
    parser.set_defaults(max_steps=500_000)


def open_training(args: argparse.Namespace, flags: dict[str, Any], model: str, run_name: str) -> Training | None:
    """Validate the flags and open the run folder; None, after a message, where the run is finished.

    Args:
        args: the command line.
        flags: flags of the network and the process.
        model: name of the family, in config.json and in checkpoints.
        run_name: suffix of the default run folder, after the data's name.

    Raises:
        UserError: a flag's value is not accepted, or the folder cannot be used.
    """
    unify_prediction(flags)
    unify_prediction(vars(args))
    args.resume_checkpoint = download_model("--resume_checkpoint", args.resume_checkpoint, args.ema_rate.split(","))
    ema_rates, budget = validate_train_flags(args, flags)
    part = budget.cut(args.stop_after)
    data_dir = data_source(args.data_dir)
    run = open_run(args, model, run_name, data_dir)
    if reason := run.finished_reason(part):
        print(f"{run.folder}: finished ({reason}); a larger budget continues it, --fresh starts over")
        return None
    return Training(run, data_dir, ema_rates, budget)


def open_run(args: argparse.Namespace, model: str, run_name: str, data_dir: str) -> Run:
    """Open the run folder: --run_dir, else OPENAI_LOGDIR, else by the data's name.

    Args:
        args: the command line.
        model: name of the family.
        run_name: suffix of the default folder.
        data_dir: local path or name of the data.

    Raises:
        UserError: the folder holds another run, cannot be written, or lies inside the data or where --fresh deletes.
    """
    folder = args.run_dir or folder_of_environment()
    flag = "OPENAI_LOGDIR" if folder and not args.run_dir else "--run_dir"
    folder = folder or default_run_folder(model, f"{source_name(data_dir)}-{run_name}")
    check_folder(folder, flag)
    data, resolved = Path(data_dir), folder.resolve()
    if data.is_dir() and data.resolve() in (resolved, *resolved.parents):
        raise UserError(f"{flag} {folder}: inside --data_dir {data_dir}, which would then include the sample grids")
    if args.fresh and args.resume_checkpoint and args.resume_checkpoint.parent.resolve() == resolved:
        raise UserError(f"--resume_checkpoint {args.resume_checkpoint}: --fresh would delete it; copy it first")
    return Run.open(
        folder,
        {**vars(args), "data_dir": args.data_dir.rstrip("/") if is_remote(args.data_dir) else data_dir},
        model=model,
        may_change=("model_path", "resume_checkpoint", "grid_images", "grid_steps", "compile", "cuda_graph"),
        implied={**IMPLIED, "prediction": "x_start" if args.predict_xstart else "epsilon"},
        fresh=args.fresh,
    )


def validate_train_flags(args: argparse.Namespace, flags: dict[str, Any]) -> tuple[list[float], Budget]:
    """Return the EMA rates and the whole budget.

    Raises:
        UserError: a flag's value is not accepted.
    """
    validate_flags(flags, args)
    if unknown := next((name for name in log_formats() if name not in LOG_FORMATS), None):
        raise UserError(f"OPENAI_LOG_FORMAT: a log format must be one of {', '.join(LOG_FORMATS)}, not {unknown!r}")
    if "tensorboard" in log_formats() and importlib.util.find_spec("tensorboard") is None:
        raise UserError("OPENAI_LOG_FORMAT: log format tensorboard needs the package tensorboard")
    if args.batch_size % (ranks := get_rank_info().world_size):
        raise UserError(f"--batch_size {args.batch_size}: shared by all ranks, so it must be a multiple of {ranks}")
    if args.beta2 == 1:
        raise UserError("--beta2 must be below 1")
    if args.class_dropout and not flags["class_cond"]:
        raise UserError("--class_dropout needs --class_cond True")
    if args.fp16_scale_growth > 1 or 2.0**args.fp16_scale_growth <= 1:
        raise UserError(f"--fp16_scale_growth {args.fp16_scale_growth:g}: must be from 1e-15 to 1")
    try:
        rates = [float(rate) for rate in args.ema_rate.split(",")]
    except ValueError:
        rates = [-1.0]
    if not all(0 <= rate < 1 for rate in rates):
        raise UserError(f"--ema_rate must be rates in [0, 1) such as 0.999,0.9999, not {args.ema_rate!r}")
    if len(set(rates)) < len(rates):
        raise UserError(f"--ema_rate {args.ema_rate}: names a rate twice")
    if args.grid_steps > max(GRID_STEPS, args.diffusion_steps):
        raise UserError(f"--grid_steps {args.grid_steps}: the process has {args.diffusion_steps} steps")
    if args.resume_checkpoint and not args.resume_checkpoint.is_file():
        raise UserError(f"--resume_checkpoint {args.resume_checkpoint}: no such file")
    if args.resume_checkpoint and args.resume_checkpoint.name.startswith(("ema_", "opt")):
        raise UserError(f"--resume_checkpoint {args.resume_checkpoint}: give the model<step>.pt beside it")
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
    """Return the data as a local path or a name, by default the folder that datasets/cifar10.py writes.

    Raises:
        UserError: there are no images.
    """
    if not data_dir:
        folder = data_root() / "cifar_train"
        if not folder.is_dir():
            raise UserError(
                f"--data_dir: {folder} does not exist; run python improved-diffusion/datasets/cifar10.py, or give a "
                "folder of images, shapes or cifar10"
            )
        data_dir = str(folder)
    data_dir = download_data("--data_dir", data_dir)
    check_source(data_dir, "--data_dir")
    return data_dir
