"""results/readme.py: blocks of a README filled from committed reports; and the examples of docs/files.md."""

import json
import runpy
from pathlib import Path

import pytest
from comparison.cli import UserError
from comparison.data.images import load_npz
from comparison.report import page
from comparison.scores.evaluation import find_samples

RESULTS = Path(__file__).parents[1]
render = runpy.run_path(str(RESULTS / "readme.py"))["render"]
check_runs = runpy.run_path(str(RESULTS / "report.py"))["check_runs"]
LINK = "results/reports"
TEXT = """# A project

Prose before.

<!-- report made quality -->
an old table
<!-- /report -->

<!-- report made cost -->
<!-- /report -->
<!-- report made sentences -->
<!-- /report -->

<!-- report made picture:answer.png -->
<!-- /report -->
Prose after.
"""
BLOCKS = ["made quality", "made cost", "made sentences", "made picture:answer.png"]


@pytest.fixture(scope="module")
def reports(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    runs = [made / "runs" / model / "made" for model in ("gans", "improved-diffusion")]
    page.make_report("made", runs, made / "report" / "anchors.json", folder / "made", None, None)
    return folder


def test_blocks_hold_what_the_report_says_and_the_rest_is_left_alone(reports):
    text, stale = render(TEXT, reports, LINK)
    assert stale == BLOCKS
    whole = (reports / "made" / "REPORT.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 15
    for line in rows:
        assert line in whole
    assert "![made: answer](results/reports/made/answer.png)" in text
    assert "- Quality (random-embedding" in text
    assert "an old table" not in text
    assert text.startswith("# A project\n\nProse before.\n\n<!-- report made quality -->\n|")
    assert text.endswith("<!-- /report -->\nProse after.\n")
    assert render(text, reports, LINK) == (text, [])
    assert render(text.replace("| DCGAN | 37.7", "| DCGAN | 3.7"), reports, LINK) == (text, BLOCKS[:1])


def test_script_fills_and_checks(reports, tmp_path, script):
    (tmp_path / "README.md").write_text(TEXT)
    flags = ("--readme", "README.md", "--reports", reports)
    done = script(tmp_path, "readme.py", *flags, "--check")
    assert done.returncode == 1
    assert done.stdout == "".join(f"stale: {block}\n" for block in BLOCKS)
    assert (tmp_path / "README.md").read_text() == TEXT
    assert script(tmp_path, "readme.py", *flags).returncode == 0
    assert script(tmp_path, "readme.py", *flags, "--check").returncode == 0
    assert f"/{reports.name}/made/answer.png)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- report absent cost -->\n<!-- /report -->", "no such report"),
        ("<!-- report made price -->\n<!-- /report -->", "must be summary, quality, cost, sentences or picture:FILE"),
        ("<!-- report made picture:none.png -->\n<!-- /report -->", "no such picture"),
        ("<!-- report made cost -->\n", "closed by"),
    ],
)
def test_blocks_that_cannot_be_filled_are_one_sentence(reports, text, says):
    with pytest.raises(UserError, match=says):
        render(text, reports, LINK)


def test_damaged_report_is_one_sentence(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"report\.json: damaged, or of another version"):
        render("<!-- report made cost -->\n<!-- /report -->", tmp_path, LINK)


def test_page_that_is_no_text_is_one_sentence(reports, tmp_path, script):
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    done = script(tmp_path, "readme.py", "--readme", "README.md", "--reports", reports)
    assert (done.returncode, done.stderr) == (2, "readme.py: error: README.md: not UTF-8 text\n")


def test_model_of_the_documentation_is_a_run_folder(tmp_path, monkeypatch):
    text = (RESULTS.parent / "docs" / "files.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    run = Path("results/runs/flow/mine")
    check_runs([run])
    assert load_npz(find_samples(run))[0].shape == (1000, 3, 32, 32)


def test_examples_of_the_documentation_are_valid_json():
    examples = (RESULTS.parent / "docs" / "files.md").read_text().split("```json\n")[1:]
    assert [type(json.loads(part.split("```")[0])) for part in examples] == [dict] * 4
