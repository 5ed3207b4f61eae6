"""Errors of samplers on Gaussian data with the exact score, for exact_score.py."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison.cli import UserError
from comparison.data.images import load_images
from comparison.files import write_json, write_text
from comparison.formatting import markdown_table
from comparison.report.plots import DPI, save, tidy
from improved_diffusion.blob import open_file
from improved_diffusion.gaussian_diffusion import GaussianDiffusion
from improved_diffusion.samplers import sample
from improved_diffusion.script_util import create_gaussian_diffusion
from improved_diffusion.solvers import NOISY
from matplotlib.figure import Figure
from torch import Tensor

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


def measure_samplers(args: argparse.Namespace) -> None:
    """Compute the eigenvalues of --data, measure every sampler, and write the study."""
    if args.data:
        write_eigenvalues(args.eigenvalues, args.data, args.image_size)
    eigenvalues, source = load_eigenvalues(args.eigenvalues)
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
    plot(study, args.out / "exact-score.png")
    write_text(args.out / "README.md", page(study))
    print(f"{args.out / 'README.md'}")


def write_eigenvalues(path: Path, data: str, image_size: int) -> None:
    """Write the eigenvalues of the images' pixel covariance, pixels in [-1, 1], largest first, and their source."""
    images = load_images(data, image_size)
    pixels = images.images.flatten(1)
    mean = sum(part.double().sum(0) for part in pixels.split(2500)) / len(pixels)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in pixels.split(2500):
        centred = (part.double() - mean) / 127.5
        covariance += centred.T @ centred
    eigenvalues = torch.linalg.eigvalsh(covariance / (len(pixels) - 1)).flip(0).clamp(min=0)
    source = f"{images.name}, {len(pixels):,} images of {image_size} pixels, fingerprint {images.fingerprint}"
    with open_file(path, "wb") as file:
        np.savez(file, allow_pickle=False, arr_0=eigenvalues.numpy(), source=np.array(source))


def load_eigenvalues(path: Path) -> tuple[np.ndarray, str]:
    """Return the eigenvalues, (D,) float64, and their source.

    Raises:
        UserError: not a file of eigenvalues.
    """
    try:
        with np.load(path) as file:
            values, source = file["arr_0"].astype(np.float64), str(file["source"])
    except Exception as error:  # zipfile, zlib, struct and NumPy raise each their own on a damaged file
        raise UserError(f"--eigenvalues {path}: not a file written by --data ({error})") from None
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise UserError(f"--eigenvalues {path}: must hold finite numbers of at least 0, not all of them 0")
    if (np.diff(values) > 0).any():
        raise UserError(f"--eigenvalues {path}: must be sorted, the largest first")
    return values, source


def frechet_share(
    eigenvalues: np.ndarray, diffusion: GaussianDiffusion, sampler: str, steps: int, spacing: str, eta: float = 0.0
) -> float:
    """Return the squared Frechet distance of samples made with the exact score, over the total variance.

    Dowson & Landau 1982, for centred Gaussians with a common eigenbasis: the sum of (std - std of the samples)^2.

    Args:
        eigenvalues: eigenvalues of the data's covariance, (D,) float64.
        diffusion: the process.
        sampler, steps, spacing, eta: see `improved_diffusion.samplers.sample`.
    """
    noisy = sampler in NOISY and (sampler != "ddim" or eta > 0)
    # The noise of each step needs an image of its own; a subset will do, as the result is smooth in the eigenvalue.
    count = len(eigenvalues)
    some = np.unique(np.r_[0 : min(64, count), 64:count:12, count - 1]) if noisy else slice(None)
    variance = torch.from_numpy(np.clip(eigenvalues[some], 1e-12, None))
    alpha_bar = torch.from_numpy(diffusion.alphas_cumprod)

    def exact(x: Tensor, t: Tensor) -> Tensor:  # the noise expected in x_t
        level = alpha_bar[t].view(-1, 1, 1, 1)
        return x * (1 - level).sqrt() / (level * variance.view(1, -1, 1, 1) + 1 - level)

    # The sampler is linear: image 0 is its response to x_T, image k to the noise of the step k from the end.
    impulses = torch.eye(steps if noisy else 1, dtype=torch.float64)[:, :, None, None, None]
    samples = sample(
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
    std = samples.flatten(1).norm(dim=0).numpy()
    std = np.interp(np.log(np.clip(eigenvalues, 1e-12, None))[::-1], variance.log().numpy()[::-1], std[::-1])[::-1]
    return float(((np.sqrt(eigenvalues) - std) ** 2).sum() / eigenvalues.sum())


def plot(study: dict[str, Any], path: Path) -> None:
    """Plot the distance against evaluations, both logarithmic."""
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
    """Return the content of README.md."""
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
            "network adds errors of its own: `results/studies/few_steps.py` compares samplers on one.",
            "",
        ]
    )
