r"""Mathematics in Markdown: `$...$`, `$$...$$`, `\(...\)` and `\[...\]` become MathML, or stay as they were written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html import escape, unescape

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from mdit_py_plugins.dollarmath import dollarmath_plugin

from manners.web.letters import letters, without_tags

LONGEST_FORMULA = 2_000
"""Characters; a longer one is shown as it was written."""
CLOSING = {"\\(": "\\)", "\\[": "\\]"}
"""What ends a formula that begins with a bracket."""
_SAYS_MATHS = re.compile(r"[\\^_=+<>]")
r"""Without one of these what stands in `\[...\]` is prose whose brackets were escaped."""
_ENVIRONMENTS = (
    "align|aligned|alignat|alignedat|array|[pbvVB]?matrix|smallmatrix|cases|rcases|gather|gathered|split|equation|multline"
    "|eqnarray|subarray|displaymath|math"
)
_NO_LETTERS = re.compile(
    rf"\\(?:begin|end)\s*\{{(?:{_ENVIRONMENTS})\*?\}}(?:\s*\{{[lcr| ]*\}})?"
    r"|\\(?:kern|hskip|mskip|mkern)\s*-?[\d.]+\s*[a-zA-Z]{2}|\\(?:hspace|mspace)\*?\s*\{\s*-?[\d.]+\s*[a-zA-Z]{2}\s*\}"
    r"|\\rule\s*\{\s*-?[\d.]+\s*[a-zA-Z]{2}\s*\}\s*\{\s*-?[\d.]+\s*[a-zA-Z]{2}\s*\}|\\above\s*-?[\d.]+\s*[a-zA-Z]{2}|\\[a-zA-Z]+"
)
"""What TeX says by letters and shows otherwise: commands, environments and lengths."""


def add_formulas(markdown: MarkdownIt) -> None:
    """Teach a parser the four ways in which mathematics is written."""
    markdown.use(dollarmath_plugin, allow_labels=False, double_inline=True, allow_space=False, allow_digits=False)
    markdown.inline.ruler.before("math_inline", "math_bracket", _bracket)
    interrupts: RuleOptionsType = {"alt": ["paragraph", "blockquote", "list"]}
    markdown.block.ruler.before("math_block", "math_bracket_block", _bracket_block, interrupts)
    for kind in ("math_inline", "math_inline_double", "math_block"):
        markdown.add_render_rule(kind, _render)


def _bracket(state: StateInline, silent: bool) -> bool:
    r"""Read `\(...\)` and `\[...\]`; a bracket that opens or closes no formula keeps its backslash."""
    written = state.src[state.pos : state.pos + 2]
    if written not in ("\\(", "\\)", "\\[", "\\]"):
        return False
    closing = CLOSING.get(written)
    end = -1 if closing is None else state.src.find(closing, state.pos + 2, state.posMax)
    content = state.src[state.pos + 2 : end]
    if end < 0 or not content.strip() or (written == "\\[" and not _SAYS_MATHS.search(content)):
        if not silent:
            state.pending += written
        state.pos += 2
        return True
    if not silent:
        token = state.push("math_inline" if written == "\\(" else "math_inline_double", "math", 0)
        token.content, token.markup = content, written
    state.pos = end + 2
    return True


def _bracket_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""Read a formula on lines of its own, from `\[` to `\]`, in which a `-` begins no list."""
    if state.is_code_block(start) or not state.src.startswith("\\[", state.bMarks[start] + state.tShift[start]):
        return False
    for line in range(start, end):
        if state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            return False
        if "\\]" in state.src[state.bMarks[line] : state.eMarks[line]]:
            break
    else:
        return False
    written = state.getLines(start, line + 1, state.blkIndent, False).strip()
    content = written[2:-2]
    if not written.endswith("\\]") or "\\]" in content or not _SAYS_MATHS.search(content):
        return False
    if not silent:
        state.line = line + 1
        token = state.push("math_block", "math", 0)
        token.block, token.content, token.markup, token.map = True, content, "\\[", [start, line + 1]
    return True


def _render(_: RendererProtocol, tokens: Sequence[Token], index: int, __: OptionsDict, ___: EnvType) -> str:
    token = tokens[index]
    drawn = _mathml(token.content.strip(), inline=token.type == "math_inline")
    written = token.markup + token.content + CLOSING.get(token.markup, token.markup)
    if drawn is None:
        return f"<code>{escape(written)}</code>"
    opened, begin, inside = drawn.partition(">")
    inside = inside.removesuffix("</math>")
    note = f'<annotation encoding="application/x-tex">{escape(written)}</annotation>'
    return f"{opened}{begin}<semantics>{inside}{note}</semantics></math>"


def _mathml(tex: str, *, inline: bool) -> str | None:
    """Return TeX as MathML; None where it is too long, no TeX, or would lose a letter or a digit."""
    if len(tex) > LONGEST_FORMULA:
        return None
    try:
        drawn = convert(tex, display="inline" if inline else "block")
    except Exception:  # the converter raises whatever its parser meets: no formula is worth a page
        return None
    shown = Counter(letters(unescape(without_tags(drawn))))
    seen = "<mphantom" not in drawn and Counter(letters(_NO_LETTERS.sub(" ", tex))) <= shown
    return drawn if seen else None
