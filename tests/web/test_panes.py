"""What an answer says stays in its pane, whatever it says: in a real browser, at the size of its page."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page

from manners.types import AskedHow, Comparison, Response, Role, Turn
from manners.web.render import EM, LEAST_EM, LENGTHS, MOST_EM, to_html
from tests.web.conftest import Place
from tests.web.scripted import Scripted
from tests.web.test_chat import Open, begin, say, serving
from tests.web.test_label import judge, pages, ready, settings

__all__ = ["serving"]
LARGE = {
    "kern": "$\\kern9999em x$",
    "kern to the left": "before $\\kern-9999em\\text{written over what stands before}$",
    "many kerns": "$" + "\\kern9em" * 200 + "x$",
    "rule": "$\\rule{9999em}{9999em}$",
    "hspace": "$$\\hspace{500cm} x$$",
    "mspace": "$\\mspace{99999mu}x$",
    "above": "$a \\above 9999em b$",
    "row of fractions": "$" + "\\frac{1}{" * 60 + "2" + "}" * 60 + "$",
    "wide": "$" + "x" * 1900 + "$",
    "matrix": "$\\begin{matrix}" + "a&" * 200 + "b\\end{matrix}$",
    "fence": "$\\left(" + "\\begin{matrix}" + "a\\\\" * 200 + "b\\end{matrix}\\right)$",
    "style": "$\\style{position:fixed;inset:0;font-size:999em}{x}$",
    "class": "$\\class{drawer}{x}$",
    "size": "$\\Huge\\Huge\\Huge x$",
    "one word": "x" * 19_000,
    "code": "```\n" + "x" * 5000 + "\n```",
    "table": "|" + "a|" * 300 + "\n|" + "-|" * 300 + "\n|" + "b|" * 300,
    "marks above": "Z" + "\u0301" * 500 + "algo " + "\u0e49" * 900,
    "turned round": "\u202e\u2067 turned \u202d" * 200,
    "list": "999999. a\n\n99999999999. b",
    "quotes": "> " * 200 + "deep",
    "blank": "\u2003" * 3000 + "x",
}


WIDE = {
    "code": "```python\n" + "print('" + "long " * 28 + "')\n```",
    "inline code": "`" + "x" * 300 + "`",
    "url": "https://example.org/" + "path/" * 80,
    "link": f"[a](https://example.org/{'p' * 300})",
    "word": "Donaudampfschiff" * 40,
    "table": "|" + " a long heading |" * 20 + "\n|" + "-|" * 20 + "\n|" + " some words here |" * 20,
    "formula": "$$" + "x_1 + " * 120 + "y$$",
    "in a list": "1. one\n   - two\n\n     ```\n     " + "y" * 400 + "\n     ```",
    "in a quote": "> ```\n> " + "z" * 400 + "\n> ```",
    "from the right": "\u05e9\u05dc\u05d5\u05dd `code " + "x" * 200 + "` 42\n\n- \u05e9\u05dc\u05d5\u05dd",
    "as written": "> " * 60 + "w" * 400,
    "heading": "# " + "H" * 300,
}
BOXES = """(selector) => [...document.querySelectorAll(selector)].map((pane) => {
    const box = pane.getBoundingClientRect();
    return [box.left, box.width];
})"""


def equal(page: Page, selector: str, width: int) -> None:
    """Assert that two panes are equally wide, beside each other or one below the other, and inside the window."""
    (left, one), (right, other) = page.evaluate(BOXES, selector)
    assert abs(one - other) < 1 and left >= 0 and right + other <= width, (left, one, right, other)
    assert (right >= left + one) if width > 700 else right == left
    assert page.evaluate("document.documentElement.scrollWidth") <= width


WIDTHS = (1280, 768, 390)


def at_once(place: Place) -> None:
    settings(place, repeat_share=0.0, overlap=1, agree=1, shortest_view=0)


def next_pair(page: Page) -> None:
    """Judge, and wait until another pair is drawn, or none is left."""
    judge(page, lambda: page.keyboard.press("b"))


def test_both_panes_are_equally_wide(alone: Place, open_page: Callable[..., Page]) -> None:
    at_once(alone)
    alone.store.add_comparisons(map(pair, WIDE.values()))
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        for _ in WIDE:
            page.wait_for_selector("#pair:not([hidden])")
            for raw in (False, True):
                for width in WIDTHS:
                    page.set_viewport_size({"width": width, "height": 800})
                    equal(page, ".answer", width)
                page.keyboard.press("r")
                assert page.locator("#raw").get_attribute("aria-pressed") == str(not raw).lower()
            next_pair(page)
        hidden = [page.locator(f"#{name}").is_hidden() for name in ("pair", "raw", "report")]
        assert all(hidden), "there is nothing to be read as written, or to be reported"


@pytest.mark.long
def test_both_panes_of_the_chat_are_equally_wide(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(Scripted(tuple(WIDE.values())), 1.0)}/chat")
    begin(page)
    for text in WIDE:  # 24 answers: no more than an account has at once
        say(page, text)
        ready(page)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            equal(page, ".two .turn", width)
        page.keyboard.press("s")
        page.wait_for_selector("#asking", state="hidden")


def test_the_heads_of_a_table_break_between_words(alone: Place, open_page: Callable[..., Page]) -> None:
    table = "| Understanding | Implementation | Characteristics |\n|---|---|---|\n| " + "word " * 90 + "| b | c |"
    alone.store.add_comparisons([pair(table)])
    with pages(alone) as url:
        page = open_page(f"{url}/label", width=768)
        page.wait_for_selector("#pair:not([hidden])")
        heads = page.evaluate(
            """() => [...document.querySelectorAll(".answer th")].map((head) => {
                const range = document.createRange();
                range.selectNodeContents(head);
                return range.getClientRects().length;
            })"""
        )
        assert heads == [1, 1, 1], "each is one word, and stands on one line"


def pair(text: str) -> Comparison:
    prompt = (Turn(Role.USER, "Show me."),)
    return Comparison(prompt, Response(text, "initial"), Response("short", "initial"), AskedHow.RANDOM)


INSIDE = """() => ["left", "right"].flatMap((id) => {
    const pane = document.getElementById(id), card = pane.closest(".answer").getBoundingClientRect();
    const box = pane.getBoundingClientRect();
    const clips = getComputedStyle(pane).overflowX !== "visible";
    return clips && box.left >= card.left - 1 && box.right <= card.right + 1 ? [] : [id];
})"""
COVERED = """() => [...document.querySelectorAll(".verdicts button")].filter((button) => {
    button.scrollIntoView({ block: "nearest" });
    const box = button.getBoundingClientRect();
    const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    return !button.contains(top);
}).length"""
ACROSS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.long
def test_no_answer_widens_the_page_or_covers_its_buttons(alone: Place, open_page: Callable[..., Page]) -> None:
    at_once(alone)
    alone.store.add_comparisons(map(pair, LARGE.values()))
    with pages(alone) as url:
        page = open_page(f"{url}/label")
        for _ in LARGE:
            page.wait_for_selector("#pair:not([hidden])")
            shown = page.evaluate("['left', 'right'].map((id) => document.getElementById(id).innerText.slice(0, 60))")
            for width in (1280, 400):
                page.set_viewport_size({"width": width, "height": 800})
                found = [page.evaluate(question) for question in (ACROSS, INSIDE, COVERED)]
                assert found[0] <= 0 and found[1:] == [[], 0], (width, shown, found)
            next_pair(page)
        assert page.locator("#pair").is_hidden()


class Lengths(HTMLParser):
    """Every attribute of a formula that makes it large."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found = list[tuple[str, str]]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(name, value or "") for name, value in attrs]


COMMANDS = ("\\kern", "\\hskip", "\\mskip", "\\mkern", "\\hspace{%}", "\\rule{%}{%}", "\\mspace{%}", "a \\above % b")
UNITS = ("em", "ex", "mu", "px", "pt", "pc", "in", "cm", "mm", "%", "", "vw", "EM", "e9em", "rem")


@given(
    st.sampled_from(COMMANDS),
    st.floats(-1e12, 1e12).map(lambda number: f"{number:.3f}") | st.integers(-(10**40), 10**40).map(str),
    st.sampled_from(UNITS),
)
def test_no_formula_says_a_length_that_is_out_of_bounds(command: str, number: str, unit: str) -> None:
    length = f"{number}{unit}"
    text = command.replace("%", length) if "%" in command else f"{command}{length}"
    for name, value in Lengths(to_html(f"${text} x$")).found:
        assert name not in ("style", "class", "mathsize", "height", "depth", "voffset", "lspace")
        if name == "scriptlevel":
            assert value in "0123"
        for one in value.split() if name in LENGTHS else ():
            found = re.fullmatch(r"(-?[\d.]+)([a-z]*)", one)
            assert found and LEAST_EM <= float(found[1]) * EM[found[2]] <= MOST_EM, (name, value)


@pytest.mark.parametrize(
    ("tex", "kept"), [("\\quad", "1em"), ("\\Bigg(", "2.470em"), ("\\kern0.5ex", "0.5ex"), ("\\!", "neg")]
)
def test_what_a_formula_needs_stays(tex: str, kept: str) -> None:
    assert kept in to_html(f"$a{tex} b$")
