"""A page of HTML from plain text: whatever is given is escaped, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
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
  max-width: 66rem; padding: 1.5rem 1.1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; padding-top: .7rem; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { max-width: 44rem; margin: .6rem 0; }
p.note { background: #fdf3e7; padding: .4rem .7rem; border-left: 4px solid #E69F00; }
ul { list-style: none; padding: 0; max-width: 46rem; }
li { padding: .3rem .7rem; margin: .45rem 0; border-left: 4px solid #bbb; }
li.improves { border-color: #009E73; }
li.worse, li.not-finite, li.no-better-than-mean { border-color: #D55E00; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide.numbers::before { display: none; content: "\\2192  more to the right: scroll sideways";
  position: sticky; left: 0; width: max-content; font-size: .8rem; color: #555; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid #e8e8e8; }
th { font-weight: 600; vertical-align: bottom; }
td { max-width: 26rem; overflow-wrap: break-word; }
tr > :first-child { min-width: 4rem; }
figure { margin: 1.4rem 0; }
figure .wide { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .86rem; color: #555; max-width: 44rem; margin-top: .4rem; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; max-width: 44rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .wide.numbers::before { display: block; }
  .wide.numbers table, .wide.numbers img { max-width: none; width: 40rem; }
  .numbers tr > :first-child { position: sticky; left: 0; background: #fff; max-width: 7rem; }
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


def heading(text: str, level: int = 2) -> str:
    """A heading, of a section or of a part of one.

    Examples
    --------
    >>> heading("Samples"), heading("a < b", 3)
    ('<h2>Samples</h2>', '<h3>a &lt; b</h3>')
    """
    return f"<h{level}>{escape(text)}</h{level}>"


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
    return (
        "<ul>"
        + "\n".join(f"<li{_class(kind)}>{_unbroken(escape(text))}</li>" for text, kind in items)
        + "</ul>"
    )


def definitions(items: Mapping[str, str]) -> str:
    """A list of terms and what they mean."""
    return (
        "<dl>"
        + "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in items.items())
        + "</dl>"
    )


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table that scrolls sideways where it is too wide.

    One of the kind "numbers" keeps its width, and its first column in sight, on a narrow screen, and says
    there that it scrolls. An interval of any table keeps to its line.

    Examples
    --------
    >>> "<td>1.0 [0.9,&nbsp;1.1]</td>" in html_table(["error"], [["1.0 [0.9, 1.1]"]])
    True
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    cells = ("".join(f"<td>{_unbroken(escape(cell))}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    return _wide(f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>", kind)


def figure(uri: str, caption: str) -> str:
    """A picture, given as a ``data:`` address, with its caption; on a narrow screen it scrolls sideways."""
    text = escape(caption)
    picture = _wide(f'<img src="{escape(uri)}" alt="{text}">', "numbers")
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def _wide(content: str, kind: str) -> str:
    """What may scroll sideways, by touch or, once it has the focus, by the arrow keys."""
    return f'<div class="wide{f" {escape(kind)}" if kind else ""}" tabindex="0">{content}</div>'


def _unbroken(text: str) -> str:
    """Text with its intervals, as ``[0.9, 1.1]``, kept on their lines."""
    return re.sub(r"\[([-+.e\d]+), ([-+.e\d]+)\]", r"[\1,&nbsp;\2]", text)


def _class(kind: str) -> str:
    return f' class="{escape(kind.replace(" ", "-"))}"' if kind else ""
