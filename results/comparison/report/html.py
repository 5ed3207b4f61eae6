"""REPORT.html: the report as one self-contained file.

Runs are exchanged between people, so no value in a report is trusted: HTML in it is shown as text, links are relative
or http(s), pictures come from the folders of the report and its runs, and the page's policy forbids requests and all
scripts but the one of `explore`, by its hash.
"""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from comparison.files import write_text
from comparison.report import explore
from comparison.report.explore import Row

STYLE = """\
:root { color-scheme: light dark; --line: #8885; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 85%; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; white-space: nowrap; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; padding: 4px; box-sizing: border-box; }
code { font-size: 90%; overflow-wrap: anywhere; }
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{{ hash }}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style|safe }}</style>
</head>
<body>
{{ first|safe }}
{{ explore|safe }}
{{ rest|safe }}
{%- if explore %}
<script>{{ script|safe }}</script>
{%- endif %}
</body>
</html>
"""


def write_html(text: str, title: str, path: Path, rows: Sequence[Row] = (), folders: Sequence[Path] = ()) -> bool:
    """Write Markdown as a page with the PNGs of its folder embedded, and a part to explore before the second heading.

    Args:
        text: Markdown.
        title: title of the page.
        path: file to write.
        rows, folders: see `explore.render`.

    Returns:
        False without the packages jinja2 and markdown-it-py.
    """
    try:
        from jinja2 import Environment
        from markdown_it import MarkdownIt
    except ImportError:
        path.unlink(missing_ok=True)  # of an older report
        return False
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.validateLink = is_safe_link  # type: ignore[method-assign]
    body = reader.render(text)

    def embed(source: re.Match[str]) -> str:
        picture = path.parent / unquote(html.unescape(source[1]))
        inside = picture.resolve().parent == path.parent.resolve()
        if not inside or picture.suffix != ".png" or not picture.is_file():
            return 'src=""'
        with Image.open(picture) as image:
            return f'src="{explore.data_url(image.convert("RGB"))}"'

    body = re.sub(r'src="([^"]*)"', embed, body)  # a quote in text is written &quot;
    environment = Environment(autoescape=True)
    part = explore.render(environment, rows, folders)
    fixed = {"style": STYLE + explore.STYLE, "script": explore.SCRIPT, "hash": explore.HASH}
    page = environment.from_string(PAGE, fixed)
    first, heading, rest = body.partition("<h2>")
    write_text(path, page.render(title=title, first=first, explore=part, rest=heading + rest))
    return True


def is_safe_link(url: str) -> bool:
    """Return True for http, https and relative links."""
    try:
        return urlsplit(url.strip()).scheme in ("http", "https", "")
    except ValueError:  # not a URL
        return False
