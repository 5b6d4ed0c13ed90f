"""Code with its words, strings and comments marked, for the style sheet to colour."""

from __future__ import annotations

from html import escape

from pygments.lexers import get_lexer_by_name
from pygments.token import Token, _TokenType
from pygments.util import ClassNotFound

LONGEST_CODE = 3_000
"""Characters of one text's code; the rest is shown in one colour. Some lexers take the square of the length."""
_NAMES = (
    "bash c c++ cpp css diff dockerfile go golang haskell hs html ini java javascript js json jsonc jsx kotlin lua"
    " matlab node objective-c perl php powershell ps1 py python python3 r rb ruby rs rust scala sh shell sql"
    " swift tex latex toml ts tsx typescript xml yaml yml zsh"
)
LANGUAGES = frozenset(_NAMES.split())
"""What is coloured; another language is shown in one colour.

So are C# and makefiles, whose lexers may take long over text that was written to hold them up.
"""
KINDS = (
    (Token.Comment, "comment"),
    (Token.Keyword, "keyword"),
    (Token.Operator.Word, "keyword"),
    (Token.Literal.String, "string"),
    (Token.Literal.Number, "number"),
    (Token.Name.Function, "name"),
    (Token.Name.Class, "name"),
    (Token.Name.Builtin, "name"),
    (Token.Name.Tag, "name"),
    (Token.Name.Decorator, "name"),
    (Token.Generic.Inserted, "inserted"),
    (Token.Generic.Deleted, "deleted"),
)
"""What a lexer finds, and what the style sheet calls it."""
MARKS = frozenset(name for _, name in KINDS)


def coloured(code: str, language: str) -> str:
    """Return code as HTML, character for character, with `<span data-code=KIND>` around what has a colour."""
    if language.lower() not in LANGUAGES:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language.lower(), stripnl=False, ensurenl=False)
    except ClassNotFound:
        return escape(code)
    found = [(_mark(token), said) for token, said in lexer.get_tokens(code)]
    if "".join(said for _, said in found) != code:  # a lexer may tidy up what it reads
        return escape(code)
    return "".join(f'<span data-code="{mark}">{escape(said)}</span>' if mark else escape(said) for mark, said in found)


def _mark(token: _TokenType) -> str:
    """Return what the style sheet calls a kind of token; empty for one without a colour."""
    return next((name for kind, name in KINDS if token in kind), "")
