"""Tokens to text as they come: what can be given is given, what may still change or be a stop string waits."""

from __future__ import annotations

from collections.abc import Sequence

from manners.text import Renderer

HALF = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are no character, or not yet."""
WINDOW = 16
"""Tokens that are decoded again with those that come after them, at least, so that spaces and characters are right."""


class TextStream:
    """An answer's text, given piece by piece.

    All pieces together are `renderer.decode` of all tokens, cut before the first stop string. Where a tokenizer writes
    characters byte by byte and the last one is never completed, pieces given before may be better than `decode` is.
    """

    def __init__(self, renderer: Renderer, stop: tuple[str, ...], begun: Sequence[int] = ()) -> None:
        """Begin with nothing, behind the tokens of what was `begun`, which are not given."""
        self._renderer = renderer
        self._stop = stop
        self._ids = list(begun)
        self._overlap, self._skip = len(begun), len(renderer.decode(self._ids))
        """Of `_ids`, tokens that only stand before the others, and how long their text is."""
        self._before = ""
        """Text of the tokens up to and including the overlap."""
        self._text = ""
        self.given = 0
        """Characters given so far."""
        self.stopped = False
        """Whether a stop string came."""

    @property
    def settled(self) -> int:
        """Characters that no later token will change."""
        return len(self._text.rstrip(HALF))

    def add(self, token: int) -> str:
        """Take a token, and return what can be given now."""
        self._ids.append(token)
        tail = self._renderer.decode(self._ids)[self._skip :]
        self._text = self._before + tail
        if len(self._ids) - self._overlap >= WINDOW and tail and not tail.endswith(HALF):
            self._ids = self._ids[self._overlap :]
            self._before = self._text
            self._overlap = len(self._ids)
            self._skip = len(self._renderer.decode(self._ids))
        settled = self._text[: self.settled]
        return self._give(settled, len(settled) - self._held_back(settled))

    def finish(self) -> str:
        """Return the rest: no token comes any more."""
        return "" if self.stopped else self._give(self._text, len(self._text))

    def _give(self, text: str, upto: int) -> str:
        """Give text up to a place, or up to a stop string: none can begin in what was given."""
        found = [at for stop in self._stop if (at := text.find(stop, self.given)) >= 0]
        if found:
            self.stopped = True
            upto = min(found)
        piece = text[self.given : upto]
        self.given += len(piece)
        return piece

    def _held_back(self, text: str) -> int:
        """Length of the longest end of a text that a stop string begins with."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(text) - self.given)
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)
