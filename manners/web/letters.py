"""The letters and digits of a text: what must be on the page, however the text is drawn."""

from __future__ import annotations

import re
import unicodedata

_TAG = re.compile(r"<[^>]*+>?")
_NUMBERED = re.compile(r'<li\b[^>]*? value="(\d+)"')


def letters(text: str) -> str:
    """Return the letters and digits of a text in order, without accents and typographical forms (a bold A is an A)."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text)))


def without_tags(html: str) -> str:
    """Return what HTML of ours says, still escaped, the numbers of its lists included."""
    return _TAG.sub(_number, html)


def _number(tag: re.Match[str]) -> str:
    """Return the number that a tag gives to a piece of a list."""
    found = _NUMBERED.match(tag[0])
    return found[1] if found else ""


def follows(wanted: str, shown: str) -> bool:
    """Return whether all characters of `wanted` stand in `shown` in their order, whatever stands between them."""
    rest = iter(shown)
    return all(one in rest for one in wanted)
