"""One batch that runs on and on: requests enter it at any time, and leave it when they are answered.

Each row has its own temperature, top-p, random stream, length limit and stop strings, so that what a request gets does
not depend on who else is there. Accounts take turns (`waiting`), each in its own order of arrival; answers to a prompt
that enter together read it once. Where every seat is taken, an account that holds more than its share gives one up: the
row goes on later where it was, since it has its own numbers and can be read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.logs import complain
from manners.models.decoder import Decoder
from manners.models.reported import names, reported
from manners.models.requests import Done, DrawnToken, Event, Failed, GenerationRequest, Said
from manners.models.row import Row
from manners.models.sampler import draw_tokens
from manners.models.seats import CHANGE_SHARE, Seats
from manners.models.textstream import TextStream
from manners.models.trunk import Trunk
from manners.models.waiting import Waiting
from manners.shorten import Check
from manners.text import Renderer, TooLong
from manners.types import FinishReason

ROOM = 64
"""Columns of the cache taken at a time: more cost memory, fewer cost a copy of the cache more often."""
READ_AT_ONCE = 256
"""Tokens of new prompts read between two steps, while those who are being answered wait; one prompt may be longer."""
COLDEST = 1e-30
"""Lowest temperature above 0 that logits are divided by: in float32 they stay finite, and what is drawn is the same."""

Tell = Callable[[Said], None]


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered: what it says in tokens."""

    request: GenerationRequest
    prompt_ids: tuple[int, ...]
    """Up to where the assistant begins."""
    begun_ids: tuple[int, ...]
    """What the assistant has begun with."""


def prepare(renderer: Renderer, request: GenerationRequest, seats: int, check: Check = lambda: None) -> Prepared:
    """Lay a request out; raises MannersError where it can never be answered.

    `check` is called now and then, and may raise, for whoever asked may be gone meanwhile. This touches nothing of a
    batch: a thread may do it with a renderer of its own while others are answered.
    """
    if request.count > seats:
        raise MannersError(f"{request.count} answers are asked for at once; at most {seats} fit side by side")
    begun_ids = renderer.text_ids(request.begun) if request.begun else ()
    try:
        prompt_ids, _ = renderer.prompt_ids(request.prompt, len(begun_ids) + request.max_tokens, check)
    except TooLong:
        if not request.open_ended:
            raise
        prompt_ids, _ = renderer.prompt_ids(request.prompt, len(begun_ids) + 1, check)
    if request.open_ended:
        request = replace(request, max_tokens=renderer.context - len(prompt_ids) - len(begun_ids))
    return Prepared(request, prompt_ids, begun_ids)


class RunningBatch:
    """A policy at work; `step` draws one token for every row."""

    def __init__(self, model: PreTrainedModel, version: str, trunk: Trunk, renderer: Renderer, seats: int) -> None:
        """Take an assembled policy, its name, and how many rows may run at once."""
        self.model = model
        self.version = version
        self.trunk = trunk
        self.renderer = renderer
        self.seats = seats
        self._names = names(renderer)
        self._waiting = Waiting[Row]()
        self._requests: dict[int, list[Row]] = {}
        """Of each request, the rows that have not left."""
        self._resting: dict[int, list[Row]] = {}
        """Of each request that is not read for now, the rows that have no seat."""
        self._events: list[tuple[int, Event]] = []
        self._waited = False
        """Whether rows have just waited for newcomers: they do not so twice in a row."""
        self._seated: Seats[Row]
        self._begin_anew()

    def take_policy(self, model: PreTrainedModel, version: str) -> None:
        """Go on with another policy; no row may have begun."""
        self.model = model
        self.version = version
        self._begin_anew()

    @property
    def running(self) -> list[Row]:
        """Rows that are seated and not finished."""
        return self._seated.running

    @property
    def begun(self) -> bool:
        """Whether an answer is half written: one that runs, or has given its seat up for a while."""
        resting = (row for rows in self._resting.values() for row in rows)
        return bool(self.running) or any(row.ids for row in chain(self._waiting, resting))

    @property
    def empty(self) -> bool:
        """Whether nobody waits for anything."""
        return not self._requests

    def idle(self, admit: bool = True) -> bool:
        """Whether there is nothing to do for `step`, for now."""
        return not self.running and not any(admit or row.ids for row in self._waiting)

    def submit(self, key: int, request: GenerationRequest) -> None:
        """Prepare a request and let it wait; raises MannersError where it can never be answered."""
        self.admit(key, prepare(self.renderer, request, self.seats))

    def admit(self, key: int, prepared: Prepared, which: Sequence[int] | None = None) -> None:
        """Let a request wait for its turn; of its answers this policy writes `which`, or all."""
        request = prepared.request
        read = (*prepared.prompt_ids, *prepared.begun_ids)
        self._requests[key] = [
            Row(key, n, request, read, TextStream(self.renderer, request.stop, prepared.begun_ids))
            for n in range(request.count)
            if which is None or n in which
        ]
        for row in self._requests[key]:
            self._waiting.add(request.account, row)

    def cancel(self, key: int) -> None:
        """Forget a request, wherever it is."""
        for row in self._requests.pop(key, ()):
            row.left = True
        self._waiting.drop(lambda row: row.left)
        self._resting.pop(key, None)

    def rest(self, key: int) -> None:
        """Write no more for a request until it goes on: what was written is not read. Its seats are for others."""
        if key in self._requests and key not in self._resting:
            self._resting[key] = [row for row in self._waiting if row.key == key]
            self._waiting.drop(lambda row: row.key == key)

    def go_on(self, key: int) -> None:
        """Write on for a request, where it was.

        What is half written stands first in its account's line: only that goes on where another policy is waited for.
        """
        rows = self._resting.pop(key, [])
        for row in reversed(rows):
            if row.ids:
                self._waiting.put_back(row.request.account, row)
        for row in rows:
            if not row.ids:
                self._waiting.add(row.request.account, row)

    def end_resting(self, why: str) -> Said:
        """Fail the requests that are half written and rest, where nothing else is half written; tell them why."""
        if not self.idle(admit=False):
            return ()
        ended = [key for key, rows in self._resting.items() if any(row.ids for row in rows)]
        for key in ended:
            self.cancel(key)
        return tuple((key, Failed(why)) for key in ended)

    def step(self, admit: bool = True, tell: Tell | None = None) -> Said:
        """Read the tokens drawn last, let rows leave and (with `admit`) enter, and draw a token for each.

        What fails in one row fails its request alone. Without `admit` only answers that are half written go on. What
        first tokens write is handed to `tell`, if there is one, before those of other answers are looked at.
        """
        try:
            # 1. Tokens that were drawn are read, if `read` has not done so.
            self._read()
            # 2. Seats change: at once for those that wait, as far as they fit.
            self._change_seats(admit)
            # 3. Every row draws a token, with its own number.
            if self.running:
                self._draw(tell)
        except Exception as error:
            self._fail_all(error)
        return self._said()

    def read(self) -> Said:
        """Read the tokens drawn last, which `step` then need not: whoever comes meanwhile enters with the next draw."""
        try:
            self._read()
        except Exception as error:
            self._fail_all(error)
        return self._said()

    def _said(self) -> Said:
        """Hand over what happened."""
        events, self._events = self._events, []
        return tuple(events)

    def _fail_all(self, error: Exception) -> None:
        """Fail those who run: whatever it is, the process lives on for the others."""
        failed = self.running
        self._begin_anew()
        self._fail(failed, error)

    def _read(self) -> None:
        if not self.running:
            return
        try:
            self._seated.read()
        except Exception as error:
            self._seat_anew(self.running, error)

    def _turns(self, admit: bool) -> tuple[list[Row], list[Row]]:
        """Return the rows that enter, and those that rise for them.

        Whoever rests, rises. No more are read at once than `READ_AT_ONCE` tokens. Where no seat is free, the account
        with the most gives one up, its youngest, as long as it has more than the one whose turn it is would have then.
        Behind newcomers, whose accounts held no seat, rows of other accounts wait for the next step, though never twice
        in a row: so that a first token seldom waits for rows that rose to be read again.
        """
        rising = [row for row in self.running if row.key in self._resting]
        held = Counter(row.request.account for row in self.running if row not in rising)
        settled = set(held)
        entering = list[Row]()
        read = dict[tuple[int, int], int]()
        free = self.seats - len(self.running) + len(rising)
        had_waited, self._waited = self._waited, False
        while (turn := self._waiting.first(held, lambda row: admit or bool(row.ids))) is not None:
            account, row = turn
            read[row.key, row.index if row.ids else 0] = len(row.so_far)  # answers that begin share their prompt
            if entering and sum(read.values()) > READ_AT_ONCE:
                break
            giving = None if free else max(held, key=lambda name: held[name])
            if giving is not None and held[giving] <= held[account] + 1:
                break
            if entering and entering[0].request.account not in settled and account in settled and not had_waited:
                self._waited = True
                break
            if giving is not None:
                rising.append(_youngest(self.running, giving, rising))
                held[giving] -= 1
                free += 1
            entering.append(self._waiting.take(account))
            held[account] += 1
            free -= 1
        return entering, rising

    def _change_seats(self, admit: bool) -> None:
        """Seat whoever enters, unseat those who left where it is worth a copy, and see that there is room to draw."""
        entering, rising = self._turns(admit)
        seated = self._seated
        stay = [row for row in seated.running if row not in rising]
        if not stay and not entering:
            self._begin_anew()  # which gives the memory back
        elif entering or rising or seated.full or seated.gone > CHANGE_SHARE * len(seated.rows):
            try:
                seated.change(entering, ROOM, rising)
            except Exception as error:
                self._seat_anew([*stay, *entering], error)  # for the cache may be half changed: all is read again
        for row in rising:
            row.numbers = None
            if row.key in self._resting:
                self._resting[row.key].append(row)
            elif not row.left:
                self._waiting.put_back(row.request.account, row)

    def _seat_anew(self, rows: Sequence[Row], error: Exception) -> None:
        """Seat rows again after an error: those that can be read; whichever cannot be read alone fails, alone."""
        self._begin_anew()
        if len(rows) == 1:
            self._fail(rows, error)
            return
        for row in rows:
            if row.left:
                continue
            try:
                Seats[Row](self._decoder()).change([row], 1)
            except Exception as own:
                self._fail([row], own)
        if sound := [row for row in rows if not row.left]:
            try:
                self._seated.change(sound, ROOM)
            except Exception as together:
                self._begin_anew()
                self._fail(sound, together)

    def _draw(self, tell: Tell | None) -> None:
        """Draw a token for each row: all together, and where that fails, one by one."""
        seated = self._seated
        assert seated.decoder.logits is not None
        logits = seated.decoder.logits
        seats = [seat for seat, row in enumerate(seated.rows) if not row.left]
        token = torch.zeros(len(seated.rows), dtype=torch.long, device=logits.device)
        try:
            token[seats] = self._tokens([seated.rows[seat] for seat in seats], logits[seats])
        except Exception:  # of one row, or of several: each is told its own
            for seat in seats:
                try:
                    token[seat] = self._tokens([seated.rows[seat]], logits[seat : seat + 1])[0]
                except Exception as error:
                    self._fail([seated.rows[seat]], error)
        chosen = token.tolist()
        drawn = seated.take(token)
        begin = [(seat, row) for seat, row in drawn if not row.ids]
        if begin and tell is not None and len(begin) < len(drawn):
            self._hand_out(begin, chosen, logits)
            tell(self._said())
            drawn = [one for one in drawn if one not in begin]
        self._hand_out(drawn, chosen, logits)

    def _tokens(self, rows: Sequence[Row], logits: Float[Tensor, "R V"]) -> Int[Tensor, " R"]:
        """Draw a token for each of these rows; raises MannersError where there is nothing to draw from."""
        device, vocabulary = self.trunk.device, self.trunk.vocabulary
        asked = [row.request for row in rows]
        greedy = torch.tensor([request.temperature == 0 for request in asked], device=device)
        warm = [max(request.temperature, COLDEST) if request.temperature else 1.0 for request in asked]
        temperature = torch.tensor(warm, device=device).unsqueeze(1)
        top_p = torch.tensor([[request.top_p] for request in asked], device=device)
        numbers = [row.number() for row in rows]
        uniform = torch.tensor(numbers, dtype=torch.float64, device=self.trunk.compute.exact)
        said = vocabulary.at(logits, temperature)
        drawn, _ = draw_tokens(said, uniform, top_p)
        return torch.where(greedy, vocabulary.likeliest(logits), drawn)

    def _hand_out(self, drawn: Sequence[tuple[int, Row]], chosen: Sequence[int], logits: Float[Tensor, "R V"]) -> None:
        """Hand rows their tokens, and what is told of them: that of all at once, and where it fails one by one."""
        together: dict[int, DrawnToken] | None = None
        with suppress(Exception):  # of one row, or of several: each is told its own
            together = self._reported(drawn, chosen, logits)
        for seat, row in drawn:
            try:
                told = self._reported([(seat, row)], chosen, logits) if together is None else together
                self._advance(row, chosen[seat], told.get(seat))
            except Exception as error:
                self._fail([row], error)

    def _reported(
        self, drawn: Sequence[tuple[int, Row]], chosen: Sequence[int], logits: Float[Tensor, "R V"]
    ) -> dict[int, DrawnToken]:
        """Return, of each seat whose request asks for it, what is told of its token."""
        asked = [(seat, row.request.logprobs) for seat, row in drawn]
        counts = {seat: count for seat, count in asked if count is not None}
        if not counts:
            return {}
        tokens, rows = [chosen[seat] for seat in counts], logits[list(counts)]
        found = reported(self._names, self.trunk.vocabulary, rows, tokens, list(counts.values()))
        return dict(zip(counts, found, strict=True))

    def _advance(self, row: Row, token: int, reported: DrawnToken | None) -> None:
        """Hand a row its token, and say what came of it."""
        more, finish = row.take(token, reported, token in self.renderer.end_ids)
        if more is not None:
            self._events.append((row.key, more))
        if finish is not None:
            self._forget(row)
            if finish is FinishReason.LENGTH or token in self.renderer.end_ids:  # not at a string that a request names
                self.renderer.finishes.look((finish,), row.request.max_tokens)
            done = Done(row.index, finish, len(row.prompt_ids), len(row.ids), self.version)
            self._events.append((row.key, done))

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        """Tell the requests of these rows, and leave a trace for whoever runs the server."""
        complain(error)
        for key in dict.fromkeys(row.key for row in rows if not row.left):
            self.cancel(key)
            self._events.append((key, Failed(f"the model failed at this request ({type(error).__name__})")))

    def _forget(self, row: Row) -> None:
        """Let a finished row go, and with the last of them its request."""
        rows = self._requests[row.key]
        rows.remove(row)
        if not rows:
            del self._requests[row.key]

    def _begin_anew(self) -> None:
        """Begin with empty seats."""
        self._seated = Seats[Row](self._decoder())

    def _decoder(self) -> Decoder:
        return Decoder(self.model, self.trunk.compute, self.renderer.pad_id)


def _youngest(rows: Sequence[Row], account: str, but: Sequence[Row]) -> Row:
    """Return the row of an account that sat down last, and has not risen yet."""
    return next(row for row in reversed(rows) if row.request.account == account and row not in but)
