"""A page of HTML from plain text: whatever is given is escaped, and nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 58rem; padding: 1.5rem 1.1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; padding-top: .7rem; border-top: 1px solid #ddd; }
p { max-width: 44rem; margin: .6rem 0; }
p.note { background: #fdf3e7; padding: .4rem .7rem; border-left: 4px solid #E69F00; }
ul { list-style: none; padding: 0; max-width: 46rem; }
li { padding: .3rem .7rem; margin: .45rem 0; border-left: 4px solid #bbb; }
li.improves { border-color: #009E73; }
li.worse, li.not-finite { border-color: #D55E00; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid #e8e8e8; }
th { font-weight: 600; white-space: nowrap; }
td { max-width: 26rem; overflow-wrap: break-word; }
.numbers td { white-space: nowrap; }
figure { margin: 1.4rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .86rem; color: #555; max-width: 44rem; margin-top: .4rem; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; max-width: 44rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  figure { overflow-x: auto; }
  figure img { max-width: none; width: max(100%, 34rem); }
}
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page, from a title in plain text and sections in HTML.

    Examples
    --------
    >>> "<h1>a &lt; b</h1>" in page("a < b", [paragraph("...")])
    True
    """
    return _PAGE.substitute(title=escape(title), body="\n".join(sections))


def heading(text: str) -> str:
    """A heading."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph; `kind` is a class of the style sheet.

    Examples
    --------
    >>> paragraph("<script>")
    '<p>&lt;script&gt;</p>'
    """
    return f"<p{_class(kind)}>{escape(text)}</p>"


def points(items: Iterable[tuple[str, str]]) -> str:
    """A list of texts, each with its kind."""
    return "<ul>" + "\n".join(f"<li{_class(kind)}>{escape(text)}</li>" for text, kind in items) + "</ul>"


def definitions(items: Mapping[str, str]) -> str:
    """A list of terms and what they mean."""
    return (
        "<dl>"
        + "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in items.items())
        + "</dl>"
    )


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table that scrolls sideways where it is too wide; one of "numbers" keeps each cell on its line."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    table = f"<table{_class(kind)}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="wide">{table}</div>'


def figure(uri: str, caption: str) -> str:
    """A picture, given as a ``data:`` address, with its caption."""
    text = escape(caption)
    return f'<figure><img src="{escape(uri)}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _class(kind: str) -> str:
    return f' class="{escape(kind.replace(" ", "-"))}"' if kind else ""
