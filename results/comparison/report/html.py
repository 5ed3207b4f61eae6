"""REPORT.html: the report as one self-contained file.

Runs are exchanged between people, so no value in a report is trusted: HTML in it is shown as text, links are relative
or http(s), pictures come from the report's own folder, and the page's policy forbids scripts and requests.
"""

import base64
import html
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from comparison.files import write_text

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
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style|safe }}</style>
</head>
<body>
{{ body|safe }}
</body>
</html>
"""


def write_html(text: str, title: str, path: Path) -> bool:
    """Write Markdown as a page with the PNGs of its folder embedded.

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
        return f'src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"'

    body = re.sub(r'src="([^"]*)"', embed, body)  # a quote in text is written &quot;
    page = Environment(autoescape=True).from_string(PAGE, {"style": STYLE})
    write_text(path, page.render(title=title, body=body))
    return True


def is_safe_link(url: str) -> bool:
    """Return True for http, https and relative links."""
    try:
        return urlsplit(url.strip()).scheme in ("http", "https", "")
    except ValueError:  # not a URL
        return False
