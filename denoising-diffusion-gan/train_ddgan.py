"""Train a denoising diffusion GAN (Xiao, Kreis and Vahdat 2022, https://arxiv.org/abs/2112.07804).

    python3 -u denoising-diffusion-gan/train_ddgan.py --dataset cifar10 --exp cifar10 --use_ema --num_epoch 50

--dataset takes shapes, cifar10, stackmnist, lsun, celeba_256 or any folder of images. The run folder,
results/runs/denoising-diffusion-gan/EXP, gets netG_<epoch>.pth (weights to sample with, and their configuration),
content.pth (the state for resuming), progress.csv, loss.png, log.txt, config.json, grid.png and grid_<epoch>.png
(64 samples). The same command resumes an interrupted run.
"""

import argparse
from pathlib import Path

from comparison import cli
from comparison.data.sources import DATA_HELP, check_source
from comparison.distributed import launch, run
from comparison.ranks import RankInfo
from comparison.runs import Run
from comparison.schedule import DECAYS, Schedule, add_schedule_options
from comparison.training import Budget
from ddgan import options

# Options that a resumed run may change besides the run options: none changes what is computed.
MAY_CHANGE = (
    *("exp", "resume", "save_content", "save_content_every", "save_ckpt_every", "compile", "no_cuda_graph"),
    *options.PROCESS_OPTIONS,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the published flags keep their names and defaults."""
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("data and output")
    add = group.add_argument
    add("--dataset", "--data", default="cifar10", help=DATA_HELP)
    workers_help = "data loader workers per process, if images do not fit in memory; default: its cores minus one"
    add("--num_workers", type=cli.non_negative_int, default=None, help=workers_help)
    add("--no_flip", action="store_true", help="do not mirror training images at random")
    options.add_run_folder(group)
    add("--resume", action="store_true", help="require an earlier run; without it an earlier run is resumed too")
    add("--save_content", action="store_true", help="accepted; content.pth is always written")
    add("--save_content_every", type=cli.positive_int, default=50, help="epochs between content.pth")
    add("--save_ckpt_every", type=cli.positive_int, default=25, help="epochs between netG_<epoch>.pth")
    add("--log_interval", type=cli.positive_int, default=20, help="updates per row of progress.csv")
    options.add_architecture_options(parser)
    add = parser.add_argument_group("training").add_argument
    batch_help = "images per process and micro-batch; preferably a multiple of 4"
    add("--batch_size", type=cli.positive_int, default=128, help=batch_help)
    add("--accum_iter", type=cli.positive_int, default=1, help="gradient accumulation steps, micro-batches per update")
    add("--num_epoch", type=cli.non_negative_int, default=1200, help="epochs; 0 if a --max_... flag ends the training")
    add("--ngf", type=cli.positive_int, default=64, help="discriminator's base width, features")
    kinds = ["auto", "small", "large", "plain"]
    kind_help = "published ones (auto: large from 128 pixels), or plain, which learns in fewer updates"
    add("--discriminator", default="auto", choices=kinds, help=kind_help)
    add("--lr_g", type=cli.positive_float, default=1.5e-4, help="generator's learning rate")
    add("--lr_d", type=cli.positive_float, default=1e-4, help="discriminator's learning rate")
    add("--beta1", type=cli.below_one, default=0.5, help="Adam's decay of the gradient mean")
    add("--beta2", type=cli.below_one, default=0.9, help="Adam's decay of the squared gradient mean")
    add("--no_lr_decay", action="store_true", help="constant rates instead of a cosine over num_epoch")
    add("--use_ema", action="store_true", help="keep EMA weights of the generator and sample with them")
    add("--ema_decay", type=cli.below_one, default=0.9999, help="EMA decay per update")
    add("--ema_warmup", action="store_true", help="smaller EMA decay at first, for short runs")
    add("--r1_gamma", type=cli.non_negative_float, default=0.05, help="weight of the R1 penalty, 0 for none")
    add("--lazy_reg", type=cli.positive_int, default=1, help="updates per R1 penalty")
    add("--compile", action="store_true", help="compile the networks, for GPUs; slows down the first update")
    add("--no_cuda_graph", action="store_true", help="do not replay updates as CUDA graphs, on one CUDA GPU")
    title = "schedules over the budget; --lr_decay published is the cosine over num_epoch"
    decays = ("published", *DECAYS)
    add_schedule_options(parser.add_argument_group(title), decays=decays, decay="published")
    options.add_objective_options(parser)
    options.add_process_options(parser)
    cli.add_run_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Train until the epochs or a bound end it; return the exit status, 130 after Ctrl-C."""
    rank_info = options.get_rank_info(args)
    training_run, budget = open_run(args, rank_info)
    if reason := training_run.finished_reason(budget.cut(args.stop_after)):
        print(f"{training_run.folder}: finished ({reason}); --fresh starts over")
        return 0
    from ddgan.training_run import train

    return launch(train, rank_info, args, training_run, budget)


def open_run(args: argparse.Namespace, rank_info: RankInfo) -> tuple[Run, Budget]:
    """Validate every flag, and open the run folder."""
    options.check_architecture(vars(args))
    check_source(args.dataset, "--dataset")
    budget = Budget(args.max_steps, args.max_images, args.max_seconds)
    if not args.num_epoch and budget == Budget():
        raise cli.UserError("--num_epoch 0: needs a bound, --max_steps, --max_images or --max_seconds")
    if args.ema_horizon and not args.use_ema:
        raise cli.UserError(f"--ema_horizon {args.ema_horizon:g} needs --use_ema")
    if args.no_lr_decay and args.lr_decay in ("linear", "cosine"):
        raise cli.UserError(f"--no_lr_decay and --lr_decay {args.lr_decay} exclude each other")
    Schedule.of(args)
    folder, data = options.run_folder(args.exp), Path(args.dataset)
    cli.check_folder(folder, "--exp")
    if data.is_dir() and data.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise cli.UserError(f"--exp {folder}: inside --dataset {data}, so the run's figures would become data")
    flags = {**vars(args), "processes": rank_info.world_size}
    training_run = Run.open(folder, flags, model=options.MODEL, may_change=MAY_CHANGE, fresh=args.fresh)
    if args.resume and not (training_run.resumed and (folder / "content.pth").is_file()):
        raise cli.UserError(
            f"--resume: {folder} holds no content.pth to resume from; leave out --resume to start a run"
        )
    return training_run, budget


if __name__ == "__main__":
    run(lambda: main(parse_args()))
