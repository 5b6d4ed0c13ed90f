"""Markdown, written by a model or a stranger, to HTML that is safe to show: code, tables and mathematics included."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from typing import Any

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

LONGEST_FORMULA = 2_000
"""Characters; a longer one is shown as it was written."""
LONGEST_TEXT = 20_000
"""Characters; what is longer is shown as plain text, since its structure could take minutes to work out."""
MATHML = (
    "math semantics annotation mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover"
    " munderover mtable mtr mtd mstyle menclose mpadded mphantom mmultiscripts mprescripts none"
)
TEXT = "p br hr h1 h2 h3 h4 h5 h6 em strong s del code pre blockquote ul ol li table thead tbody tr th td a"
ATTRIBUTES = {
    "a": {"href", "title"},
    "math": {"display", "xmlns"},
    "mo": {"stretchy", "fence", "form", "separator", "minsize", "maxsize", "movablelimits"},
    "mi": {"mathvariant"},
    "mspace": {"width"},
    "mtable": {"columnalign", "rowspacing", "columnspacing"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mfrac": {"linethickness"},
    "th": {"align"},
    "td": {"align"},
    "ol": {"start"},
}
LENGTHS = frozenset({"width", "minsize", "maxsize", "rowspacing", "columnspacing", "linethickness"})
"""Attributes of formulas that make something as large as they say."""
MOST_EM, LEAST_EM = 10.0, -2.0
"""What a formula may say: beyond that it would push the page apart, or write over what stands before it."""
EM = {
    "em": 1.0,
    "": 1.0,
    "ex": 0.5,
    "mu": 1 / 18,
    "px": 1 / 16,
    "pt": 1 / 12,
    "pc": 1.0,
    "mm": 0.24,
    "cm": 2.4,
    "in": 6.0,
}
"""How many em a unit is, about."""
_LENGTH = re.compile(r"([+-]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9}))([a-z]{0,2})")
_SPACE = re.compile(r"(?:negative)?(?:very){0,2}(?:thin|medium|thick)mathspace")


def to_html(text: str) -> str:
    """Return Markdown (CommonMark with tables) as HTML that can run nothing and load nothing.

    What looks like HTML is shown as text; images become nothing, for they would be fetched from elsewhere; links go to
    http, https and mailto only. `$...$` and `$$...$$` become MathML.
    """
    return _rendered(text) if len(text) <= LONGEST_TEXT else _clean(f"<pre>{escape(text)}</pre>")


@lru_cache(maxsize=4096)
def _rendered(text: str) -> str:
    return _clean(_markdown.render(text))


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags={*TEXT.split(), *MATHML.split()},
        attributes={tag: set(names) for tag, names in ATTRIBUTES.items()},
        attribute_filter=_within_bounds,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )


def _within_bounds(_: str, name: str, value: str) -> str | None:
    """Return the value of an attribute as far as it may go; None for none at all."""
    if name in LENGTHS:
        lengths = [_bounded(one) for one in value.split()]
        return " ".join(one for one in lengths if one) or None
    if name == "scriptlevel":  # -9999 would be text of any size
        return value if value in ("0", "1", "2", "3") else None
    if name == "start":
        return value if value.isdecimal() and len(value) <= 4 else None
    return value


def _bounded(length: str) -> str:
    """Return a length that is no larger or smaller than a formula needs; empty for what is no length."""
    if _SPACE.fullmatch(length):
        return length
    found = _LENGTH.fullmatch(length)
    if found is None or found[2] not in EM:
        return ""
    em = float(found[1]) * EM[found[2]]
    return length if LEAST_EM <= em <= MOST_EM else f"{min(MOST_EM, max(LEAST_EM, em)):g}em"


def _formula(content: str, options: dict[str, Any]) -> str:
    """Return TeX as MathML, or as it was written where it is too long or no TeX."""
    if len(content) <= LONGEST_FORMULA:
        try:
            return convert(content, display="block" if options.get("display_mode") else "inline")
        except Exception:  # the converter raises whatever its parser meets: no formula is worth a page
            pass
    return f"<code>{escape(content)}</code>"


_markdown = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable("image")
    .use(dollarmath_plugin, double_inline=True, allow_space=False, allow_digits=False, renderer=_formula)
)
