"""The tables of a report and the notes beneath them, from report.json's rows and controls. Standard library only."""

from collections.abc import Mapping, Sequence
from typing import Any

from comparison import formatting
from comparison.formatting import METRICS, MISSING, STANDARD

Row = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]  # heading, rows of cells

FLAG = "flag"  # a share of memorised samples that exceeds the floor's
EXTRAPOLATED = "~ "
FROM_DRAWING = " *"

_MEANING = {
    "frechet_distance": "**Frechet**: {frechet}, 0 for equal distributions but for the finite number of images, so "
    "compare with the floor.",
    "frechet_infinite": "**Frechet, N = inf**: the same, extrapolated to infinitely many images.",
    "kernel_distance": "**Kernel**: squared MMD in the same features, times 1,000; 0 on average for equal "
    "distributions, so it may fall below.",
    "sliced_wasserstein": "**Sliced W2**: sliced Wasserstein distance; compare with the floor.",
    "precision": "**Precision** and **density** say how far samples lie among real images, density 1 for equal "
    "distributions.",
    "recall": "**Recall** and **coverage** say how far real images lie among samples, coverage about 0.97 for equal "
    "distributions.",
    "class_entropy": "**Classes**: entropy, in bits, of the classes that the classifier sees; the aim is that of the "
    "floor.",
    "memorised": "**Memorised**: share of samples less than half as far from a training image as that image is from "
    "its nearest other one; `flag` where it exceeds the floor's significantly.",
    "modes_covered": "**Modes** drawn at least once, of those that the data have.",
    "sharpness": "**Residual** measures sharpness: the median squared error that the best-fitting figure leaves, as a "
    "share of what sets it apart from an empty picture. 0 is a perfect figure, 1 is none; below 0.10 it shows a mode.",
    "modes_kl": "**Modes KL**: divergence in nats of the modes' frequencies from uniform, among the images that show "
    "one; finitely many images raise it, so compare with the floor.",
}


def frechet_name(extractor: Mapping[str, Any]) -> str:
    """Name the Frechet distance after the features that it is taken in."""
    kind = "classifier-feature" if extractor.get("key") == "cifar" else "random-embedding"
    return f"{kind} Frechet distance"


def memorises(metrics: Mapping[str, Any], floor: Mapping[str, Any]) -> bool:
    """Tell whether the share of memorised samples exceeds the floor's significantly."""
    mine, held_out = metrics.get("memorised"), floor.get("memorised")
    return bool(mine and held_out and mine["value"] > held_out["value"] and formatting.apart(mine, held_out))


def quality_table(controls: Mapping[str, Any], rows: Sequence[Row]) -> Table:
    """Return the controls first, then the rows; a cell per metric that any of them has."""
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
    return ["", *(METRICS[name][0] for name in names)], cells


def numbers_sentence(anchors: Mapping[str, Any]) -> str:
    """State how many images stand behind a row of the quality table."""
    floor = anchors["anchors"]["floor"]["metrics"]
    fewer: dict[int, list[str]] = {}
    for name in formatting.metrics_columns([floor]):
        count = floor[name].get("n", anchors["n"])
        if count != anchors["n"]:
            fewer.setdefault(count, []).append(METRICS[name][0])
    text = f"{anchors['n']:,} images per row"
    for count, names in fewer.items():
        text += f", {count:,} of them for {formatting.listed(names)}"
    return f"{text}. Controls first."


def quality_notes(controls: Mapping[str, Any], rows: Sequence[Row], extractor: Mapping[str, Any]) -> str:
    """Explain the columns that are there."""
    names = formatting.metrics_columns([entry["metrics"] for entry in (*controls.values(), *rows)])
    said = [_MEANING[name].format(frechet=frechet_name(extractor)) for name in names if name in _MEANING]
    if extractor.get("key") == "cifar":
        accuracy = extractor.get("accuracy")
        right = f", which names {100 * accuracy:.1f}% of its test images rightly" if accuracy else ""
        sees = f"The features are those of a small CIFAR-10 classifier{right}: they know its ten classes"
    else:
        sees = "The embedding sees colours, textures, sharpness, noise and coarse layout, not objects"
    said.append(
        "Intervals are 95%, from leaving out one of 20 groups of samples at a time, the reference fixed. "
        f"{sees}; every number is relative within this report."
    )
    return "\n".join(f"- {sentence}" for sentence in said)


def cost_table(rows: Sequence[Row]) -> Table:
    """Return what sampling and training of each row cost."""
    header = ["", "parameters", "GFLOP per evaluation", "NFE", "GFLOP per image", "latency, 1 image", "throughput"]
    header += ["50,000 images", "memory, sampling", "memory, training", "training time", "images seen"]
    cells = []
    for row in rows:
        cells.append(
            [
                row["label"],
                formatting.count(row["parameters"]),
                formatting.number(row["gflop_per_evaluation"]),
                MISSING if row["nfe"] is None else f"{row['nfe']:g}",
                formatting.number(row["gflop_per_image"]),
                formatting.seconds(row["latency_seconds"]),
                _throughput(row),
                _many(row),
                formatting.memory(row["sampling_peak_bytes"]),
                formatting.memory(row["training_peak_bytes"]),
                formatting.seconds(row["training_seconds"]),
                formatting.count(row["images_seen"]),
            ]
        )
    return header, cells


def _throughput(row: Row) -> str:
    if not row["seconds_per_image"]:
        return MISSING
    batch = "" if row["batch_size"] is None else f", batch {row['batch_size']:,}"
    return f"{formatting.rate(1 / row['seconds_per_image'])}{batch}{'' if row['benchmarked'] else FROM_DRAWING}"


def _many(row: Row) -> str:
    if row["seconds_50k"] is None:
        return MISSING
    return f"{'' if row['seconds_50k_measured'] else EXTRAPOLATED}{formatting.seconds(row['seconds_50k'])}"


def timing_protocol(rows: Sequence[Row]) -> str | None:
    """State how the times of the cost table were taken, and on what."""
    lines = []
    for protocol in dict.fromkeys(row["timing_protocol"] for row in rows if row["timing_protocol"]):
        mine = [row for row in rows if row["timing_protocol"] == protocol]
        places = "; ".join(place for place in dict.fromkeys(_place(row) for row in mine) if place)
        lines.append(f"{protocol.strip().rstrip('.')}{f' ({places})' if places else ''}.")
    if not lines:
        return None
    return f"Timing protocol: {lines[0]}" if len(lines) == 1 else "Timing protocols:\n\n- " + "\n- ".join(lines)


def _place(row: Row) -> str:
    threads = row["threads"]
    device = row["device"]
    if device and threads and f"{threads} thread" not in device:
        device = f"{device}, {threads} thread{'' if threads == 1 else 's'}"
    return ", ".join(str(fact) for fact in (device, row["precision"]) if fact)


def cost_notes(rows: Sequence[Row]) -> str:
    """Explain the columns and marks of the cost table, and name the sampler of each row."""
    lines = [
        "Parameters are those of the networks used in sampling; NFE is network evaluations per image, counted by a "
        "hook; a GFLOP is 10^9 operations, a multiplication and an addition counted as two; latency is the time of "
        "one image drawn alone, throughput that of the best batch size."
    ]
    if any(row["seconds_50k"] is not None and not row["seconds_50k_measured"] for row in rows):
        lines[0] += f" `{EXTRAPOLATED.strip()}`: extrapolated from the throughput, 50,000 images were not drawn."
    if any(row["seconds_per_image"] and not row["benchmarked"] for row in rows):
        lines[0] += " `*`: the rate at which the samples were drawn, at one batch size; no benchmark was run."
    facts = []
    for row in rows:
        known = [row["sampler"]]
        if row["setting"] is None:
            known += [row["precision"], row["device"]]
            trained = row["parameters_trained"]
            if trained and formatting.count(trained) != formatting.count(row["parameters"]):
                known.append(f"{formatting.count(trained)} parameters while training")
            largest = row["largest_batch"] or {}
            if largest.get("batch_size"):
                reason = f" ({largest['reason']})" if largest.get("reason") else ""
                known.append(f"batches tried up to {largest['batch_size']:,}{reason}")
        words = ", ".join(str(fact) for fact in known if fact)
        if words:
            facts.append(f"- {row['label']}: {words}")
    return "\n\n".join([lines[0], "\n".join(facts)] if facts else lines)


def corruption_table(checks: Sequence[Mapping[str, Any]], controls: Mapping[str, Any]) -> Table:
    """Return a row per metric, a column per control, and the verdict against the floor in each cell."""
    against_floor = {(c["metric"], c["anchor"]): c for c in checks if c["against"] == "floor"}
    columns = [name for name in controls if any(anchor == name for _, anchor in against_floor)]
    names = [name for name in METRICS if any(metric == name for metric, _ in against_floor)]
    cells = []
    for name in names:
        line = [METRICS[name][0]]
        for column in columns:
            check = against_floor.get((name, column))
            if check is None:
                line.append(MISSING)
            else:
                line.append(check["verdict"] if check["ok"] else f"**{check['verdict']} (!)**")
        cells.append(line)
    return ["", *(controls[name]["label"] for name in columns)], cells


def corruption_notes(checks: Sequence[Mapping[str, Any]], controls: Mapping[str, Any]) -> str:
    """Explain the table and each cell that contradicts what is expected of it."""
    floor = controls["floor"]["label"]
    text = f"Each cell: does the metric call this control worse or better than '{floor}', by more than the intervals?"
    wrong = [check for check in checks if not check["ok"]]
    judged = sum(bool(check["expected"]) for check in checks)
    if not wrong:
        return f"{text} All {judged} expectations hold."
    text += f" {judged - len(wrong)} of {judged} expectations hold; `(!)` marks those that do not:"
    said = [formatting.check_sentence(check, controls) for check in wrong]
    return f"{text}\n\n" + "\n".join(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in said)


def standard_table(rows: Sequence[Row]) -> Table:
    """Return the standard metrics of the rows that have them."""
    known = [row for row in rows if row["standard"]]
    names = [name for name in STANDARD if any(name in row["standard"]["metrics"] for row in known)]
    cells = []
    for row in known:
        metrics = row["standard"]["metrics"]
        cells.append(
            [row["label"], f"{row['standard']['n']:,}", *(formatting.metric(name, metrics.get(name)) for name in names)]
        )
    return ["", "images", *(STANDARD[name] for name in names)], cells


def standard_notes(rows: Sequence[Row]) -> str:
    """State weights and reference of the standard metrics, and which of them used fewer images."""
    first = next(row["standard"] for row in rows if row["standard"])
    weights, reference = first["weights"], first.get("reference") or {}
    against = f"the statistics {reference['name']}" if reference.get("name") else "the reference's images"
    if reference.get("n"):
        against += f" ({reference['n']:,})"
    text = (
        f"In the standard Inception features (`{weights['file']}`, SHA-256 `{str(weights['sha256'])[:16]}`), against "
        f"{against}; precision and recall with k = 3. A FID falls with the number of images: compare it only with "
        "others at the same number."
    )
    fewer = {
        f"{STANDARD[name]} on {entry['n']:,} images"
        for row in rows
        if row["standard"]
        for name, entry in row["standard"]["metrics"].items()
        if name in STANDARD and entry.get("n") not in (None, row["standard"]["n"])
    }
    return f"{text} {formatting.listed(sorted(fewer))}." if fewer else text
