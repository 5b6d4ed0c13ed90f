"""Whether what somebody wrote says again what was deleted: the whole of it, or an excerpt."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

LETTERS = 12
"""Characters of the shortest excerpt that is known, and of the shortest whole text inside of another."""
WORDS = 3
"""Words of the shortest excerpt."""
WEIGHTY = 4
"""Letters of the shortest word whose letters count, or it has a digit: `it is in the` is nobody's."""


def quoting(texts: Collection[str]) -> Callable[[str], bool]:
    """Return what tells whether a text quotes one of these, without regard to case, white space and punctuation.

    It does where it holds one whole, of at least 12 characters, or shares a run of whole words with it: at least three,
    with 12 characters in words that weigh. In a script without spaces between words only whole texts are known.
    """
    deleted = [words for text in texts if (words := _words(text))]
    whole = {" ".join(words) for words in deleted}
    runs = {run for words in deleted for run in _runs(words)}

    def quotes(text: str) -> bool:
        words = _words(text)
        said = " ".join(words)
        if said in whole or not runs.isdisjoint(_runs(words)):
            return True
        return any(len(one) >= LETTERS and one in said for one in whole)

    return quotes


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the shortest run that is an excerpt from each word on: texts that share a longer one share these."""
    weights = [len(word) if len(word) >= WEIGHTY or any(map(str.isdigit, word)) else 0 for word in words]
    for start in range(len(words)):
        weight = 0
        for end in range(start, len(words)):
            weight += weights[end]
            if weight >= LETTERS and end - start + 1 >= WORDS:
                yield tuple(words[start : end + 1])
                break
