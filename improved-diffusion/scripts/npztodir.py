#!/usr/bin/env python3
"""Write the images of a sample file as PNG files, as tools like pytorch_fid want them.

    python improved-diffusion/scripts/npztodir.py samples_1024x32x32x3.npz out-dir

Reads arr_0, uint8 (N, H, W, 3), and if there the labels arr_1; writes out-dir/<index>.png or <label>_<index>.png.
The folder must not hold anything yet, and appears when it is complete.
"""

import argparse
from collections.abc import Sequence

from comparison.cli import UserError, check_folder, local_path, make_parser, run


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("inputfile", type=local_path, help="the .npz file")
    parser.add_argument("outputdir", type=local_path, help="the folder to write")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Read the file, write the folder."""
    if not args.inputfile.is_file():
        raise UserError(f"{args.inputfile}: no such file")
    check_folder(args.outputdir, "outputdir")

    from comparison.data.images import fingerprint, load_npz
    from comparison.png import write_png_folder

    images, labels = load_npz(args.inputfile)
    prefixes = [""] * len(images) if labels is None else [f"{label}_" for label in labels.tolist()]
    names = [f"{prefix}{i:05d}.png" for i, prefix in enumerate(prefixes)]
    key = {"fingerprint": fingerprint(images)}
    write_png_folder(args.outputdir, images.permute(0, 2, 3, 1).numpy(), names, key=key)
    print(f"{len(names)} images: {args.outputdir}")
    return 0


if __name__ == "__main__":
    run(lambda: main(parse_args()))
