#!/usr/bin/env python3
"""Draw images from an improved diffusion model.

    python improved-diffusion/scripts/image_sample.py $DIFFUSION_FLAGS $MODEL_FLAGS --num_samples 1024 \\
        --model_path results/runs/improved-diffusion/cifar_train-32/ema_0.9999_005000.pt

The network is rebuilt from the config.json beside the model's file; flags that disagree with it are an error. For a
file without config.json (OpenAI's published ones) the flags say what it is. Beside the model's file (--out_dir, else
OPENAI_LOGDIR) it writes samples_<N>x<H>x<W>x<C>.npz, samples.png and sampling.json. A call that was cut short is
continued by the same call. Image i of a seed is the same whatever the batch size.
"""

import argparse
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.cli import (
    UserError,
    add_device_options,
    fraction,
    make_parser,
    non_negative_int,
    positive_int,
    run,
    str2bool,
)
from comparison.runs import read_json
from improved_diffusion.script_util import (
    add_dict_to_argparser,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from run_files import MODEL, choose_dtype, judge_flags, load_network, load_state, place

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
    add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Judge the flags, rebuild the network, draw."""
    if not args.model_path.is_file():
        raise UserError(f"--model_path {args.model_path}: no such file")
    if args.eta and not args.use_ddim:
        raise UserError("--eta needs --use_ddim True")
    flags = run_flags(args)
    judge_flags(flags, args)
    out_dir = args.out_dir or Path(os.environ.get("OPENAI_LOGDIR") or args.model_path.parent)

    import torch
    from comparison import device as devices
    from comparison.rng import SampleNoise
    from comparison.sampling import draw_samples

    device = devices.pick_device(args.device)
    devices.set_threads(args.threads)
    dtype = choose_dtype(args.precision, args.use_fp16, device)
    state = load_state(args.model_path)
    num_classes = len(state["label_emb.weight"]) if "label_emb.weight" in state else 0
    model, diffusion = create_model_and_diffusion(**flags, num_classes=num_classes)
    load_network(model, args.model_path)
    place(model, device, dtype)
    model.eval()

    size = flags["image_size"]
    labels = (
        SampleNoise(args.seed, range(args.num_samples), "cpu").randint(num_classes, "class") if num_classes else None
    )

    def draw(indices: range) -> torch.Tensor:
        noise = SampleNoise(args.seed, indices, device)
        x = noise.normal((3, size, size), "x_T")
        common: dict[str, Any] = {"noise": x, "clip_denoised": args.clip_denoised}
        common["step_noise"] = lambda t: noise.normal((3, size, size), t)
        if labels is not None:
            common["model_kwargs"] = {"y": labels[indices.start : indices.stop].to(device)}
        # Around all steps, so that the weights are cast once, not at every step.
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            if args.use_ddim:
                return diffusion.ddim_sample_loop(model, x.shape, eta=args.eta, **common)
            return diffusion.p_sample_loop(model, x.shape, **common)

    eta = f", eta {args.eta:g}" if args.use_ddim else ""
    facts = {
        "model": MODEL,
        "sampler": f"{'DDIM' if args.use_ddim else 'ancestral'}, {diffusion.num_timesteps} steps{eta}",
        "checkpoint": args.model_path.name,
        "checkpoint_sha256": hashlib.sha256(args.model_path.read_bytes()).hexdigest()[:16],
        "network": "ema" if args.model_path.name.startswith("ema_") else "raw",
        "clip_denoised": args.clip_denoised,
        "seed": args.seed,
        "precision": devices.precision_name(dtype),
    }
    out = draw_samples(
        draw,
        [model],
        num_samples=args.num_samples,
        batch_size=args.batch_size,
        out=out_dir / f"samples_{args.num_samples}x{size}x{size}x3.npz",
        image_size=size,
        device=device,
        facts=facts,
        labels=None if labels is None else labels.numpy(),
    )
    print(f"{args.num_samples} images ({facts['sampler']}): {out}")
    return 0


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
    run(lambda: main(parse_args()))
