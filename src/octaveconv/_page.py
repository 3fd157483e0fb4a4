"""Pages: one HTML file each that opens in a browser, with its pictures inside and nothing to fetch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from . import _figure
from ._atomic import replacing
from ._text import shown

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; } p { max-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: var(--soft); }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; }
figure { margin: 1rem 0; overflow-x: auto; } figcaption, .note { color: #888; font-size: .9rem; }
.maps { display: flex; flex-wrap: wrap; gap: .4rem; } .maps img { image-rendering: pixelated; }
.plain { background: #fff; max-width: 100%; }
"""


def page(title: str, *parts: str) -> str:
    """A whole page: parts are HTML, made by the functions below."""
    name, body = escape(shown(title)), "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )


def save(path: Path, text: str) -> None:
    """Write a page; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def heading(text: str) -> str:
    """A heading of a section."""
    return f"<h2>{escape(shown(text))}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text.

    Example:
        >>> paragraph("a < b")
        '<p>a &lt; b</p>'
    """
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(shown(text))}</p>"


def commands(lines: Sequence[str]) -> str:
    """Commands to type."""
    return f"<pre>{escape(chr(10).join(map(shown, lines)))}</pre>"


def table(rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Rows of text, the first one as the heading.

    Example:
        >>> table([["a"], ["1"]])
        '<table>\\n<tr><th>a</th></tr>\\n<tr><td>1</td></tr>\\n</table>'
    """
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        lines.append(f"<tr>{''.join(f'<{tag}>{escape(shown(cell))}</{tag}>' for cell in row)}</tr>")
    attribute = f' id="{kind}"' if kind else ""
    return "\n".join([f"<table{attribute}>", *lines, "</table>"])


def figure(drawn: Any, text: str) -> str:
    """A figure of matplotlib."""
    file = io.BytesIO()
    _figure.write(drawn, file, "svg")
    return _img("image/svg+xml", file.getvalue(), text, 'class="plain"')


def image(values: np.ndarray[Any, Any], text: str, width: int) -> str:
    """Gray values or colors, ``[H, W]`` or ``[H, W, 3]`` of 8 bits, shown ``width`` pixels wide."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(file, "PNG")
    height = round(width * values.shape[0] / values.shape[1])
    return _img("image/png", file.getvalue(), text, f'width="{width}" height="{height}"')


def caption(content: str, text: str) -> str:
    """HTML with a text below it."""
    return f"<figure>{content}<figcaption>{escape(shown(text))}</figcaption></figure>"


def _img(kind: str, data: bytes, text: str, attributes: str) -> str:
    code, said = base64.b64encode(data).decode(), escape(shown(text))
    return f'<img src="data:{kind};base64,{code}" alt="{said}" title="{said}" {attributes}>'
