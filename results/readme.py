"""Fill the blocks of README.md from committed reports, or check that they are up to date.

  python results/readme.py
  python results/readme.py --check

A block begins with `<!-- report NAME PART -->` and ends with `<!-- /report -->`. PART is a table (`quality`, `cost`),
`sentences` (the findings) or `picture:FILE` of results/reports/NAME. --check only names stale blocks; the exit status
is 1 if there are any.
"""

import argparse
import os
import re
from pathlib import Path

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
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="file to fill instead of the repository's README.md"
    )
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="folder to read instead of results/reports")
    return parser.parse_args(argv)


def render(text: str, reports: Path, link: str) -> tuple[str, list[str]]:
    """Return the text of a README with every block filled, and the blocks, `NAME PART`, that were stale.

    `reports` holds NAME/report.json, `link` is that folder as seen from the README, for pictures.

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
    if part == "quality":
        return markdown_table(*tables.quality_table(report["controls"], report["models"]))
    if part == "cost":
        return markdown_table(*tables.cost_table(report["models"]))
    if part == "sentences":
        lines = report["findings"] if "findings" in report else report["sentences"]  # the latter: schema 2
        return "\n".join(f"- {line}" for line in lines)
    kind, _, file = part.partition(":")
    if kind != "picture":
        raise UserError(f"block '{name} {part}': must be quality, cost, sentences or picture:FILE")
    if file not in report["pictures"]:
        raise UserError(f"block '{name} {part}': the report has no such picture, only {', '.join(report['pictures'])}")
    return f"![{name}: {file.removesuffix('.png').replace('_', ' ')}]({link}/{name}/{file})"


def main(args: argparse.Namespace) -> int:
    """Fill or check the blocks; return the exit status."""
    path = args.readme or repo_root() / "README.md"
    reports = args.reports or repo_root() / "results" / "reports"
    if not path.is_file():
        raise UserError(f"--readme {path}: no such file")
    link = Path(os.path.relpath(reports.resolve(), path.resolve().parent)).as_posix()
    text, stale = render(path.read_text(encoding="utf-8"), reports, link)
    if args.check:
        print("".join(f"stale: {block}\n" for block in stale), end="")
        return 1 if stale else 0
    if stale:
        write_text(path, text)
    print(f"{path}: {len(stale)} blocks updated")
    return 0


if __name__ == "__main__":
    run(lambda: main(parse_args()))
