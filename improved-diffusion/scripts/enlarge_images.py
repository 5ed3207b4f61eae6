"""Enlarge images with a super-resolution network, for super_res_sample.py."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comparison.cli import UserError
from comparison.data.images import fingerprint, from_uint8, load_images, load_npz, to_uint8
from comparison.png import save_grid
from comparison.rng import SampleNoise
from comparison.sampling.draw import draw_samples
from generate import run_sampler
from grids import COLUMNS, enlarge, in_rows
from improved_diffusion.dist_util import get_rank
from improved_diffusion.script_util import sr_create_model_and_diffusion
from model_loading import LoadedModel, connected_device, load_model
from model_options import SR_MODEL, out_folder, training_of
from sampler_flags import Sampler
from torch import Tensor

COMPARED = 4 * COLUMNS  # images in comparison.png


def enlarge_images(args: argparse.Namespace, flags: dict[str, Any], sampler: Sampler) -> int:
    """Enlarge images as super_res_sample.py is asked to; return the exit status."""
    with connected_device(args) as device:
        loaded = load_model(args, flags, sr_create_model_and_diffusion, device)
        base, labels = read_base(args.base_samples, flags["small_size"], args.num_samples)
        loaded.check_labels(labels, f"--base_samples {args.base_samples}")
        size, count = flags["large_size"], len(base)
        facts = {
            "model": SR_MODEL,
            "sampler": sampler.describe(),
            **loaded.metadata,
            "base_size": flags["small_size"],
            "base_fingerprint": fingerprint(base),
            "clip_denoised": args.clip_denoised,
            "seed": args.seed,
        }
        out = draw_samples(
            make_enlarger(loaded, sampler, base, labels, size, args.seed),
            [loaded.network],
            num_samples=count,
            batch_size=args.batch_size,
            out=out_folder(args) / f"samples_{count}x{size}x{size}x3.npz",
            image_size=size,
            device=device,
            facts=facts,
            trained=training_of(args.model_path),
            labels=None if labels is None else labels.numpy(),
        )
        if get_rank() == 0:
            save_comparison(out, base)
        print(f"{count} images ({sampler.describe()}): {out}")
        return 0


def read_base(source: str, size: int, count: int | None) -> tuple[Tensor, Tensor | None]:
    """Read the first `count` images to enlarge: (N, 3, size, size) uint8, and their (N,) labels if any.

    Larger images of a folder are reduced by area; those of an .npz file must have the size.

    Raises:
        UserError: images of another size, or too few.
    """
    if source.endswith(".npz"):
        images, labels = load_npz(Path(source))
        if images.shape[2:] != (size, size):
            raise UserError(
                f"--base_samples {source}: images of {images.shape[3]}x{images.shape[2]} pixels; the model enlarges "
                f"those of {size}x{size}"
            )
    else:
        image_set = load_images(source, size)
        images, labels = image_set.images, image_set.labels
    if count is not None and count > len(images):
        raise UserError(f"--num_samples {count}: --base_samples {source} holds only {len(images)} images")
    return images[:count], None if labels is None else labels[:count]


def make_enlarger(
    loaded: LoadedModel, sampler: Sampler, base: Tensor, labels: Tensor | None, size: int, seed: int
) -> Callable[[range], Tensor]:
    """Return the function that enlarges images by number to (n, 3, size, size) float32."""

    def enlarger(indices: range) -> Tensor:
        rows, noise = slice(indices.start, indices.stop), SampleNoise(seed, indices, loaded.device)
        condition = {"low_res": from_uint8(base[rows].to(loaded.device))}
        if loaded.num_classes and labels is not None:
            condition["y"] = labels[rows].to(loaded.device)
        with loaded.autocast():
            return run_sampler(sampler, loaded.network, loaded.diffusion, (3, size, size), noise, condition)

    return enlarger


def save_comparison(out: Path, base: Tensor) -> None:
    """Save comparison.png beside the samples: rows of base images, each followed by a row of enlarged ones."""
    large = load_npz(out)[0][:COMPARED]
    rows = in_rows(enlarge(from_uint8(base[:COMPARED]), large.shape[-1]), from_uint8(large))
    save_grid(to_uint8(rows), out.with_name("comparison.png"), COLUMNS)
