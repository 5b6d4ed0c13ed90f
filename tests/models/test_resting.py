"""Whoever does not read what was written holds no seat meanwhile, and gets the same words later."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest

from manners.models import batch as batch_module
from manners.models.requests import Failed
from tests.conftest import some
from tests.models.test_batch import ENDLESS, REQUESTS, Heard, alone, new_batch, run, unpatched


@pytest.mark.parametrize(("early", "seed"), some(product((False, True), range(3)), 2))
def test_an_answer_is_the_same_however_often_it_rests(early: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where tokens are read before it is known who rests, leaves or comes until the next are drawn (`early`)."""
    expected = [unpatched(request) for request in REQUESTS]
    monkeypatch.setattr(batch_module, "ROOM", 5)
    monkeypatch.setattr(batch_module, "READ_AT_ONCE", 40)
    chance, batch, heard = random.Random(seed), new_batch(), dict[int, Heard]()
    for key, request in enumerate(REQUESTS):
        batch.submit(key, replace(request, account=chance.choice(("one", "two", "three"))))
    for come in range(100, 160):
        run(batch, heard, steps=chance.randrange(4))
        if early:
            assert not batch.read()
        batch.submit(come, replace(chance.choice(REQUESTS), account="four"))
        batch.cancel(come - chance.randrange(3))
        batch.rest(chance.randrange(len(REQUESTS)))
        batch.go_on(chance.randrange(len(REQUESTS)))
        batch.rest(99)
        batch.go_on(99)
    for key in range(len(REQUESTS)):
        batch.go_on(key)
    run(batch, heard)
    assert [heard[key].texts for key in range(len(REQUESTS))] == [wanted.texts for wanted in expected]
    assert [heard[key].done for key in range(len(REQUESTS))] == [wanted.done for wanted in expected]


def test_whoever_rests_gives_all_seats_up_and_nothing_is_written_for_them() -> None:
    batch, heard = new_batch(seats=4), dict[int, Heard]()
    batch.submit(0, replace(ENDLESS, account="one", count=4))
    batch.submit(1, replace(ENDLESS, account="one"))
    run(batch, heard, steps=5)
    batch.rest(0)
    written = dict(heard[0].texts)
    batch.submit(2, replace(ENDLESS, account="one", count=3))
    run(batch, heard, steps=1)
    assert sorted(row.key for row in batch.running) == [1, 2, 2, 2], "of the same account too"
    run(batch, heard)
    assert heard[0].texts == written and not heard[0].done and heard[1].done and len(heard[2].done) == 3
    assert batch.idle() and batch.idle(admit=False) and batch.begun, "half an answer, and nothing to do"
    batch.go_on(0)
    assert not batch.idle() and not batch.idle(admit=False)
    run(batch, heard)
    assert heard[0].texts == alone(replace(ENDLESS, count=4)).texts and not batch.begun


def test_whoever_leaves_while_they_rest_is_forgotten() -> None:
    batch, heard = new_batch(seats=2), dict[int, Heard]()
    batch.submit(0, replace(ENDLESS, count=2))
    run(batch, heard, steps=3)
    batch.rest(0)
    run(batch, heard)
    batch.cancel(0)
    batch.go_on(0)
    assert batch.idle() and not batch.begun
    assert not batch.step()


def test_what_is_half_written_goes_on_first_and_keeps_no_other_policy_waiting() -> None:
    batch, heard = new_batch(seats=2), dict[int, Heard]()
    batch.submit(0, replace(ENDLESS, account="one"))
    run(batch, heard, steps=1)
    batch.submit(1, replace(ENDLESS, account="two", count=2))
    run(batch, heard, steps=2)
    assert [(row.key, row.index) for row in batch.running] == [(0, 0), (1, 0)], "its other answer has not begun"
    batch.rest(1)
    run(batch, heard, steps=1)
    batch.go_on(1)
    for _ in range(200):
        if not batch.begun:
            break
        for key, event in batch.step(admit=False):
            heard.setdefault(key, Heard()).hear(event)
    assert not batch.begun and heard[0].done.keys() == heard[1].done.keys() == {0}
    run(batch, heard)
    assert heard[1].texts == alone(replace(ENDLESS, count=2)).texts


def test_what_is_not_read_is_given_up_only_where_nothing_else_is_half_written() -> None:
    batch, heard = new_batch(seats=4), dict[int, Heard]()
    batch.submit(0, replace(ENDLESS, account="one", count=2))
    batch.submit(1, replace(ENDLESS, account="two"))
    run(batch, heard, steps=3)
    assert batch.end_resting("ask again") == (), "nobody rests"
    batch.rest(0)
    run(batch, heard, steps=1)
    assert batch.end_resting("ask again") == () and batch.begun
    run(batch, heard)
    assert heard[1].done and not heard[0].done
    assert batch.end_resting("ask again") == ((0, Failed("ask again")),)
    assert batch.empty and batch.idle() and not batch.begun
    batch.go_on(0)
    assert not batch.step()
