"""The variational bound of a network on images, for image_nll.py: Ho et al. 2020, Eq. 5."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison.cli import UserError
from comparison.data.images import ImageSet, from_uint8, load_images
from comparison.distributed import gather
from comparison.files import digest, json_matches, named_when_full, write_json
from comparison.progress import bar
from comparison.report.plots import save, tidy
from comparison.rng import SampleNoise
from improved_diffusion.blob import open_file
from improved_diffusion.dist_util import broadcast_object, get_rank, get_world_size
from improved_diffusion.script_util import create_model_and_diffusion
from matplotlib.figure import Figure
from model_loading import LoadedModel, connected_device, load_model
from model_options import MODEL, out_folder, training_of

TERMS = ("vb", "mse", "xstart_mse")


def measure_nll(args: argparse.Namespace, flags: dict[str, Any]) -> int:
    """Measure the bound as image_nll.py is asked to; return the exit status."""
    with connected_device(args) as device:
        loaded = load_model(args, flags, create_model_and_diffusion, device)
        images = load_images(args.data_dir, flags["image_size"], split=args.split, limit=args.num_samples or None)
        loaded.check_labels(images.labels, f"--data_dir {args.data_dir}")
        out_dir = out_folder(args)
        facts = {
            "model": MODEL,
            **loaded.metadata,
            "data": images.describe(),
            "images": len(images),
            "timesteps": loaded.diffusion.num_timesteps,
            "timestep_respacing": flags["timestep_respacing"],
            "clip_denoised": args.clip_denoised,
            "seed": args.seed,
        }
        if broadcast_object(json_matches(out_dir / "nll.json", facts)):
            print(f"{out_dir / 'nll.json'}: measured already")
            return 0
        out_dir.mkdir(parents=True, exist_ok=True)
        state = out_dir / f"nll-{digest(json.dumps(facts), digits=8)}.part-000.npz"
        sums = measure(loaded, images, state, args)
        if get_rank() == 0:
            write_results(sums, out_dir, {**facts, "trained": training_of(args.model_path)})
            for part in out_dir.glob(state.name.replace("000", "*")):  # others are of an older version
                part.unlink()
        return 0


class Sums:
    """Sums over images by term and timestep, and each image's bits per dimension, kept in a file.

    Args:
        path: the file; read where it exists.
        images: N.
        steps: T.

    Attributes:
        terms: (3, T) float64, sums over the measured images, in the order of `TERMS`, t = T - 1 first.
        total, prior: (N,) float64, bits per dimension; NaN for images that are not measured yet.
    """

    def __init__(self, path: Path, images: int, steps: int) -> None:
        self.path, self.terms = path, np.zeros((len(TERMS), steps))
        self.total, self.prior = np.full(images, np.nan), np.full(images, np.nan)
        if path.is_file():
            with np.load(path) as archive:
                self.terms, self.total, self.prior = archive["terms"], archive["total"], archive["prior"]

    def add(self, indices: range, terms: np.ndarray, total: np.ndarray, prior: np.ndarray) -> None:
        """Add the sums (3, T) over some images and their (n,) bits per dimension."""
        rows = slice(indices.start, indices.stop)
        self.terms += terms
        self.total[rows], self.prior[rows] = total, prior

    def save(self) -> None:
        """Write the file."""
        with named_when_full(self.path), open_file(self.path, "wb") as file:
            np.savez(file, allow_pickle=False, terms=self.terms, total=self.total, prior=self.prior)


def measure(loaded: LoadedModel, images: ImageSet, state: Path, args: argparse.Namespace) -> Sums:
    """Measure the images that no earlier call has measured; the ranks take batches in turn, rank 0 keeps the sums.

    Args:
        loaded: the network.
        images: images to measure.
        state: file of the sums.
        args: command line: batch_size, clip_denoised, seed.
    """
    steps, rank, ranks = loaded.diffusion.num_timesteps, get_rank(), get_world_size()
    sums = Sums(state, len(images), steps)
    todo = list(batches(broadcast_object(np.isnan(sums.total).tolist()), args.batch_size))
    with bar(steps * sum(map(len, todo)), 0, "nll", "terms") as progress:
        for start in range(0, len(todo), ranks):
            share = todo[start : start + ranks]
            mine = (share[rank], *evaluate(loaded, images, share[rank], args)) if rank < len(share) else None
            for result in gather(mine):
                if result is not None and rank == 0:
                    sums.add(*result)
                    progress.update(steps * len(result[0]))
            if rank == 0:
                sums.save()
    return sums


def evaluate(
    loaded: LoadedModel, images: ImageSet, indices: range, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sums (3, T) of the terms over some images, and their total and prior (n,), all float64."""
    noise, rows = SampleNoise(args.seed, indices, loaded.device), slice(indices.start, indices.stop)
    x_start = from_uint8(images.images[rows].to(loaded.device))
    condition = {}
    if loaded.num_classes and images.labels is not None:
        condition["y"] = images.labels[rows].to(loaded.device)

    def step_noise(t: int) -> torch.Tensor:
        return noise.normal(x_start.shape[1:], t)

    with loaded.autocast():
        bpd = loaded.diffusion.calc_bpd_loop(loaded.network, x_start, args.clip_denoised, condition, step_noise)
    values = {name: value.double().cpu().numpy() for name, value in bpd.items()}
    return np.stack([values[name].sum(0) for name in TERMS]), values["total_bpd"], values["prior_bpd"]


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
    count, steps = len(sums.total), sums.terms.shape[1]
    if not np.isfinite(sums.total).all():
        raise UserError("the bound is not finite; training has diverged, or --model_path is of another process")
    means = dict(zip(TERMS, sums.terms / count, strict=True))
    for name, values in means.items():
        with open_file(out_dir / f"{name}_terms.npz", "wb") as file:
            np.savez(file, values)
    vb = means["vb"][::-1]  # by t
    quartiles = np.bincount(np.arange(steps) * 4 // steps, vb, minlength=4)
    error = float(sums.total.std(ddof=1) / count**0.5) if count > 1 else None
    plot_terms(vb, out_dir / "nll.png")
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


def plot_terms(vb: np.ndarray, path: Path) -> None:
    """Plot the bound's terms, (T,) bits per dimension by t, on logarithmic axes (Nichol & Dhariwal 2021, Fig. 2)."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog(range(1, len(vb) + 1), vb, linewidth=1.2, color="#0072B2")
    axes.set_xlabel("t + 1 (log; 1 is the decoder's term)")
    axes.set_ylabel("term of the bound, bits/dim (log)")
    axes.set_title(f"{vb.sum():.3f} bits/dim in {len(vb)} terms", fontsize=10)
    tidy(axes)
    save(figure, path)
