"""Generate images with a trained network: the samplers by their flags, for image_sample.py and super_res_sample.py."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from comparison.cli import UserError
from comparison.rng import SampleNoise
from comparison.sampling.draw import check_sample_space, draw_samples
from comparison.sampling.interpolation import COLUMNS, WalkNoise, draw_interpolation
from comparison.sampling.timing import write_benchmark
from improved_diffusion.dist_util import get_rank
from improved_diffusion.few_steps import sample_few_steps
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.samplers import classifier_free, sample
from improved_diffusion.script_util import create_model_and_diffusion
from model_loading import LoadedModel, connected_device, load_model
from model_options import MODEL, out_folder, training_of
from sampler_flags import Sampler
from torch import nn


def sample_images(args: argparse.Namespace, flags: dict[str, Any], sampler: Sampler) -> int:
    """Generate images, or measure the time that takes, as image_sample.py is asked to; return the exit status."""
    with connected_device(args) as device:
        loaded = load_model(args, flags, create_model_and_diffusion, device)
        if args.class_label is not None and args.class_label >= loaded.num_classes:
            raise UserError(f"--class_label {args.class_label}: the model has classes 0 to {loaded.num_classes - 1}")
        size = flags["image_size"]
        source = ImageSource(loaded, sampler, size, args.seed, args.class_label)
        facts = {"model": MODEL, "sampler": source.describe(), **loaded.metadata, "seed": args.seed}
        facts["clip_denoised"] = args.clip_denoised
        common: dict[str, Any] = {"image_size": size, "device": device, "facts": facts}
        out_dir = out_folder(args)
        if args.benchmark:
            if get_rank() == 0:
                options = {**common, "min_seconds": args.benchmark_seconds}
                write_benchmark(out_dir / "timing.json", source.sample, [loaded.network], source.evaluate, **options)
            return 0
        out = out_dir / f"samples_{args.num_samples}x{size}x{size}x3.npz"
        check_sample_space(out, args.num_samples, size)
        labels = source.labels(range(args.num_samples))
        draw_samples(
            source.sample,
            [loaded.network],
            num_samples=args.num_samples,
            batch_size=args.batch_size,
            out=out,
            trained=training_of(args.model_path),
            labels=None if labels is None else labels.numpy(),
            **common,
        )
        print(f"{args.num_samples} images ({facts['sampler']}): {out}")
        if args.interpolation and get_rank() == 0:
            walks = source.without_eta()
            draw_interpolation(out_dir, walks.sample_walk, latent="x_T", sampler=walks.describe())
        return 0


def run_sampler(
    sampler: Sampler,
    network: nn.Module,
    diffusion: SpacedDiffusion,
    shape: tuple[int, int, int],
    noise: SampleNoise,
    model_kwargs: dict[str, Any] | None = None,
) -> torch.Tensor:
    """Generate images.

    Args:
        sampler: sampler settings.
        network: the network on its device.
        diffusion: its process, respaced where `sampler.spacing` is None.
        shape: (C, H, W).
        noise: noise of N images: `x_T`, and by number that of each step that adds noise.
        model_kwargs: keyword arguments of the network.

    Returns:
        (N, C, H, W) float32.
    """
    guidance = sampler.guidance_scale
    model: Callable[..., torch.Tensor] = network if guidance is None else classifier_free(network, guidance)
    x = noise.normal(shape, "x_T")
    common: dict[str, Any] = {"clip_denoised": sampler.clip_denoised, "model_kwargs": model_kwargs}
    if sampler.levels:
        return sample_few_steps(model, diffusion, sampler.levels, x, **common)
    common["step_noise"] = lambda step: noise.normal(shape, step)
    if sampler.spacing is not None:
        common |= {"sampler": sampler.name, "num_sampling_steps": sampler.steps, "spacing": sampler.spacing}
        common |= {"eta": sampler.eta, "sigma_max": sampler.sigma_max}
        return sample(model, diffusion, x, **common)
    if sampler.name == "ddim":
        return diffusion.ddim_sample_loop(model, x.shape, noise=x, eta=sampler.eta, **common)
    return diffusion.p_sample_loop(model, x.shape, noise=x, **common)


@dataclass(frozen=True)
class ImageSource:
    """Generated images by number.

    Attributes:
        loaded: network and process.
        sampler: sampler settings.
        image_size: S, pixels.
        seed: seed of the noise and the classes.
        class_label: class of all images; None for random classes.
    """

    loaded: LoadedModel
    sampler: Sampler
    image_size: int
    seed: int
    class_label: int | None = None

    def without_eta(self) -> "ImageSource":
        """Return the source with DDIM's noise at 0, so that a path between noises gives a path between images."""
        return replace(self, sampler=replace(self.sampler, eta=0.0))

    def describe(self) -> str:
        """Return the sampler and the class as text."""
        text = self.sampler.describe()
        return text if self.class_label is None else f"{text}, class {self.class_label}"

    def labels(self, indices: range) -> torch.Tensor | None:
        """Return the classes of some images, (N,) int64 on the CPU, the same for every device; None for none."""
        if not self.loaded.num_classes:
            return None
        if self.class_label is not None:
            return torch.full((len(indices),), self.class_label)
        return SampleNoise(self.seed, indices, "cpu").randint(self.loaded.num_classes, "class")

    def sample(self, indices: range) -> torch.Tensor:
        """Return images, (N, 3, S, S) float32."""
        return self._sample(SampleNoise(self.seed, indices, self.loaded.device), self.labels(indices))

    def sample_walk(self, walk: int) -> torch.Tensor:
        """Return a row of interpolation.png: x_T changes, the class and the noise of the steps do not."""
        labels = self.labels(range(2 * walk, 2 * walk + 1))
        labels = None if labels is None else labels.repeat(COLUMNS)
        return self._sample(WalkNoise(self.seed, walk, self.loaded.device, "x_T"), labels)

    def evaluate(self, batch_size: int) -> torch.Tensor:
        """Evaluate the network once, for timing."""
        device = self.loaded.device
        x = torch.randn(batch_size, 3, self.image_size, self.image_size, device=device)
        t = torch.zeros(batch_size, dtype=torch.int64, device=device)
        with self.loaded.autocast():
            return self.loaded.network(x, t, **({"y": t} if self.loaded.num_classes else {}))

    def _sample(self, noise: SampleNoise, labels: torch.Tensor | None) -> torch.Tensor:
        condition = {} if labels is None else {"y": labels.to(self.loaded.device)}
        shape = (3, self.image_size, self.image_size)
        # Around all steps, so that the weights are cast once, not at every step, unless evaluations are recorded.
        with self.loaded.autocast():
            return run_sampler(self.sampler, self.loaded.network, self.loaded.diffusion, shape, noise, condition)
