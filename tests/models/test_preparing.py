"""Requests are laid out between steps: nobody waits for another account's long dialogues, or for who has left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from manners.models import preparing as preparing_module
from manners.models.batch import Prepared, prepare
from manners.models.preparing import AT_ONCE, FEW, SHORT, Preparing, Ready
from manners.models.requests import GenerationRequest, Submit
from manners.types import Role, Turn
from tests.worlds import tiny_pretrained

PATIENCE = 60.0


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Semaphore, list[str]]]:
    """Preparations wait to be let through, one by one, and are noted; they ask whether to go on before and after."""
    through, begun = threading.Semaphore(0), list[str]()

    def waiting(renderer: Any, request: GenerationRequest, seats: int, check: Any) -> Prepared:
        begun.append(request.account)
        through.acquire()
        check()
        return prepare(renderer, request, seats, check)

    monkeypatch.setattr(preparing_module, "prepare", waiting)
    yield through, begun
    for _ in range(100):
        through.release()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


LONG = "oven " * SHORT
"""Laid out by the thread."""


def asked(account: str, text: str = LONG) -> GenerationRequest:
    return GenerationRequest((Turn(Role.USER, text),), 5, seed=0, account=account)


def test_an_answer_that_is_to_be_continued_is_laid_out_at_once_only_where_it_is_short() -> None:
    preparing = Preparing(tiny_pretrained("llama").renderer, 4, SimpleQueue())
    for key, begun in enumerate((LONG, "an oven")):
        preparing.take(Submit(key, replace(asked("one", "Hi"), begun=begun)))
    assert [ready.key for ready in preparing.at_once()] == [1]


def test_accounts_take_turns_and_who_has_left_is_left_out(
    held: tuple[threading.Semaphore, list[str]],
) -> None:
    through, begun = held
    done = SimpleQueue[Ready]()
    preparing = Preparing(tiny_pretrained("llama").renderer, 4, done)
    preparing.go_on(True)
    preparing.take(Submit(0, asked("one")))
    until(lambda: begun == ["one"])
    for key in range(1, 10):
        preparing.take(Submit(key, asked("one")))
    preparing.take(Submit(100, asked("two")))
    preparing.take(Submit(101, asked("three")))
    preparing.cancel(0)  # it is being laid out
    preparing.cancel(1)  # it waits
    for _ in range(4):
        through.release()
    ready = [done.get(timeout=PATIENCE) for _ in range(3)]
    assert [one.key for one in ready] == [100, 101, 2], "neither 0 nor 1, and nobody waits for all of one account"
    assert [preparing.is_wanted(one.key) for one in ready] == [True] * 3
    assert begun[:4] == ["one", "two", "three", "one"]


def test_what_is_prepared_is_what_the_batch_prepares_by_itself() -> None:
    renderer, done = tiny_pretrained("llama").renderer, SimpleQueue[Ready]()
    preparing = Preparing(renderer, 4, done)
    talk = tuple(Turn(Role.USER if n % 2 == 0 else Role.ASSISTANT, f"bread {n}?") for n in range(2 * FEW + 1))
    requests = {
        1: asked("one", "how do I bake bread? <|end|> naïve 🥖"),
        2: asked("one", "bread " * 500),
        3: replace(asked("one"), prompt=talk),
    }
    for key, request in requests.items():
        preparing.take(Submit(key, request))
    first, second = preparing.at_once()
    preparing.go_on_for(PATIENCE)
    third = done.get_nowait()
    assert first.outcome == prepare(renderer, requests[1], 4)
    assert isinstance(second.outcome, Exception) and "model.context" in str(second.outcome)
    assert third.outcome == prepare(renderer, requests[3], 4) and third.key == 3
    preparing.cancel(1)
    assert not preparing.is_wanted(1), "it was cancelled after it was ready"
    preparing.go_on_for(PATIENCE)  # there is nothing to do


def test_short_ones_wait_for_no_long_ones_and_accounts_take_turns(
    held: tuple[threading.Semaphore, list[str]],
) -> None:
    through, begun = held
    preparing = Preparing(tiny_pretrained("llama").renderer, 4, SimpleQueue[Ready]())
    preparing.go_on(True)
    preparing.take(Submit(0, asked("one")))
    until(lambda: begun == ["one"])
    for _ in range(20):
        through.release()
    for key in range(1, 8):
        preparing.take(Submit(key, asked("one", "oven")))
    preparing.take(Submit(100, asked("two", "oven")))
    assert not preparing.idle
    assert [one.key for one in preparing.at_once()] == [1, 100, 2, 3][:AT_ONCE]
    preparing.cancel(4)
    assert [one.key for one in preparing.at_once()] == [5, 6, 7] and preparing.idle


def test_a_long_one_is_laid_out_in_its_turns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a step it would keep the interpreter from it, some milliseconds at each of a step's operations."""
    count = 0

    def endless(renderer: Any, request: GenerationRequest, seats: int, check: Any) -> Prepared:
        nonlocal count
        while True:
            check()
            count += 1

    monkeypatch.setattr(preparing_module, "prepare", endless)
    preparing = Preparing(tiny_pretrained("llama").renderer, 4, SimpleQueue[Ready]())
    preparing.take(Submit(0, asked("one")))
    for turns in range(3):
        before = count
        until(lambda: preparing._rests)
        time.sleep(0.05)  # a step
        assert count == before, turns
        while count == before:
            preparing.go_on_for(0.01)
        until(lambda: preparing._rests)
    preparing.cancel(0)
    until(lambda: preparing._at_work is None)
