#!/usr/bin/env python3
"""Draw images from an improved diffusion model.

    python improved-diffusion/scripts/image_sample.py $DIFFUSION_FLAGS $MODEL_FLAGS --num_samples 1024 \\
        --model_path results/runs/improved-diffusion/cifar_train-32/ema_0.9999_005000.pt
    python improved-diffusion/scripts/image_sample.py --model_path path/to/ema_0.9999_005000.pt --sampler unipc

The network is rebuilt from the config.json beside the model's file; flags that disagree with it are an error. For a
file without config.json (OpenAI's published ones) the flags say what it is. Beside the model's file (--out_dir, else
OPENAI_LOGDIR) it writes samples_<N>x<H>x<W>x<C>.npz, samples.png and sampling.json, with --interpolation also
interpolation.png, with --trajectory also trajectory.png; with --benchmark it writes timing.json instead. A call that
was cut short is continued by the same call. Image i of a seed is the same whatever the batch size.

Guidance: Ho & Salimans 2022. Samplers: see `improved_diffusion.solvers`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comparison.cli import (
    UserError,
    add_device_options,
    add_sampling_extras,
    make_parser,
    non_negative_int,
    positive_int,
    run,
)
from improved_diffusion.dist_util import is_main, run_guarded
from improved_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from remote import with_local_paths
from run_files import MODEL, training_of
from sampler_flags import Sampler, add_guidance_flag, add_sampler_flags, judge_guidance, judge_sampler
from trained import Trained, add_checkpoint_flags, add_network_flags, load_trained, out_folder, run_flags

if TYPE_CHECKING:
    import torch
    from comparison.rng import SampleNoise


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    add_network_flags(parser, model_and_diffusion_defaults())
    add_checkpoint_flags(parser)
    add = parser.add_argument_group("sampling").add_argument
    add("--num_samples", type=positive_int, default=10000, help="images to draw")
    add("--batch_size", type=positive_int, default=64, help="images drawn at a time")
    add("--seed", type=non_negative_int, default=0, help="of the noise, and of the classes of conditional models")
    add("--class_label", type=non_negative_int, help="draw only this class, by number; by default random ones")
    add("--trajectory", action="store_true", help="also write trajectory.png: how 8 images come out of the noise")
    add_sampler_flags(parser)
    add_guidance_flag(parser)
    add_sampling_extras(parser)
    add_device_options(parser)
    args = parser.parse_args(argv)
    if args.benchmark and args.trajectory:
        parser.error("argument --trajectory: not allowed with argument --benchmark")
    return args


@with_local_paths
def main(args: argparse.Namespace) -> int:
    """Judge the flags, rebuild the network, draw or measure."""
    flags = run_flags(args, model_and_diffusion_defaults(), MODEL)
    sampler = judge_sampler(args, flags)
    judge_class_label(args, flags)
    judge_guidance(args, flags)

    from comparison.sampling.draw import draw_samples
    from comparison.sampling.timing import write_benchmark

    trained = load_trained(args, flags, create_model_and_diffusion)
    if args.class_label is not None and args.class_label >= trained.num_classes:
        raise UserError(f"--class_label {args.class_label}: the model knows the classes 0 to {trained.num_classes - 1}")
    size = flags["image_size"]
    source = ImageSource(trained, sampler, size, args.seed, args.class_label, args.guidance_scale)
    facts = {"model": MODEL, "sampler": source.describe(), **trained.facts, "seed": args.seed}
    facts["clip_denoised"] = args.clip_denoised
    common: dict[str, Any] = {"image_size": size, "device": trained.device, "facts": facts}
    out_dir = out_folder(args)
    if args.benchmark:
        if is_main():
            options = {**common, "min_seconds": args.benchmark_seconds}
            write_benchmark(out_dir / "timing.json", source.draw, [trained.network], source.evaluate, **options)
        return 0
    labels = source.labels(range(args.num_samples))
    out = draw_samples(
        source.draw,
        [trained.network],
        num_samples=args.num_samples,
        batch_size=args.batch_size,
        out=out_dir / f"samples_{args.num_samples}x{size}x{size}x3.npz",
        trained=training_of(args.model_path),
        labels=None if labels is None else labels.numpy(),
        **common,
    )
    print(f"{args.num_samples} images ({facts['sampler']}): {out}")
    if args.interpolation and is_main():
        from comparison.sampling.interpolation import draw_interpolation

        walks = source.without_eta()
        draw_interpolation(out_dir, walks.draw_walk, latent="x_T", sampler=walks.describe())
    if args.trajectory and is_main():
        from trajectory import draw_trajectory

        draw_trajectory(out_dir, source.draw, sampler.steps, sampler=facts["sampler"], seed=args.seed)
    return 0


def judge_class_label(args: argparse.Namespace, flags: dict[str, Any]) -> None:
    """Refuse a class for a network that knows none; without torch.

    Raises:
        UserError: so.
    """
    if args.class_label is not None and not flags["class_cond"]:
        raise UserError(f"--class_label {args.class_label} needs a class-conditional model (--class_cond True)")


class ImageSource:
    """Images of a seed by number.

    Args:
        trained: the network and its process.
        sampler: how to step.
        image_size: S, pixels.
        seed: of the noise and the classes.
        class_label: of all images; None for random ones.
        guidance_scale: None for no guidance.
    """

    def __init__(
        self,
        trained: Trained,
        sampler: Sampler,
        image_size: int,
        seed: int,
        class_label: int | None = None,
        guidance_scale: float | None = None,
    ):
        from improved_diffusion.samplers import classifier_free

        self._trained, self._sampler, self._size, self._seed = trained, sampler, image_size, seed
        self._class_label, self._guidance_scale = class_label, guidance_scale
        self._model = trained.network if guidance_scale is None else classifier_free(trained.network, guidance_scale)

    def without_eta(self) -> "ImageSource":
        """Return the same with DDIM's noise at 0, so that a path through the noises gives a path of images."""
        settings = (self._size, self._seed, self._class_label, self._guidance_scale)
        return ImageSource(self._trained, replace(self._sampler, eta=0.0), *settings)

    def describe(self) -> str:
        """Return the sampler in words, with what else decides what is drawn."""
        words = [self._sampler.describe()]
        words += [] if self._guidance_scale is None else [f"guidance {self._guidance_scale:g}"]
        words += [] if self._class_label is None else [f"class {self._class_label}"]
        return ", ".join(words)

    def labels(self, indices: range) -> "torch.Tensor | None":
        """Draw the classes of some images, (N,) int64 on the CPU: the same on every device."""
        import torch
        from comparison.rng import SampleNoise

        if not self._trained.num_classes:
            return None
        if self._class_label is not None:
            return torch.full((len(indices),), self._class_label)
        return SampleNoise(self._seed, indices, "cpu").randint(self._trained.num_classes, "class")

    def draw(
        self, indices: range, on_step: "Callable[[int, torch.Tensor, torch.Tensor], object] | None" = None
    ) -> "torch.Tensor":
        """Draw samples, (N, 3, S, S) float32; `on_step` as in `Sampler.draw`."""
        from comparison.rng import SampleNoise

        return self._draw(SampleNoise(self._seed, indices, self._trained.device), self.labels(indices), on_step)

    def draw_walk(self, walk: int) -> "torch.Tensor":
        """Draw a row of interpolation.png: x_T changes, the class and the noise of the steps do not."""
        from comparison.sampling.interpolation import COLUMNS, WalkNoise

        labels = self.labels(range(2 * walk, 2 * walk + 1))
        labels = None if labels is None else labels.repeat(COLUMNS)
        return self._draw(WalkNoise(self._seed, walk, self._trained.device, "x_T"), labels)

    def evaluate(self, batch_size: int) -> "torch.Tensor":
        """Evaluate the network once on so many images."""
        import torch

        device = self._trained.device
        x = torch.randn(batch_size, 3, self._size, self._size, device=device)
        t = torch.zeros(batch_size, dtype=torch.int64, device=device)
        with self._trained.autocast():
            return self._trained.network(x, t, **({"y": t} if self._trained.num_classes else {}))

    def _draw(self, noise: "SampleNoise", labels: "torch.Tensor | None", on_step: Any = None) -> "torch.Tensor":
        condition = {} if labels is None else {"y": labels.to(self._trained.device)}
        shape = (3, self._size, self._size)
        # Around all steps, so that the weights are cast once, not at every step, unless evaluations are recorded.
        with self._trained.autocast():
            return self._sampler.draw(self._model, self._trained.diffusion, shape, noise, condition, on_step)


if __name__ == "__main__":
    run(lambda: run_guarded(lambda: main(parse_args())))
