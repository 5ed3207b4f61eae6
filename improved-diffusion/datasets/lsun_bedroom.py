#!/usr/bin/env python3
"""Write the pictures of an LSUN database as a folder of square PNG files, {prefix}_{index:07d}.png.

    python improved-diffusion/datasets/lsun_bedroom.py bedroom_train_lmdb data/lsun_bedroom

The database is what http://dl.yf.io/lsun/scenes/bedroom_train_lmdb.zip unpacks to; other categories of LSUN work too.
Pictures are reduced to --image_size by area, then bicubically, and cropped to the centre. The folder appears when it is
complete, and a call that was cut short is continued by the same call.
"""

import argparse
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from comparison.cli import UserError, check_folder, local_path, make_parser, pixels, positive_int, run
from comparison.data.sources import find_images
from comparison.files import digest


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("lmdb_path", type=local_path, help="folder of the database, which holds data.mdb")
    parser.add_argument("out_dir", type=local_path, help="folder to write")
    parser.add_argument("--image_size", "--image-size", type=pixels, default=256, help="pixels")
    parser.add_argument("--prefix", default="bedroom", help="of the file names")
    parser.add_argument("--num_images", type=positive_int, help="the first ones; by default all")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Open the database, write the folder."""
    check_folder(args.out_dir, "out_dir")
    if "/" in args.prefix or args.prefix.startswith("."):
        raise UserError(f"--prefix {args.prefix}: must be the beginning of a file name, without '/' and no '.' first")
    if not (args.lmdb_path / "data.mdb").is_file():
        raise UserError(f"{args.lmdb_path}: not a folder with an LMDB database (data.mdb)")
    from comparison.data.databases import open_database

    with open_database(args.lmdb_path) as database:
        stored = database.stat()["entries"]
        count = min(stored, args.num_images or stored)
        if not count:
            raise UserError(f"{args.lmdb_path}: the database is empty")
        there = sum(1 for _ in find_images(args.out_dir)) if args.out_dir.is_dir() else 0
        if there == count:
            print(f"{args.out_dir}: {there} images exist already")
            return 0
        if there:
            raise UserError(f"{args.out_dir} holds {there} images, not {count}: remove it or name another folder")
        write(database, count, args)
    print(f"{args.out_dir}: {count} images")
    return 0


def write(database: Any, count: int, args: argparse.Namespace) -> None:
    """Write the first `count` pictures.

    Raises:
        UserError: a picture is damaged, or the folder cannot be written.
    """
    from comparison.data import folders
    from comparison.png import write_png_folder

    def decode(item: tuple[bytes, bytes]) -> Any:
        key, value = item
        return folders.decode(io.BytesIO(value), args.image_size, f"{args.lmdb_path}: {key.decode(errors='replace')}")

    names = [f"{args.prefix}_{i:07d}.png" for i in range(count)]
    first = digest(b"\0".join(next(entries(database, args.lmdb_path))))
    key = {"first": first, "stored": database.stat()["entries"], "image_size": args.image_size}
    write_png_folder(args.out_dir, islice(entries(database, args.lmdb_path), count), names, decode, key=key)


def entries(database: Any, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield each key and value, in the order of the keys.

    Raises:
        UserError: the database is damaged.
    """
    import lmdb

    try:
        with database.begin() as transaction, transaction.cursor() as cursor:
            yield from cursor
    except lmdb.Error as error:
        raise UserError(f"{path}: damaged ({error})") from None


if __name__ == "__main__":
    run(lambda: main(parse_args()))
