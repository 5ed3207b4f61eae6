"""The tables of a report and their notes, from the rows and controls of report.json. Standard library only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comparison import formatting
from comparison.formatting import METRICS, MISSING, STANDARD, count, join_words, number
from comparison.report.tradeoffs import summary_rows

Row = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]  # heading, rows of cells

FLAG = "flag"  # marks a fraction of memorised samples above the floor's
EXTRAPOLATED = "~ "
WHILE_SAMPLING = " *"
DEVICES_DIFFER = "Times are not directly comparable: devices or precisions differ."

SUMMARY_METRICS = ("frechet_distance", "coverage", "modes_covered", "modes_matched")
ARROWS = {"lower": "\N{DOWNWARDS ARROW}", "higher": "\N{UPWARDS ARROW}"}  # which is better

_NOTES = {
    "frechet_distance": "**Frechet**: {frechet}. It is above 0 for finitely many images, so compare it with the floor.",
    "kernel_distance": "**kernel x1000**: squared MMD in the same features, unbiased, so it can be negative.",
    "sliced_wasserstein": "**sliced W2**: sliced Wasserstein distance. Compare it with the floor.",
    "precision": "**precision**, **density**: how close samples are to real images. Density is 1 for real images.",
    "recall": "**recall**, **coverage**: how many real images are close to samples. Coverage is 0.97 for real images.",
    "class_entropy": "**classes, bits**: entropy of the predicted classes. The target is the floor's.",
    "memorised": "**memorised**: fraction of samples less than half as far from a training image as that image is from "
    "its nearest other training image. `flag` marks a fraction significantly above the floor's.",
    "modes_covered": "**modes**: number of modes that at least one sample shows.",
    "modes_kl": "**modes KL**: KL divergence in nats of the mode frequencies from uniform. Compare it with the floor.",
    "modes_matched": "**show a mode**: fraction of samples that show any mode.",
    "sharpness": "**residual**: median squared error of the best-fitting figure, relative to the difference between "
    "that figure and an empty image. 0 is a perfect figure, 1 is none; a sample below 0.10 shows a mode.",
}


def frechet_name(extractor: Mapping[str, Any]) -> str:
    """Return the name of the Frechet distance in these features."""
    kind = "classifier-feature" if extractor.get("key") == "cifar" else "random-embedding"
    return f"{kind} Frechet distance"


def memorises(metrics: Mapping[str, Any], floor: Mapping[str, Any]) -> bool:
    """Return True if the fraction of memorised samples is significantly above the floor's."""
    entry, real = metrics.get("memorised"), floor.get("memorised")
    return bool(entry and real and entry["value"] > real["value"] and formatting.differ_significantly(entry, real))


def devices_differ(rows: Sequence[Row]) -> bool:
    """Return True if the rows were timed on different devices or in different precisions."""
    timed = [row for row in rows if row["seconds_per_image"]]
    return len({(row["device"], row["precision"], row["training_device"]) for row in timed}) > 1


SUMMARY: dict[str, Callable[[Row], str]] = {
    "NFE": lambda row: MISSING if row["nfe"] is None else f"{row['nfe']:g}",
    "time per image": lambda row: formatting.seconds(row["seconds_per_image"]),
    "training time": lambda row: formatting.seconds(row["training_seconds"]),
    "images seen": lambda row: count(row["images_seen"]),
}


def summary_table(controls: Mapping[str, Any], rows: Sequence[Row]) -> Table:
    """Return the table of the first page: quality and cost of each model, and the floor."""
    shown, floor = summary_rows(rows), controls["floor"]
    names = [name for name in SUMMARY_METRICS if any(name in row["metrics"] for row in shown)]
    cells = [
        [row["label"], *(formatting.metric(name, row["metrics"].get(name)) for name in names)]
        + [cell(row) for cell in SUMMARY.values()]
        for row in shown
    ]
    real = [formatting.metric(name, floor["metrics"].get(name)) for name in names]
    cells.append([floor["label"], *real, *[MISSING] * len(SUMMARY)])
    return ["", *(f"{METRICS[name][0]} {ARROWS[METRICS[name][1]]}" for name in names), *SUMMARY], cells


def quality_table(controls: Mapping[str, Any], rows: Sequence[Row]) -> Table:
    """Return the table of metrics, the controls first."""
    entries = [*controls.values(), *rows]
    names = formatting.metrics_columns([entry["metrics"] for entry in entries])
    floor = controls["floor"]["metrics"]
    cells = []
    for entry in entries:
        metrics = entry["metrics"]
        line = [formatting.metric(name, metrics.get(name)) for name in names]
        if "memorised" in names and memorises(metrics, floor):
            line[names.index("memorised")] += f" {FLAG}"
        cells.append([entry["label"], *line])
    return ["", *(f"{METRICS[name][0]} {ARROWS[METRICS[name][1]]}" for name in names)], cells


def numbers_sentence(anchors: Mapping[str, Any]) -> str:
    """Return the number of images behind each row of the quality table."""
    floor = anchors["controls"]["floor"]["metrics"]
    fewer: dict[int, list[str]] = {}
    for name in formatting.metrics_columns([floor]):
        if floor[name].get("n", anchors["n"]) != anchors["n"]:
            fewer.setdefault(floor[name]["n"], []).append(METRICS[name][0])
    parts = [
        f"{anchors['n']:,} images per row",
        *(f"{n:,} of them for {join_words(names)}" for n, names in fewer.items()),
    ]
    return f"{', '.join(parts)}. The controls come first."


def quality_notes(controls: Mapping[str, Any], rows: Sequence[Row], extractor: Mapping[str, Any]) -> str:
    """Return a list item per metric, and one on intervals and features."""
    names = formatting.metrics_columns([entry["metrics"] for entry in (*controls.values(), *rows)])
    notes = [_NOTES[name].format(frechet=frechet_name(extractor)) for name in names if name in _NOTES]
    accuracy = extractor.get("accuracy")
    features = "The random embedding responds to colours, textures, sharpness, noise and coarse layout, not to objects."
    if extractor.get("key") == "cifar":
        suffix = f" (test accuracy {100 * accuracy:.1f}%)" if accuracy else ""
        features = f"The features come from a small CIFAR-10 classifier{suffix}."
    intervals = "95% intervals cover resampling from the same checkpoint, not seed-to-seed variance."
    notes.append(f"{intervals} {features} Scores are comparable within this report only.")
    return "\n".join(f"- {note}" for note in notes)


def _throughput(row: Row) -> str:
    if not row["seconds_per_image"]:
        return MISSING
    batch = "" if row["batch_size"] is None else f", batch {row['batch_size']:,}"
    return f"{formatting.rate(1 / row['seconds_per_image'])}{batch}{'' if row['benchmarked'] else WHILE_SAMPLING}"


def _many(row: Row) -> str:
    mark = "" if row["seconds_50k"] is None or row["seconds_50k_measured"] else EXTRAPOLATED
    return f"{mark}{formatting.seconds(row['seconds_50k'])}"


COST: dict[str, Callable[[Row], str]] = {
    "parameters": lambda row: count(row["parameters"]),
    "GFLOP per evaluation": lambda row: number(row["gflop_per_evaluation"]),
    "NFE": lambda row: MISSING if row["nfe"] is None else f"{row['nfe']:g}",
    "GFLOP per image": lambda row: number(row["gflop_per_image"]),
    "latency, batch 1": lambda row: formatting.seconds(row["latency_seconds"]),
    "throughput": _throughput,
    "50,000 images": _many,
    "memory, sampling": lambda row: formatting.memory(row["sampling_peak_bytes"]),
    "memory, training": lambda row: formatting.memory(row["training_peak_bytes"]),
    "training time": lambda row: formatting.seconds(row["training_seconds"]),
    "images seen": lambda row: count(row["images_seen"]),
}


def cost_table(rows: Sequence[Row]) -> Table:
    """Return the costs of sampling and training of each row."""
    return ["", *COST], [[row["label"], *(cell(row) for cell in COST.values())] for row in rows]


def timing_protocol(rows: Sequence[Row]) -> str | None:
    """Return the timing protocols of the cost table, with the rows of each if there are several."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row["timing_protocol"]:
            labels.setdefault(row["timing_protocol"].strip().rstrip("."), []).append(row["label"])
    of = {text: f" of {join_words(names)}" if len(labels) > 1 else "" for text, names in labels.items()}
    return " ".join(f"Timing protocol{of[text]}: {text}." for text in labels) or None


def cost_notes(rows: Sequence[Row]) -> str:
    """Return the explanation of the cost table, and the sampler and device of each row."""
    text = (
        "Parameters are those of the networks used in sampling. NFE is the number of network evaluations per image, "
        "counted by a hook. A GFLOP is 10^9 operations; a multiply-add counts as two. Latency is the time of one image "
        "at batch size 1, throughput that of the best batch size."
    )
    if any(row["seconds_50k"] is not None and not row["seconds_50k_measured"] for row in rows):
        text += f" `{EXTRAPOLATED.strip()}`: extrapolated from the throughput."
    if any(row["seconds_per_image"] and not row["benchmarked"] for row in rows):
        text += " `*`: measured while sampling at one batch size, because no benchmark was run."
    items = []
    for row in rows:
        parts = [row["sampler"]]
        if row["setting"] is None:
            threads = f"{row['threads']} threads" if row["threads"] and "thread" not in str(row["device"]) else None
            parts += [row["precision"], row["device"], threads]
            trained, largest = count(row["parameters_trained"]), row["largest_batch"] or {}
            if row["parameters_trained"] and trained != count(row["parameters"]):
                parts.append(f"{trained} parameters in training")
            if largest.get("batch_size"):
                reason = f" ({largest['reason']})" if largest.get("reason") else ""
                parts.append(f"batch sizes up to {largest['batch_size']:,} tried{reason}")
        if any(parts):
            items.append(f"- {row['label']}: {', '.join(str(part) for part in parts if part)}")
    return "\n\n".join([text, "\n".join(items)] if items else [text])


def standard_table(rows: Sequence[Row]) -> Table:
    """Return the standard metrics of the rows that have them."""
    scored = [row for row in rows if row["standard"]]
    names = [name for name in STANDARD if any(name in row["standard"]["metrics"] for row in scored)]
    cells = []
    for row in scored:
        metrics, n = row["standard"]["metrics"], row["standard"]["n"]
        cells.append([row["label"], f"{n:,}", *(formatting.metric(name, metrics.get(name)) for name in names)])
    return ["", "images", *(STANDARD[name] for name in names)], cells


def standard_notes(rows: Sequence[Row]) -> str:
    """Return weights and reference of the standard metrics, and the metrics that use fewer images."""
    scores = [row["standard"] for row in rows if row["standard"]]
    weights, reference = scores[0]["weights"], scores[0].get("reference") or {}
    against = f"the statistics {reference['name']}" if reference.get("name") else "the reference's images"
    images = f" ({reference['n']:,})" if reference.get("n") else ""
    fewer = {
        f"{STANDARD[name]} on {entry['n']:,} images"
        for score in scores
        for name, entry in score["metrics"].items()
        if name in STANDARD and entry.get("n") not in (None, score["n"])
    }
    return (
        f"Features of the standard Inception network (`{weights['file']}`, SHA-256 `{str(weights['sha256'])[:16]}`), "
        f"against {against}{images}. Precision and recall use k = 3. FID falls with the number of images, so compare "
        f"it only at equal numbers.{f' {join_words(sorted(fewer))}.' if fewer else ''}"
    )
