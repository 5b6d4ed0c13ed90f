"""Every letter and digit of what somebody wrote is on the page, in its order."""

from __future__ import annotations

import html
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manners.web.colours import LANGUAGES, LONGEST_CODE, coloured
from manners.web.render import to_html
from tests.web.hostile import HOSTILE

DEEP_LIST = "".join("  " * depth + f"- level {depth}\n" for depth in range(60))
DEEP_QUOTE = "> " * 70 + "at the bottom"
DOCUMENTS = [
    "[Answer]: 42",
    "Before.\n\n[Answer]: 42\n[1]: https://example.org 'a title'\n\nAfter [1] and [the answer][Answer].",
    "* one\n\n  [hidden]: in-a-list\n\n> [hidden]: in-a-quote",
    "[text](https://example.org/path?q=1&amp;r=2 \"a title\") and ![picture](https://e.org/p.png 'drawn')",
    "[a](<b c d> (t)) [é](http://é.example/é) [x](javascript:alert(1)) [b](data:text/html,c)",
    "<https://example.org/%41%42?q=xn--n3h> and <somebody@example.org>",
    "&amp; &lt;b&gt; &#65; &notanentity; &copy",
    '```python title="demo.py" {1,3}\nx = 1\n```\n\n~~~ unclosed info\ncode 7',
    "1. a\n1. b\n5. c\n\ntext\n\n007. leading zeros\n\n123456789. long\n\n2) with a bracket",
    "| a | b |\n|---|---|\n| 1 | 2 | dropped 3 | 4 |\n| 5 |",
    "text\n\n| a |\n|---|\n| 1 | lost 2 |\n\nmore text",
    DEEP_LIST,
    DEEP_QUOTE,
    "before\n\n" + DEEP_QUOTE + "\n\nafter **bold**",
    "\\(a^2\\) and \\[\\frac12\\] but \\[1\\] and \\(open and \\) closed \\[",
    "\\[\na\n- b\n+ c\n= \\frac12\n\\]\n\nthen 2",
    "$x \\label{eq:1} \\tag{7}$ and $$\\color{red}{y}$$ (eq1) and $\\href{http://h.org}{z}$",
    "$$\n\\begin{aligned}a&=b\\\\c&=\\mathbb{R}\\text{ for all }\\alpha\n\\end{aligned}\n$$ (label 9)",
    "it costs $5, or $6 with tax; \\$7",
    "שלום `x = 1` 42\n\n- مرحبا 7\n- hello",
    "# one #\n\ntwo\n===\n\nthree\n---\n\n    four\n\n<b>five</b> <!-- six -->",
    "a\r\nb\rc\x0cd\u2028e\x00f\u202eg",
    "*a **b *c **d *e **f *g **h* i** j* k** l*" * 20,
    "[" * 60 + "deep" + "](x)" * 60,
    "½ \ufb01 \U0001d400 ٣ é e\u0301 한글 ไทย ①",
    *HOSTILE,
]
BLOCKS = ["[Answer]: 42\n", "[x]: /u 't'\n", "> ", "- ", "1. ", "12) ", "007. ", "* ", "+ ", "\n", "\n\n", "    ", "\t"]
FENCES = ["`", "``", "```", "```py\n", "~~~ info\n", "#", "## ", "---", "===", "=", "|", "|-|-|\n", "|a|b|c|\n", "||"]
MARKS = ["*", "**", "_", "~~", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\frac12", "x^2", "\\", "\\text{", "\\label{q}"]
LINKS = ["[", "](", '](http://é.com/é "t")', ")", "![", "<", "&amp;", "&#65;", "<http://a.b/%41>", "http://x.y"]
WORDS = [
    "<b>",
    "</p>",
    "<!--",
    "word ",
    "Ω7",
    "٣",
    "שלום",
    "½",
    "a1",
    "\r\n",
    "\x00",
    "\u202e",
    "\u0301",
    "{",
    "}",
    "\x0c",
]
PIECES = [*BLOCKS, *FENCES, *MARKS, *LINKS, *WORDS, "\ufb01", "\U0001d400", "\u2028", "\\begin{a}"]
MARKDOWN = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=60).map("".join)


class Said(HTMLParser):
    """What a page says: its text, and the numbers that it draws before the items of a list."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        number = dict(attrs).get("value") if tag == "li" else None
        self.text += str(int(number)) if number else ""  # as a browser draws it

    def handle_data(self, data: str) -> None:
        self.text += data


def readable(text: str) -> list[str]:
    """Letters and digits, whatever their accents, width or weight."""
    return [one for one in unicodedata.normalize("NFKD", text) if one.isalnum()]


def lost(text: str) -> str:
    """From where on the page no longer says what the source says; empty where it says all."""
    wanted = readable(text)
    shown = iter(readable(Said(to_html(text)).text))
    for place, one in enumerate(wanted):
        if one not in shown:
            return "".join(wanted[place:])
    return ""


@pytest.mark.parametrize("text", DOCUMENTS)
def test_no_letter_of_a_document_is_lost(text: str) -> None:
    assert lost(text) == ""


@settings(max_examples=200, deadline=None)
@given(MARKDOWN)
def test_no_letter_is_lost(text: str) -> None:
    assert lost(text) == ""


@pytest.mark.long
@settings(max_examples=5_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(MARKDOWN)
def test_no_letter_is_lost_in_five_thousand_documents(text: str) -> None:
    assert lost(text) == ""


def drawn(text: str) -> str:
    return to_html(text).replace("\n", "")


def test_a_definition_of_a_link_is_text() -> None:
    assert drawn("[Answer]: 42") == "<p>[Answer]: 42</p>"
    assert "[Answer]: 42" in drawn("[see][Answer]\n\n[Answer]: 42")


def test_a_link_says_where_it_goes() -> None:
    html = drawn('[bank](https://example.org/é "really")')
    assert 'href="https://example.org/%C3%A9"' in html
    assert Said(html).text == 'bank (https://example.org/é "really")'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\\(a^2\\)", "<msup><mi>a</mi><mn>2</mn></msup>"),
        ("\\[\\frac12\\]", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
        ("\\[\na\n- b = 1\n\\]", "<mo>\u2212</mo><mi>b</mi>"),
        ("\\[\\frac12\\]", "\\[\\frac12\\]</annotation>"),
        ("as in \\[1\\]", "as in \\[1\\]"),
        ("never \\(closed", "never \\(closed"),
        ("\\(\\frac{\\)", "<code>\\(\\frac{\\)</code>"),
        ("$\\frac{$", "<code>$\\frac{$</code>"),
    ],
)
def test_mathematics_in_brackets_is_a_formula_or_stays_as_it_was_written(text: str, shown: str) -> None:
    assert shown in drawn(text)


def test_what_cannot_be_drawn_is_as_written_and_the_rest_is_drawn() -> None:
    html = to_html(f"**bold**\n\n{DEEP_QUOTE}\n\n| a |\n|---|\n| 1 | 2 |\n\n`code`")
    assert "<strong>bold</strong>" in html and "<code>code</code>" in html
    assert f"<pre>{DEEP_QUOTE.replace('>', '&gt;')}</pre>" in html
    assert "<pre>| a |\n|---|\n| 1 | 2 |</pre>" in html


def test_twenty_levels_are_drawn() -> None:
    nested = "".join("  " * depth + f"- level {depth}\n" for depth in range(19))
    assert to_html(nested).count("<ul") == 19 and to_html("> " * 39 + "x").count("<blockquote") == 39


def test_items_have_the_numbers_that_were_written() -> None:
    assert [f'value="{n}"' in drawn("1. a\n1. b\n7. c") for n in (1, 2, 7)] == [True, False, True]


def test_blocks_have_a_direction_of_their_own() -> None:
    html = drawn("hello\n\n\u05e9\u05dc\n\n- \u05e9\n- hello\n\n> مرحبا")
    assert html.startswith('<p dir="auto">hello</p><p dir="auto">\u05e9\u05dc</p><ul dir="rtl"><li dir="auto">')
    assert '<blockquote dir="rtl">' in html
    assert "rtl" not in drawn("- hello\n- שלום") and "dir" not in drawn("- hello\n\n> there")


def test_code_is_coloured_and_every_character_of_it_stays() -> None:
    html = drawn("```python\ndef f(x):  # why\n    return 'a' + 12\n```")
    for kind, word in (("keyword", "def"), ("comment", "# why"), ("number", "12"), ("name", "f")):
        assert f'<span data-code="{kind}">{word}</span>' in html
    assert "<figcaption>python</figcaption>" in html and "<span" not in drawn("```nolanguage\ndef f()\n```")


@pytest.mark.parametrize("language", sorted(LANGUAGES))
@pytest.mark.parametrize("code", ["", "\n\n x\t=\r 'a\n\ufeff\n", "<b>&amp;\n", *HOSTILE[:5]])
def test_no_language_changes_code(language: str, code: str) -> None:
    assert Said(coloured(code, language)).text == code


def test_of_much_code_only_the_beginning_is_coloured() -> None:
    line = "x = 1\n"
    html = to_html(f"```py\n{line * 400}```\n\n```py\n{line * 400}```")
    assert html.count('<span data-code="number">1</span>') == LONGEST_CODE // len(line)
    assert Said(html).text.count(line) == 800


@pytest.mark.parametrize(
    "hidden",
    [
        r"$x\phantom{42}y$",
        r"$x\hphantom{42}y$",
        r"$\rule{the answer is 42}{no}$",
        r"$a\hspace{not 42}b$",
        r"$\begin{fortytwo}x\end{fortytwo}$",
    ],
)
def test_a_formula_that_would_hide_letters_is_shown_as_written(hidden: str) -> None:
    assert to_html(hidden).startswith("<p><code>") and html.escape(hidden) in to_html(hidden)
