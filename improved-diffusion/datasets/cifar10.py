#!/usr/bin/env python3
"""Write CIFAR-10 as folders of PNG files: cifar_train (50,000) and cifar_test (10,000), {class}_{index:05d}.png.

    python improved-diffusion/datasets/cifar10.py

By default torchvision downloads the set. --source names an existing one: a folder with CIFAR-10's Python
batches (cifar-10-batches-py), one with train/ and test/ folders of images by class, or any folder of images by class,
which becomes cifar_train. The folders are written below data/ (environment variable DATA_ROOT, or --out_dir); each
appears when it is complete, and a call that was cut short is continued by the same call.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from comparison.cli import UserError, check_folder, data_root, local_path, make_parser, positive_int, run
from comparison.data.sources import check_source, find_images, is_cifar_batches

# OpenAI's file names say plane and car.
SHORT_NAMES = {"airplane": "plane", "automobile": "car"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--source", default="cifar10", help="cifar10 to download, or a folder as above")
    parser.add_argument("--num_images", type=positive_int, help="of each folder; by default all")
    parser.add_argument("--out_dir", type=local_path, default=data_root(), help="where cifar_train and cifar_test go")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Write the folders."""
    check_source(args.source, "--source")
    check_folder(args.out_dir, "--out_dir")
    for split, source in split_sources(args.source).items():
        write_split(source, split, args.out_dir / f"cifar_{split}", args.num_images)
    return 0


def split_sources(source: str) -> dict[str, str]:
    """Return the data source of each split that `source` has."""
    folders = {split: Path(source) / split for split in ("train", "test")}
    if source == "cifar10" or is_cifar_batches(Path(source)):
        return dict.fromkeys(folders, source)
    if all(folder.is_dir() for folder in folders.values()):
        return {split: str(folder) for split, folder in folders.items()}
    return {"train": source}


def write_split(source: str, split: str, folder: Path, num_images: int | None) -> None:
    """Write one folder, unless it is complete already.

    Raises:
        UserError: the folder holds another number of images, or cannot be written.
    """
    from comparison.data.images import load_images
    from comparison.png import write_png_folder

    there = sum(1 for _ in find_images(folder)) if folder.is_dir() else 0
    image_set = load_images(source, 32, split=split, limit=num_images)
    if there == len(image_set):
        print(f"{folder}: {there} images exist already")
        return
    if there:
        raise UserError(f"{folder} holds {there} images, not {len(image_set)}: remove it or name another --out_dir")
    if image_set.labels is None:
        raise UserError(f"--source {source}: its images have no classes")
    classes = [SHORT_NAMES.get(name, name) for name in image_set.class_names]
    names = [f"{classes[label]}_{i:05d}.png" for i, label in enumerate(image_set.labels.tolist())]
    key = {"fingerprint": image_set.fingerprint}
    write_png_folder(folder, image_set.images.permute(0, 2, 3, 1).numpy(), names, key=key)
    print(f"{folder}: {len(names)} images")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
