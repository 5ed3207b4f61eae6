#!/usr/bin/env python3
"""Draw images from an improved diffusion model.

    python improved-diffusion/scripts/image_sample.py $DIFFUSION_FLAGS $MODEL_FLAGS --num_samples 1024 \\
        --model_path results/runs/improved-diffusion/cifar_train-32/ema_0.9999_005000.pt

The network is rebuilt from the config.json beside the model's file; flags that disagree with it are an error. For a
file without config.json (OpenAI's published ones) the flags say what it is. Beside the model's file (--out_dir, else
OPENAI_LOGDIR) it writes samples_<N>x<H>x<W>x<C>.npz, samples.png and sampling.json, with --interpolation also
interpolation.png; with --benchmark it writes timing.json instead. A call that was cut short is continued by the same
call. Image i of a seed is the same whatever the batch size.
"""

import argparse
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.cli import (
    UserError,
    add_device_options,
    add_sampling_extras,
    fraction,
    make_parser,
    non_negative_int,
    positive_int,
    run,
    str2bool,
)
from comparison.runs import read_json
from improved_diffusion.dist_util import is_main, run_guarded
from improved_diffusion.script_util import (
    add_dict_to_argparser,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from run_files import MODEL, choose_dtype, connect, judge_flags, load_network, load_state, place, training_of

if TYPE_CHECKING:
    import torch
    from comparison.rng import SampleNoise
    from improved_diffusion.respace import SpacedDiffusion

    Sample = Callable[[SampleNoise, torch.Tensor | None, float], torch.Tensor]

# Flags that may differ from training's: how many steps are taken, and what only training uses.
SAMPLING_FLAGS = frozenset({"timestep_respacing", "use_checkpoint"})


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; flags of the network and the process appear in the result only where given."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group("model and process, by default those of the run")
    add_dict_to_argparser(group, model_and_diffusion_defaults())
    for action in group._group_actions:
        action.default = argparse.SUPPRESS
    add = parser.add_argument_group("sampling").add_argument
    add("--model_path", type=Path, required=True, help="model<step>.pt or ema_<rate>_<step>.pt")
    add("--num_samples", type=positive_int, default=10000, help="images to draw")
    add("--batch_size", type=positive_int, default=64, help="images drawn at a time")
    add("--use_ddim", type=str2bool, default=False, help="DDIM instead of ancestral steps")
    add("--eta", type=fraction, default=0.0, help="DDIM's noise, 0 for none to 1 for as much as ancestral steps add")
    add("--clip_denoised", type=str2bool, default=True, help="clip each predicted image to [-1, 1]")
    add("--seed", type=non_negative_int, default=0, help="of the noise, and of the classes of conditional models")
    add("--use_fp16", type=str2bool, help="compute in bf16 where the device can, else fp16 on CUDA, else float32")
    add("--out_dir", type=Path, help="output folder; by default OPENAI_LOGDIR, else the model file's folder")
    add_sampling_extras(parser)
    add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Judge the flags, rebuild the network, draw or measure."""
    if not args.model_path.is_file():
        raise UserError(f"--model_path {args.model_path}: no such file")
    if args.eta and not args.use_ddim:
        raise UserError("--eta needs --use_ddim True")
    flags = run_flags(args)
    judge_flags(flags, args)
    out_dir = args.out_dir or Path(os.environ.get("OPENAI_LOGDIR") or args.model_path.parent)

    from comparison import device as devices
    from comparison.sampling import draw_samples
    from comparison.timing import write_benchmark

    device = connect(args.device, args.threads)
    dtype = choose_dtype(args.precision, args.use_fp16, device)
    state = load_state(args.model_path)
    num_classes = len(state["label_emb.weight"]) if "label_emb.weight" in state else 0
    model, diffusion = create_model_and_diffusion(**flags, num_classes=num_classes)
    load_network(model, args.model_path)
    place(model, device, dtype)
    model.eval()
    size = flags["image_size"]
    sample = make_sampler(model, diffusion, size, dtype, args.use_ddim, args.clip_denoised)
    source = ImageSource(sample, args.seed, num_classes, args.eta, device)
    facts = {
        "model": MODEL,
        "sampler": describe_sampler(args.use_ddim, diffusion.num_timesteps, args.eta),
        "checkpoint": args.model_path.name,
        "checkpoint_sha256": hashlib.sha256(args.model_path.read_bytes()).hexdigest()[:16],
        "network": "ema" if args.model_path.name.startswith("ema_") else "raw",
        "clip_denoised": args.clip_denoised,
        "seed": args.seed,
        "precision": devices.precision_name(dtype),
    }
    common: dict[str, Any] = {"image_size": size, "device": device, "facts": facts}
    if args.benchmark:
        if not is_main():
            return 0
        evaluate = make_evaluation(model, size, num_classes, device, dtype)
        timing = out_dir / "timing.json"
        write_benchmark(timing, source.draw, [model], evaluate, **common, min_seconds=args.benchmark_seconds)
        return 0
    labels = source.labels(range(args.num_samples))
    out = draw_samples(
        source.draw,
        [model],
        num_samples=args.num_samples,
        batch_size=args.batch_size,
        out=out_dir / f"samples_{args.num_samples}x{size}x{size}x3.npz",
        trained=training_of(args.model_path),
        labels=None if labels is None else labels.numpy(),
        **common,
    )
    print(f"{args.num_samples} images ({facts['sampler']}): {out}")
    if args.interpolation and is_main():
        from comparison.interpolation import draw_interpolation

        walk_sampler = describe_sampler(args.use_ddim, diffusion.num_timesteps, 0.0)
        draw_interpolation(out_dir, source.draw_walk, latent="x_T", sampler=walk_sampler)
    return 0


class ImageSource:
    """Images of a seed by number.

    Args:
        sample: what `make_sampler` returned.
        seed: of the noise and the classes.
        num_classes: 0 for an unconditional network.
        eta: DDIM's noise.
        device: where the noise is drawn.
    """

    def __init__(self, sample: "Sample", seed: int, num_classes: int, eta: float, device: "torch.device"):
        self._sample, self._seed, self._num_classes, self._eta, self._device = sample, seed, num_classes, eta, device

    def labels(self, indices: range) -> "torch.Tensor | None":
        """Draw the classes of some images, (N,) int64 on the CPU: the same on every device."""
        from comparison.rng import SampleNoise

        noise = SampleNoise(self._seed, indices, "cpu")
        return noise.randint(self._num_classes, "class") if self._num_classes else None

    def draw(self, indices: range) -> "torch.Tensor":
        """Draw samples."""
        from comparison.rng import SampleNoise

        return self._sample(SampleNoise(self._seed, indices, self._device), self.labels(indices), self._eta)

    def draw_walk(self, walk: int) -> "torch.Tensor":
        """Draw a row of interpolation.png: x_T changes, the class and the noise of ancestral steps do not."""
        from comparison.interpolation import COLUMNS, WalkNoise

        labels = self.labels(range(2 * walk, 2 * walk + 1))
        labels = None if labels is None else labels.repeat(COLUMNS)
        return self._sample(WalkNoise(self._seed, walk, self._device, "x_T"), labels, 0.0)


def describe_sampler(use_ddim: bool, steps: int, eta: float) -> str:
    """Return the sampler in words, for sampling.json."""
    return f"DDIM, {steps} steps, eta {eta:g}" if use_ddim else f"ancestral, {steps} steps"


def make_sampler(
    model: "torch.nn.Module",
    diffusion: "SpacedDiffusion",
    image_size: int,
    dtype: "torch.dtype | None",
    use_ddim: bool,
    clip_denoised: bool,
) -> "Sample":
    """Return the function that draws images from noise.

    Args:
        model: on its device, in eval mode.
        diffusion: the process, with the steps that are to be taken.
        image_size: S, pixels.
        dtype: of autocast; None computes in float32.
        use_ddim: DDIM instead of ancestral steps.
        clip_denoised: clip each predicted image to [-1, 1].

    Returns:
        A function from the noise of N images, their classes ((N,) int64 or None) and DDIM's eta to (N, 3, S, S)
        float32. It asks for the noise `x_T` and, for steps that add some, for that of each step.
    """
    import torch

    def sample(noise: "SampleNoise", labels: torch.Tensor | None, eta: float) -> torch.Tensor:
        x = noise.normal((3, image_size, image_size), "x_T")
        common: dict[str, Any] = {"noise": x, "clip_denoised": clip_denoised}
        common["step_noise"] = lambda t: noise.normal((3, image_size, image_size), t)
        if labels is not None:
            common["model_kwargs"] = {"y": labels.to(x.device)}
        # Around all steps, so that the weights are cast once, not at every step.
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            if use_ddim:
                return diffusion.ddim_sample_loop(model, x.shape, eta=eta, **common)
            return diffusion.p_sample_loop(model, x.shape, **common)

    return sample


def make_evaluation(
    model: "torch.nn.Module", image_size: int, num_classes: int, device: "torch.device", dtype: "torch.dtype | None"
) -> "Callable[[int], torch.Tensor]":
    """Return the function that evaluates the network once on so many images."""
    import torch

    def evaluate(batch_size: int) -> torch.Tensor:
        x = torch.randn(batch_size, 3, image_size, image_size, device=device)
        t = torch.zeros(batch_size, dtype=torch.int64, device=device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return model(x, t, **({"y": t} if num_classes else {}))

    return evaluate


def run_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Merge the flags given with those of the run that wrote the model's file.

    Raises:
        UserError: they disagree, or the folder is a run of another model.
    """
    defaults = model_and_diffusion_defaults()
    given = {name: value for name, value in vars(args).items() if name in defaults}
    path = args.model_path.parent / "config.json"
    if not path.is_file():
        return {**defaults, **given}
    config = read_json(path)
    if config.get("model") != MODEL:
        raise UserError(f"--model_path {args.model_path}: of a run of {config.get('model')}, not of {MODEL}")
    trained = {name: value for name, value in config["options"].items() if name in defaults}
    for name, value in given.items():
        if name not in SAMPLING_FLAGS and trained.get(name, defaults[name]) != value:
            raise UserError(f"--{name} {value}: the model was trained with {trained.get(name, defaults[name])}")
    return {**defaults, **trained, **given}


if __name__ == "__main__":
    run(lambda: run_guarded(lambda: main(parse_args())))
