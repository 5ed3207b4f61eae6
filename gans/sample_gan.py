"""Draw images from a checkpoint of cifar_gan.py.

    python gans/sample_gan.py --checkpoint results/runs/gans/cifar10-64 --num_samples 50000

Writes samples.npz (arr_0 uint8 (N, H, W, 3)), samples.png (the first 64) and sampling.json (time per image and how it
was measured) beside the checkpoint or to --out; with --out_dir also one PNG per image, with --interpolation also
interpolation.png. With --benchmark it writes timing.json there instead. The network is rebuilt from the options inside
the checkpoint. Image i of a seed is the same whatever the batch size.
"""

import argparse
from pathlib import Path

from comparison import cli
from gan.files import is_drawn, sampled_checkpoint


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    checkpoint_help = "a checkpoint_<step>.pt, or a run folder for its best_<step>.pt or, without one, its newest"
    add("--checkpoint", type=cli.local_path, required=True, help=checkpoint_help)
    add("--num_samples", type=cli.positive_int, default=50_000, help="images to draw")
    add("--batch_size", type=cli.positive_int, default=128, help="images drawn at a time")
    add("--seed", type=cli.non_negative_int, default=0, help="of the noise")
    ema_help = "true for the moving average, false for the raw generator; the average where there is one unless given"
    add("--use_ema", type=cli.str2bool, help=ema_help)
    add("--out", type=cli.local_path, help="the .npz to write, samples.npz beside the checkpoint unless given")
    add("--out_dir", type=cli.local_path, help="folder for one PNG per image as well")
    cli.add_sampling_extras(parser)
    cli.add_device_options(parser)
    args = parser.parse_args(argv)
    if args.out and args.out.suffix != ".npz":
        parser.error(f"argument --out: {args.out} does not end in .npz")
    if args.benchmark and args.out_dir:
        parser.error("argument --out_dir: --benchmark draws no images to write there")
    return args


def main(args: argparse.Namespace) -> None:
    """Find the checkpoint, then draw and write the images, or measure."""
    checkpoint = find_checkpoint(args.checkpoint)
    out = args.out or checkpoint.parent / "samples.npz"
    network = {name: getattr(args, name) for name in ("seed", "use_ema")}
    device = {name: getattr(args, name) for name in ("device", "precision", "threads")}
    if args.benchmark:
        from gan.sampling import benchmark_checkpoint

        timing = out.parent / "timing.json"
        benchmark_checkpoint(checkpoint, timing, min_seconds=args.benchmark_seconds, **network, **device)
        return
    if args.out_dir:
        refuse_other_pngs(args.out_dir, args.num_samples)
    samples = {name: getattr(args, name) for name in ("num_samples", "batch_size", "interpolation")}
    if is_drawn(out, checkpoint, **samples, **network):
        print(f"{out} holds these {args.num_samples} images already")
    else:
        from gan.sampling import sample_checkpoint

        sample_checkpoint(checkpoint, out, **samples, **network, **device)
        print(f"{args.num_samples} images in {out}")
    if args.out_dir:
        from comparison.png import write_pngs

        args.out_dir.mkdir(parents=True, exist_ok=True)
        write_pngs(out, args.out_dir, digits=6)


def refuse_other_pngs(folder: Path, num_samples: int) -> None:
    """Refuse a folder with numbered PNGs that would stay among the new ones.

    Raises:
        UserError: it holds an image number of num_samples or more.
    """
    if any(path.stem.isdigit() and int(path.stem) >= num_samples for path in folder.glob("*.png")):
        raise cli.UserError(f"--out_dir {folder}: holds more than {num_samples} images of an earlier call")


def find_checkpoint(path: Path) -> Path:
    """Return the file that --checkpoint means.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise cli.UserError(f"--checkpoint {path}: no such file or run folder")
    found = sampled_checkpoint(path)
    if found is None:
        raise cli.UserError(f"--checkpoint {path}: no checkpoint_<step>.pt in this folder")
    return found


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
