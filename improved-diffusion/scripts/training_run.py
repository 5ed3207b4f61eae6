"""Training as image_train.py and super_res_train.py share it: options, the run folder, the loop, its log, its grids.

The scripts differ in their `Task`: which network and process the flags mean, what conditions the network beside the
classes, and what a sample grid shows.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.budget import Budget, Clock, StopSignal
from comparison.cli import (
    UserError,
    add_run_options,
    data_root,
    default_run_folder,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    str2bool,
)
from comparison.runs import Run, read_progress, write_text
from comparison.sources import check_source, source_name
from run_files import choose_dtype, judge_flags, place, prune, restore, save, saved_steps

if TYPE_CHECKING:
    import torch
    from comparison.batches import BatchStream
    from comparison.images import ImageSet
    from comparison.rng import SampleNoise
    from improved_diffusion.respace import SpacedDiffusion
    from improved_diffusion.training import Trainer


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

    def build(self, image_set: "ImageSet") -> "tuple[torch.nn.Module, SpacedDiffusion]":
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
    add("--data_dir", default="", help="shapes, cifar10, a folder of images or an .npz file; '' for data/cifar_train")
    add("--run_dir", type=Path, help="run folder; a run is continued by the same command")
    add("--lr", type=positive_float, default=1e-4, help="learning rate of AdamW")
    add("--weight_decay", type=non_negative_float, default=0.0, help="of AdamW")
    add(
        "--lr_anneal_steps",
        type=non_negative_int,
        default=0,
        help="updates until lr is 0 and training ends; 0 for never",
    )
    add("--batch_size", type=positive_int, default=128, help="images per update, of all processes together")
    add("--microbatch", type=int, default=-1, help="images per forward pass, -1 for the whole batch; saves memory only")
    add("--random_flip", type=str2bool, default=True, help="mirror each image with probability 1/2")
    add(
        "--class_dropout",
        type=fraction,
        default=0.0,
        help="share of the labels withheld in training with --class_cond True, for classifier-free guidance",
    )
    add("--ema_rate", default="0.9999", help="rates of the moving averages of the weights, separated by commas")
    add("--schedule_sampler", choices=["uniform"], default="uniform", help="how timesteps are drawn")
    add("--use_fp16", type=str2bool, help="compute in bf16 where the device can, else fp16 on CUDA, else float32")
    add("--fp16_scale_growth", type=positive_float, default=1e-3, help="growth of log2 of fp16's loss scale per update")
    add("--log_interval", type=positive_int, default=10, help="updates between log rows")
    add("--save_interval", type=positive_int, default=10000, help="updates between checkpoints")
    add(
        "--resume_checkpoint",
        type=Path,
        help="model<step>.pt of another folder to start from",
    )
    add("--grid_images", type=non_negative_int, default=64, help="images in the sample grids, 0 for no grids")
    add("--grid_steps", type=positive_int, default=20, help="DDIM steps of the sample grids")
    add_run_options(parser)
    parser.set_defaults(max_steps=500_000)


def train_network(args: argparse.Namespace, task: Task) -> int:
    """Judge the flags, load the data, train until a budget is used up; return the exit status."""
    ema_rates, budget = judge_train_flags(args, task)
    data_dir = data_source(args.data_dir)
    log_dir = os.environ.get("OPENAI_LOGDIR")
    folder = args.run_dir or (log_dir and Path(log_dir))
    folder = folder or default_run_folder(task.model, f"{source_name(data_dir)}-{task.run_name}")
    options = {**vars(args), "data_dir": data_dir}
    train_run = Run.open(
        folder,
        options,
        model=task.model,
        may_change=("resume_checkpoint", "grid_images", "grid_steps"),
        fresh=args.fresh,
    )
    if reason := train_run.finished_reason(budget):
        print(f"{folder}: finished ({reason}); a larger budget continues it, --fresh starts over")
        return 0

    import torch
    from comparison import device as devices
    from comparison.batches import BatchStream
    from comparison.images import load_images
    from improved_diffusion.training import Trainer

    device = devices.pick_device(args.device)
    devices.set_threads(args.threads)
    dtype = choose_dtype(args.precision, args.use_fp16, device)
    image_set = load_images(data_dir, task.image_size)
    if task.class_cond and image_set.labels is None:
        raise UserError(f"--class_cond True: {data_dir} has no classes (folders, or file names that begin with class_)")
    known = train_run.config.get("data")
    if train_run.resumed and known and known != image_set.describe():
        raise UserError(f"{folder}: trained on other images: {known} there, {image_set.describe()} here")
    stream = BatchStream(image_set, args.batch_size, args.seed, flip=args.random_flip, device=device)

    torch.manual_seed(args.seed)
    model, diffusion = task.build(image_set)
    place(model, device, dtype)
    trainer = Trainer(
        model,
        diffusion,
        lr=args.lr,
        weight_decay=args.weight_decay,
        ema_rates=ema_rates,
        microbatch=args.microbatch,
        lr_anneal_steps=args.lr_anneal_steps,
        autocast_dtype=dtype,
        fp16_scale_growth=args.fp16_scale_growth,
    )
    counters = {"step": 0, "images_seen": 0, "wall_seconds": 0.0}
    start_from = newest_model(folder) if train_run.resumed else None
    if start_from := start_from or args.resume_checkpoint:
        counters.update(restore(trainer, start_from, task.model))
        counters["images_seen"] = counters["images_seen"] or counters["step"] * args.batch_size

    train_run.start(counters["step"])
    trim_json(train_run)
    train_run.describe(
        parameters=sum(p.numel() for p in model.parameters()),
        num_classes=len(image_set.class_names) if task.class_cond else None,
        data=image_set.describe(),
        device=devices.describe_device(device),
        precision=devices.precision_name(dtype),
    )
    begun = f"continues after {counters['step']} updates" if counters["step"] else "starts"
    train_run.log(
        f"{folder} {begun}: {len(image_set)} images, budget {budget.describe()}, {devices.describe_device(device)}"
    )
    return train(train_run, trainer, stream, budget, args, task, counters)


def judge_train_flags(args: argparse.Namespace, task: Task) -> tuple[list[float], Budget]:
    """Return the EMA rates and the budget.

    Raises:
        UserError: a flag's value is not accepted.
    """
    judge_flags(task.flags, args)
    if args.class_dropout and not task.class_cond:
        raise UserError("--class_dropout needs --class_cond True")
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
    return rates, Budget(min(bounds, default=0), args.max_images, args.max_seconds)


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


def newest_model(folder: Path) -> Path | None:
    """Return the newest checkpoint's model file, None before the first one."""
    steps = saved_steps(folder)
    return folder / f"model{steps[-1]:06d}.pt" if steps else None


def train(
    train_run: Run,
    trainer: "Trainer",
    stream: "BatchStream",
    budget: Budget,
    args: argparse.Namespace,
    task: Task,
    counters: dict[str, Any],
) -> int:
    """Update until the budget is used up or the user stops it; return the exit status."""
    from comparison import rng
    from comparison.device import peak_memory_bytes
    from comparison.progress import bar
    from improved_diffusion.resample import create_named_schedule_sampler

    sampler = create_named_schedule_sampler(args.schedule_sampler, trainer.diffusion)
    device, n, folder = trainer.device, args.batch_size, train_run.folder
    step, images_seen = counters["step"], counters["images_seen"]
    clock = Clock(counters["wall_seconds"])
    saved_at, logged_at = time.monotonic(), (step, clock.seconds())

    def checkpoint() -> None:
        nonlocal saved_at
        if not trainer.is_finite():
            raise UserError(f"the weights are not finite at update {step}: lower --lr, or use --precision float32")
        save(trainer, folder, step, {"images_seen": images_seen, "wall_seconds": clock.seconds()}, task.model)
        prune(folder, args.save_interval, args.keep)
        saved_at = time.monotonic()

    with StopSignal() as stop, bar(budget.total_steps(n), step, "train", "steps") as progress:
        while not (reason := budget.exhausted(step, images_seen, clock.seconds())):
            if stop.requested:
                checkpoint()
                train_run.log(f"interrupted after {step} updates; the same command continues")
                return 130
            x_start, labels = stream.batch(step)
            noise = rng.normal(x_start.shape, args.seed, step, "noise", device=device)
            t, factors = sampler.sample(n, device, rng.generator("cpu", args.seed, step, "t"))
            rng.seed_default(args.seed, step, "dropout")
            condition = task.condition(x_start)
            if task.class_cond:
                condition["y"] = withhold(labels, args.class_dropout, args.seed, step)
            trainer.update(step, x_start, t, noise, factors, condition)
            step, images_seen = step + 1, images_seen + n
            progress.update()
            if step % args.log_interval == 0:
                logged_at = log(train_run, trainer, budget, n, step, images_seen, clock.seconds(), logged_at)
            if step % args.save_interval == 0:
                checkpoint()
                if args.grid_images:
                    # Not training: the clock stands still.
                    seconds = clock.seconds()
                    draw_grid(trainer, folder / f"grid_{step:06d}.png", args, task)
                    clock = Clock(seconds)
            elif time.monotonic() - saved_at > 60 * args.save_minutes:
                checkpoint()
    seconds = clock.seconds()
    log(train_run, trainer, budget, n, step, images_seen, seconds, logged_at)
    if step not in saved_steps(folder):
        checkpoint()
    grid = folder / f"grid_{step:06d}.png"
    if args.grid_images and not grid.is_file():
        draw_grid(trainer, grid, args, task)
    train_run.draw_loss()
    peak = peak_memory_bytes(device)
    train_run.finish(reason, steps=step, images_seen=images_seen, wall_seconds=seconds, peak_memory_bytes=peak)
    train_run.log(f"finished after {step} updates, {images_seen} images, {seconds:.0f} s ({reason}): {folder}")
    return 0


def log(
    train_run: Run,
    trainer: "Trainer",
    budget: Budget,
    batch_size: int,
    step: int,
    images_seen: int,
    seconds: float,
    logged_at: tuple[int, float],
) -> tuple[int, float]:
    """Write a log row of the means since the last one; return (step, seconds) of this one.

    Raises:
        UserError: the loss is not finite any more.
    """
    means = trainer.meter.read()
    if not means:
        return logged_at
    if not math.isfinite(means["loss"]):
        raise UserError(f"the loss is {means['loss']} near update {step}: lower --lr, or use --precision float32")
    rate = (step - logged_at[0]) * batch_size / max(seconds - logged_at[1], 1e-9)
    row = {**means, "images_per_second": rate}
    train_run.log_row(step, images_seen, seconds, **row)
    json_row = {"step": step, "images_seen": images_seen, "wall_seconds": round(seconds, 3), **row}
    with open(train_run.folder / "progress.json", "a", encoding="utf-8") as file:
        file.write(json.dumps(json_row) + "\n")
    left = [(total - step) * batch_size / rate for total in [budget.total_steps(batch_size)] if total]
    left += [budget.max_seconds - seconds] if budget.max_seconds else []
    parts = " ".join(f"{name} {means[name]:.4g}" for name in ("loss", "mse", "vb", "grad_norm") if name in means)
    eta = f" eta {min(left) / 60:.1f} min" if left else ""
    train_run.log(f"step {step} images {images_seen} {parts} {rate:.1f} images/s {seconds:.0f} s{eta}")
    return step, seconds


def trim_json(train_run: Run) -> None:
    """Make progress.json hold the rows of progress.csv, which `Run.start` has trimmed."""
    rows = read_progress(path) if (path := train_run.folder / "progress.csv").is_file() else []
    write_text(train_run.folder / "progress.json", "".join(json.dumps(row) + "\n" for row in rows))


def withhold(labels: "torch.Tensor", share: float, seed: int, step: int) -> "torch.Tensor":
    """Replace a share of the (N,) labels by -1, which the network takes for no class (Ho & Salimans 2022)."""
    import torch
    from comparison import rng

    if not share:
        return labels
    drawn = torch.rand(labels.shape, generator=rng.generator("cpu", seed, step, "class_dropout"))
    return torch.where((drawn < share).to(labels.device), -1, labels)


def draw_grid(trainer: "Trainer", path: Path, args: argparse.Namespace, task: Task) -> None:
    """Draw images from the first moving average in a few steps, always from the same noise."""
    import torch
    from comparison.images import save_grid, to_uint8
    from comparison.rng import SampleNoise

    ema = next(iter(trainer.ema.values()))
    parts: list[torch.Tensor] = []
    with torch.inference_mode(), trainer.autocast():
        for start in range(0, args.grid_images, 32):
            noise = SampleNoise(args.seed, range(start, min(start + 32, args.grid_images)), trainer.device)
            labels = noise.randint(ema.num_classes, "class") if task.class_cond else None
            steps = min(args.grid_steps, args.diffusion_steps)
            parts.append(task.sample(ema, noise, labels, steps).cpu())
    save_grid(to_uint8(torch.cat(parts)), path)
