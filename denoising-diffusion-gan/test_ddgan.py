"""Draw images from a trained denoising diffusion GAN, and score them if asked.

    python3 -u denoising-diffusion-gan/test_ddgan.py --exp cifar10 --epoch_id 50 --compute_fid

The network is rebuilt from the checkpoint; flags that describe it may be repeated and must then agree. Published
NVlabs weights (netG_1200.pth) load too, with the flags they were trained with. Writes samples.npz (arr_0 uint8
(N, H, W, 3)), samples.png (the first 64) and sampling.json (seconds without disk writes, evaluations per image) into
the run folder or beside --out; --interpolation adds interpolation.png, --compute_fid the Frechet Inception distance to
sampling.json. With --benchmark it writes timing.json there instead.
"""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import (
    UserError,
    add_device_options,
    add_sampling_extras,
    make_parser,
    non_negative_int,
    positive_int,
    run,
)
from ddgan.fid import check_reference
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
    group.add_argument(
        "--inception_weights", type=Path, help="file of the standard weights; else torch's cache, else a download"
    )
    add_architecture_options(parser, suppress=True)
    add_sampling_extras(parser)
    add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Draw the images, then score them if asked, or measure; return the exit status."""
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
    draw, draw_walk, evaluate = make_sampler(generator, config, args.seed, device, args.precision)
    facts = describe(path, config, args.seed, device, args.precision)
    common = {"image_size": config["image_size"], "device": device, "facts": facts}
    if args.benchmark:
        from comparison.timing import write_benchmark

        timing = out.parent / "timing.json"
        write_benchmark(timing, draw, [generator], evaluate, **common, min_seconds=args.benchmark_seconds)
        return 0

    from comparison.runs import trained_facts
    from comparison.sampling import draw_samples

    count = args.num_samples or (WITH_FID if args.compute_fid else WITHOUT_FID)
    trained = trained_facts(path.parent, config.get("step"), config.get("images_seen"))
    size = min(args.batch_size, count)
    draw_samples(draw, [generator], num_samples=count, batch_size=size, out=out, trained=trained, **common)
    announce(out)
    if args.interpolation:
        from comparison.interpolation import draw_interpolation

        draw_interpolation(out.parent, draw_walk, latent="x_T", sampler=facts["sampler"])
    if args.png_dir:
        write_pngs(out, args.png_dir)
    if args.compute_fid:
        score(out, str(real), config["image_size"], args.inception_weights, device)
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
    if args.benchmark and (args.png_dir or args.compute_fid):
        flag = "--png_dir" if args.png_dir else "--compute_fid"
        raise UserError(f"{flag}: --benchmark draws no images for it; leave one of them out")
    if args.png_dir and any(args.png_dir.glob("*.png")):
        raise UserError(f"--png_dir {args.png_dir}: holds PNGs already, which would be mixed with the new ones")
    if args.real_img_dir:
        check_reference(args.real_img_dir)
    if args.inception_weights and not args.inception_weights.is_file():
        raise UserError(f"--inception_weights {args.inception_weights}: no such file")


def make_sampler(
    generator: "Generator", config: dict[str, Any], seed: int, device: "torch.device", precision: str
) -> tuple[Callable[[range], "torch.Tensor"], Callable[[int], "torch.Tensor"], Callable[[int], "torch.Tensor"]]:
    """Move the generator to the device and return what draws with it.

    Returns:
        Three functions to (N, C, H, W) float32 in [-1, 1]: from image numbers to samples; from the number of a walk to
        its images, for interpolation.png: x_T changes, latents and posterior noise are the first sample's; and from
        a batch size to the output of one evaluation.
    """
    import torch
    from comparison.device import autocast_dtype
    from comparison.interpolation import WalkNoise
    from comparison.rng import SampleNoise
    from ddgan.process import DenoisingProcess
    from ddgan.sampling import sample_from

    generator.to(device).to(memory_format=torch.channels_last)
    steps, nz = config["num_timesteps"], config["nz"]
    process = DenoisingProcess(steps, config["beta_min"], config["beta_max"], config["use_geometric"]).to(device)
    dtype = autocast_dtype(precision, device)
    shape = (config["num_channels"], config["image_size"], config["image_size"])

    def draw(indices: range) -> torch.Tensor:
        return sample_from(SampleNoise(seed, indices, device), generator, process, nz, shape, dtype)

    def draw_walk(walk: int) -> torch.Tensor:
        return sample_from(WalkNoise(seed, walk, device, "x_T"), generator, process, nz, shape, dtype)

    def evaluate(batch_size: int) -> torch.Tensor:
        noise = SampleNoise(seed, range(batch_size), device)
        t = torch.zeros(batch_size, dtype=torch.int64, device=device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return generator(noise.normal(shape, "x_T"), t, noise.normal((nz,), "z 0"))

    return draw, draw_walk, evaluate


def describe(path: Path, config: dict[str, Any], seed: int, device: "torch.device", precision: str) -> dict[str, Any]:
    """Return what sampling.json and timing.json say of the sampler."""
    from comparison.device import autocast_dtype, precision_name

    return {
        "model": MODEL,
        "sampler": f"posterior, {config['num_timesteps']} steps",
        "checkpoint": path.name,
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        "network": "ema" if config.get("use_ema") else "raw",
        "images_seen": config.get("images_seen"),
        "seed": seed,
        "precision": precision_name(autocast_dtype(precision, device)),
    }


def announce(out: Path) -> None:
    """Print what was drawn and how long it took."""
    from comparison.runs import read_json

    facts = read_json(out.parent / "sampling.json")
    print(
        f"{out}: {facts['images']} images, {facts['nfe']:g} evaluations each; sampling time {facts['seconds']:.2f} s "
        f"({facts['seconds_per_image']:.5f} s per image, batch {facts['batch_size']}, {facts['device']}, "
        f"{facts['precision']})"
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


def score(out: Path, real: str, image_size: int, weights: Path | None, device: "torch.device") -> None:
    """Print the FID of `out` against `real` and add it to sampling.json."""
    from comparison.images import load_npz
    from comparison.runs import read_json, write_json
    from ddgan.fid import frechet_inception_distance

    images, _ = load_npz(out)
    if len(images) < 2:
        raise UserError(f"--num_samples {len(images)}: a covariance needs more than one image")
    fid = frechet_inception_distance(images, real, image_size, weights, device)
    path = out.parent / "sampling.json"
    write_json(path, {**read_json(path), "fid": fid, "fid_reference": real})
    print(f"FID {fid:.3f} ({len(images)} images against {real})")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
