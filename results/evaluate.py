"""Score sample sets against training images, with controls and intervals; no download.

  python results/evaluate.py results/runs/gans/cifar10 --reference data/train --num_images 5000 \
    --anchors results/reports/cifar10/anchors.json
  python results/evaluate.py my_samples.zip --reference cifar10 --json scores.json
  mpiexec -n 4 python results/evaluate.py samples.npz --reference cifar10 --num_images 50000

Each RUN is a run folder (its newest samples*.npz counts, and those of its settings/* and history/*), an .npz file with
arr_0 (N, H, W, 3) uint8, a .zip file or a folder of images. Writes metrics.json and neighbours.png into each run
folder, the controls into --anchors, and prints one table. What is there already for the same samples, reference and
settings is reused. Under mpiexec or torchrun the processes share the embedding of the images.

The distances are taken in the features of the project's own CIFAR-10 classifier (--features cifar) or in a fixed-seed
random embedding (random): relative within one report, not comparable with published figures. --standard adds FID, KID
and inception score, where the standard Inception weights are at hand. Metrics: Heusel et al. 2017 (Frechet),
Binkowski et al. 2018 (kernel), Kynkaanniemi et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage),
Bonneel et al. 2015 (sliced Wasserstein), Chong and Forsyth 2020 (--extrapolate).
"""

import argparse
from pathlib import Path
from typing import Any

from comparison import distributed
from comparison.cli import UserError, make_parser, non_negative_int, positive_int
from comparison.data.sources import KINDS, check_source
from comparison.places import find_place


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folder, .npz or .zip file, or folder of images")
    add("--reference", required=True, metavar="SOURCE", help=f"training data: {KINDS}")
    add("--image_size", type=positive_int, default=32, help="pixels, of samples and reference")
    add(
        "--num_images",
        type=positive_int,
        default=5000,
        metavar="N",
        help="images of each row and of the reference; with --anchors at most half of the training images",
    )
    add(
        "--features",
        choices=["auto", "cifar", "random"],
        default="auto",
        help="what the distances see; auto is cifar for images of CIFAR-10's ten classes, else random",
    )
    add("--extrapolate", action="store_true", help="also extrapolate the Frechet distance to infinitely many samples")
    add("--seed", type=non_negative_int, default=0, help="draws the reference and the samples scored")
    add("--anchors", type=Path, metavar="FILE", help="write or reuse the controls' scores, .json")
    add("--out", default="metrics.json", metavar="NAME", help="file written into each run folder")
    add("--json", type=Path, metavar="FILE", help="also write all numbers here")
    group = parser.add_argument_group("standard metrics")
    group.add_argument("--standard", action="store_true", help="also FID, KID, inception score, precision and recall")
    group.add_argument(
        "--inception_weights", type=Path, metavar="FILE", help="the standard weights; implies --standard"
    )
    group.add_argument(
        "--fid_stats", type=Path, metavar="FILE", help="mu and sigma of the reference, .npz or .npy; implies --standard"
    )
    add("--device", default="auto", help="of the extractor: auto, cpu, cuda, cuda:N or mps")
    add("--threads", type=non_negative_int, default=0, help="CPU threads, 0 divides the cores among the processes")
    args = parser.parse_args(argv)
    args.standard = args.standard or args.inception_weights is not None or args.fid_stats is not None
    if not args.runs and args.anchors is None:
        parser.error("name at least one RUN, or --anchors FILE for the controls alone")
    if args.num_images < 8:
        parser.error(f"--num_images {args.num_images}: at least 8, for five neighbours with some images left out")
    if args.image_size < 8:
        parser.error(f"--image_size {args.image_size}: at least 8 pixels")
    if Path(args.out).name != args.out:
        parser.error(f"--out {args.out}: a file name, without a folder")
    return args


def main(args: argparse.Namespace) -> None:
    """Judge the paths, then score and print."""
    place = find_place()
    check_source(args.reference, "--reference")
    for name in args.runs:
        check_run(name)
    for flag in ("inception_weights", "fid_stats"):
        path = getattr(args, flag)
        if path is not None and not path.is_file():
            raise UserError(f"--{flag} {path}: no such file")
    standard = find_standard(args) if args.standard else None

    from comparison.device import set_threads
    from comparison.scores import sharding

    set_threads(args.threads, place.local_world_size)
    device = distributed.device_of(place, args.device)
    with distributed.group(place, device):
        if not place.is_first:
            sharding.serve(device)
            return
        anchors, results = score(args, standard, device)
        sharding.dismiss()
    print_table(anchors, results)
    if args.json:
        from comparison.files import write_json

        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, {"anchors": anchors, "samples": results})


def check_run(name: str) -> None:
    """Refuse what cannot be samples, without opening them.

    Raises:
        UserError: one sentence that names the path.
    """
    path = Path(name)
    if not path.exists():
        raise UserError(f"{name}: no such run folder, folder of images, .npz or .zip file")
    if path.is_file() and path.suffix not in (".npz", ".zip"):
        raise UserError(f"{name}: neither a folder nor an .npz or .zip file")
    if path.suffix == ".zip":
        check_source(name, "RUN")
    if path.is_dir() and next(path.glob("samples*.npz"), None) is None:
        if (path / "config.json").is_file():
            raise UserError(f"{name}: a run without samples*.npz; draw samples first")
        check_source(name, "RUN")


def find_standard(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the standard metrics need: checked weights, their hash, and statistics or None.

    Raises:
        UserError: one sentence that names what is missing, and where it goes.
    """
    from comparison.scores.inception import check_weights, find_weights, require
    from comparison.scores.statistics import read_statistics

    require()
    statistics = None if args.fid_stats is None else read_statistics(args.fid_stats)
    weights = find_weights(args.inception_weights)
    return {"weights": weights, "digest": check_weights(weights), "statistics": statistics}


def score(
    args: argparse.Namespace, standard: dict[str, Any] | None, device: Any
) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """Return the controls, or None without --anchors, and the scores of each sample set."""
    from comparison.scores import evaluation
    from comparison.scores.reference import Reference
    from comparison.scores.sharding import share

    files = {
        str(folder): evaluation.find_samples(folder)
        for name in args.runs
        for folder in evaluation.scored_folders(Path(name))
    }
    reference = Reference.load(
        args.reference,
        args.image_size,
        args.num_images,
        args.seed,
        args.features,
        device=device,
        whole=args.anchors is None,
        share=share,
    )
    used = len(reference.chosen)
    if used < args.num_images:
        part = "all there are" if args.anchors is None else f"half of the {len(reference.data)} there are"
        print(f"note: {used} images per row instead of {args.num_images}, {part}")
    scores = None if standard is None else evaluation.Standard(**standard, device=device)
    evaluator = evaluation.Evaluator(reference, extrapolate=args.extrapolate, standard=scores)
    anchors = evaluation.evaluate_anchors(evaluator, args.anchors) if args.anchors else None
    results = {}
    for name, file in files.items():
        target = Path(name) / args.out if file != Path(name) else None
        results[name] = evaluation.evaluate_samples(evaluator, file, target)
    return anchors, results


def print_table(anchors: dict[str, Any] | None, results: dict[str, dict[str, Any]]) -> None:
    """Print controls and samples, then the controls that do not behave."""
    from comparison import formatting

    rows = {row["label"]: row["metrics"] for row in (anchors["anchors"].values() if anchors else ())}
    rows |= {name: result["metrics"] for name, result in results.items()}
    names = formatting.metrics_columns(list(rows.values()))
    cells = [[label, *(formatting.metric(n, metrics.get(n)) for n in names)] for label, metrics in rows.items()]
    first = next(iter(results.values()), anchors) or {}
    extractor = first["extractor"]
    print(
        f"\n{first['n']} images per row, {first['pairwise_images']} of them in measures of pairs, "
        f"{first['image_size']} pixels, against {first['reference']['name']} ({first['reference']['fingerprint']}); "
        f"features of the {extractor['name']} {extractor['fingerprint']}, relative within this table\n"
    )
    print(formatting.console_table(["", *(formatting.METRICS[n][0] for n in names)], cells))
    for name, result in results.items():
        if result.get("standard"):
            found = result["standard"]["metrics"]
            numbers = ", ".join(f"{key} {entry['value']:.4g} (N = {entry['n']})" for key, entry in found.items())
            print(f"{name}: {numbers}")
    if anchors:
        for check in anchors["checks"]:
            if not check["ok"]:
                print(f"warning: {formatting.check_sentence(check, anchors['anchors'])}")


if __name__ == "__main__":
    distributed.run(lambda: main(parse_args()))
