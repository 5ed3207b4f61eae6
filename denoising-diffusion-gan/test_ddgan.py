"""Draw images from a trained denoising diffusion GAN, and score them if asked.

    python3 -u denoising-diffusion-gan/test_ddgan.py --exp cifar10 --epoch_id 50 --compute_fid

The network is rebuilt from the checkpoint; flags that describe it may be repeated and must then agree. Published
NVlabs weights (netG_1200.pth) load too, with the flags they were trained with. Writes samples.npz (arr_0 uint8
(N, H, W, 3), with classes arr_1), samples.png (the first 64) and sampling.json (seconds without disk writes,
evaluations per image) into the run folder or beside --out; --interpolation adds interpolation.png, --compute_fid the
Frechet Inception distance to sampling.json. With --benchmark it writes timing.json there instead. A call that was cut
short is continued by the same call. Several processes (--num_process_per_node, torchrun) draw the same images.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from comparison.cli import (
    UserError,
    add_device_options,
    add_sampling_extras,
    check_folder,
    fraction,
    local_path,
    make_parser,
    non_negative_int,
    positive_int,
)
from comparison.distributed import device_of, group, launch, run
from comparison.places import Place
from ddgan.fid import check_reference
from ddgan.files import saved_epochs
from ddgan.options import (
    ARCHITECTURE,
    DISCRIMINATOR_ONLY,
    add_architecture_options,
    add_process_options,
    add_run_folder,
    place_of,
    run_folder,
)

if TYPE_CHECKING:
    from ddgan.drawing import ImageSource

WITHOUT_FID = 64  # images unless told; FID is defined on 50,000
WITH_FID = 50_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; architecture flags that are not given are absent from the result."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group("checkpoint")
    add_run_folder(group)
    which = group.add_mutually_exclusive_group()
    which.add_argument("--epoch_id", type=non_negative_int, default=None, help="of netG_<epoch>.pth, else the newest")
    which.add_argument("--checkpoint", type=local_path, default=None, help="a generator's file, wherever it lies")
    group.add_argument(
        "--dataset", "--data", default=None, help="data set of the training; must agree with the checkpoint"
    )
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--num_samples", type=positive_int, default=None,
        help=f"images, exactly; default {WITH_FID} with --compute_fid, else {WITHOUT_FID}",
    )  # fmt: skip
    group.add_argument("--batch_size", type=positive_int, default=200, help="images that a process draws at a time")
    group.add_argument("--seed", type=non_negative_int, default=1024, help="of all noise")
    group.add_argument(
        "--eta", type=fraction, default=1.0, metavar="X",
        help="new noise of a step: 1 as published; 0 for none, as in DDIM",
    )  # fmt: skip
    group.add_argument(
        "--class_label", default=None, help="draw only this class, by name or number; default all in turn"
    )
    group.add_argument(
        "--out", type=local_path, default=None, help=".npz file to write; default samples.npz of the run"
    )
    group.add_argument("--png_dir", type=local_path, default=None, help="folder that gets one PNG per image as well")
    group.add_argument(
        "--contact_sheet", type=local_path, default=None, help="JPEG of the first 64 as well, only to be looked at"
    )
    group.add_argument(
        "--no_cuda_graph",
        action="store_true",
        help="on a CUDA GPU: launch every operation anew instead of replaying recorded evaluations of small batches",
    )
    group = parser.add_argument_group("score")
    group.add_argument("--compute_fid", action="store_true", help="Frechet Inception distance to --real_img_dir")
    group.add_argument(
        "--real_img_dir",
        default=None,
        help="image folder, cifar-10-batches-py folder, .npz with mu and sigma, or .npy dictionary of them; "
        "default the training data",
    )
    group.add_argument(
        "--inception_weights", type=local_path, help="file of the standard weights; else torch's cache, else a download"
    )
    add_architecture_options(parser, suppress=True)
    add_process_options(parser)
    add_sampling_extras(parser)
    add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Judge the flags, then draw in as many processes as they ask for; return the exit status."""
    path = checkpoint_path(args)
    place = place_of(args)
    out = args.out or path.parent / "samples.npz"
    check_targets(args, out, image_count(args))
    if args.benchmark and place.world_size > 1:
        raise UserError("--benchmark: measures a single process")
    return launch(work, place, args, path, out)


def work(place: Place, args: argparse.Namespace, path: Path, out: Path) -> int:
    """Be one of the processes: draw with the others, then, as the first, write and score what is asked for."""
    from comparison.device import set_threads
    from ddgan.checkpoints import load_generator
    from ddgan.conditional import find_class
    from ddgan.drawing import ImageSource
    from ddgan.setup import check_same_flags

    given = {n: v for n, v in vars(args).items() if n in ARCHITECTURE and n not in DISCRIMINATOR_ONLY}
    generator, config = load_generator(path, given if args.dataset is None else {**given, "dataset": args.dataset})
    real = str(args.real_img_dir or config.get("dataset"))
    if args.compute_fid and not args.real_img_dir:
        check_reference(real)
    label = args.class_label
    only = None if label is None else find_class(label, generator.cfg.num_classes, config.get("class_names") or ())
    device = device_of(place, args.device)
    set_threads(args.threads, place.local_world_size)
    source = ImageSource(generator, config, args.seed, device, args.precision, only, not args.no_cuda_graph, args.eta)
    common = {"image_size": config["image_size"], "device": device, "facts": source.describe(path)}
    if args.benchmark:
        from comparison.sampling.timing import write_benchmark

        options = {**common, "min_seconds": args.benchmark_seconds}
        write_benchmark(out.parent / "timing.json", source.draw, [source.network], source.evaluate, **options)
        return 0

    from comparison.checkpoints import trained_facts
    from comparison.sampling.draw import draw_samples

    count = image_count(args)
    labels = source.labels(range(count))
    with group(place, device):
        check_same_flags(args)
        draw_samples(
            source.draw,
            [source.network],
            num_samples=count,
            batch_size=min(args.batch_size, count),
            out=out,
            trained=trained_facts(path.parent, config.get("step"), config.get("images_seen")),
            labels=None if labels is None else labels.numpy(),
            **common,
        )
        if place.is_first:
            finish(args, out, source, real)
    return 0


def finish(args: argparse.Namespace, out: Path, source: "ImageSource", real: str) -> None:
    """Tell what was drawn, write what else was asked for, and score."""
    from comparison.png import write_pngs
    from ddgan.drawing import announce, score, write_contact_sheet

    announce(out)
    if args.interpolation:
        from comparison.sampling.interpolation import draw_interpolation

        draw_interpolation(out.parent, source.draw_walk, latent="x_T", sampler=source.sampler)
    if args.png_dir:
        write_pngs(out, args.png_dir, digits=5)
        print(f"{args.png_dir}: {args.num_samples} PNGs")
    if args.contact_sheet:
        write_contact_sheet(out.parent / "samples.png", args.contact_sheet)
    if args.compute_fid:
        score(out, real, source.config["image_size"], args.inception_weights, source.device)


def image_count(args: argparse.Namespace) -> int:
    """Return how many images are wanted."""
    return args.num_samples or (WITH_FID if args.compute_fid else WITHOUT_FID)


def checkpoint_path(args: argparse.Namespace) -> Path:
    """Return the file to sample from."""
    if args.checkpoint is not None:
        if not args.checkpoint.is_file():
            raise UserError(f"--checkpoint {args.checkpoint}: no such file")
        return args.checkpoint
    folder = run_folder(args.exp)
    if not folder.is_dir():
        raise UserError(f"--exp {args.exp}: no run in {folder}")
    epochs = saved_epochs(folder)
    if not epochs:
        raise UserError(f"--exp {args.exp}: no netG_<epoch>.pth in {folder}; the training has not saved one yet")
    if args.epoch_id is not None and args.epoch_id not in epochs:
        raise UserError(f"--epoch_id {args.epoch_id}: {folder} has {', '.join(map(str, epochs))}")
    return folder / f"netG_{epochs[-1] if args.epoch_id is None else args.epoch_id}.pth"


def check_targets(args: argparse.Namespace, out: Path, count: int) -> None:
    """Judge the paths that are written to, and the reference of the score."""
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: must end in .npz")
    if out.is_dir():
        raise UserError(f"--out {out}: a folder, not a file")
    check_folder(out.parent, "--out")
    for flag in ("png_dir", "contact_sheet", "compute_fid"):
        if args.benchmark and getattr(args, flag):
            raise UserError(f"--{flag}: --benchmark draws no images for it; leave one of them out")
    if args.png_dir:
        check_folder(args.png_dir, "--png_dir")
        if any(args.png_dir.glob("*.png")):
            raise UserError(f"--png_dir {args.png_dir}: holds PNGs already, which would be mixed with the new ones")
    if args.contact_sheet:
        if args.contact_sheet.suffix.lower() not in (".jpg", ".jpeg"):
            raise UserError(f"--contact_sheet {args.contact_sheet}: must end in .jpg or .jpeg")
        if args.contact_sheet.is_dir():
            raise UserError(f"--contact_sheet {args.contact_sheet}: a folder, not a file")
        check_folder(args.contact_sheet.parent, "--contact_sheet")
        if args.png_dir and args.contact_sheet.resolve().is_relative_to(args.png_dir.resolve()):
            raise UserError(f"--contact_sheet {args.contact_sheet}: must not lie among the images of --png_dir")
    if args.compute_fid and count < 2:
        raise UserError(f"--num_samples {count}: a covariance needs more than one image")
    if args.real_img_dir:
        check_reference(args.real_img_dir)
    if args.inception_weights and not args.inception_weights.is_file():
        raise UserError(f"--inception_weights {args.inception_weights}: no such file")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
