#!/usr/bin/env python3
"""Enlarge images with a super-resolution model.

    python improved-diffusion/scripts/super_res_sample.py --base_samples samples_1000x32x32x3.npz \\
        --model_path results/runs/improved-diffusion-sr/images-32to64/ema_0.9999_010000.pt

--base_samples is what image_sample.py wrote, or a folder of images. The network is rebuilt from the config.json beside
the model's file; without one the flags say what it is. Beside the model's file (--out_dir, else OPENAI_LOGDIR) it
writes samples_<N>x<H>x<W>x<C>.npz in the order of the base images, with their labels, samples.png, comparison.png
(rows of base images and of what became of them) and sampling.json. A call that was cut short is continued by the same
call. Image i of a seed is the same whatever the batch size.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from comparison.cli import (
    UserError,
    add_device_options,
    make_parser,
    non_negative_int,
    positive_int,
    run,
)
from comparison.data.sources import check_source
from improved_diffusion.dist_util import is_main, run_guarded
from improved_diffusion.script_util import sr_create_model_and_diffusion, sr_model_and_diffusion_defaults
from remote import with_local_paths
from run_files import training_of
from sampler_flags import Sampler, add_guidance_flag, add_sampler_flags, judge_guidance, judge_sampler
from super_res_train import COLUMNS, MODEL, enlarge, in_rows
from trained import Trained, add_checkpoint_flags, add_network_flags, load_trained, out_folder, run_flags

if TYPE_CHECKING:
    import torch

COMPARED = 4 * COLUMNS  # images in comparison.png


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    add_network_flags(parser, sr_model_and_diffusion_defaults())
    add_checkpoint_flags(parser)
    add = parser.add_argument_group("sampling").add_argument
    add("--base_samples", required=True, help="an .npz file of image_sample.py, or a folder of images")
    add("--num_samples", type=positive_int, help="images to enlarge, the first ones; by default all")
    add("--batch_size", type=positive_int, default=16, help="images enlarged at a time")
    add("--seed", type=non_negative_int, default=0, help="of the noise")
    add_sampler_flags(parser)
    add_guidance_flag(parser)
    add_device_options(parser)
    return parser.parse_args(argv)


@with_local_paths
def main(args: argparse.Namespace) -> int:
    """Judge the flags, rebuild the network, enlarge."""
    check_source(args.base_samples, "--base_samples")
    flags = run_flags(args, sr_model_and_diffusion_defaults(), MODEL)
    sampler = judge_sampler(args, flags)
    judge_guidance(args, flags)

    from comparison.data.images import fingerprint
    from comparison.sampling.draw import draw_samples

    trained = load_trained(args, flags, sr_create_model_and_diffusion)
    base, labels = read_base(args.base_samples, flags["small_size"], args.num_samples)
    if trained.num_classes:
        judge_labels(labels, trained.num_classes, args.base_samples)
    size, count = flags["large_size"], len(base)
    facts = {
        "model": MODEL,
        "sampler": sampler.describe() + ("" if args.guidance_scale is None else f", guidance {args.guidance_scale:g}"),
        **trained.facts,
        "base_size": flags["small_size"],
        "base_fingerprint": fingerprint(base),
        "clip_denoised": args.clip_denoised,
        "seed": args.seed,
    }
    out = draw_samples(
        make_enlarger(trained, sampler, base, labels, size, args.seed, args.guidance_scale),
        [trained.network],
        num_samples=count,
        batch_size=args.batch_size,
        out=out_folder(args) / f"samples_{count}x{size}x{size}x3.npz",
        image_size=size,
        device=trained.device,
        facts=facts,
        trained=training_of(args.model_path),
        labels=None if labels is None else labels.numpy(),
    )
    if is_main():
        draw_comparison(out, base)
    print(f"{count} images ({sampler.describe()}): {out}")
    return 0


def read_base(source: str, size: int, count: int | None) -> "tuple[torch.Tensor, torch.Tensor | None]":
    """Read the first `count` images to enlarge: (N, 3, size, size) uint8, and their (N,) labels if any.

    Larger pictures of a folder are reduced by area; those of an .npz file must have the size.

    Raises:
        UserError: another size, or fewer images.
    """
    from comparison.data.images import load_images, load_npz

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


def judge_labels(labels: "torch.Tensor | None", num_classes: int, source: str) -> None:
    """Refuse base images without classes, or of classes that the network does not know.

    Raises:
        UserError: so.
    """
    if labels is None:
        raise UserError(f"--base_samples {source}: the model is class-conditional, and these images have no labels")
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise UserError(f"--base_samples {source}: labels up to {labels.max()}; the model knows {num_classes} classes")


def make_enlarger(
    trained: Trained,
    sampler: Sampler,
    base: "torch.Tensor",
    labels: "torch.Tensor | None",
    size: int,
    seed: int,
    guidance_scale: float | None = None,
) -> "Callable[[range], torch.Tensor]":
    """Return the function that enlarges images by number to (n, 3, size, size) float32."""
    from comparison.data.images import from_uint8
    from comparison.rng import SampleNoise
    from improved_diffusion.samplers import classifier_free

    model = trained.network if guidance_scale is None else classifier_free(trained.network, guidance_scale)

    def draw(indices: range) -> "torch.Tensor":
        rows, noise = slice(indices.start, indices.stop), SampleNoise(seed, indices, trained.device)
        condition = {"low_res": from_uint8(base[rows].to(trained.device))}
        if trained.num_classes and labels is not None:
            condition["y"] = labels[rows].to(trained.device)
        with trained.autocast():
            return sampler.draw(model, trained.diffusion, (3, size, size), noise, condition)

    return draw


def draw_comparison(out: Path, base: "torch.Tensor") -> None:
    """Write comparison.png beside the samples: rows of base images, each followed by that of the enlarged ones."""
    from comparison.data.images import from_uint8, load_npz, to_uint8
    from comparison.png import save_grid

    large = load_npz(out)[0][:COMPARED]
    shown = in_rows(enlarge(from_uint8(base[:COMPARED]), large.shape[-1]), from_uint8(large))
    save_grid(to_uint8(shown), out.with_name("comparison.png"), COLUMNS)


if __name__ == "__main__":
    run(lambda: run_guarded(lambda: main(parse_args())))
