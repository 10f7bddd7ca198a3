"""Building HTML that no record can break: every text is escaped, only ``Html`` passes as it is."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence

from ldbench.errors import clean

VOID = ("img", "br")
STYLE = """
:root { color-scheme: light; --line: #d9d9d9; --soft: #f5f6f7; --ink: #1d1f21; --quiet: #5c6166; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.2rem 3rem; max-width: 76rem; color: var(--ink); background: #fff;
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0.4rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 0.4rem; padding-top: 0.8rem;
  border-top: 2px solid var(--ink); } h3 { font-size: 1rem; margin: 1.3rem 0 0.3rem; }
p { margin: 0.4rem 0; } .quiet { color: var(--quiet); font-size: 0.9rem; } a { color: #0b5cad; }
.warning { border-left: 5px solid #d55e00; background: #fdf1e8; padding: 0.5rem 0.8rem; margin: 0.5rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.55rem; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; }
th { background: var(--soft); font-weight: 600; } td:first-child { font-weight: 600; min-width: 8.4rem; }
tr.control td { color: var(--quiet); }
tr.ahead td:first-child { box-shadow: inset 4px 0 #009e73; }
tr.behind td:first-child { box-shadow: inset 4px 0 #d55e00; }
.figures { display: flex; flex-wrap: wrap; gap: 0.8rem 1.2rem; align-items: flex-start; } figure { margin: 0.6rem 0; }
figure.wide { flex: 1 1 100%; } figure.half { flex: 1 1 22rem; max-width: 34rem; }
figure.wide img { margin-right: 1rem; vertical-align: top; }
figure img { max-width: 100%; height: auto; } figcaption { color: var(--quiet); font-size: 0.86rem; max-width: 60rem; }
pre { white-space: pre-wrap; background: var(--soft); padding: 0.6rem; font-size: 0.8rem; }
details { margin: 0.4rem 0; } summary { cursor: pointer; }
dt { font-weight: 600; margin-top: 0.5rem; } dd { margin: 0 0 0 1rem; }
@media (max-width: 46rem) {
  body { padding: 0.6rem 0.7rem 2rem; }
  table.cards thead { display: none; } table.cards, table.cards tbody { display: block; }
  table.cards tr { display: block; border: 1px solid var(--line); border-radius: 6px; margin: 0.6rem 0; }
  table.cards td { display: flex; gap: 0.8rem; border: 0; padding: 0.15rem 0.4rem; }
  table.cards td::before { content: attr(data-label); flex: 0 0 9.5rem; color: var(--quiet); font-weight: 400; }
}
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 10pt; } table { font-size: 8pt; }
  .figures { display: block; } figure.wide img { max-width: 49%; margin: 0; }
  figure.half { display: inline-block; width: 48%; vertical-align: top; }
  h2, h3 { break-after: avoid; } tr, figure, .warning { break-inside: avoid; }
}
"""


class Html(str):
    """Markup that is safe already; made by ``tag`` alone."""


def tag(name: str, *children: str | Iterable[str], **attributes: str) -> Html:
    """``<name ...>children</name>``: text is cleaned and escaped; ``class_`` gives ``class``, ``_`` a hyphen."""
    inside = "".join(_escaped(child) for group in children for child in ([group] if isinstance(group, str) else group))
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(clean(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{inside}</{name}>")


def _escaped(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(clean(text))


def _lines(text: str) -> Html:
    """The lines of a cell, each in an element of its own where there are several."""
    lines = [text] if isinstance(text, Html) else text.split("\n")
    return _glued(text) if len(lines) == 1 else tag("div", [tag("div", _glued(line)) for line in lines])


def _glued(text: str) -> Html:
    """Numbers keep their interval on one line, and a p its value."""
    kept = re.sub(r"(\[\S+,) (?=\S+\])| (±) ", lambda m: f"{m[1]}&nbsp;" if m[1] else "&nbsp;±&nbsp;", _escaped(text))
    return Html(re.sub(r"\bp (=|&lt;) ", r"p&nbsp;\1&nbsp;", kept))


def table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> Html:
    """A table of (row class, texts); on a narrow screen every row is a card with the heads beside the values."""
    body = [
        tag(
            "tr",
            [tag("td", _lines(text), data_label=head) for head, text in zip(heads, texts, strict=True)],
            class_=kind,
        )
        for kind, texts in rows
    ]
    return tag(
        "table", tag("thead", tag("tr", [tag("th", head) for head in heads])), tag("tbody", body), class_="cards"
    )


def picture(figures: Sequence[str], alt: str, caption: str, kind: str) -> Html:
    """SVG figures under one caption; as images they cannot run or load anything, whatever their text says."""
    return tag("figure", [_image(svg, alt) for svg in figures], tag("figcaption", caption), class_=kind)


def _image(svg: str, alt: str) -> Html:
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8", "replace")).decode()
    width, height = svg.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()
    return tag("img", src=source, alt=alt, width=_pixels(width), height=_pixels(height))


def _pixels(points: str) -> str:
    return str(round(float(points) * 4 / 3))


def page(title: str, sections: Iterable[Html]) -> str:
    """A whole document without scripts and without any request to a network; the policy forbids both besides."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    )
    parts = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{tag("title", title)}<style>{STYLE}</style></head>\n'
        f"<body>{parts}</body></html>\n"
    )
