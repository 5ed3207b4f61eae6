"""Fill the report blocks of README.md and docs/*.md from committed reports, or check that they are up to date.

  python results/readme.py
  python results/readme.py --check

A block begins with `<!-- report NAME PART -->` and ends with `<!-- /report -->`. PART is a table (`summary`, `quality`,
`cost`), `sentences` (the findings) or `picture:FILE` of results/reports/NAME. --check only names stale blocks; the exit
status is 1 if there are any.
"""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison.cli import UserError, make_parser, repo_root, run
from comparison.files import read_json, write_text
from comparison.formatting import markdown_table
from comparison.report import tables

BLOCK = re.compile(r"<!-- report (?P<name>\S+) (?P<part>\S+) -->\n(?P<body>.*?)<!-- /report -->", re.DOTALL)
START = re.compile(r"<!-- report\b.*?-->")
END = "<!-- /report -->"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, name stale blocks")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="page to fill instead of README.md and docs/*.md")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="folder to read instead of results/reports")
    return parser.parse_args(argv)


def render(text: str, reports: Path, link: str) -> tuple[str, list[str]]:
    """Return the text of a page with every block filled, and the blocks, `NAME PART`, that were stale.

    `reports` holds NAME/report.json, `link` is that folder as seen from the page, for pictures.

    Raises:
        UserError: a block is not closed, or names a report, part or picture that does not exist.
    """
    bodies = [block["body"] for block in BLOCK.finditer(text)]
    if any(map(START.search, bodies)) or not len(bodies) == len(START.findall(text)) == text.count(END):
        raise UserError(f"every <!-- report NAME PART --> must stand on a line of its own and be closed by {END}")
    stale = []

    def fill(block: re.Match[str]) -> str:
        body = f"{_content(block['name'], block['part'], reports, link)}\n"
        if body != block["body"]:
            stale.append(f"{block['name']} {block['part']}")
        return block[0].replace(f"-->\n{block['body']}", f"-->\n{body}", 1)

    return BLOCK.sub(fill, text), stale


def _content(name: str, part: str, reports: Path, link: str) -> str:
    path = reports / name / "report.json"
    if not path.is_file():
        raise UserError(f"block '{name} {part}': {path}: no such report")
    report = read_json(path)
    try:
        return _block(report, name, part, link)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, or of another version ({type(error).__name__}: {error})") from None


def _block(report: Mapping[str, Any], name: str, part: str, link: str) -> str:
    if part == "summary":
        return markdown_table(*tables.summary_table(report["controls"], report["models"]))
    if part == "quality":
        return markdown_table(*tables.quality_table(report["controls"], report["models"]))
    if part == "cost":
        return markdown_table(*tables.cost_table(report["models"]))
    if part == "sentences":
        return "\n".join(f"- {line}" for line in report["findings"])
    kind, _, file = part.partition(":")
    if kind != "picture":
        raise UserError(f"block '{name} {part}': must be summary, quality, cost, sentences or picture:FILE")
    if file not in report["pictures"]:
        raise UserError(f"block '{name} {part}': the report has no such picture, only {', '.join(report['pictures'])}")
    return f"![{name}: {file.removesuffix('.png').replace('_', ' ')}]({link}/{name}/{file})"


def main(args: argparse.Namespace) -> int:
    """Fill or check the blocks; return the exit status."""
    root = repo_root()
    reports = args.reports or root / "results" / "reports"
    if args.readme and not args.readme.is_file():
        raise UserError(f"--readme {args.readme}: no such file")
    if args.reports and not args.reports.is_dir():
        raise UserError(f"--reports {args.reports}: no such folder")
    outdated = False
    for path in [args.readme] if args.readme else [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        link = Path(os.path.relpath(reports.resolve(), path.resolve().parent)).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 text") from None
        text, stale = render(text, reports, link)
        outdated |= bool(stale)
        if args.check:
            print("".join(f"stale: {block}\n" for block in stale), end="")
            continue
        if stale:
            write_text(path, text)
        if BLOCK.search(text):
            print(f"{path}: {len(stale)} blocks updated")
    return 1 if args.check and outdated else 0


if __name__ == "__main__":
    run(lambda: main(parse_args()))
