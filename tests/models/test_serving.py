"""The loop between messages and reports, a cycle at a time: who waits for whom, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

import pytest

from manners.models import serving as serving_module
from manners.models.beside import Pair
from manners.models.decoder import Decoder
from manners.models.preparing import Preparing, Ready
from manners.models.requests import EngineState, GoOn, Load, Message, Report, Rest, Submit
from manners.models.requests import Heard as WasHeard
from manners.models.serving import GRACE, UNREAD, Serving
from tests.models.test_batch import ENDLESS, REQUESTS, Heard, alone, new_batch, world
from tests.models.test_beside import policy


@dataclass
class Clock:
    """Seconds as a test says them."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Loop:
    """A loop with a model, without its process; what it reports is heard at once."""

    inbox: SimpleQueue[Message | Ready] = field(default_factory=SimpleQueue)
    heard: dict[int, Heard] = field(default_factory=dict)
    states: list[EngineState] = field(default_factory=list)

    def __post_init__(self) -> None:
        preparing = Preparing(world().renderer, 4, self.inbox)
        others = {"next": policy(0.8)}
        self.serving = Serving(self.take, self.inbox, Pair(new_batch(), None), preparing, others.__getitem__)

    def take(self, report: Report) -> None:
        if isinstance(report, EngineState):
            self.states.append(report)
            return
        self.inbox.put(WasHeard())
        for key, event in report:
            self.heard.setdefault(key, Heard()).hear(event)

    def cycle(self, *messages: Message, times: int = 1) -> None:
        """Go round so often, the first time with messages; nothing waits for one that does not come."""
        for message in messages:
            self.inbox.put(message)
        for _ in range(times):
            self.inbox.put(GoOn(99))
            self.serving.cycle()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(serving_module, "time", one)
    return one


def test_who_does_not_read_keeps_another_policy_waiting_for_a_few_seconds_alone(clock: Clock) -> None:
    loop = Loop()
    loop.cycle(Submit(0, replace(ENDLESS, account="slow")), times=3)
    loop.cycle(Rest(0), times=2)
    loop.cycle(Load("next"), Submit(1, REQUESTS[0]), times=5)
    clock.now = GRACE - 0.1
    loop.cycle(times=5)
    assert not loop.states and 1 not in loop.heard and not loop.heard[0].failed, "they may yet read it"
    clock.now = GRACE
    loop.cycle(times=60)
    [failed] = loop.heard[0].failed
    assert failed.message == UNREAD and not failed.refused and not loop.heard[0].done
    assert [state.version for state in loop.states] == ["next"]
    assert loop.heard[1].done[0].version == "next"


def test_who_reads_on_in_time_and_who_is_being_answered_is_waited_for(clock: Clock) -> None:
    loop = Loop()
    loop.cycle(Submit(0, replace(ENDLESS, account="slow")), Submit(1, replace(REQUESTS[1], account="other")), times=3)
    loop.cycle(Rest(0), Load("next"), times=3)
    clock.now = 10 * GRACE
    loop.cycle(times=5)
    assert not loop.states and not loop.heard[0].failed, "another answer is half written"
    loop.cycle(GoOn(0), times=60)
    for key, request in enumerate((ENDLESS, REQUESTS[1])):
        assert loop.heard[key].texts == alone(request).texts and not loop.heard[key].failed
        assert {done.version for done in loop.heard[key].done.values()} == {"initial"}
    assert [state.version for state in loop.states] == ["next"]


def test_it_wakes_by_itself_when_nobody_says_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "GRACE", 0.05)
    loop = Loop()
    loop.cycle(Submit(0, ENDLESS), times=3)
    loop.cycle(Rest(0), Load("next"), times=2)
    while not loop.states:
        loop.serving.cycle()
    assert [failed.message for failed in loop.heard[0].failed] == [UNREAD]


def test_who_comes_while_tokens_are_read_has_one_before_the_next_are(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, read, reads = Loop(), Decoder.read, list[bool]()

    def reading(self: Decoder, *given: Any) -> None:
        if len(reads) == 2:
            loop.inbox.put(Submit(1, replace(ENDLESS, account="two", max_tokens=1)))
        reads.append(1 in loop.heard)
        read(self, *given)

    monkeypatch.setattr(Decoder, "read", reading)
    loop.cycle(Submit(0, replace(ENDLESS, account="one")), times=6)
    assert loop.heard[1].done.keys() == {0}
    assert reads[:4] == [False, False, False, True], "it came while tokens were read for the third time"


def test_what_cannot_be_read_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = Loop()

    def failing(self: Decoder, *_: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Decoder, "read", failing)
    loop.cycle(Submit(0, ENDLESS))
    assert len(loop.heard[0].failed) == 1 and loop.serving._ahead == 2, "what was written, and that it ended"
    loop.cycle(Submit(1, replace(ENDLESS, max_tokens=1)))
    assert loop.heard[1].done and capsys.readouterr().err
