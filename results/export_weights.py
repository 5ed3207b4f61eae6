"""Write the weights that a run is sampled with into weights.safetensors, in float16, a tenth of a checkpoint's size.

    python results/export_weights.py results/runs/gans/cifar10-jpeg-cpu

Every sampling script reads the file: --checkpoint pretrained:cifar10-jpeg-cpu. Without optimizers, training cannot go
on from it.
"""

import argparse

from comparison import cli
from comparison.checkpoints import load_checkpoint, load_torch, newest, trained_facts
from comparison.cli import UserError
from comparison.models import DDGAN, DDPM, GAN, MODELS, newest_checkpoint
from comparison.runs import read_config
from comparison.weights import NAME, save_weights

KEPT = {  # parts of a checkpoint that its sampling script reads
    GAN: ("model", "config", "step", "images_seen", "wall_seconds", "generator", "ema"),
    DDGAN: ("model", "kind", "config", "step", "images_seen", "generator"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=cli.local_path, metavar="RUN", help="run folder")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Export each run."""
    names = [str(read_config(run / "config.json").get("model")) for run in args.runs]
    for run, name in zip(args.runs, names, strict=True):
        if name not in MODELS:
            raise UserError(f"{run}: a run of {name}, not of {', '.join(MODELS)}")
    for run, name in zip(args.runs, names, strict=True):
        model = MODELS[name]
        checkpoint = (newest(run, model.best) if model.best else None) or newest_checkpoint(model, run)
        if name == DDPM:  # a plain state dict
            step = int(checkpoint.stem.rpartition("_")[2])
            payload = {"model": name, **trained_facts(run, step), "ema": load_torch(checkpoint)}
        else:
            content = load_checkpoint(checkpoint, model=name)
            if missing := [part for part in KEPT[name] if part not in content]:
                raise UserError(f"{checkpoint}: damaged; it has no {missing[0]}")
            payload = {part: content[part] for part in KEPT[name]}
            if payload.get("ema"):
                payload["generator"] = None  # the average is sampled
        save_weights(run / NAME, payload)
        print(f"{run / NAME}: {(run / NAME).stat().st_size / 1e6:.1f} MB, from {checkpoint.name}")


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
