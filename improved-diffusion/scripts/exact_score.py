#!/usr/bin/env python3
"""Measure what samplers lose by taking few steps, apart from any network's faults.

    python improved-diffusion/scripts/exact_score.py
    python improved-diffusion/scripts/exact_score.py --noise_schedule linear --diffusion_steps 1000 --out linear-1000
    python improved-diffusion/scripts/exact_score.py --data data/cifar_train --eigenvalues cifar10.npz

For Gaussian data the best prediction of x_0 is known, and linear in x_t. In the eigenbasis of the data's covariance
every coordinate is a Gaussian of its own, which a sampler scales and adds noise to; so the spread of what it draws,
and its Frechet distance from the data, follow without drawing at random. The distance is given as a share of the
data's total variance. The data are Gaussian with the pixel covariance of CIFAR-10, of which the repository holds the
eigenvalues; --data computes them from other images and writes them to --eigenvalues. Fifteen seconds on one CPU core.
Writes README.md, study.json and exact-score.png into results/studies/exact-score/, or --out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import UserError, check_folder, local_path, make_parser, pixels, positive_int, repo_root, run
from comparison.data.sources import check_source
from comparison.files import write_json, write_text
from comparison.formatting import markdown_table
from improved_diffusion import blob
from improved_diffusion.flags import MAX_STEPS
from improved_diffusion.schedules import NOISE_SCHEDULES, get_named_beta_schedule

if TYPE_CHECKING:
    import numpy as np
    from improved_diffusion.gaussian_diffusion import GaussianDiffusion
    from torch import Tensor

EIGENVALUES = Path(__file__).parents[1] / "datasets" / "cifar10_eigenvalues.npz"
# label -> sampler, spacing, eta
SETTINGS: dict[str, tuple[str, str, float]] = {
    "ancestral, uniform": ("ancestral", "uniform", 0.0),
    "ancestral, logsnr": ("ancestral", "logsnr", 0.0),
    "DDIM, uniform": ("ddim", "uniform", 0.0),
    "DDIM, logsnr": ("ddim", "logsnr", 0.0),
    "DPM-Solver++ 2M, uniform": ("dpmpp", "uniform", 0.0),
    "DPM-Solver++ 2M, karras": ("dpmpp", "karras", 0.0),
    "DPM-Solver++ 2M, logsnr": ("dpmpp", "logsnr", 0.0),
    "DPM-Solver++ 2M SDE, logsnr": ("dpmpp-sde", "logsnr", 0.0),
    "UniPC, uniform": ("unipc", "uniform", 0.0),
    "UniPC, karras": ("unipc", "karras", 0.0),
    "UniPC, logsnr": ("unipc", "logsnr", 0.0),
}
LOOKS = {"ancestral": "#9A9A9A", "ddim": "#E69F00", "dpmpp": "#0072B2", "dpmpp-sde": "#56B4E9", "unipc": "#D55E00"}
LINES = {"uniform": ":", "karras": "--", "logsnr": "-"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--eigenvalues", type=local_path, default=EIGENVALUES, help="file of the covariance's eigenvalues, arr_0")
    add("--data", help="folder or name of images whose eigenvalues are computed and written to --eigenvalues")
    add("--image_size", type=pixels, default=32, help="pixels, for --data")
    add("--noise_schedule", choices=NOISE_SCHEDULES, default="cosine", help="of the process")
    add("--diffusion_steps", type=positive_int, default=4000, help="T of the process")
    add("--evaluations", default="5,6,8,10,12,15,20,30,50,100,250,1000", help="numbers of evaluations per image")
    add("--out", type=local_path, default=repo_root() / "results" / "studies" / "exact-score", help="output folder")
    args = parser.parse_args(argv)
    if args.data and args.eigenvalues.resolve() == EIGENVALUES.resolve():
        parser.error("--data needs --eigenvalues, a file to write what it finds to")
    if args.diffusion_steps > MAX_STEPS:
        parser.error(f"--diffusion_steps must be at most {MAX_STEPS}, not {args.diffusion_steps}")
    try:
        get_named_beta_schedule(args.noise_schedule, args.diffusion_steps)
        args.evaluations = sorted({int(word) for word in args.evaluations.split(",")})
    except ValueError as error:
        parser.error(f"--{error}" if "diffusion_steps" in str(error) else f"--evaluations {args.evaluations}: {error}")
    if not 1 <= args.evaluations[0] <= args.evaluations[-1] <= args.diffusion_steps:
        parser.error(f"--evaluations must be from 1 to --diffusion_steps {args.diffusion_steps}")
    return args


def main(args: argparse.Namespace) -> None:
    """Find the eigenvalues, judge every sampler, write."""
    check_folder(args.out, "--out")
    if args.data:
        check_source(args.data, "--data")
        check_folder(args.eigenvalues.parent, "--eigenvalues")
        write_eigenvalues(args.eigenvalues, args.data, args.image_size)
    eigenvalues, source = load_eigenvalues(args.eigenvalues)

    from improved_diffusion.script_util import create_gaussian_diffusion

    diffusion = create_gaussian_diffusion(
        steps=args.diffusion_steps, noise_schedule=args.noise_schedule, sigma_small=True
    )
    rows = []
    for label, (sampler, spacing, eta) in SETTINGS.items():
        shares = {n: frechet_share(eigenvalues, diffusion, sampler, n, spacing, eta) for n in args.evaluations}
        rows.append({"label": label, "sampler": sampler, "spacing": spacing, "shares": shares})
        print(f"{label}: " + ", ".join(f"{n}: {share:.2g}" for n, share in shares.items()), flush=True)
    process = {name: getattr(args, name) for name in ("noise_schedule", "diffusion_steps")}
    study = {"eigenvalues": source, "dimensions": len(eigenvalues), **process, "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "study.json", study)
    draw(study, args.out / "exact-score.png")
    write_text(args.out / "README.md", page(study))
    print(f"{args.out / 'README.md'}")


def write_eigenvalues(path: Path, data: str, image_size: int) -> None:
    """Write the eigenvalues of the images' pixel covariance, pixels in [-1, 1], largest first, and their source."""
    import numpy as np
    import torch
    from comparison.data.images import load_images

    images = load_images(data, image_size)
    pixels = images.images.flatten(1)
    mean = sum(part.double().sum(0) for part in pixels.split(2500)) / len(pixels)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in pixels.split(2500):
        centred = (part.double() - mean) / 127.5
        covariance += centred.T @ centred
    eigenvalues = torch.linalg.eigvalsh(covariance / (len(pixels) - 1)).flip(0).clamp(min=0)
    source = f"{images.name}, {len(pixels):,} images of {image_size} pixels, fingerprint {images.fingerprint}"
    with blob.open_file(path, "wb") as file:
        np.savez(file, allow_pickle=False, arr_0=eigenvalues.numpy(), source=np.array(source))


def load_eigenvalues(path: Path) -> tuple["np.ndarray", str]:
    """Return (D,) float64, and where they come from.

    Raises:
        UserError: not a file of eigenvalues.
    """
    import numpy as np

    try:
        with np.load(path) as file:
            values, source = file["arr_0"].astype(np.float64), str(file["source"])
    except Exception as error:  # zipfile, zlib, struct and NumPy raise each their own on a damaged file
        raise UserError(f"--eigenvalues {path}: not a file that --data has written ({error})") from None
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise UserError(f"--eigenvalues {path}: must hold finite numbers of at least 0, not all of them 0")
    if (np.diff(values) > 0).any():
        raise UserError(f"--eigenvalues {path}: must be sorted, the largest first")
    return values, source


def frechet_share(
    eigenvalues: "np.ndarray", diffusion: "GaussianDiffusion", sampler: str, steps: int, spacing: str, eta: float = 0.0
) -> float:
    """Return the squared Frechet distance of what a sampler draws with the exact score, over the total variance.

    Dowson & Landau 1982, for centred Gaussians with a common eigenbasis: the sum of (std - std drawn)^2.

    Args:
        eigenvalues: (D,) float64, of the data's covariance.
        diffusion: the process.
        sampler, steps, spacing, eta: see `improved_diffusion.samplers.sample`.
    """
    import numpy as np
    import torch
    from improved_diffusion.samplers import sample
    from improved_diffusion.solvers import NOISY

    noisy = sampler in NOISY and (sampler != "ddim" or eta > 0)
    # Every step's noise needs an image of its own; the spread is smooth in the eigenvalue, so fewer of them will do.
    count = len(eigenvalues)
    some = np.unique(np.r_[0 : min(64, count), 64:count:12, count - 1]) if noisy else slice(None)
    variance = torch.from_numpy(np.clip(eigenvalues[some], 1e-12, None))
    alpha_bar = torch.from_numpy(diffusion.alphas_cumprod)

    def exact(x: "Tensor", t: "Tensor") -> "Tensor":  # the noise expected in x_t
        level = alpha_bar[t].view(-1, 1, 1, 1)
        return x * (1 - level).sqrt() / (level * variance.view(1, -1, 1, 1) + 1 - level)

    # A sampler is linear here: image 0 shows what becomes of x_T, image k of the noise of the step k from the end.
    impulses = torch.eye(steps if noisy else 1, dtype=torch.float64)[:, :, None, None, None]
    drawn = sample(
        exact,
        diffusion,
        impulses[0].expand(-1, len(variance), 1, 1),
        sampler=sampler,
        num_sampling_steps=steps,
        spacing=spacing,
        eta=eta,
        clip_denoised=False,
        step_noise=lambda step: impulses[step],
    )
    std = drawn.flatten(1).norm(dim=0).numpy()
    std = np.interp(np.log(np.clip(eigenvalues, 1e-12, None))[::-1], variance.log().numpy()[::-1], std[::-1])[::-1]
    return float(((np.sqrt(eigenvalues) - std) ** 2).sum() / eigenvalues.sum())


def draw(study: dict[str, Any], path: Path) -> None:
    """Draw the distance against evaluations, both logarithmic."""
    from comparison.report.plots import DPI, save, tidy
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 4.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for row in study["rows"]:
        look: dict[str, Any] = {"color": LOOKS[row["sampler"]], "linestyle": LINES[row["spacing"]]}
        axes.plot(list(row["shares"]), list(row["shares"].values()), "o", label=row["label"], markersize=3.5, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 250, 1000, 4000) if n in study["rows"][0]["shares"]]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("network evaluations per image (log)")
    axes.set_ylabel("Frechet distance / total variance\n(log, lower is better)")
    tidy(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    save(figure, path)


def page(study: dict[str, Any]) -> str:
    """Return README.md."""
    counts = [n for n in (5, 10, 20, 50, 100, 250, 1000) if n in study["rows"][0]["shares"]]
    counts = counts or list(study["rows"][0]["shares"])
    best = {n: min(row["shares"][n] for row in study["rows"]) for n in counts}
    lines = []
    for row in study["rows"]:
        cells = [f"**{share:.1e}**" if (share := row["shares"][n]) == best[n] else f"{share:.1e}" for n in counts]
        lines.append([row["label"], *cells])
    return "\n".join(
        [
            "# Study: exact score",
            "",
            "What does a sampler lose by taking few steps, if the network makes no error? Frechet distance over total "
            "variance, by network evaluations per image, for Gaussian data whose score is known; nothing is random.",
            "",
            f"Eigenvalues of the pixel covariance: {study['eigenvalues']}. Process: {study['noise_schedule']} "
            f"schedule, {study['diffusion_steps']:,} steps, the posterior's variances for ancestral steps. The best of "
            "each column is bold.",
            "",
            "![Distance against evaluations](exact-score.png)",
            "",
            markdown_table(["sampler, spacing", *(f"{n:,}" for n in counts)], lines),
            "",
            "Spacing decides as much as the solver: `uniform` steps in t waste most evaluations at noise levels where "
            "little is decided. Where a line dips and rises again, errors of opposite sign cancel; where it stays "
            "level, what is left is the cost of the spacing's ends, noise of 80 and 0.01 times the signal. A trained "
            "network adds errors of its own: `results/studies/solvers.py` compares samplers on one.",
            "",
        ]
    )


if __name__ == "__main__":
    run(lambda: main(parse_args()))
