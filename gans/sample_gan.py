"""Sample images from a checkpoint of cifar_gan.py.

    python gans/sample_gan.py --checkpoint results/runs/gans/cifar10-64 --num_samples 50000

Writes samples.npz (arr_0 uint8 (N, H, W, 3)), samples.png (the first 64) and sampling.json (time per image and how it
was measured) next to the checkpoint or to --out. --out_dir adds one PNG per image and --interpolation adds
interpolation.png. --benchmark writes only timing.json. The network is rebuilt from the options inside the checkpoint.
For a given seed, image i is the same at any batch size.
"""

import argparse
from pathlib import Path

from comparison import cli
from comparison.png import write_pngs
from comparison.weights import checkpoint_path, out_folder
from gan.run_paths import MODEL, checkpoint_to_sample


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    checkpoint_help = "checkpoint_<step>.pt, a run folder for its best_<step>.pt or, without one, its newest, or "
    checkpoint_help += "pretrained:RUN for weights.safetensors of a run"
    add("--checkpoint", type=checkpoint_path(MODEL), required=True, help=checkpoint_help)
    add("--num_samples", type=cli.positive_int, default=50_000, help="number of images")
    add("--batch_size", type=cli.positive_int, default=128, help="images per batch")
    add("--seed", type=cli.non_negative_int, default=0, help="seed of the noise")
    ema_help = "true samples the EMA weights, false the raw generator; default: EMA weights if the checkpoint has them"
    add("--use_ema", type=cli.str2bool, help=ema_help)
    add("--out", type=cli.local_path, help=".npz file to write; default: samples.npz next to the checkpoint")
    add("--out_dir", type=cli.local_path, help="folder for one PNG per image")
    cli.add_sampling_extras(parser)
    cli.add_device_options(parser)
    args = parser.parse_args(argv)
    if args.out and args.out.suffix != ".npz":
        parser.error(f"argument --out: {args.out} does not end in .npz")
    if args.benchmark and args.out_dir:
        parser.error("argument --out_dir: --benchmark writes no images; leave out one of them")
    return args


def main(args: argparse.Namespace) -> None:
    """Find the checkpoint, then write its images or its benchmark."""
    checkpoint = find_checkpoint(args.checkpoint)
    out = args.out or out_folder(checkpoint) / "samples.npz"
    cli.check_folder(out.parent, "--out")
    if args.out_dir:
        cli.check_folder(args.out_dir, "--out_dir")
        check_png_folder(args.out_dir, args.num_samples)
    from gan.sampling import Sampler

    sampler = Sampler(checkpoint, args.seed, args.use_ema, args.device, args.precision, args.threads)
    if args.benchmark:
        sampler.write_benchmark(out.parent / "timing.json", args.benchmark_seconds)
        return
    sampler.write_samples(out, args.num_samples, args.batch_size, args.interpolation)
    if args.out_dir:
        args.out_dir.mkdir(parents=True, exist_ok=True)
        write_pngs(out, args.out_dir, digits=6)


def check_png_folder(folder: Path, num_samples: int) -> None:
    """Raise UserError if the folder holds PNGs numbered num_samples or higher, which the new ones would not replace."""
    if any(path.stem.isdigit() and int(path.stem) >= num_samples for path in folder.glob("*.png")):
        raise cli.UserError(
            f"--out_dir {folder}: holds more than {num_samples} images of an earlier call; name another folder"
        )


def find_checkpoint(path: Path) -> Path:
    """Return the file that --checkpoint names; raise UserError if there is none."""
    if path.is_file():
        return path
    if not path.exists():
        raise cli.UserError(f"--checkpoint {path}: no such file or run folder")
    checkpoint = checkpoint_to_sample(path)
    if checkpoint is None:
        raise cli.UserError(f"--checkpoint {path}: no checkpoint_<step>.pt in this folder")
    return checkpoint


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
