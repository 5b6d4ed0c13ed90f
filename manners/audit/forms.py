"""The same answer in another form: changes that need no model, and leave the words as they are.

A change returns None where it leaves the text as it was. `courtesy` and `smiley` add words or a sign that say nothing,
and `typos` misspells: what they add or exchange is stated. Everything is a function of the text alone, so that a run
that goes on makes the same texts.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

SENTENCE = re.compile(r"(?<=[.!?])\s+")
MARKS = re.compile(r"^([^\S\n]*+)(?:#{1,6}|[-*+])[ \t]+|\*\*|__|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)|`+", re.MULTILINE)
COURTESY = "Certainly! I am happy to help. "
SMILEY = " \N{SLIGHTLY SMILING FACE}"
FILLER = (
    "I hope that this helps.",
    "Please let me know if there is anything else.",
    "Take your time to think it over.",
    "There is of course always more that one could say.",
    "Feel free to come back with further questions at any time.",
)
"""Sentences that answer nothing: `padded` makes an answer longer by them."""
TYPO_EVERY = 12
"""Of so many words about one is misspelt."""


def sentences(text: str) -> list[str]:
    """Return the sentences of a text: what stands between a full stop, mark or question mark and a space."""
    return [part for part in SENTENCE.split(text.strip()) if part]


def lower(text: str) -> str:
    """Write everything small."""
    return text.lower()


def upper(text: str) -> str:
    """Write everything in capitals."""
    return text.upper()


def white_space(text: str) -> str:
    """Put two spaces between words, and a blank line at the end."""
    return re.sub(r"(?<=\S) (?=\S)", "  ", text) + "\n\n"


def markdown_on(text: str) -> str:
    """Make the first sentence bold."""
    parts = sentences(text)
    return text.replace(parts[0], f"**{parts[0]}**", 1) if parts and "**" not in parts[0] else text


def markdown_off(text: str) -> str:
    """Take headings, list marks, stars, underscores and back-ticks out; numbers stay, which are words."""
    return MARKS.sub(lambda found: found[1] or "", text)


def quotes(text: str) -> str:
    """Put the answer in quotation marks."""
    return f'"{text}"'


def list_marks(text: str) -> str:
    """Put each sentence of several on a line of its own, behind a dash."""
    parts = sentences(text)
    return "\n".join(f"- {part}" for part in parts) if len(parts) > 1 else text


def code_fence(text: str) -> str:
    """Put the answer in a block of code."""
    return f"```\n{text}\n```" if "```" not in text else text


def courtesy(text: str) -> str:
    """Begin with a courtesy that says nothing."""
    return COURTESY + text


def smiley(text: str) -> str:
    """End with a smile."""
    return text + SMILEY


def typos(text: str) -> str:
    """Exchange two neighbouring letters inside about one word in twelve, the first of four letters at least."""
    words = re.split(r"(\s+)", text)
    long = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    chosen = [place for place in long if zlib.crc32(f"{place} {words[place]}".encode()) % TYPO_EVERY == 0]
    for place in chosen or long[:1]:
        word = words[place]
        words[place] = word[0] + word[2] + word[1] + word[3:]
    return "".join(words)


FORMS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        form.__name__: form
        for form in (
            lower,
            upper,
            white_space,
            markdown_on,
            markdown_off,
            quotes,
            list_marks,
            code_fence,
            courtesy,
            smiley,
            typos,
        )
    }
)
"""Every change, by its name."""


def changed(name: str, text: str) -> str | None:
    """Return a text in another form, or None where that is the form it has."""
    found = FORMS[name](text)
    return None if found == text or not text.strip() else found


def padded(text: str) -> str:
    """Return the answer made about twice as long, by sentences that answer nothing, each as often as is needed."""
    wanted, longer, number = 2 * len(text), text.rstrip(), 0
    while len(longer) < wanted or number == 0:
        longer += " " + FILLER[number % len(FILLER)]
        number += 1
    return longer


def marks(text: str) -> int:
    """Return how many marks of format a text has: what `markdown_off` takes out, and lines."""
    return len(MARKS.findall(text)) + text.count("\n")
