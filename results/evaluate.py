"""Score sample sets against training images, with controls and intervals; no trained weights, no download.

  python results/evaluate.py results/runs/gans/cifar10 --reference data/train --num_images 5000 \
    --anchors results/reports/cifar10/anchors.json
  python results/evaluate.py my_samples.npz --reference cifar10 --json scores.json

Each RUN is a run folder (its newest samples*.npz counts), an .npz file with arr_0 (N, H, W, 3) uint8, or a folder of
images. Writes metrics.json into each run folder, the controls into --anchors, and prints one table. What is there
already for the same samples, reference and settings is reused.

The distances are taken in a fixed-seed random embedding: relative within one report, not comparable with published
figures. Metrics: Heusel et al. 2017 (Frechet), Binkowski et al. 2018 (kernel), Kynkaanniemi et al. 2019 (precision,
recall), Naeem et al. 2020 (density, coverage).
"""

import argparse
from pathlib import Path

from comparison.cli import UserError, make_parser, non_negative_int, positive_int, run
from comparison.sources import check_source


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folder, .npz file or folder of images")
    parser.add_argument(
        "--reference", required=True, metavar="SOURCE", help="training data: shapes, cifar10, a folder or an .npz file"
    )
    parser.add_argument("--image_size", type=positive_int, default=32, help="pixels, of samples and reference")
    parser.add_argument(
        "--num_images",
        type=positive_int,
        default=5000,
        metavar="N",
        help="images of each row and of the reference; at most half of the training images",
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="draws the reference and the samples scored")
    parser.add_argument("--anchors", type=Path, metavar="FILE", help="write or reuse the controls' scores, .json")
    parser.add_argument("--out", default="metrics.json", metavar="NAME", help="file written into each run folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers here")
    parser.add_argument("--device", default="auto", help="of the embedding: auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--threads", type=non_negative_int, default=0, help="CPU threads, 0 takes all cores")
    args = parser.parse_args(argv)
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
    check_source(args.reference, "--reference")
    sources = {}
    for name in args.runs:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{name}: no such run folder, .npz file or folder of images")
        if path.is_file() and path.suffix != ".npz":
            raise UserError(f"{name}: neither an .npz file nor a folder")
        if path.is_dir() and next(path.glob("samples*.npz"), None) is None:
            if (path / "config.json").is_file():
                raise UserError(f"{name}: a run without samples*.npz; draw samples first")
            check_source(name, "RUN")
        sources[name] = path

    from comparison import evaluation
    from comparison.device import pick_device, set_threads
    from comparison.runs import write_json

    set_threads(args.threads)
    device = pick_device(args.device)
    files = {name: evaluation.find_samples(path) for name, path in sources.items()}
    reference = evaluation.Reference.load(args.reference, args.image_size, args.num_images, args.seed, device)
    used = len(reference.chosen)
    if used < args.num_images:
        print(f"note: {used} images per row instead of {args.num_images}, half of the {len(reference.data)} there are")
    evaluator = evaluation.Evaluator(reference, device)
    anchors = evaluation.evaluate_anchors(evaluator, args.anchors) if args.anchors else None
    results = {}
    for name, path in sources.items():
        target = path / args.out if files[name] != path else None
        results[name] = evaluation.evaluate_samples(evaluator, files[name], target)
    print_table(anchors, results)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, {"anchors": anchors, "samples": results})


def print_table(anchors: dict | None, results: dict[str, dict]) -> None:
    """Print controls and samples, then the controls that do not behave."""
    from comparison import tables

    rows = {row["label"]: row["metrics"] for row in (anchors["anchors"].values() if anchors else ())}
    rows |= {name: result["metrics"] for name, result in results.items()}
    names = tables.metrics_columns(list(rows.values()))
    cells = [[label, *(tables.metric(n, metrics.get(n)) for n in names)] for label, metrics in rows.items()]
    first = next(iter(results.values()), anchors) or {}
    print(
        f"\n{first['n']} images per row, {first['image_size']} pixels, against {first['reference']['name']} "
        f"({first['reference']['fingerprint']}); random embedding {first['extractor']['fingerprint']}, relative "
        f"within this table\n"
    )
    print(tables.console_table(["", *(tables.METRICS[n][0] for n in names)], cells))
    if anchors:
        for check in anchors["checks"]:
            if not check["ok"]:
                print(f"warning: {tables.check_sentence(check, anchors['anchors'])}")


if __name__ == "__main__":
    run(lambda: main(parse_args()))
