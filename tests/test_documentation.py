"""README.md and docs/: tables of the committed reports, links, and the tree of docs/architecture.md."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = runpy.run_path(str(ROOT / "tests" / "test_repository.py"))["LAYERS"]
FOLDERS = ("gans", "improved-diffusion", "denoising-diffusion-gan", "results", "tests")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results" / "studies" / "README.md"]
PAGES += [ROOT / folder / "README.md" for folder in FOLDERS[:4]]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_show_the_committed_reports():
    script = runpy.run_path(str(ROOT / "results" / "readme.py"))
    shown = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        link = ("../" * len(page.relative_to(ROOT).parents[0].parts)) + "results/reports"
        assert script["render"](text, ROOT / "results" / "reports", link) == (text, []), page
        shown += [(page.name, block["part"]) for block in script["BLOCK"].finditer(text)]
    assert ("README.md", "summary") in shown
    assert ("README.md", "picture:answer.png") in shown
    assert {"quality", "cost", "sentences"} <= {part for _, part in shown}


def test_reports_to_explore_are_small():
    reports = [*(ROOT / "results" / "reports").glob("*/REPORT.html")]
    assert reports
    assert all(path.stat().st_size < 3_000_000 for path in reports)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_architecture_names_every_folder_of_code_and_files_that_exist():
    named, parents = set(), []
    for line in ARCHITECTURE.split("```\n")[1].splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        folder, *scripts = re.findall(r"[\w.-]+/(?=\s)|\w+\.py", line)
        parents = [*parents[: indent // 2], folder]
        path = Path(*parents)
        assert (ROOT / path).is_dir() or path == Path("results/runs"), path
        for script in scripts:
            assert (ROOT / path / script).is_file(), f"{path}/{script}"
        named.add(str(path))
    code = {file.parent.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    assert {str(path) for path in code if "tests" not in path.parts[1:]} - named == set()


def test_architecture_names_paths_that_exist_and_the_layers_of_the_package():
    table, rest = ARCHITECTURE.split("## Layers")[1].split("## Data path")
    for path in re.findall(r"`([\w.-]+/[\w./-]*|[\w.]+\.(?:py|sh|md))`", rest):
        assert (ROOT / path).exists(), path
    rows = re.findall(r"^\| \d \| (.*?) \|", table, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)/?`", row)) for row in reversed(rows)] == [set(layer) for layer in LAYERS]
