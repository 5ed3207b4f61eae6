#!/usr/bin/env python3
"""Bound the bits per dimension that a diffusion model needs for images, term by term.

    python improved-diffusion/scripts/image_nll.py --data_dir data/cifar_test --num_samples 1000 --batch_size 64 \\
        --model_path results/runs/improved-diffusion/cifar_train-32/ema_0.9999_005000.pt

The bound is Ho et al. 2020, Eq. 5, one network evaluation per image and timestep; lower is better. With
--timestep_respacing it is that of the process of the kept steps: another and higher bound, not an estimate of the full
one. Beside the model's file (--out_dir, else OPENAI_LOGDIR) it writes nll.json (mean with its standard error, prior,
terms by quartile of t), nll.png, and the means over the images of each term, arr_0 (T,) with t = T - 1 first:
vb_terms.npz (bits per dimension), mse_terms.npz (of the noise) and xstart_mse_terms.npz. The noise depends on the seed,
the image and t alone, and every image counts once, whatever the batch size and the number of processes. A call that was
cut short is continued by the same call; several processes share the images.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import UserError, add_device_options, make_parser, non_negative_int, positive_int, run, str2bool
from comparison.data.sources import KINDS, check_source
from comparison.files import agrees, digest, write_json
from improved_diffusion import blob
from improved_diffusion.dist_util import barrier, broadcast_object, get_rank, get_world_size, is_main, run_guarded
from improved_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from remote import with_local_paths
from run_files import MODEL, training_of
from trained import Trained, add_checkpoint_flags, add_network_flags, load_trained, out_folder, run_flags

if TYPE_CHECKING:
    import numpy as np
    import torch
    from comparison.data.images import ImageSet

TERMS = ("vb", "mse", "xstart_mse")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    add_network_flags(parser, model_and_diffusion_defaults())
    add_checkpoint_flags(parser)
    add = parser.add_argument_group("likelihood").add_argument
    add("--data_dir", "--data", required=True, help=KINDS)
    add("--split", default="test", choices=["train", "test"], help="of a source known by name; a folder is taken whole")
    add("--num_samples", type=non_negative_int, default=1000, help="images, spread evenly over the set; 0 for all")
    add("--batch_size", type=positive_int, default=32, help="images evaluated at a time")
    add("--clip_denoised", type=str2bool, default=True, help="clip each predicted image to [-1, 1]")
    add("--seed", type=non_negative_int, default=0, help="of the noise")
    add_device_options(parser)
    parser.set_defaults(precision="float32")
    return parser.parse_args(argv)


@with_local_paths
def main(args: argparse.Namespace) -> int:
    """Judge the flags, rebuild the network, measure, write."""
    check_source(args.data_dir, "--data_dir")
    flags = run_flags(args, model_and_diffusion_defaults(), MODEL)

    from comparison.data.images import load_images

    trained = load_trained(args, flags, create_model_and_diffusion)
    images = load_images(args.data_dir, flags["image_size"], split=args.split, limit=args.num_samples or None)
    judge_labels(images, trained.num_classes, args.data_dir)
    out_dir, steps = out_folder(args), trained.diffusion.num_timesteps
    facts = {
        "model": MODEL,
        **trained.facts,
        "data": images.describe(),
        "images": len(images),
        "timesteps": steps,
        "timestep_respacing": flags["timestep_respacing"],
        "clip_denoised": args.clip_denoised,
        "seed": args.seed,
    }
    if agrees(out_dir / "nll.json", facts):
        print(f"{out_dir / 'nll.json'}: measured already")
        return 0
    out_dir.mkdir(parents=True, exist_ok=True)
    state = out_dir / f"nll-{digest(json.dumps(facts), digits=8)}"
    sums = measure(trained, images, state, args)
    if is_main():
        write_results(sums, out_dir, {**facts, "trained": training_of(args.model_path)})
        part_file(state, 0).unlink()
    barrier()
    return 0


def judge_labels(images: "ImageSet", num_classes: int, source: str) -> None:
    """Refuse images without the classes that the network asks for.

    Raises:
        UserError: so.
    """
    if num_classes and (images.labels is None or not 0 <= images.labels.min() <= images.labels.max() < num_classes):
        found = "no classes" if images.labels is None else f"{len(images.class_names)} classes"
        raise UserError(f"--data_dir {source}: {found}, and the model is conditioned on {num_classes}")


class Sums:
    """What has been measured: sums over images by term and timestep, and each image's bits per dimension.

    Attributes:
        terms: (3, T) float64, sums over the images that are done, in the order of `TERMS`, t = T - 1 first.
        total, prior: (N,) float64, bits per dimension; NaN for images that are not done.
    """

    def __init__(self, images: int, steps: int) -> None:
        import numpy as np

        self.terms = np.zeros((len(TERMS), steps))
        self.total, self.prior = np.full(images, np.nan), np.full(images, np.nan)

    def done(self) -> "np.ndarray":
        """Return (N,) bool: which images are done."""
        import numpy as np

        return ~np.isnan(self.total)

    def add(self, indices: range, bpd: "dict[str, np.ndarray]") -> None:
        """Add what `calc_bpd_loop` found for some images."""
        rows = slice(indices.start, indices.stop)
        self.terms += [bpd[name].sum(0) for name in TERMS]
        self.total[rows], self.prior[rows] = bpd["total_bpd"], bpd["prior_bpd"]

    def merge(self, other: "Sums") -> None:
        """Add the images of another one, unless they are done here."""
        if (other.done() & ~self.done()).any():
            self.terms += other.terms
            for mine, theirs in ((self.total, other.total), (self.prior, other.prior)):
                mine[other.done()] = theirs[other.done()]

    def save(self, path: Path) -> None:
        """Write atomically."""
        import numpy as np

        with blob.open_file(path, "wb") as file:
            np.savez(file, terms=self.terms, total=self.total, prior=self.prior)

    @classmethod
    def load(cls, path: Path) -> "Sums":
        """Read what `save` wrote."""
        import numpy as np

        with np.load(path) as archive:
            found = cls(len(archive["total"]), archive["terms"].shape[1])
            found.terms, found.total, found.prior = archive["terms"], archive["total"], archive["prior"]
        return found


def measure(trained: Trained, images: "ImageSet", state: Path, args: argparse.Namespace) -> Sums:
    """Measure the images that no earlier call has, shared among the processes.

    Args:
        trained: the network.
        images: to be measured.
        state: name that the files begin with in which each process keeps what it has done, batch by batch.
        args: of the command line: batch_size, clip_denoised, seed.

    Returns:
        The sums over all images on rank 0, over its own on the others.
    """
    from comparison.progress import bar

    steps = trained.diffusion.num_timesteps
    mine = Sums(len(images), steps)
    known = collect(state, len(images), steps) if is_main() else mine
    pending = broadcast_object((~known.done()).tolist())
    todo = list(batches(pending, args.batch_size))[get_rank() :: get_world_size()]
    with bar(steps * sum(map(len, todo)), 0, "nll", "terms") as progress:
        for indices in todo:
            mine.add(indices, evaluate(trained, images, indices, args, progress.update))
            mine.save(part_file(state, 1 + get_rank()))
    barrier()
    return collect(state, len(images), steps) if is_main() else mine


def evaluate(
    trained: Trained, images: "ImageSet", indices: range, args: argparse.Namespace, advance: Callable[[int], object]
) -> "dict[str, np.ndarray]":
    """Return what `calc_bpd_loop` finds for some images, as float64; `advance` counts the terms."""
    from comparison.data.images import from_uint8
    from comparison.rng import SampleNoise

    noise, rows = SampleNoise(args.seed, indices, trained.device), slice(indices.start, indices.stop)
    x_start = from_uint8(images.images[rows].to(trained.device))
    condition = {}
    if trained.num_classes and images.labels is not None:
        condition["y"] = images.labels[rows].to(trained.device)

    def step_noise(t: int) -> "torch.Tensor":
        advance(len(indices))
        return noise.normal(x_start.shape[1:], t)

    with trained.autocast():
        bpd = trained.diffusion.calc_bpd_loop(trained.network, x_start, args.clip_denoised, condition, step_noise)
    return {name: value.double().cpu().numpy() for name, value in bpd.items()}


def part_file(state: Path, number: int) -> Path:
    """Return where a process keeps its sums; number 0 holds those of earlier calls."""
    return state.with_name(f"{state.name}.part-{number:03d}.npz")


def collect(state: Path, images: int, steps: int) -> Sums:
    """Merge what the processes of this call or an earlier one have done into the first part; the others go."""
    merged, first = Sums(images, steps), part_file(state, 0)
    parts = sorted(state.parent.glob(f"{state.name}.part-*.npz"))
    for path in parts:
        merged.merge(Sums.load(path))
    # Written before the others are removed: cut short in between, they hold nothing that the first has not.
    merged.save(first)
    for path in parts:
        if path != first:
            path.unlink()
    return merged


def batches(pending: Sequence[bool], batch_size: int) -> Iterator[range]:
    """Yield ranges of at most `batch_size` neighbouring images that are pending."""
    start = 0
    while start < len(pending):
        stop = start
        while stop < len(pending) and pending[stop] and stop - start < batch_size:
            stop += 1
        if stop > start:
            yield range(start, stop)
        start = max(stop, start + 1)


def write_results(sums: Sums, out_dir: Path, facts: dict[str, Any]) -> None:
    """Write the arrays, the picture and, last of all, nll.json.

    Raises:
        UserError: a term is not finite.
    """
    import numpy as np

    count, steps = len(sums.total), sums.terms.shape[1]
    if not np.isfinite(sums.total).all():
        raise UserError("the bound is not finite: the training has diverged, or --model_path is of another process")
    means = dict(zip(TERMS, sums.terms / count, strict=True))
    for name, values in means.items():
        with blob.open_file(out_dir / f"{name}_terms.npz", "wb") as file:
            np.savez(file, values)
    vb = means["vb"][::-1]  # by t
    quartiles = np.bincount(np.arange(steps) * 4 // steps, vb, minlength=4)
    error = float(sums.total.std(ddof=1) / count**0.5) if count > 1 else None
    draw_terms(vb, out_dir / "nll.png")
    result = {
        "bits_per_dim": float(sums.total.mean()),
        "standard_error": error,
        "prior": float(sums.prior.mean()),
        "decoder": float(vb[0]),
        "terms_by_quartile": {f"q{i}": float(value) for i, value in enumerate(quartiles)},
    }
    write_json(out_dir / "nll.json", {**result, **facts})
    spread = f" ± {error:.4f}" if error is not None else ""
    print(f"{result['bits_per_dim']:.4f}{spread} bits/dim over {count} images, {steps} steps: {out_dir / 'nll.json'}")


def draw_terms(vb: "np.ndarray", path: Path) -> None:
    """Draw the bound's terms, (T,) bits per dimension by t, on logarithmic axes (Nichol & Dhariwal 2021, Fig. 2)."""
    from comparison.report.plots import save, tidy
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog(range(1, len(vb) + 1), vb, linewidth=1.2, color="#0072B2")
    axes.set_xlabel("t + 1 (log; 1 is the decoder's term)")
    axes.set_ylabel("term of the bound, bits/dim (log)")
    axes.set_title(f"{vb.sum():.3f} bits/dim in {len(vb)} terms", fontsize=10)
    tidy(axes)
    save(figure, path)


if __name__ == "__main__":
    run(lambda: run_guarded(lambda: main(parse_args())))
