"""Draw images from a trained denoising diffusion GAN, and score them if asked.

    python3 -u denoising-diffusion-gan/test_ddgan.py --exp cifar10 --epoch_id 50 --compute_fid

The network is rebuilt from the checkpoint; flags that describe it may be repeated and must then agree. Published
NVlabs weights (netG_1200.pth) load too, with the flags they were trained with. Writes samples.npz (arr_0 uint8
(N, H, W, 3)), samples.png (the first 64) and sampling.json (seconds without disk writes, evaluations per image) into
the run folder, and with --compute_fid adds the Frechet Inception distance to sampling.json.
"""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import (
    UserError,
    add_device_options,
    make_parser,
    non_negative_int,
    positive_int,
    run,
)
from ddgan.fid import check_reference, is_statistics, read_statistics
from ddgan.files import saved_epochs
from ddgan.options import ARCHITECTURE, DISCRIMINATOR_ONLY, MODEL, add_architecture_options, run_folder

if TYPE_CHECKING:
    import torch
    from ddgan.generator import Generator

WITHOUT_FID = 64  # images unless told; FID is defined on 50,000
WITH_FID = 50_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; architecture flags that are not given are absent from the result."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--exp", default="experiment_cifar_default", help="name of the run; with a slash, its folder")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--epoch_id", type=non_negative_int, default=None, help="of netG_<epoch>.pth, else the newest")
    which.add_argument("--checkpoint", type=Path, default=None, help="a generator's file, wherever it lies")
    group.add_argument("--dataset", default=None, help="data set of the training; must agree with the checkpoint")
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--num_samples", type=positive_int, default=None,
        help=f"images, exactly; default {WITH_FID} with --compute_fid, else {WITHOUT_FID}",
    )  # fmt: skip
    group.add_argument("--batch_size", type=positive_int, default=200, help="images at a time")
    group.add_argument("--seed", type=non_negative_int, default=1024, help="of all noise")
    group.add_argument("--out", type=Path, default=None, help=".npz file to write; default samples.npz of the run")
    group.add_argument("--png_dir", type=Path, default=None, help="folder that gets one PNG per image as well")
    group = parser.add_argument_group("score")
    group.add_argument("--compute_fid", action="store_true", help="Frechet Inception distance to --real_img_dir")
    group.add_argument(
        "--real_img_dir",
        default=None,
        help="image folder, cifar-10-batches-py folder, .npz with mu and sigma, or .npy dictionary of them; "
        "default the training data",
    )
    add_architecture_options(parser, suppress=True)
    add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Draw the images, then score them if asked; return the exit status."""
    path = checkpoint_path(args)
    out = args.out or path.parent / "samples.npz"
    check_targets(args, out)

    from comparison.device import pick_device, set_threads
    from ddgan.checkpoints import load_generator

    given = {n: v for n, v in vars(args).items() if n in ARCHITECTURE and n not in DISCRIMINATOR_ONLY}
    generator, config = load_generator(path, given if args.dataset is None else {**given, "dataset": args.dataset})
    real = args.real_img_dir or config.get("dataset")
    if args.compute_fid and not args.real_img_dir:
        check_reference(str(real))
    device = pick_device(args.device)
    set_threads(args.threads)
    count = args.num_samples or (WITH_FID if args.compute_fid else WITHOUT_FID)
    draw(args, count, generator, config, device, out, path)
    if args.png_dir:
        write_pngs(out, args.png_dir)
    if args.compute_fid:
        score(out, str(real), config["image_size"], device)
    return 0


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


def check_targets(args: argparse.Namespace, out: Path) -> None:
    """Judge the paths that are written to, and the reference of the score."""
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: must end in .npz")
    if args.png_dir and any(args.png_dir.glob("*.png")):
        raise UserError(f"--png_dir {args.png_dir}: holds PNGs already, which would be mixed with the new ones")
    if args.real_img_dir:
        check_reference(args.real_img_dir)


def draw(
    args: argparse.Namespace,
    count: int,
    generator: "Generator",
    config: dict[str, Any],
    device: "torch.device",
    out: Path,
    path: Path,
) -> None:
    """Draw `count` images to `out`."""
    import torch
    from comparison.device import autocast_dtype, precision_name
    from comparison.runs import read_json
    from comparison.sampling import draw_samples
    from ddgan.process import DenoisingProcess
    from ddgan.sampling import sample

    generator.to(device).to(memory_format=torch.channels_last)
    steps = config["num_timesteps"]
    process = DenoisingProcess(steps, config["beta_min"], config["beta_max"], config["use_geometric"]).to(device)
    dtype = autocast_dtype(args.precision, device)
    facts = {
        "model": MODEL,
        "sampler": f"posterior, {steps} steps",
        "checkpoint": path.name,
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        "network": "ema" if config.get("use_ema") else "raw",
        "images_seen": config.get("images_seen"),
        "seed": args.seed,
        "precision": precision_name(dtype),
    }
    shape = (config["num_channels"], config["image_size"], config["image_size"])

    def draw_batch(indices: range) -> torch.Tensor:
        return sample(
            generator,
            process,
            indices,
            seed=args.seed,
            nz=config["nz"],
            shape=shape,
            device=device,
            autocast_dtype=dtype,
        )

    size = min(args.batch_size, count)
    draw_samples(
        draw_batch,
        [generator],
        num_samples=count,
        batch_size=size,
        out=out,
        image_size=config["image_size"],
        device=device,
        facts=facts,
    )
    timing = read_json(out.parent / "sampling.json")
    print(
        f"{out}: {count} images, {timing['nfe']:g} evaluations each; sampling time {timing['seconds']:.2f} s "
        f"({timing['seconds_per_image']:.5f} s per image, batch {size}, {timing['device']}, {timing['precision']})"
    )


def write_pngs(out: Path, folder: Path) -> None:
    """Write every image of `out` as <number>.png."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    with np.load(out) as archive:
        for number, image in enumerate(archive["arr_0"]):
            Image.fromarray(image).save(folder / f"{number:05d}.png")
    print(f"{folder}: {number + 1} PNGs")


def score(out: Path, real: str, image_size: int, device: "torch.device") -> None:
    """Print the FID of `out` against `real` and add it to sampling.json."""
    from comparison.images import load_images, load_npz
    from comparison.runs import read_json, write_json
    from ddgan.fid import frechet_distance, image_statistics, make_inception

    inception = make_inception(device)
    if is_statistics(real):
        reference = read_statistics(Path(real))
    else:
        reference = image_statistics(load_images(real, image_size).images, inception, device)
    images, _ = load_npz(out)
    if len(images) < 2:
        raise UserError(f"--num_samples {len(images)}: a covariance needs more than one image")
    fid = frechet_distance(image_statistics(images, inception, device), reference)
    path = out.parent / "sampling.json"
    write_json(path, {**read_json(path), "fid": fid, "fid_reference": real})
    print(f"FID {fid:.3f} ({len(images)} images against {real})")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
