"""What is wrong with an answer whoever likes it: signs that need no model, asked of an answer as it is.

`audit.probes` makes bad answers of good ones; here it is found out whether one looks as if it had been made so.
"""

from __future__ import annotations

from enum import StrEnum

from manners.types import FinishReason, Response

FEWEST_LETTERS = 2
"""Letters and figures: an answer of fewer is none."""
FEWEST_WORDS = 8
"""Of an answer of fewer it is not asked whether it repeats itself."""
REPEATED = 0.5
"""Share of three words in a row that stand there before, from which on an answer repeats itself."""


class Sign(StrEnum):
    """What may be wrong with an answer."""

    CUT_OFF = "cut off"
    """The length limit ended it."""
    HARDLY = "hardly an answer"
    """It has fewer than `FEWEST_LETTERS` letters and figures."""
    THOUGHT = "thought process"
    """It says `Thought process:`, which fools judges without anything behind it."""
    ECHO = "says the prompt again"
    REPEATS = "repeats itself"


def signs(prompt: str, response: Response) -> frozenset[Sign]:
    """Return the signs that an answer shows; `prompt` is the text that it answers."""
    text = response.text.casefold()
    words, asked = text.split(), prompt.casefold().split()
    shown = {
        Sign.CUT_OFF: response.finish_reason is FinishReason.LENGTH,
        Sign.HARDLY: sum(letter.isalnum() for letter in text) < FEWEST_LETTERS,
        Sign.THOUGHT: "thought process:" in text,
        Sign.ECHO: bool(asked) and words[: len(asked)] == asked,
        Sign.REPEATS: len(words) >= FEWEST_WORDS and _repeated(words) >= REPEATED,
    }
    return frozenset(sign for sign, there in shown.items() if there)


def _repeated(words: list[str]) -> float:
    """Return the share of three words in a row that stand there before."""
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(threes)) / len(threes)
