"""Markdown from strangers becomes HTML that can do nothing."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.web.render import LONGEST_TEXT, to_html

PIECES = ["<", ">", '"', "'", "`", "$", "\\", "[", "](", ")", "javascript:", "<script>", "</p>", "<svg onload=x>", "&#"]
PIECES += ["\n", "|", "-", "| - |", "![", "http://", "data:text/html,", "\\text{", "}", "<!--", "]]>", "\u202e", "a "]


class Read(HTMLParser):
    """Every tag and every link."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags = set[str]()
        self.attributes = dict[str, set[str]]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=30).map("".join))
def test_nothing_that_acts_comes_through(text: str) -> None:
    read = Read(to_html(text))
    assert not read.tags & {"script", "style", "svg", "img", "iframe", "object", "embed", "form", "input", "base"}
    assert not [name for name in read.attributes if name.startswith("on") or name in ("style", "class", "id", "src")]
    assert all(
        link.startswith(("http:", "https:", "mailto:", "/", "#", "?")) or ":" not in link.split("/")[0]
        for link in read.attributes.get("href", ())
    )


def test_what_people_write_is_shown() -> None:
    html = to_html("# A\n\n**b** `c`\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n```\n<b>\n```")
    for expected in ("<h1>A</h1>", "<strong>b</strong>", "<code>c</code>", "<td>1</td>", "&lt;b&gt;"):
        assert expected in html


def test_mathematics_is_mathml_and_money_is_money() -> None:
    assert "<msup><mi>a</mi><mn>2</mn></msup>" in to_html("$a^2$")
    assert 'display="block"' in to_html("$$\\int_0^1 x$$")
    assert "<math" not in to_html("it costs $5, or $6 with tax")
    assert "<code>" in to_html("$\\frac{$")


@pytest.mark.parametrize("text", ["[" * 50_000, "> " * 20_000, "`" * 40_001, "*a " * 15_000, "a" * 1_000_000])
def test_a_hostile_structure_takes_no_minutes(text: str) -> None:
    assert to_html(text)


def test_a_very_long_text_is_shown_as_it_is() -> None:
    assert to_html("<b>" + "x" * LONGEST_TEXT).startswith("<pre>&lt;b&gt;x")


@pytest.mark.parametrize(
    "how", ["{}", "a `{}` b", "```\n{}\n```", "[{}](http://x/{})", "$x{}$", "| {} |\n|---|", "{}" * 9_999]
)
def test_nothing_turns_letters_round(how: str) -> None:
    for number in (*range(0x202A, 0x202F), *range(0x2066, 0x206A)):
        html = to_html(how.replace("{}", f"drow{chr(number)}"))
        assert chr(number) not in html and f"drow\\u{number:04x}" in html
    for mark in "\u200e\u200f":
        assert mark in to_html(f"\u05e9{mark}!")
