"""An answer in the making, as the batch that runs on and on keeps it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from manners.models.answer import streams
from manners.models.requests import DrawnToken, GenerationRequest, Token
from manners.models.textstream import TextStream
from manners.types import FinishReason

SEEDS = 2**32


@dataclass(eq=False)
class Row:
    """An answer in the making."""

    key: int
    index: int
    request: GenerationRequest
    prompt_ids: tuple[int, ...]
    text: TextStream
    ids: list[int] = field(default_factory=list)
    """Drawn so far."""
    withheld: list[tuple[int, DrawnToken]] = field(default_factory=list)
    """Reported tokens whose text is yet to be given, each with where that begins."""
    left: bool = False
    """Whether it is finished or cancelled, and its seat free."""
    numbers: array[float] | None = None
    """Uniform ones, one for each token that it may have; there while it has a seat, for any number of rows may wait."""

    @property
    def so_far(self) -> tuple[int, ...]:
        """What is read when it takes a seat."""
        return (*self.prompt_ids, *self.ids)

    def number(self) -> float:
        """Return what its next token is drawn with: the same whenever it is asked, and whoever else has a seat."""
        if self.numbers is None:
            stream = streams(self.request.seed % SEEDS, [0], [self.index], self.request.max_tokens)
            self.numbers = array("d", stream[0].tolist())
        return self.numbers[len(self.ids)]

    def take(self, token: int, reported: DrawnToken | None, ends: bool) -> tuple[Token | None, FinishReason | None]:
        """Add a token; return what can be given now, and why the answer ends if it does."""
        if reported is not None:
            self.withheld.append((self.text.settled, reported))
        self.ids.append(token)
        text = self.text.add(token)
        finish = None
        if self.text.stopped or ends:
            finish = FinishReason.STOP
        elif len(self.ids) == self.request.max_tokens:
            finish = FinishReason.LENGTH
        if finish:
            self.left = True
            text += self.text.finish()
        logprobs = tuple(drawn for begin, drawn in self.withheld if begin < self.text.given)
        self.withheld = self.withheld[len(logprobs) :]
        return (Token(self.index, text, logprobs) if text else None), finish
