"""Measuring the pairs of a model folder: what the process does that results/benchmark.py starts in that folder.

It loads the folder's pairs.py, so that nothing in results/ names a model. Imports torch only after everything that
the user asked for has been judged.
"""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import tables
from comparison.cli import UserError, run
from comparison.pairs import PROTOCOL, TOLERANCE, Pair, Settings, measure
from comparison.runs import read_json, versions, write_json

HOOK = "pairs.py"


def load_pairs(folder: Path, small: bool) -> list[Pair]:
    """Return what the hook file of a folder offers; the folder must be on sys.path.

    Raises:
        UserError: the file cannot be loaded or has no function `pairs`.
    """
    path = folder / HOOK
    spec = importlib.util.spec_from_file_location("pairs_of_the_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return list(module.pairs(small))
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None


def choose(pairs: Sequence[Pair], names: Sequence[str]) -> list[Pair]:
    """Return the pairs of these names in their own order, all for no name.

    Raises:
        UserError: a name is unknown.
    """
    known = [pair.name for pair in pairs]
    for name in names:
        if name not in known:
            raise UserError(f"--pairs {name}: must be among {', '.join(known)}")
    return [pair for pair in pairs if not names or pair.name in names]


def known_entries(path: Path | None, facts: Mapping[str, Any], wanted: Sequence[str], all_names: Sequence[str]) -> list:
    """Return the entries of an earlier file that stay beside the ones about to be measured.

    Raises:
        UserError: only some pairs are wanted, and the file's others were measured under other circumstances.
    """
    if path is None or not path.is_file():
        return []
    earlier = read_json(path)
    try:
        kept = [e for e in earlier["pairs"] if e["name"] in all_names and e["name"] not in wanted]
        names = ("device", "precision", "threads", "versions", "small")
        other = [name for name in names if earlier[name] != json.loads(json.dumps(facts[name]))]
    except (KeyError, TypeError):
        raise UserError(f"{path}: not a benchmark.json; name another file with --out") from None
    if kept and other:
        raise UserError(
            f"{path} holds pairs measured with another {other[0]} ({earlier[other[0]]}); name another file with --out"
        )
    return kept


def serve() -> None:
    """Measure the pairs of the folder that the request names; never returns.

    The request is the only argument, JSON with the keys folder, model, pairs, list, rounds, small, device, precision,
    threads and out.
    """
    request = json.loads(sys.argv[1])
    sys.argv[0] = "benchmark.py"
    sys.path.insert(0, request["folder"])
    run(lambda: measure_folder(request))


def measure_folder(request: Mapping[str, Any]) -> int:
    """Print the table of a folder's pairs and write benchmark.json; return 1 where two paths disagree."""
    pairs = load_pairs(Path(request["folder"]), request["small"])
    chosen = choose(pairs, request["pairs"])
    if request["list"]:
        print(list_table(chosen))
        return 0

    import torch

    from comparison.device import autocast_dtype, describe_device, pick_device, precision_name, set_threads
    from comparison.progress import bar

    device = pick_device(request["device"])
    set_threads(request["threads"], keep_memory=False)  # a setting of the scripts' that the plain path would share
    settings = Settings(device, autocast_dtype(request["precision"], device))
    facts = {
        "schema": 1,
        "protocol": PROTOCOL,
        "model": request["model"],
        "device": describe_device(device),
        "precision": precision_name(settings.dtype),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "small": request["small"],
    }
    out = Path(request["out"]) if request["out"] else None
    names = [pair.name for pair in pairs]
    entries = known_entries(out, facts, [pair.name for pair in chosen], names)
    with bar(len(chosen) * (request["rounds"] + 1), 0, "benchmark", "rounds") as progress:
        for pair in chosen:
            progress.set_description(pair.name)
            try:
                entry = measure(pair, settings, request["rounds"], progress.update)
            except (RuntimeError, ValueError, MemoryError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"pair {pair.name}: {reason}") from None
            entries.append(entry)
    entries.sort(key=lambda entry: names.index(entry["name"]))
    print(f"\n{facts['model']} on {facts['device']}; fast path in {facts['precision']}\n\n{result_table(entries)}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {**facts, "pairs": entries})
        print(f"\n{out}")
    wrong = [entry for entry in entries if entry["agrees"] is False]
    for entry in wrong:
        print(f"warning: {entry['name']}: the paths differ by {entry['difference']:.1e}, more than {TOLERANCE:g}")
    return 1 if wrong else 0


def reference_words(seconds: Sequence[float] | None) -> str:
    """Write the time of the reference's own code."""
    return " to ".join(dict.fromkeys(map(tables.seconds, seconds or ()))) or tables.MISSING


def list_table(pairs: Sequence[Pair]) -> str:
    """Say what would be measured."""
    rows = [
        [
            *(p.name, p.unit, str(p.images), ", ".join(f"{goal:g} {name}" for name, goal in p.goals.items()) or "-"),
            *(reference_words(p.reference_seconds), p.what),
        ]
        for p in pairs
    ]
    return tables.console_table(["pair", "unit", "images", "goal on a CPU", "reference's own code", "work"], rows)


def result_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Lay out measured pairs, a row each, and say what the columns are."""
    rows = []
    for entry in entries:
        spread = entry["ratio_quartiles"]
        rows.append(
            [
                f"{entry['name']}, per {entry['unit']}",
                *(tables.seconds(entry[side]["seconds"]) for side in ("plain", "fast")),
                f"{entry['ratio']:.2f}" + (f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else ""),
                f"{entry['goal']:g}" if entry["goal"] else "-",
                "-" if entry["difference"] is None else f"{entry['difference']:.0e}",
                *(tables.plain(entry[s]["gflop"]) if entry[s].get("gflop") else "-" for s in ("plain", "fast")),
                reference_words(entry["reference"]["seconds"]),
                tables.plain(entry["reference"]["gflop"]) if entry["reference"]["gflop"] else "-",
            ]
        )
    header = ["", "plain", "fast", "ratio (quartiles)", "goal", "difference", "GFLOP plain", "fast"]
    header += ["reference's own", "GFLOP"]
    return (
        tables.console_table(header, rows)
        + "\n\ndifference: of the results without bfloat16, relative to the largest value"
        "\nreference's own: the published code, timed in float32 on two cores of an AVX512 CPU that was idle"
    )
