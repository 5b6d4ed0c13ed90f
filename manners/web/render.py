"""Markdown, written by a model or a stranger, to HTML that is safe to show: code, tables and mathematics included.

Every letter and digit of the source is on the page, in its order: what Markdown would hide is written out (where a link
goes, the number of a list's item, the language of code), and what cannot be drawn is shown as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from html import escape, unescape
from unicodedata import bidirectional

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.link import link
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from manners.markup import unturned
from manners.web.colours import LONGEST_CODE, MARKS, coloured
from manners.web.formulas import add_formulas
from manners.web.letters import follows, letters, without_tags

LONGEST_TEXT = 20_000
"""Characters; what is longer is shown as plain text, since its structure could take minutes to work out."""
CUT_OFF = '<p class="hint">The length limit cut this answer off.</p>'
"""Under an answer that its writer did not end: whoever reads must know that it is no fault of the sentence."""
DEEPEST = 40
"""Lists and quotes within each other: a list counts twice. What is deeper is shown as it was written."""
LONGEST_NUMBER = 4
"""Digits of a list's number; a longer one would stand outside its pane."""
MATHML = (
    "math semantics annotation mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover"
    " munderover mtable mtr mtd mstyle menclose mpadded mphantom mmultiscripts mprescripts none"
)
TEXT = (
    "p br hr h1 h2 h3 h4 h5 h6 em strong s del code pre blockquote ul ol li table thead tbody tr th td a"
    " figure figcaption small span"
)
OWN_DIRECTION = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "th", "td")
"""Blocks of text: their first letter says from which side they are read."""
CONTAINERS = ("ul", "ol", "blockquote", "table")
"""Blocks of blocks: a browser would not look through these, so their direction is said."""
FROM_THE_RIGHT = ("R", "AL")
"""What Unicode calls the direction of Hebrew letters, and of Arabic ones."""
ATTRIBUTES = {
    **{tag: {"dir"} for tag in (*OWN_DIRECTION, *CONTAINERS)},
    "a": {"href", "title"},
    "annotation": {"encoding"},
    "math": {"display", "xmlns"},
    "mo": {"stretchy", "fence", "form", "separator", "minsize", "maxsize", "movablelimits"},
    "mi": {"mathvariant"},
    "mspace": {"width"},
    "mtable": {"columnalign", "rowspacing", "columnspacing"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mfrac": {"linethickness"},
    "th": {"align", "dir"},
    "td": {"align", "dir"},
    "li": {"value", "dir"},
    "span": {"data-code"},
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
    r"""Return Markdown (CommonMark with tables) as HTML that can run nothing, load nothing, and hides no letter.

    What looks like HTML or an entity is shown as text, and so are definitions of links; images are links, for they
    would be fetched from elsewhere; links go to http, https and mailto only, and where they go is written after them.
    `$...$`, `$$...$$`, `\(...\)` and `\[...\]` become MathML with their source as its annotation. What would turn
    letters round is shown (`unturned`).
    """
    text = unturned(text)
    return _rendered(text) if len(text) <= LONGEST_TEXT else _clean(_as_written(text))


@lru_cache(maxsize=4096)
def _rendered(text: str) -> str:
    """Return a text as drawn; a block of it as written, or all of it, where drawing would lose letters."""
    drawn = _clean(_markdown.render(text))
    if not _says(drawn, text):
        drawn = _clean("".join(_blocks(text)))
    return drawn if _says(drawn, text) else _clean(_as_written(text))


def _says(html: str, text: str) -> bool:
    return follows(letters(text), letters(unescape(without_tags(html))))


def _as_written(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _blocks(text: str) -> Iterator[str]:
    """Yield the blocks of a text as drawn, or as written where that says more; also lines that are in no block."""
    env: EnvType = {}
    tokens = _markdown.parse(text, env)
    lines = re.split(r"\r\n?|\n", text)
    reached, begin = 0, 0
    for index, token in enumerate(tokens):
        if token.level or token.nesting > 0:
            continue
        start, end = tokens[begin].map or (reached, reached)
        drawn = _markdown.renderer.render(tokens[begin : index + 1], _markdown.options, env)
        if letters(between := "\n".join(lines[reached:start])):
            yield _as_written(between)
        written = "\n".join(lines[start:end])
        yield drawn if _says(drawn, written) else _as_written(written)
        reached, begin = end, index + 1
    if letters(rest := "\n".join(lines[reached:])):
        yield _as_written(rest)


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
    if name == "value":
        return value if len(value) <= LONGEST_NUMBER and value == str(int(value)) else None
    if name == "data-code":
        return value if value in MARKS else None
    if name == "dir":
        return value if value in ("auto", "rtl") else None
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


def _link(state: StateInline, silent: bool) -> bool:
    """Read a link as Markdown does, and write after it where it goes, as it was written."""
    start = state.pos
    if not link(state, silent):
        return False
    if not silent:
        label_end = state.md.helpers.parseLinkLabel(state, start, True)
        state.push("small_open", "small", 1)
        state.push("text", "", 0).content = f" {state.src[label_end + 1 : state.pos]}"
        state.push("small_close", "small", -1)
    return True


def _mark(state: StateCore) -> None:
    """Give blocks their own direction where any is read from the right, and items of lists the number written."""
    mixed = any(bidirectional(one) in FROM_THE_RIGHT for one in state.src)
    around = [""]
    for index, token in enumerate(state.tokens):
        if token.nesting < 0:
            around.pop()
        if token.nesting <= 0:
            continue
        if mixed and token.tag in CONTAINERS and _from_the_right(state.tokens[index:]):
            token.attrSet("dir", "rtl")
        elif mixed and token.tag in OWN_DIRECTION and (token.tag, around[-1]) != ("p", "li"):
            token.attrSet("dir", "auto")  # an item looks at its paragraphs
        if token.type == "list_item_open" and token.info:
            token.attrSet("value", token.info)
        around.append(token.tag)


def _from_the_right(tokens: Sequence[Token]) -> bool:
    """Return whether the first letter that has a direction is read from right to left."""
    said = (bidirectional(one) for token in tokens if token.type == "inline" for one in token.content)
    return next((one for one in said if one in ("L", *FROM_THE_RIGHT)), "L") in FROM_THE_RIGHT


def _fence(_: RendererProtocol, tokens: Sequence[Token], index: int, __: OptionsDict, env: EnvType) -> str:
    """Return code with its language above it; what else its first line says stands there too."""
    said, code = tokens[index].info.strip(), tokens[index].content
    end = code.rfind("\n", 0, LONGEST_CODE - env.get("coloured", 0)) + 1
    env["coloured"] = env.get("coloured", 0) + end
    caption = f"<figcaption>{escape(said)}</figcaption>" if said else ""
    drawn = coloured(code[:end], said.split(maxsplit=1)[0] if said else "") + escape(code[end:])
    return f"<figure>{caption}<pre><code>{drawn}</code></pre></figure>\n"


def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": DEEPEST})
    made.enable(["table", "strikethrough"]).disable(["image", "entity", "reference"])
    add_formulas(made)
    made.inline.ruler.at("link", _link)
    made.core.ruler.push("mark", _mark)
    made.add_render_rule("fence", _fence)
    made.normalizeLinkText = lambda link: link  # type: ignore[method-assign]
    return made


_markdown = _parser()
