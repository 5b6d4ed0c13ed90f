"""Markdown, written by a model or a stranger, to HTML that is safe to show: code, tables and mathematics included."""

from __future__ import annotations

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
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )


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
