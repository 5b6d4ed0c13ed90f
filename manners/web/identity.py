"""Names of models are taken out of answers before anybody sees them: who knows the writer judges the name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

NEUTRAL = "[model]"
LAG = 40
"""Fewest characters held back while an answer is streamed: more than any of `NAMES` has."""
OURS = re.compile(r"initial|manners|upstream|(?:policy|reward)-\d+")
"""What versions are called here: words that an answer may hold, and names that `NAMES` takes out."""
ID = re.compile(r"[\w.-]+/[\w.-]+")
"""How a model is called where it was published: by whom, and how."""
NAMES = (
    r"chat[ -]?gpt",
    r"gpt-?\d[\w.-]{0,12}",
    r"open ?ai",
    r"claude",
    r"anthropic",
    r"gemini",
    r"gemma(?:-?\d)?",
    r"google deepmind",
    r"deepseek",
    r"(?:code)?llama(?:[ -]?\d(?:\.\d)?)?",
    r"meta ai",
    r"mistral(?: ai)?",
    r"mixtral",
    r"qwen(?:[ -]?\d(?:\.\d)?)?",
    r"alibaba cloud",
    r"smollm[ -]?\d?",
    r"hugging ?face",
    r"(?:policy|reward)-\d{1,6}",
)


def names_of(model: str) -> list[str]:
    """Return what a model may be called by its id, folder or file; nothing for a version of ours.

    Whoever names a folder, a file or a server's model may have taken any word, which answers hold for what it means: of
    letters alone, a name is one only in an id.
    """
    if OURS.fullmatch(model):
        return []
    path = Path(model)
    published = ID.fullmatch(model) is not None and not path.exists()
    return [name for name in (model, path.name, path.name.removesuffix(".gguf")) if published or not name.isalpha()]


class Neutral:
    """Takes names out of a text that comes in pieces; what comes out does not depend on how it was cut."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        """Take further names, such as that of the model which is served."""
        further = sorted({name for name in more if name}, key=lambda name: (-len(name), name))
        # A long name goes first: of smollm2-135m nothing is to stay.
        names = [*map(re.escape, further), *NAMES]
        self._names = re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)", re.IGNORECASE)
        # A name is known by the character after it.
        self._lag = max([LAG, *(len(name) + 1 for name in further)])
        self._text = ""
        self._sent = 0

    def feed(self, piece: str) -> str:
        """Return what may be shown by now."""
        self._text += piece
        return self._until(len(self._text) - self._lag)

    def rest(self) -> str:
        """Return what was held back."""
        return self._until(len(self._text))

    def _until(self, end: int) -> str:
        shown = ""
        for found in self._names.finditer(self._text, self._sent):
            if found.start() >= end:
                break
            if found.end() > end:
                end = found.start()
                break
            shown += self._text[self._sent : found.start()] + NEUTRAL
            self._sent = found.end()
        if end > self._sent:
            shown += self._text[self._sent : end]
            self._sent = end
        return shown
