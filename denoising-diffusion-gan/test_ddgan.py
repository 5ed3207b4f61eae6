"""Sample images from a trained denoising diffusion GAN, and optionally compute their FID.

    python3 -u denoising-diffusion-gan/test_ddgan.py --exp cifar10 --epoch_id 50 --compute_fid

The network is rebuilt from the checkpoint; flags that describe it may be repeated and must then agree. Published
NVlabs weights (netG_1200.pth) load too, with the flags they were trained with. Writes samples.npz (arr_0 uint8
(N, H, W, 3), with classes arr_1), samples.png (the first 64) and sampling.json (seconds without disk writes,
evaluations per image) into the run folder or next to --out. --interpolation adds interpolation.png, --compute_fid adds
the Frechet Inception distance to sampling.json, --benchmark writes only timing.json. The same call resumes an
interrupted one. Several processes (--num_process_per_node, torchrun) produce the same images.
"""

import argparse
from pathlib import Path

from comparison import cli, weights
from comparison.cli import UserError, check_folder
from comparison.data.sources import check_source
from comparison.distributed import launch, run
from comparison.scores.statistics import is_statistics, read_statistics
from ddgan.options import (
    MODEL,
    add_architecture_options,
    add_process_options,
    add_run_folder,
    get_rank_info,
    run_folder,
)

WITHOUT_FID = 64  # default number of images
WITH_FID = 50_000  # FID is defined on 50,000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; architecture flags that are not given are absent from the result."""
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("checkpoint")
    add_run_folder(group)
    which = group.add_mutually_exclusive_group()
    which.add_argument("--epoch_id", type=cli.non_negative_int, help="epoch of netG_<epoch>.pth; default: newest")
    help_text = "path of a generator's checkpoint, or pretrained:RUN for weights.safetensors of a run"
    which.add_argument("--checkpoint", type=weights.checkpoint_path(MODEL), help=help_text)
    data_help = "data set of the training; must agree with the checkpoint"
    group.add_argument("--dataset", "--data", default=None, help=data_help)
    add = parser.add_argument_group("sampling").add_argument
    count_help = f"number of images; default: {WITH_FID} with --compute_fid, else {WITHOUT_FID}"
    add("--num_samples", type=cli.positive_int, help=count_help)
    add("--batch_size", type=cli.positive_int, default=200, help="images per process and batch")
    add("--seed", type=cli.non_negative_int, default=1024, help="seed of all noise")
    eta_help = "new noise per step: 1 as published, 0 for none, as in DDIM"
    add("--eta", type=cli.fraction, default=1.0, metavar="X", help=eta_help)
    add("--class_label", help="sample only this class, by name or number; default: all in turn")
    add("--out", type=cli.local_path, help=".npz file to write; default: samples.npz of the run")
    add("--png_dir", type=cli.local_path, help="folder for one PNG per image")
    export_help = "write the generator's weights under NVlabs's names, for their test script, and exit"
    add("--export_nvlabs", type=cli.local_path, metavar="FILE", help=export_help)
    graph_help = "do not replay evaluations of small batches as CUDA graphs, on a CUDA GPU"
    add("--no_cuda_graph", action="store_true", help=graph_help)
    add = parser.add_argument_group("score").add_argument
    add("--compute_fid", action="store_true", help="compute the Frechet Inception distance to --real_img_dir")
    real_help = "image folder, cifar-10-batches-py folder, .npz with mu and sigma, or .npy dictionary of them"
    add("--real_img_dir", help=f"{real_help}; default: the training data")
    weights_help = "file of the standard Inception weights; default: torch's cache, then a download"
    add("--inception_weights", type=cli.local_path, help=weights_help)
    add_architecture_options(parser, suppress=True)
    add_process_options(parser)
    cli.add_sampling_extras(parser)
    cli.add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Validate the flags, sample in as many processes as they ask for, and return the exit status."""
    path = checkpoint_path(args)
    rank_info = get_rank_info(args)
    out = args.out or weights.out_folder(path) / "samples.npz"
    count = args.num_samples or (WITH_FID if args.compute_fid else WITHOUT_FID)
    check_targets(args, out, count)
    if args.benchmark and rank_info.world_size > 1:
        raise UserError("--benchmark: measures a single process; leave out --num_process_per_node and torchrun")
    if args.export_nvlabs:
        check_folder(args.export_nvlabs.parent, "--export_nvlabs")
    from ddgan.checkpoints import export_generator
    from ddgan.sample_writer import given_flags, sample_run

    if args.export_nvlabs:
        export_generator(path, args.export_nvlabs, given_flags(args))
        print(f"{args.export_nvlabs}: weights of {path.name}")
        return 0
    return launch(sample_run, rank_info, args, path, out, count)


def checkpoint_path(args: argparse.Namespace) -> Path:
    """Return the checkpoint to sample from; raise UserError if it does not exist."""
    if args.checkpoint is not None:
        if not args.checkpoint.is_file():
            raise UserError(f"--checkpoint {args.checkpoint}: no such file")
        return args.checkpoint
    folder = run_folder(args.exp)
    if not folder.is_dir():
        raise UserError(f"--exp {args.exp}: no run in {folder}")
    paths = {int(p.stem[5:]): p for p in folder.glob("netG_*.pth") if p.stem[5:].isdecimal() and p.is_file()}
    if not paths:
        raise UserError(f"--exp {args.exp}: no netG_<epoch>.pth in {folder}; the training has not saved one yet")
    epoch = max(paths) if args.epoch_id is None else args.epoch_id
    if epoch not in paths:
        raise UserError(f"--epoch_id {epoch}: {folder} has {', '.join(map(str, sorted(paths)))}")
    return paths[epoch]


def check_targets(args: argparse.Namespace, out: Path, count: int) -> None:
    """Validate the paths to write, and the reference of the FID."""
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: must end in .npz")
    if out.is_dir():
        raise UserError(f"--out {out}: a folder, not a file")
    check_folder(out.parent, "--out")
    for flag in ("png_dir", "compute_fid"):
        if args.benchmark and getattr(args, flag):
            raise UserError(f"--{flag}: --benchmark writes no images; leave out one of them")
    if args.png_dir:
        check_folder(args.png_dir, "--png_dir")
        if any(args.png_dir.glob("*.png")):
            raise UserError(f"--png_dir {args.png_dir}: already holds PNGs; name an empty or a new folder")
    if args.compute_fid and count < 2:
        raise UserError(f"--num_samples {count}: FID needs at least 2 images to compute a covariance")
    if args.real_img_dir:
        check_reference(args.real_img_dir)
    if args.inception_weights and not args.inception_weights.is_file():
        raise UserError(f"--inception_weights {args.inception_weights}: no such file")


def check_reference(real: str) -> None:
    """Raise UserError if --real_img_dir is neither readable statistics nor a source of images."""
    if not is_statistics(real):
        check_source(real, "--real_img_dir")
        return
    try:
        read_statistics(Path(real))
    except UserError as error:
        raise UserError(f"--real_img_dir {error}") from None


if __name__ == "__main__":
    run(lambda: main(parse_args()))
