"""Write the reference statistics of FID: mean and covariance of the standard Inception's features.

  python results/make_stats.py cifar10 --out data/cifar10_train.npz --library pytorch-fid
  python -m pytorch_fid data/cifar10_train.npz folder/of/png

Writes an .npz with mu (2048,) and sigma (2048, 2048), float64, and their origin. evaluate.py, pytorch-fid and
test_ddgan.py accept it instead of images. Needs the standard Inception weights. torch-fidelity and pytorch-fid
preprocess images differently: use --library pytorch-fid for numbers of `python -m pytorch_fid`.

Heusel et al. 2017 (FID).
"""

import argparse
from pathlib import Path

from comparison import cli
from comparison.data.sources import DATA_HELP, check_source
from comparison.scores import inception  # torch only when it computes
from comparison.scores.statistics import DIMENSIONS, is_statistics, write_statistics


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help=DATA_HELP)
    add("--out", type=Path, required=True, metavar="FILE", help="output file, .npz")
    add("--overwrite", action="store_true", help="replace --out if it exists")
    add("--image_size", type=cli.positive_int, default=32, help="pixels; images are resized as for training")
    add("--num_images", type=cli.positive_int, metavar="N", help="number of images, evenly spaced; all unless given")
    add("--library", choices=["torch-fidelity", "pytorch-fid"], default="torch-fidelity", help="Inception")
    weights = "standard weights; from torch's cache, downloaded if necessary, unless given"
    add("--inception_weights", type=Path, metavar="FILE", help=weights)
    add("--device", type=cli.device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--threads", type=cli.non_negative_int, default=0, help="CPU threads, 0 for all cores")
    args = parser.parse_args(argv)
    if args.out.suffix != ".npz":
        parser.error(f"--out {args.out}: must end in .npz; pytorch-fid takes other names for folders")
    if args.num_images is not None and args.num_images < 2:
        parser.error(f"--num_images {args.num_images}: a covariance needs at least 2")
    return args


def main(args: argparse.Namespace) -> None:
    """Validate, embed the images, write."""
    if args.out.exists() and not args.overwrite:
        raise cli.UserError(f"--out {args.out}: exists; name another file, or add --overwrite")
    cli.check_folder(args.out.parent, "--out")
    if is_statistics(args.source):
        raise cli.UserError(f"{args.source}: holds statistics, not images")
    check_source(args.source, "SOURCE")
    inception.require(args.library)
    weights = inception.find_weights(args.inception_weights)
    inception.check_weights(weights)

    from comparison.data.images import load_images  # torch
    from comparison.device import pick_device, set_threads

    set_threads(args.threads)
    device = pick_device(args.device)
    data = load_images(args.source, args.image_size, limit=args.num_images)
    if len(data) < max(2, args.num_images or 0):
        raise cli.UserError(f"{args.source}: holds {len(data)} images, fewer than {max(2, args.num_images or 0)}")
    if len(data) <= DIMENSIONS:
        print(f"note: {len(data)} images are too few for a full-rank covariance of {DIMENSIONS} features")
    mu, sigma = inception.image_statistics(data.images, args.library, weights=weights, device=device)
    made_by = inception.made_by(args.library)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_statistics(args.out, mu.numpy(), sigma.numpy(), made_by=made_by, images=len(data))
    print(f"{args.out}: {len(data)} images of {data.name}, {args.image_size} pixels ({data.fingerprint}), {made_by}")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
