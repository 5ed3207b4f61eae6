"""Score samples against training images, with controls and intervals; downloads nothing.

  python results/evaluate.py results/runs/gans/cifar10 --reference data/train --num_images 5000 \
    --anchors results/reports/cifar10/anchors.json
  python results/evaluate.py my_samples.zip --reference cifar10 --json scores.json

Each RUN is a run folder (its newest samples*.npz, and those in settings/* and history/*), an .npz file with arr_0
(N, H, W, 3) uint8, a .zip file or a folder of images. Writes metrics.json and neighbours.png into each run folder and
the controls into --anchors, and prints one table. Results of the same samples, reference and settings are reused.

Distances use the features of the project's CIFAR-10 classifier (--features cifar) or a fixed random embedding (random).
They are relative within one report, not comparable with published results. --standard adds FID, KID and inception
score, if the standard Inception weights are available. Metrics: Heusel et al. 2017 (Frechet), Binkowski et al. 2018
(kernel), Kynkaanniemi et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage), Bonneel et al. 2015
(sliced Wasserstein).
"""

import argparse
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.cli import UserError, check_folder, device_name, make_parser, non_negative_int, positive_int, run
from comparison.data.sources import DATA_HELP, check_source
from comparison.files import write_json
from comparison.scores.inception import check_weights, find_weights, require  # torch only when they compute
from comparison.scores.statistics import read_statistics


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folder, .npz or .zip file, or folder of images")
    add("--reference", required=True, metavar="SOURCE", help=f"training data: {DATA_HELP}")
    add("--image_size", type=positive_int, default=32, help="pixels of samples and reference")
    images = "images per row and of the reference; with --anchors at most half of the training images"
    add("--num_images", type=positive_int, default=5000, metavar="N", help=images)
    features = "feature extractor; auto is cifar for images of CIFAR-10's ten classes, else random"
    add("--features", choices=["auto", "cifar", "random"], default="auto", help=features)
    add("--seed", type=non_negative_int, default=0, help="seed that chooses the reference and the scored samples")
    add("--anchors", type=Path, metavar="FILE", help="controls' file, .json, written or reused")
    add("--json", type=Path, metavar="FILE", help="also write all scores into this file")
    group = parser.add_argument_group("standard metrics")
    group.add_argument("--standard", action="store_true", help="add FID, KID, inception score, precision and recall")
    group.add_argument("--inception_weights", type=Path, metavar="FILE", help="standard weights; implies --standard")
    statistics = "mu and sigma of the reference, .npz or .npy; implies --standard"
    group.add_argument("--fid_stats", type=Path, metavar="FILE", help=statistics)
    add("--device", type=device_name, default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--threads", type=non_negative_int, default=0, help="CPU threads, 0 for all cores")
    args = parser.parse_args(argv)
    args.standard = args.standard or args.inception_weights is not None or args.fid_stats is not None
    if not args.runs and args.anchors is None:
        parser.error("name at least one RUN, or --anchors for the controls alone")
    if args.num_images < 8:
        parser.error(f"--num_images {args.num_images}: five nearest neighbours need at least 8")
    if args.image_size < 8:
        parser.error(f"--image_size {args.image_size}: at least 8 pixels")
    return args


def main(args: argparse.Namespace) -> None:
    """Validate the paths, then score and print."""
    check_source(args.reference, "--reference")
    for name in args.runs:
        check_run(name)
    for flag in ("anchors", "json"):
        path = getattr(args, flag)
        if path is not None:
            check_folder(path.parent, f"--{flag}")
    for flag in ("inception_weights", "fid_stats"):
        path = getattr(args, flag)
        if path is not None and not path.is_file():
            raise UserError(f"--{flag} {path}: no such file")
    standard = find_standard(args) if args.standard else None

    from comparison.scores import scoring  # torch

    scores = scoring.score_all(args, standard)
    print_table(*scores)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, dict(zip(("anchors", "samples"), scores, strict=True)))


def check_run(name: str) -> None:
    """Raise UserError for a path that cannot hold samples, without opening the files."""
    path = Path(name)
    if not path.exists():
        raise UserError(f"{name}: no such run folder, folder of images, .npz or .zip file")
    if path.is_file() and path.suffix not in (".npz", ".zip"):
        raise UserError(f"{name}: neither a folder nor an .npz or .zip file")
    if path.suffix == ".zip":
        check_source(name, "RUN")
    if path.is_dir() and next(path.glob("samples*.npz"), None) is None:
        if (path / "config.json").is_file():
            raise UserError(f"{name}: a run without samples*.npz; generate samples first")
        check_source(name, "RUN")


def find_standard(args: argparse.Namespace) -> dict[str, Any]:
    """Return the checked weights of the standard metrics, their hash, and the statistics or None."""
    require()
    statistics = None if args.fid_stats is None else read_statistics(args.fid_stats)
    weights = find_weights(args.inception_weights)
    return {"weights": weights, "digest": check_weights(weights), "statistics": statistics}


def print_table(anchors: dict[str, Any] | None, results: dict[str, dict[str, Any]]) -> None:
    """Print controls and samples, then the unexpected verdicts on controls."""
    rows = {row["label"]: row["metrics"] for row in (anchors["anchors"].values() if anchors else ())}
    rows |= {name: result["metrics"] for name, result in results.items()}
    names = formatting.metrics_columns(list(rows.values()))
    cells = [[label, *(formatting.metric(n, metrics.get(n)) for n in names)] for label, metrics in rows.items()]
    first = next(iter(results.values()), anchors) or {}
    extractor = first["extractor"]
    print(
        f"\n{first['n']} images per row, {first['pairwise_images']} of them in pairwise metrics, "
        f"{first['image_size']} pixels, against {first['reference']['name']} ({first['reference']['fingerprint']}); "
        f"features of the {extractor['name']} {extractor['fingerprint']}, relative within this table\n"
    )
    print(formatting.console_table(["", *(formatting.METRICS[n][0] for n in names)], cells))
    for name, result in results.items():
        if result.get("standard"):
            metrics = result["standard"]["metrics"]
            numbers = ", ".join(f"{key} {entry['value']:.4g} (N = {entry['n']})" for key, entry in metrics.items())
            print(f"{name}: {numbers}")
    if anchors:
        for check in anchors["checks"]:
            if not check["ok"]:
                print(f"warning: {formatting.check_sentence(check, anchors['anchors'])}")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
