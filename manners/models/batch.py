"""One batch that runs on and on: requests enter it at any time, and leave it when they are answered.

Each row has its own temperature, top-p, random stream, length limit and stop strings, so that what a request gets does
not depend on who else is there. Requests enter in order of arrival; all answers to a prompt enter together, and the
prompt is read once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from manners.errors import MannersError, described
from manners.models.answer import streams
from manners.models.decoder import Decoder
from manners.models.requests import Done, DrawnToken, Event, Failed, GenerationRequest, Token, TokenLogprob
from manners.models.sampler import draw_tokens
from manners.models.seats import CHANGE_SHARE, Seats
from manners.models.textstream import TextStream
from manners.models.trunk import Trunk
from manners.text import Renderer
from manners.types import FinishReason

ROOM = 64
"""Columns of the cache taken at a time: more cost memory, fewer cost a copy of the cache more often."""
READ_AT_ONCE = 256
"""Tokens of new prompts read between two steps, while those who are being answered wait; one prompt may be longer."""
SEEDS = 2**32


@dataclass(eq=False)
class _Row:
    """An answer in the making."""

    key: int
    index: int
    request: GenerationRequest
    prompt_ids: tuple[int, ...]
    uniform: list[float]
    text: TextStream
    ids: list[int] = field(default_factory=list)
    """Drawn so far."""
    withheld: list[tuple[int, DrawnToken]] = field(default_factory=list)
    """Reported tokens whose text is yet to be given, each with where that begins."""
    left: bool = False
    """Whether it is finished or cancelled, and its seat free."""

    @property
    def so_far(self) -> tuple[int, ...]:
        """What is read when it takes a seat."""
        return (*self.prompt_ids, *self.ids)

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


class RunningBatch:
    """A policy at work; `step` draws one token for every row."""

    def __init__(self, model: PreTrainedModel, version: str, trunk: Trunk, renderer: Renderer, seats: int) -> None:
        """Take an assembled policy, its name, and how many rows may run at once."""
        self.model = model
        self.version = version
        self.trunk = trunk
        self.renderer = renderer
        self.seats = seats
        self._waiting: list[list[_Row]] = []
        """Requests in order of arrival."""
        self._events: list[tuple[int, Event]] = []
        self._seated: Seats[_Row]
        self._begin_anew()

    def take_policy(self, model: PreTrainedModel, version: str) -> None:
        """Go on with another policy; no row may be running."""
        self.model = model
        self.version = version
        self._begin_anew()

    @property
    def running(self) -> list[_Row]:
        """Rows that are seated and not finished."""
        return self._seated.running

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self.running

    def submit(self, key: int, request: GenerationRequest) -> None:
        """Put a request behind those that wait; raises MannersError where it can never be answered."""
        if request.count > self.seats:
            raise MannersError(f"{request.count} answers are asked for at once; at most {self.seats} fit side by side")
        prompt_ids, _ = self.renderer.prompt_ids(request.prompt, request.max_tokens)
        numbers = range(request.count)
        uniform = streams(request.seed % SEEDS, [0] * request.count, numbers, request.max_tokens).tolist()
        self._waiting.append(
            [_Row(key, n, request, prompt_ids, uniform[n], TextStream(self.renderer, request.stop)) for n in numbers]
        )

    def cancel(self, key: int) -> None:
        """Forget a request, wherever it is."""
        self._waiting = [rows for rows in self._waiting if rows[0].key != key]
        for row in self._seated.rows:
            row.left |= row.key == key

    def step(self, admit: bool = True) -> tuple[tuple[int, Event], ...]:
        """Read the tokens drawn last, let rows leave and (with `admit`) enter, and draw a token for each.

        What fails, fails those concerned: the requests that enter, or else all that run.
        """
        self._events = []
        try:
            # 1. Tokens that were drawn are read.
            if self.running:
                self._seated.read()
            # 2. Seats change: at once for those that wait, as far as they fit.
            self._change_seats(self._entering() if admit else [])
            # 3. Every row draws a token, with its own number.
            if self.running:
                self._draw()
        except Exception as error:  # whatever it is, the process lives on for the others
            failed = self.running
            self._begin_anew()
            self._fail(failed, error)
        return tuple(self._events)

    def _entering(self) -> list[_Row]:
        """Take those whose turn it is, as far as there are seats, and not more than may be read at once."""
        entering = list[_Row]()
        tokens = 0
        free = self.seats - len(self.running)
        while self._waiting and len(self._waiting[0]) <= free - len(entering):
            tokens += len(self._waiting[0][0].prompt_ids)
            if entering and tokens > READ_AT_ONCE:
                break
            entering += self._waiting.pop(0)
        return entering

    def _change_seats(self, entering: list[_Row]) -> None:
        """Seat whoever enters, unseat those who left where it is worth a copy, and see that there is room to draw."""
        seated = self._seated
        stay = seated.running
        if not stay and not entering:
            self._begin_anew()  # which gives the memory back
            return
        if not (entering or seated.full or seated.gone > CHANGE_SHARE * len(seated.rows)):
            return
        try:
            seated.change(entering, ROOM)
        except Exception as error:
            self._begin_anew()  # for the cache may be half changed: all that was drawn is read again
            self._fail(entering, error)
            if stay:
                self._seated.change(stay, ROOM)

    def _draw(self) -> None:
        seated = self._seated
        assert seated.decoder.logits is not None
        logits = seated.decoder.logits
        device = self.trunk.device
        asked = [row.request for row in seated.rows]
        temperature = torch.tensor([[request.temperature] for request in asked], device=device)
        top_p = torch.tensor([[request.top_p] for request in asked], device=device)
        numbers = [0.0 if row.left else row.uniform[len(row.ids)] for row in seated.rows]
        uniform = torch.tensor(numbers, dtype=torch.float64, device=self.trunk.compute.exact)
        greedy = temperature == 0
        vocabulary = self.trunk.vocabulary
        drawn, _ = draw_tokens(vocabulary.at(logits, temperature.masked_fill(greedy, 1.0)), uniform, top_p)
        token = torch.where(greedy.squeeze(1), vocabulary.likeliest(logits), drawn)
        chosen = token.tolist()
        for seat, row in seated.take(token):
            self._advance(row, chosen[seat], logits[seat])

    def _advance(self, row: _Row, token: int, logits: Float[Tensor, " V"]) -> None:
        """Hand a row its token, and say what came of it."""
        count = row.request.logprobs
        said = None if count is None else self.trunk.vocabulary.at(logits.unsqueeze(0), 1.0)[0]
        reported = None if said is None or count is None else _report(self.renderer, said, token, count)
        more, finish = row.take(token, reported, token in self.renderer.end_ids)
        if more is not None:
            self._events.append((row.key, more))
        if finish is not None:
            if finish is FinishReason.LENGTH or token in self.renderer.end_ids:  # not at a string that a request names
                self.renderer.finishes.look((finish,), row.request.max_tokens)
            done = Done(row.index, finish, len(row.prompt_ids), len(row.ids), self.version)
            self._events.append((row.key, done))

    def _fail(self, rows: Sequence[_Row], error: Exception) -> None:
        """Tell the requests of these rows, and leave a trace for whoever runs the server."""
        print(described(error), file=sys.stderr)  # what it says may be one row's words
        for key in dict.fromkeys(row.key for row in rows):
            self.cancel(key)
            self._events.append((key, Failed(f"the model failed at this request ({type(error).__name__})")))

    def _begin_anew(self) -> None:
        """Begin with empty seats."""
        self._seated = Seats[_Row](Decoder(self.model, self.trunk.compute, self.renderer.pad_id))


def _report(renderer: Renderer, logits: Float[Tensor, " V"], token: int, count: int) -> DrawnToken:
    """Name a token and the `count` likeliest of what can be said, with log-probabilities."""
    logprobs = logits.log_softmax(dim=-1)
    values, places = logprobs.topk(count)
    top = [
        TokenLogprob(renderer.token_text(place), value)
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
    ]
    return DrawnToken(TokenLogprob(renderer.token_text(token), float(logprobs[token])), tuple(top))
