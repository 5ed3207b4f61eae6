"""Sample every model from the weights of export_weights.py into one picture, with the time per image of each.

    python results/sample_all.py --name cifar10-jpeg-cpu

Reads results/runs/<model>/<name>/weights.safetensors. Runs whose names begin
with --name and a hyphen, as that of another GAN, get a row too. Writes the picture to --out, and the samples of each
run into its folder pretrained/.
"""

import argparse
import re
from pathlib import Path

from comparison import cli, formatting, jobs
from comparison.cli import UserError
from comparison.models import MODELS, Model, label_of, preset_flags
from comparison.runs import read_config
from comparison.weights import NAME, out_folder

PRESET = "cpu"  # whose sampler is used


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--name", type=cli.run_name, default="cifar10-jpeg-cpu", help="name of the runs")
    add("--num_samples", type=cli.positive_int, default=16, help="images per model")
    add("--seed", type=cli.non_negative_int, default=0, help="seed of the noise")
    add("--out", type=cli.local_path, help="PNG to write; default: results/samples-<name>.png")
    cli.add_device_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Sample each run, and draw the picture."""
    out = args.out or cli.repo_root() / "results" / f"samples-{args.name}.png"
    if out.suffix != ".png":
        raise UserError(f"--out {out}: must end in .png")
    cli.check_folder(out.parent, "--out")
    found = find_weights(args.name)
    if not found:
        raise UserError(f"--name {args.name}: no run of this name has a {NAME}")
    preset = preset_flags(PRESET)
    flags = ["--num_samples", str(args.num_samples), "--seed", str(args.seed), "--device", args.device]
    flags += ["--precision", args.precision, "--threads", str(args.threads)]
    rows = []
    for model, path in found:
        own = [word for variable in model.sample_flags for word in preset[variable]]
        folder = out_folder(path)
        command = [model.sample, "--checkpoint", str(path), "--out", str(folder / model.samples), *own, *flags]
        jobs.run(command, folder / "console.txt")
        rows.append((model, path.parent, folder))
    draw(rows, args.name, args.num_samples, out)
    print(out)


def find_weights(name: str) -> list[tuple[Model, Path]]:
    """Return the models and weights of the runs called `name` or `name`-..., except further seeds, by model."""
    runs = cli.repo_root() / "results" / "runs"
    found = []
    for model in MODELS.values():
        paths = [*runs.glob(f"{model.name}/{name}/{NAME}"), *sorted(runs.glob(f"{model.name}/{name}-*/{NAME}"))]
        found += [(model, path) for path in paths if not re.fullmatch(r".+-s\d+", path.parent.name)]
    return found


def draw(rows: list[tuple[Model, Path, Path]], name: str, count: int, out: Path) -> None:
    """Draw the samples of each model under its label, evaluations and time per image.

    The title of a run with another name than `name` has that too.
    """
    from comparison.data.images import load_npz
    from comparison.files import read_json
    from comparison.png import grid
    from comparison.report.pictures import Sheet, draw_sheets
    from comparison.scores.evaluation import find_samples

    sheets = []
    for model, run, folder in rows:
        label = label_of(model.name, read_config(run / "config.json")["options"].get("preset"))
        facts = read_json(folder / "sampling.json")
        plural = "" if facts["nfe"] == 1 else "s"
        each = formatting.seconds(facts["seconds_per_image"])
        of_run = "" if run.name == name else f" ({run.name})"
        title = f"{label}{of_run}: {facts['nfe']:g} evaluation{plural}, {each} per image"
        images = load_npz(find_samples(folder))[0][:count]
        sheets.append(Sheet(title, model.colour, grid(images)))
    draw_sheets(sheets, out)


if __name__ == "__main__":
    cli.run(lambda: main(parse_args()))
