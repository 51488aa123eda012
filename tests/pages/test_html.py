"""html.py: text is escaped wherever it goes, the page needs no other file, colours can be read."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from pages import html

NASTY = "<script>alert('$x')</script> & \"$100\" ${y}"


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text between tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def nasty_page() -> str:
    picture = html.image(b"\x89PNG", NASTY, (4, 3))
    parts = [
        html.paragraph(NASTY),
        html.bullets([NASTY]),
        html.table(NASTY, ["", NASTY], [[NASTY, NASTY]]),
        html.details(NASTY, html.heading(NASTY)),
        html.terms([(NASTY, NASTY)]),
        html.figure(NASTY, picture, NASTY),
    ]
    return html.page(NASTY, [html.section("one", NASTY, parts)], NASTY)


def test_text_is_escaped_wherever_it_goes() -> None:
    found = Tags(nasty_page())
    assert not found.of("script")
    assert found.of("img")[0]["alt"] == NASTY
    assert found.of("div")[0]["aria-label"] == NASTY
    assert found.said.count(NASTY) == 17


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    found = Tags(nasty_page())
    links = [a.get(key) for _, a in found.tags for key in ("src", "href") if a.get(key)]
    assert all(str(link).startswith(("data:", "#")) for link in links)
    policy = [str(a.get("content")) for a in found.of("meta") if "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(" not in html.STYLE
    assert "@import" not in html.STYLE


def test_a_page_says_its_language_and_leads_to_its_sections() -> None:
    full, empty = html.section("full", "Full", [html.heading("x")]), html.section("no", "No", [])
    found = Tags(html.page("Title", [full, empty], "end"))
    assert found.of("html")[0]["lang"] == "en"
    assert [link["href"] for link in found.of("a")] == ["#main", "#full"]
    assert {"main", "full", "full-title"} <= {a.get("id") for _, a in found.tags}
    assert "no" not in {a.get("id") for _, a in found.tags}


def test_a_table_has_a_caption_scopes_and_a_box_that_takes_the_focus() -> None:
    found = Tags(html.table("What", ["who", "share"], [["a", "1"], ["b", "2"]]))
    assert [cell["scope"] for cell in found.of("th")] == ["col", "col", "row", "row"]
    assert len(found.of("caption")) == 1
    assert found.of("div")[0]["tabindex"] == "0"


def test_nothing_is_made_of_nothing() -> None:
    assert html.bullets([]) == html.terms([]) == html.item_list("cards", []) == ""
    assert html.group("charts", [html.NOTHING]) == html.details("x", html.NOTHING) == ""


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"\x89PNG\r\n", "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"<?xml ", "svg+xml")],
)
def test_a_picture_is_named_by_its_bytes(data: bytes, kind: str) -> None:
    source = Tags(html.image(data, "what", (1, 1))).of("img")[0]["src"]
    assert str(source).startswith(f"data:image/{kind};base64,")


def colours(scheme: str) -> dict[str, str]:
    """Return the custom properties of a scheme, the light ones where it changes nothing."""
    light, dark, _ = re.findall(r":root \{(.*?)\}", html.STYLE, re.DOTALL)
    text = light if scheme == "light" else light + dark
    return dict(re.findall(r"--([\w-]+): (#\w{6})", text))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("ink", ["ink", "quiet", "link"])
@pytest.mark.parametrize("paper", ["paper", "soft", "warn"])
def test_text_stands_out_by_the_ratio_of_wcag_aa(scheme: str, ink: str, paper: str) -> None:
    found = colours(scheme)
    low, high = sorted(luminance(found[key]) for key in (ink, paper))
    assert (high + 0.05) / (low + 0.05) >= 4.5
