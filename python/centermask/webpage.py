"""Self-contained HTML pages: one file, no request to any network, readable on a phone and in the dark."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# The policy forbids what the page does not do: nothing may be loaded but pictures that it holds itself.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
"""

_STYLE = """
:root { --ink: #1b1f24; --soft: #5b6570; --paper: #ffffff; --line: #d8dee4; --band: #f4f6f8;
  --error: #b3261e; --warning: #8a5a00; --note: #3b5b7a; --a: #1f6feb; --b: #c2410c; --c: #1a7f37; --d: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4ae; --paper: #14171a; --line: #333a41;
  --band: #1d2126; --error: #ff8a80; --warning: #f0b849; --note: #8ab4d8; --a: #6ea8ff; --b: #ff9a5c; --c: #5fd07a;
  --d: #c3a1ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h3 { font-size: 1rem; }
p.lead { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--line); }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; font-size: .9rem; }
.error { color: var(--error); } .warning { color: var(--warning); } .note { color: var(--note); }
.tag { font-weight: 600; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem; }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; border-radius: .3rem; }
figcaption { font-size: .8rem; color: var(--soft); overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 10px system-ui, sans-serif; }
.axis { stroke: var(--line); fill: none; } .guide { stroke: var(--soft); stroke-dasharray: 3 3; fill: none; }
.l0 { stroke: var(--a); } .l1 { stroke: var(--b); } .l2 { stroke: var(--c); } .l3 { stroke: var(--d); }
polyline.l0, polyline.l1, polyline.l2, polyline.l3 { fill: none; stroke-width: 2; }
rect.l0 { fill: var(--a); stroke: none; } rect.l1 { fill: var(--b); stroke: none; }
td.cell { background: color-mix(in srgb, var(--a) calc(var(--p) * 1%), transparent); }
"""

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 320, 220, 34, 30, 18


def page(title: str, body: Iterable[str]) -> str:
    """A whole document.

    Args:
        title: Plain text.
        body: Pieces of HTML, made by the functions below or escaped by the caller.
    """
    head = _HEAD.format(title=escape(title), style=_STYLE)
    return head + "\n".join(body) + "\n</main>\n</body>\n</html>\n"


def heading(level: int, text: str) -> str:
    """<h1> to <h6>."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """Plain text; `kind` is a class of the style sheet: lead, error, warning, note."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers are given as text; the first column is left-aligned."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def heat_table(columns: Sequence[str], names: Sequence[str], values: NDArray[np.int64]) -> str:
    """A table of counts whose cells are tinted by their share of the row.

    Args:
        columns: Headings, the first one for the names.
        names: Of the rows.
        values: int64 [rows, columns - 1].
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = []
    for name, row in zip(names, values.tolist(), strict=True):
        total = max(sum(row), 1)
        cells = "".join(f'<td class="cell" style="--p:{60 * value / total:.0f}">{value or ""}</td>' for value in row)
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>\n")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>'


def figure(image: NDArray[np.uint8], caption: str, *, quality: int = 80) -> str:
    """A picture, uint8 BGR [h, w, 3], inside the page as JPEG."""
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"figure: OpenCV cannot encode {image.dtype} {list(image.shape)}")
    text = base64.b64encode(data.tobytes()).decode("ascii")
    height, width = image.shape[:2]
    source = f"data:image/jpeg;base64,{text}"
    label = escape(caption, quote=True)
    return (
        f'<figure><img src="{source}" width="{width}" height="{height}" alt="{label}" loading="lazy">'
        f"<figcaption>{label}</figcaption></figure>"
    )


def gallery(figures: Sequence[str], *, wide: bool = False) -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="gallery{" wide" if wide else ""}">{"".join(figures)}</div>'


def folded(summary: str, kind: str, body: Iterable[str], *, is_open: bool = False) -> str:
    """Something that unfolds; `kind` tints its word."""
    state = " open" if is_open else ""
    word = f'<span class="tag {kind}">{escape(kind)}</span> ' if kind else ""
    return f"<details{state}><summary>{word}{escape(summary)}</summary>{''.join(body)}</details>"


class Line(NamedTuple):
    """A curve of a chart: name, and points with both coordinates in 0..1."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def chart(title: str, x_name: str, y_name: str, lines: Sequence[Line], *, diagonal: bool = False) -> str:
    """Curves over the unit square as SVG. At most four have colours of their own."""
    parts = _frame(title, x_name, y_name)
    if diagonal:
        parts.append(f'<line class="guide" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    for n, line in enumerate(lines):
        points = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(line.x, line.y, strict=True) if not math.isnan(y))
        parts.append(f'<polyline class="l{n % 4}" points="{points}"/>')
        if line.name:
            bottom = _HEIGHT - _BOTTOM - 6 - 13 * n
            color = f"fill:var(--{'abcd'[n % 4]})"
            parts.append(f'<rect style="{color}" x="{_LEFT + 8}" y="{bottom - 8}" width="9" height="9"/>')
            parts.append(f'<text x="{_LEFT + 21}" y="{bottom}">{escape(line.name)}</text>')
    return "".join([*parts, "</svg>"])


def bars(title: str, x_name: str, y_name: str, values: Sequence[float], *, diagonal: bool = False) -> str:
    """Bars of equal width over 0..1, heights in 0..1; NaN leaves a gap."""
    parts = _frame(title, x_name, y_name)
    count = max(len(values), 1)
    for n, value in enumerate(values):
        if not math.isnan(value):
            left, right = _x(n / count) + 1, _x((n + 1) / count) - 1
            top, height = _y(value), _y(0) - _y(value)
            parts.append(
                f'<rect class="l0" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{height:.1f}"/>'
            )
    if diagonal:
        parts.append(f'<line class="guide" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    return "".join([*parts, "</svg>"])


def _frame(title: str, x_name: str, y_name: str) -> list[str]:
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">',
        f'<text x="{_LEFT}" y="9" style="font-weight:600">{escape(title)}</text>',
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - 8}"/>',
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(9 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>",
    ]
    for tick in (0.0, 0.5, 1.0):
        parts.append(f'<text x="{_x(tick)}" y="{_HEIGHT - _BOTTOM + 12}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{_LEFT - 4}" y="{_y(tick) + 3}" text-anchor="end">{tick:g}</text>')
    return parts


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - 8 - _LEFT)


def _y(value: float) -> float:
    return _HEIGHT - _BOTTOM - value * (_HEIGHT - _BOTTOM - _TOP)
