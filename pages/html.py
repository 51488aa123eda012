"""HTML of a report: from text, tables and pictures to one page that needs no other file.

`Html` is markup, plain `str` is text: every function here escapes the text that it is given, and
takes markup from another function of this file alone.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from string import Template
from typing import NewType

Html = NewType("Html", str)

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #f3f5f7;
  --line: #c9d0d6; --quiet: #4d5761; --link: #0b57a4; --warn: #fff3dc; --warn-line: #9a5b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #101214; --soft: #1d2125; --line: #454c53; --quiet: #b3bac1;
    --link: #8cc2ff; --warn: #33270f; --warn-line: #e0a53f; }
  img.chart { filter: invert(0.93) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: auto; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
main, header, nav, footer { max-width: 66rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; border-top: 1px solid var(--line);
  padding-top: 1.2rem; }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .5rem; z-index: 1; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; list-style: none; }
.lead { font-size: 1.1rem; }
.quiet, figcaption, caption { color: var(--quiet); }
.warnings { border: 1px solid var(--warn-line); border-left-width: .5rem; background: var(--warn);
  padding: .2rem 1rem; margin: 1rem 0; max-width: 46rem; }
.warnings ul { padding-left: 1.1rem; }
.cards { display: grid; gap: .8rem; padding: 0; margin: 1rem 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.cards > li { border: 1px solid var(--line); border-radius: .4rem; background: var(--soft);
  padding: .7rem 1rem; }
.cards h3 { margin: 0; font-size: 1rem; }
.cards p { margin: .2rem 0; }
.number { font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0 0 .5rem; min-width: 0; }
figure h3 { margin-top: .6rem; }
figcaption { font-size: .95rem; max-width: 46rem; }
img { max-width: 100%; height: auto; }
img.chart { display: block; background: #fff; }
.photos { display: grid; gap: .8rem; padding: 0; margin: .5rem 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.photos img { display: block; border: 1px solid var(--line); }
.photos figcaption { font-size: .85rem; color: var(--ink); }
.wrong { font-weight: 700; }
.scroll { overflow-x: auto; max-width: 100%; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem;
  overflow-wrap: normal; }
caption { text-align: left; padding: .2rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left;
  vertical-align: top; }
thead th { vertical-align: bottom; }
.values td { text-align: right; white-space: nowrap; }
.values thead th + th { text-align: right; }
.long td { overflow-wrap: anywhere; min-width: 8rem; }
summary { cursor: pointer; padding: .25rem 0; }
dt { font-weight: 600; margin-top: .4rem; }
dd { margin: 0 0 0 1rem; max-width: 46rem; }
pre { white-space: pre-wrap; background: var(--soft); padding: .6rem .8rem; border-radius: .3rem; }
footer { padding: 1rem 1rem 2rem; }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --soft: #fff; --line: #999;
    --quiet: #333; --link: #000; --warn: #fff; --warn-line: #000; }
  img.chart { filter: none; }
  body { font-size: 10pt; }
  .skip, nav { display: none; }
  figure, .cards > li, .photos > li, .warnings, tr, pre { break-inside: avoid; }
  h2, h3, caption, thead { break-after: avoid; }
  .charts { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; display: block; }
}
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>$title</h1>
</header>
<nav aria-label="Sections">
<ul>
$links
</ul>
</nav>
<main id="main" tabindex="-1">
$body
</main>
<footer><p class="quiet">$footer</p></footer>
</body>
</html>
""")

NOTHING = Html("")


def escape(text: object) -> Html:
    """Return text as markup."""
    return Html(html.escape(str(text)))


def join(parts: Iterable[Html]) -> Html:
    """Return the parts that say something, a line each."""
    return Html("\n".join(part for part in parts if part))


def paragraph(text: str, kind: str = "") -> Html:
    """Return a paragraph, of a class of `STYLE` where one is given."""
    return Html(f"<p{_class(kind)}>{escape(text)}</p>")


def bullets(texts: Sequence[str]) -> Html:
    """Return a list of texts; nothing without one."""
    items = join(Html(f"<li>{escape(text)}</li>") for text in texts)
    return Html(f"<ul>\n{items}\n</ul>") if texts else NOTHING


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "values"
) -> Html:
    """Return a table in a box of its own, which scrolls by mouse, finger and keyboard.

    Args:
        caption: what the table holds.
        header: of each column.
        rows: cells; the first of a row names it.
        kind: class of `STYLE`: values (right-aligned numbers) or long (texts).
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    name = escape(caption)
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{name}">\n'
        f"<table{_class(kind)}>\n<caption>{name}</caption>\n<thead><tr>{head}</tr></thead>\n"
        "<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>\n</div>"
    )


def details(summary: str, content: Html) -> Html:
    """Return content that a reader opens; nothing without content."""
    shown = f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"
    return Html(shown) if content else NOTHING


def terms(explained: Sequence[tuple[str, str]]) -> Html:
    """Return a list of terms with what they mean."""
    lines = [f"<dt>{escape(term)}</dt><dd>{escape(said)}</dd>" for term, said in explained]
    return Html("<dl>\n" + "\n".join(lines) + "\n</dl>") if lines else NOTHING


def image(data: bytes, alt: str, size: tuple[int, int], kind: str = "") -> Html:
    """Return an embedded picture.

    Args:
        data: of an SVG, PNG or JPEG file.
        alt: what the picture says, for who does not see it.
        size: width and height in CSS pixels, kept free until the picture is there.
        kind: class of `STYLE`.
    """
    types = {b"\x89PNG": "png", b"\xff\xd8\xff\xe0": "jpeg"}
    mime = types.get(data[:4], "svg+xml")
    source = f"data:image/{mime};base64,{base64.b64encode(data).decode()}"
    width, height = size
    return Html(
        f'<img{_class(kind)} src="{source}" width="{width}" height="{height}" alt="{escape(alt)}">'
    )


def figure(title: str, picture: Html, reading: str, numbers: Html = NOTHING) -> Html:
    """Return a chart with its title, how to read it, and its numbers to open."""
    return Html(
        f"<figure>\n<h3>{escape(title)}</h3>\n{picture}\n<figcaption>{escape(reading)}"
        f"</figcaption>\n{details('The numbers', numbers)}\n</figure>"
    )


def group(kind: str, parts: Sequence[Html]) -> Html:
    """Return a box of a class of `STYLE`; nothing without parts."""
    there = [part for part in parts if part]
    return Html(f'<div class="{kind}">\n{join(there)}\n</div>') if there else NOTHING


def item_list(kind: str, items: Sequence[Html]) -> Html:
    """Return a list of boxes; nothing without one."""
    lines = join(Html(f"<li>{item}</li>") for item in items)
    return Html(f'<ul class="{kind}">\n{lines}\n</ul>') if items else NOTHING


def heading(text: str) -> Html:
    """Return a heading within a section."""
    return Html(f"<h3>{escape(text)}</h3>")


def section(name: str, title: str, parts: Iterable[Html]) -> tuple[str, str, Html]:
    """Return a section for `page`: its anchor, its title, its markup (nothing without parts)."""
    content = join(parts)
    start = f'<section id="{name}" aria-labelledby="{name}-title">'
    start += f'\n<h2 id="{name}-title">{escape(title)}</h2>\n'
    return name, title, Html(f"{start}{content}\n</section>") if content else NOTHING


def page(title: str, sections: Sequence[tuple[str, str, Html]], footer: str) -> str:
    """Return the whole page, with links to those sections that say something."""
    there = [part for part in sections if part[2]]
    links = join(Html(f'<li><a href="#{name}">{escape(text)}</a></li>') for name, text, _ in there)
    return PAGE.substitute(
        title=escape(title),
        style=STYLE,
        links=links,
        body=join(part for _, _, part in there),
        footer=escape(footer),
    )
