"""Between the model and those who wait: nobody is drowned by what is written for others, or what they do not read."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.models.requests import (
    JOINED,
    MOST_AHEAD,
    MOST_UNREAD,
    Cancel,
    Done,
    DrawnToken,
    Event,
    GoOn,
    Heard,
    Message,
    Phase,
    Rest,
    Submit,
    Token,
    TokenLogprob,
    joined,
)
from manners.models.requests import GenerationRequest as Request
from manners.settings import ModelSettings
from manners.types import FinishReason, Role, Turn
from manners.web import engine as engine_module
from manners.web.engine import BEAT, Engine
from manners.workspace import INITIAL, Workspace
from tests.web.conftest import run
from tests.worlds import save_tiny

ENDLESS = Request((Turn(Role.USER, "the weather"),), 200, seed=2, temperature=0.0)


@pytest.fixture
def unstarted(tmp_path: Path) -> Engine:
    """An engine without its process: a test says in its place what was written."""
    return Engine(tmp_path, ModelSettings(), INITIAL)


async def heard(engine: Engine, report: tuple[tuple[int, Event], ...]) -> None:
    """Hear a report, as the engine's own thread does."""
    await asyncio.to_thread(engine._hear, report)


def words(index: int, count: int) -> list[Token]:
    return [Token(index, f"{number} ") for number in range(count)]


def test_a_stream_with_much_to_say_gives_way_to_the_others(unstarted: Engine) -> None:
    order: list[tuple[str, str]] = []

    async def listen(name: str, request: Request) -> None:
        async for event in unstarted.generate(request):
            order.append((name, event.text if isinstance(event, Token) else "done"))

    async def both() -> None:
        listening = [asyncio.create_task(listen(name, ENDLESS)) for name in ("long", "short")]
        await asyncio.sleep(0)
        done = Done(0, FinishReason.STOP, 1, 1, INITIAL)
        long: list[tuple[int, Event]] = [*((0, event) for event in words(0, 20 * JOINED)), (0, done)]
        await heard(unstarted, (*long, (1, Token(0, "hello")), (1, done)))
        await asyncio.gather(*listening)

    run(both())
    said = [text for name, text in order if name == "long"]
    assert "".join(said[:-1]) == "".join(token.text for token in words(0, 20 * JOINED)) and said[-1] == "done"
    assert len(said) <= 22, "what waits is joined"
    assert order.index(("short", "hello")) <= 2, "and nobody waits for all of it"


def test_what_comes_within_a_beat_is_one_piece_but_for_the_first_and_the_last(unstarted: Engine) -> None:
    pieces: list[str] = []

    async def listen() -> None:
        async for event in unstarted.generate(ENDLESS):
            pieces.append(event.text if isinstance(event, Token) else "done")

    async def written() -> float:
        listening = asyncio.ensure_future(listen())
        await asyncio.sleep(0)
        await heard(unstarted, ((0, Token(0, "first ")),))
        await asyncio.sleep(0)
        assert pieces == ["first "], "at once"
        begun = asyncio.get_running_loop().time()
        for word in words(0, 40):
            await heard(unstarted, ((0, word),))
        await heard(unstarted, ((0, Done(0, FinishReason.STOP, 1, 1, INITIAL)),))
        await listening
        return asyncio.get_running_loop().time() - begun

    took = run(written())
    assert "".join(pieces) == "first " + "".join(word.text for word in words(0, 40)) + "done"
    assert len(pieces) <= 3 + took / BEAT


def test_of_many_answers_pieces_come_once_in_as_many_beats() -> None:
    dues = list[float]()

    async def written(count: int) -> None:
        waiter = engine_module._Waiter(0, asyncio.get_running_loop(), count)
        waiter.take(Token(0, "first"))
        begun = waiter.loop.time()
        assert len(await waiter.next()) == 1
        dues.append((waiter.due - begun) / BEAT)

    for count in (1, 4, 100):
        run(written(count))
    wanted = (1, 4, engine_module.MOST_BEATS)
    # `begun` is from before the look at the clock; and no earlier.
    assert all(due >= beats for due, beats in zip(dues, wanted, strict=True)) and dues == sorted(dues)


def test_the_end_is_waited_for_by_no_beat(unstarted: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BEAT", 3600.0)

    async def written() -> list[Event]:
        listening = asyncio.ensure_future(_all(unstarted))
        await asyncio.sleep(0)
        for event in (Token(0, "a "), Token(0, "b "), Token(0, "c"), Done(0, FinishReason.STOP, 1, 3, INITIAL)):
            await heard(unstarted, ((0, event),))
            await asyncio.sleep(0)
        return await asyncio.wait_for(listening, 30)

    found = run(written())
    assert [event.text for event in found if isinstance(event, Token)] == ["a ", "b c"] and len(found) == 3


async def _all(engine: Engine) -> list[Event]:
    return [event async for event in engine.generate(ENDLESS)]


def test_what_was_written_is_only_heard_once_those_who_wait_have_it(unstarted: Engine) -> None:
    async def behind() -> None:
        async with aclosing(unstarted.generate(ENDLESS)) as events:
            asking = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            hearing = threading.Thread(target=unstarted._hear, args=(((0, Token(0, "hello")),),))
            hearing.start()
            hearing.join(0.2)  # while this loop has other things to do
            assert hearing.is_alive() and isinstance(unstarted._outbox.get(), Submit) and unstarted._outbox.empty()
            assert await asking == Token(0, "hello")
            await asyncio.to_thread(hearing.join)
            assert isinstance(unstarted._outbox.get(), Heard)
        assert isinstance(unstarted._outbox.get(), Cancel)
        await heard(unstarted, ((0, Token(0, "nobody listens")),))
        assert isinstance(unstarted._outbox.get(), Heard), "what nobody waits for is heard at once"

    run(behind())


def test_whoever_does_not_read_is_not_written_for(unstarted: Engine) -> None:
    def sent() -> list[Message | None]:
        return [unstarted._outbox.get() for _ in range(unstarted._outbox.qsize())]

    async def slowly() -> None:
        async with aclosing(unstarted.generate(ENDLESS)) as events:
            asking = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            await heard(unstarted, ((0, Token(0, "hello")),))
            assert await asking == Token(0, "hello")
            sent()
            for _ in range(MOST_UNREAD + 5):
                await heard(unstarted, ((0, Token(0, ".")),))
            assert [message for message in sent() if not isinstance(message, Heard)] == [Rest(0)]
            read = ""
            while len(read) < MOST_UNREAD + 5:
                assert sent() == []
                event = await anext(events)
                assert isinstance(event, Token)
                read += event.text
            asking = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            assert sent() == [GoOn(0)], "all of it was read"
            await heard(unstarted, ((0, Token(0, "!")),))
            assert await asking == Token(0, "!")

    run(slowly())


@pytest.mark.long
def test_the_model_waits_for_whoever_serves_pages(tmp_path: Path) -> None:
    settings = ModelSettings(name=str(save_tiny(tmp_path / "model")), trainable_layers=2, device="cpu", context=256)
    workspace = Workspace.create(tmp_path / "workspace")
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    given = (its, workspace.root, settings, INITIAL, 4, 1, None)
    process = context.Process(target=engine_module._begin, args=given, daemon=True)
    process.start()
    its.close()
    try:
        assert ours.recv().phase is Phase.READY
        ours.send(Submit(0, ENDLESS))
        reports = [ours.recv() for _ in range(MOST_AHEAD)]
        assert not ours.poll(0.5), "it goes no further by itself"
        ours.send(Heard())
        reports.append(ours.recv())
        assert not ours.poll(0.5), "one heard, one more"
        while not any(isinstance(event, Done) for _, event in reports[-1]):
            ours.send(Heard())
            reports.append(ours.recv())
    finally:
        process.kill()
        process.join()
    assert len(reports) > 2 * MOST_AHEAD


def texts(tokens: list[Token]) -> dict[int, str]:
    found: dict[int, str] = {}
    for token in tokens:
        found[token.index] = found.get(token.index, "") + token.text
    return found


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3), st.integers(0, 2))))
def test_joined_events_say_the_same(drawn: list[tuple[int, str, int]]) -> None:
    tokens = [
        Token(index, text, tuple(DrawnToken(TokenLogprob(text, -float(n)), ()) for n in range(count)))
        for index, text, count in drawn
    ]
    ends = [Done(index, FinishReason.STOP, 1, 1, INITIAL) for index in range(4)]
    found = joined([*tokens, *ends])
    assert [event for event in found if isinstance(event, Done)] == ends == found[-4:]
    said = [event for event in found if isinstance(event, Token)]
    assert len({token.index for token in said}) == len(said) and texts(said) == texts(tokens)
    for token in said:
        assert token.logprobs == tuple(one for t in tokens if t.index == token.index for one in t.logprobs)
