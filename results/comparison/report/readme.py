"""Fills the blocks of a README from the report.json files of committed reports, so that no number there is typed.

A block is `<!-- report NAME PART -->` to `<!-- /report -->`; PART is `quality`, `cost`, `sentences` or
`picture:FILE`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison import formatting
from comparison.cli import UserError
from comparison.files import read_json
from comparison.report import tables

BLOCK = re.compile(r"<!-- report (?P<name>\S+) (?P<part>\S+) -->\n(?P<body>.*?)<!-- /report -->", re.DOTALL)
START = re.compile(r"<!-- report\b.*?-->")
END = "<!-- /report -->"
PARTS = "quality, cost, sentences or picture:FILE"


def render(text: str, reports_folder: Path, link: str = "results/reports") -> str:
    """Return the README with every block filled anew; the same text if nothing changed.

    Args:
        text: of the README.
        reports_folder: holds NAME/report.json.
        link: the reports' folder as seen from the README, for links to pictures.

    Raises:
        UserError: a block is not closed, or names a report, part or picture that does not exist.
    """
    _check_markers(text)
    return BLOCK.sub(lambda found: f"{_first_line(found)}\n{_content(found, reports_folder, link)}\n{END}", text)


def stale(readme: Path, reports: Path, link: str = "results/reports") -> list[str]:
    """Return the blocks, `NAME PART`, that do not show what their report says now."""
    text = readme.read_text(encoding="utf-8")
    _check_markers(text)
    return [
        f"{found['name']} {found['part']}"
        for found in _blocks(text)
        if found["body"] != f"{_content(found, reports, link)}\n"
    ]


def _blocks(text: str) -> Iterator[re.Match[str]]:
    return BLOCK.finditer(text)


def _check_markers(text: str) -> None:
    """Refuse marks that would be passed over in silence."""
    whole = [found["body"] for found in _blocks(text)]
    if any(START.search(body) for body in whole) or not len(whole) == len(START.findall(text)) == text.count(END):
        raise UserError(f"every <!-- report NAME PART --> must stand on a line of its own and be closed by {END}")


def _first_line(found: re.Match[str]) -> str:
    return found[0].split("\n", 1)[0]


def _content(found: re.Match[str], reports: Path, link: str) -> str:
    name, part = found["name"], found["part"]
    path = reports / name / "report.json"
    if not path.is_file():
        raise UserError(f"block '{name} {part}': {path}: no such report")
    report: dict[str, Any] = read_json(path)
    if part == "quality":
        return formatting.markdown_table(*tables.quality_table(report["controls"], report["models"]))
    if part == "cost":
        return formatting.markdown_table(*tables.cost_table(report["models"]))
    if part == "sentences":
        return "\n".join(f"- {sentence}" for sentence in report["sentences"])
    kind, _, file = part.partition(":")
    if kind != "picture":
        raise UserError(f"block '{name} {part}': must be {PARTS}")
    if file not in report["pictures"]:
        raise UserError(f"block '{name} {part}': the report has no such picture, only {', '.join(report['pictures'])}")
    return f"![{name}: {file.removesuffix('.png').replace('_', ' ')}]({link}/{name}/{file})"
