"""REPORT.html: the report as one self-contained file."""

import base64
import html
import re
from pathlib import Path

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
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_html(text: str, title: str, path: Path) -> bool:
    """Write Markdown as a page with the PNGs of its folder embedded; return False without the package markdown."""
    try:
        import markdown
    except ImportError:
        path.unlink(missing_ok=True)  # of an older report
        return False
    body = markdown.markdown(text, extensions=["tables"], tab_length=2)

    def embed(source: re.Match[str]) -> str:
        picture = path.parent / html.unescape(source[1])
        if not picture.is_file():
            return source[0]
        return f'src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"'

    body = re.sub(r'src="([^":]+\.png)"', embed, body)
    write_text(path, PAGE.format(title=html.escape(title), style=STYLE, body=body))
    return True
