"""Train DCGAN on a set of images, then sample it.

    python -u gans/cifar_gan.py > gans/out/train_test.log
    python -u gans/cifar_gan.py --preset dcgan-plus --image_size 32

The same command resumes an interrupted run. The run folder gets config.json, progress.csv, scores.csv, log.txt,
checkpoint_<step>.pt, grid_<step>.png (the first 64 samples at that step), loss.png, diagnosis.png, and at the end
samples.npz, samples.png and sampling.json.

Radford, Metz, Chintala 2016, "Unsupervised representation learning with deep convolutional GANs". The preset
dcgan-plus adds spectral norm (Miyato et al. 2018), hinge loss (Lim & Ye 2017), EMA weights (Yazici et al. 2019) and
DiffAugment (Zhao et al. 2020). The presets r3gan and r3gan-tiny have a relativistic loss and two gradient
penalties (Huang et al. 2024); r3gan also has residual networks.
"""

import argparse
from pathlib import Path

from comparison import cli, distributed
from comparison.data.sources import check_source, source_name
from comparison.files import check_space
from comparison.ranks import get_rank_info
from comparison.runs import Run
from comparison.schedule import Schedule
from gan import options as gan_options
from gan.run_paths import MODEL, checkpoint_to_sample


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the defaults are the documented run."""
    return gan_options.parse(__doc__, argv)


def main(args: argparse.Namespace) -> int:
    """Train unless the run is finished, sample unless the samples exist, and return the exit status."""
    rank_info = get_rank_info(processes=args.ngpu, oversubscribe=args.oversubscribe)
    check_source(args.data, "--data")
    name = f"{source_name(args.data)}-{args.image_size}" + ("" if args.preset == "dcgan" else f"-{args.preset}")
    folder = args.run_dir or cli.default_run_folder(MODEL, name)
    cli.check_folder(folder, "--run_dir")
    options = {name: value for name, value in vars(args).items() if name != "run_dir"}
    run = Run.open(folder, options, model=MODEL, may_change=gan_options.MAY_CHANGE, fresh=args.fresh)
    Schedule.of(args)
    budget = gan_options.training_budget(args, run.config.get("steps_per_epoch", 0)).cut(args.stop_after)
    if reason := run.finished_reason(budget):
        print(f"{folder}: training is finished ({reason}); raise the budget to continue or pass --fresh to start over")
    else:
        if args.num_samples:
            check_space(folder / "samples.npz", 2 * args.num_samples * 3 * args.image_size**2)  # of check_sample_space
        from gan.training_run import train

        if status := distributed.launch(train, rank_info, args, run):
            return status
    if args.num_samples and rank_info.is_first:
        sample(args, folder)
    return 0


def sample(args: argparse.Namespace, folder: Path) -> None:
    """Write args.num_samples images from the folder's best or newest checkpoint, unless they exist."""
    checkpoint = checkpoint_to_sample(folder)
    if checkpoint is None:
        raise cli.UserError(f"{folder}: no checkpoint to sample from; train again with --fresh")
    from gan.sampling import Sampler

    device = {"device": args.device, "precision": args.precision, "threads": args.threads}
    Sampler(checkpoint, args.seed, **device).write_samples(
        folder / "samples.npz", args.num_samples, args.sample_batch_size
    )


if __name__ == "__main__":
    distributed.run(lambda: main(parse_args()))
