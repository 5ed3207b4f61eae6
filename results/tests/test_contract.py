"""The files that runs and reports exchange: committed ones are accepted, damaged ones named with entry and reason."""

import copy
import json
from pathlib import Path

import pytest
from comparison import contract
from comparison.cli import UserError

RESULTS = Path(__file__).parents[1]
RUN = RESULTS / "runs" / "gans" / "shapes-cpu"
WHOLE = {name: RUN / name for name in contract.SCHEMAS if name != "anchors.json"}
WHOLE["anchors.json"] = RESULTS / "reports" / "shapes-cpu" / "anchors.json"
COMMITTED = [path for name in contract.SCHEMAS for path in sorted(RESULTS.rglob(name)) if "studies" not in path.parts]


def test_every_committed_file_is_accepted():
    assert len(COMMITTED) > 20
    for path in COMMITTED:
        contract.read(path, path.name)


@pytest.mark.parametrize(
    ("kind", "place", "value", "says"),
    [
        ("config.json", ["options"], [], "options: [] is not of type 'object'"),
        ("config.json", ["versions"], {"torch": 2}, "versions.torch: 2 is not of type 'string'"),
        ("sampling.json", ["trained"], [3], "trained: [3] is not of type 'object', 'null'"),
        ("timing.json", ["batches"], {"a": 1}, "batches: {'a': 1} is not of type 'array'"),
        ("metrics.json", ["metrics", "coverage"], {"n": 3}, "metrics.coverage: 'value' is a required property"),
        ("anchors.json", ["checks", 0, "verdict"], 3, "checks.0.verdict: 3 is not of type 'string'"),
        ("anchors.json", ["anchors", "floor"], {}, "anchors.floor: 'label' is a required property"),
    ],
)
def test_damaged_file_is_named_with_the_entry_and_the_reason(kind, place, value, says, tmp_path):
    content = json.loads(WHOLE[kind].read_text())
    damaged = part = copy.deepcopy(content)
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path = tmp_path / kind
    path.write_text(json.dumps(damaged))
    with pytest.raises(UserError) as error:
        contract.read(path, kind)
    assert str(error.value) == f"{path}: not what {kind} holds: {says}"


@pytest.mark.parametrize("text", ["[]", "7", '"a"', "{", ""])
def test_text_that_is_no_object_is_refused(text, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json: (holds no JSON object|not readable as JSON)"):
        contract.read(path, "metrics.json")
