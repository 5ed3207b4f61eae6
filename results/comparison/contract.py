"""The files that runs and reports exchange, as JSON schemas, and the one reader that checks them.

Only what a reader uses is described; other entries are allowed, so that files of later versions can be read.
"""

from pathlib import Path
from typing import Any

from comparison.cli import UserError
from comparison.files import read_json

Schema = dict[str, Any]


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
PAIR: Schema = {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}
OBJECT: Schema = {"type": "object"}
METRIC = _object("value", value=NUMBER, interval=PAIR, n=COUNT)
METRICS: Schema = {"type": "object", "additionalProperties": METRIC}
VERSIONS: Schema = {"type": ["object", "null"], "additionalProperties": TEXT}
REFERENCE = _object("name", "fingerprint", name=TEXT, fingerprint=TEXT, training_fingerprint=TEXT)
EXTRACTOR = _object("name", name=TEXT, key=TEXT, fingerprint=TEXT)
COST = _object(step=MAYBE_NUMBER, images_seen=MAYBE_NUMBER, wall_seconds=MAYBE_NUMBER)
TRAINED = {**COST, "type": ["object", "null"], "properties": {**COST["properties"], "teacher": COST}}
DONE: dict[str, Schema] = {"steps": COUNT, "images_seen": COUNT, "wall_seconds": NUMBER}
BATCH = _object("batch_size", "seconds", batch_size=COUNT, seconds=NUMBER, peak_memory_bytes=MAYBE_NUMBER)
BATCHES: Schema = {"type": "array", "items": BATCH}
MAYBE_COUNT: Schema = {"type": ["integer", "null"]}
SCHEMAS = {
    "config.json": _object(
        **{"model": TEXT, "options": OBJECT, "data": OBJECT, "versions": VERSIONS},
        **{"git_commit": MAYBE_TEXT, "device": MAYBE_TEXT, "precision": MAYBE_TEXT},
        finished=_object("reason", *DONE, reason=TEXT, **DONE, peak_memory_bytes=MAYBE_NUMBER),
        diverged=_object("value", value=TEXT, **DONE),
    ),
    "sampling.json": _object(
        **{"file": TEXT, "images": COUNT, "model": TEXT, "sampler": TEXT, "checkpoint": TEXT, "nfe": NUMBER},
        **{"seconds": NUMBER, "seconds_per_image": NUMBER, "batch_size": COUNT, "trained": TRAINED},
        **{"device": TEXT, "precision": TEXT, "protocol": TEXT, "peak_memory_bytes": MAYBE_NUMBER},
    ),
    "timing.json": _object(
        **{"protocol": TEXT, "sampler": TEXT, "device": TEXT, "precision": TEXT, "nfe": NUMBER},
        **{"gflop_per_evaluation": MAYBE_NUMBER, "gflop_per_image": MAYBE_NUMBER, "parameters": COUNT},
        **{"batches": BATCHES, "threads": MAYBE_COUNT},
        best=_object("batch_size", "images_per_second", batch_size=COUNT, images_per_second=NUMBER),
    ),
    "metrics.json": _object(
        "metrics",
        **{"reference": REFERENCE, "extractor": EXTRACTOR, "n": COUNT, "metrics": METRICS, "versions": VERSIONS},
        standard={"type": ["object", "null"]},
        samples=_object("fingerprint", fingerprint=TEXT),
    ),
    "anchors.json": _object(
        *("anchors", "checks", "n", "reference", "extractor"),
        **{"reference": REFERENCE, "extractor": EXTRACTOR, "n": COUNT, "versions": VERSIONS},
        anchors={
            **_object("floor"),
            "additionalProperties": _object("label", "metrics", label=TEXT, note=TEXT, metrics=METRICS),
        },
        checks={
            "type": "array",
            "items": _object(
                *("metric", "anchor", "against", "verdict", "expected", "ok"),
                **{"metric": TEXT, "anchor": TEXT, "against": TEXT, "verdict": TEXT, "ok": {"type": "boolean"}},
                expected={"type": "array", "items": TEXT},
            ),
        },
    ),
}


def read(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON file of a kind, a key of SCHEMAS.

    Raises:
        UserError: the file is missing, damaged or not of this kind, see `check`.
    """
    return check(path, read_json(path), kind)


def check(path: Path, content: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the content of a file of a kind.

    Raises:
        UserError: names the file, the first wrong entry and what is accepted.
    """
    try:
        from jsonschema import Draft202012Validator
    except ImportError:  # a machine with torch alone, which reads what it wrote
        return content
    errors = Draft202012Validator(SCHEMAS[kind]).iter_errors(content)
    if error := min(errors, key=lambda error: [str(part) for part in error.absolute_path], default=None):
        where = ".".join(map(str, error.absolute_path)) or "the file"
        raise UserError(f"{path}: not what {kind} holds: {where}: {' '.join(error.message.split())[:200]}")
    return content
