"""results/readme.py: blocks of a README filled from committed reports."""

import pytest
from comparison.cli import UserError
from comparison.report import page, readme

TEXT = """# A project

Prose before.

<!-- report made quality -->
an old table
<!-- /report -->

<!-- report made cost -->
<!-- /report -->
<!-- report made sentences -->
<!-- /report -->

<!-- report made picture:total_cost.png -->
<!-- /report -->
Prose after.
"""


@pytest.fixture(scope="module")
def reports(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    runs = [made / "runs" / model / "made" for model in ("gans", "improved-diffusion")]
    page.make_report("made", runs, made / "report" / "anchors.json", folder / "made", None, None)
    return folder


def test_blocks_hold_what_the_report_says_and_the_rest_is_left_alone(reports):
    text = readme.render(TEXT, reports)
    whole = (reports / "made" / "REPORT.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 15
    for line in rows:
        assert line in whole
    assert "![made: total cost](results/reports/made/total_cost.png)" in text
    assert "- Quality (random-embedding" in text
    assert "an old table" not in text
    assert text.startswith("# A project\n\nProse before.\n\n<!-- report made quality -->\n|")
    assert text.endswith("<!-- /report -->\nProse after.\n")
    assert readme.render(text, reports) == text


def test_stale_blocks_are_named(reports, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(readme.render(TEXT, reports))
    assert readme.stale(path, reports) == []
    path.write_text(path.read_text().replace("| DCGAN | 37.7", "| DCGAN | 3.7"))
    assert readme.stale(path, reports) == ["made quality"]


def test_script_fills_and_checks(reports, tmp_path, script):
    (tmp_path / "README.md").write_text(TEXT)
    flags = ("--readme", "README.md", "--reports", reports)
    done = script(tmp_path, "readme.py", *flags, "--check")
    assert done.returncode == 1
    assert "stale: made quality\nstale: made cost" in done.stdout
    assert (tmp_path / "README.md").read_text() == TEXT
    assert script(tmp_path, "readme.py", *flags).returncode == 0
    assert script(tmp_path, "readme.py", *flags, "--check").returncode == 0
    assert f"/{reports.name}/made/total_cost.png)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- report absent cost -->\n<!-- /report -->", "no such report"),
        ("<!-- report made price -->\n<!-- /report -->", "must be quality, cost, sentences or picture:FILE"),
        ("<!-- report made picture:none.png -->\n<!-- /report -->", "no such picture"),
        ("<!-- report made cost -->\n", "closed by"),
        ("<!-- report made cost -->\n<!-- report made quality -->\n<!-- /report -->", "closed by"),
        ("<!-- report made -->\n<!-- /report -->", "closed by"),
    ],
)
def test_blocks_that_cannot_be_filled_are_one_sentence(reports, text, says):
    with pytest.raises(UserError, match=says):
        readme.render(text, reports)
