"""Accounts take turns, each in its own order of arrival: nobody starves, whatever the others ask for."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from manners.models.waiting import Waiting

ACCOUNTS = ("a", "b", "c", "d")


def serve_all(waiting: Waiting[tuple[str, int]], held: Counter[str] | None = None) -> list[tuple[str, int]]:
    served = []
    while (turn := waiting.first(held or {})) is not None:
        assert waiting.take(turn[0]) == turn[1]
        served.append(turn[1])
    return served


@given(st.lists(st.sampled_from(ACCOUNTS), max_size=40))
def test_all_are_served_once_and_each_account_in_its_order(arrivals: list[str]) -> None:
    waiting = Waiting[tuple[str, int]]()
    for number, account in enumerate(arrivals):
        waiting.add(account, (account, number))
    served = serve_all(waiting)
    assert sorted(served, key=lambda one: one[1]) == list(zip(arrivals, range(len(arrivals)), strict=True))
    for account in ACCOUNTS:
        own = [number for name, number in served if name == account]
        assert own == sorted(own)


@given(st.lists(st.sampled_from(ACCOUNTS), min_size=1, max_size=40), st.integers(0, 9))
def test_whoever_comes_waits_for_at_most_one_turn_of_each_other(arrivals: list[str], before: int) -> None:
    waiting = Waiting[tuple[str, int]]()
    for number, account in enumerate(arrivals * 10):
        waiting.add(account, (account, number))
    for _ in range(before):
        turn = waiting.first({})
        assert turn is not None
        waiting.take(turn[0])
    waiting.add("new", ("new", 0))
    assert serve_all(waiting).index(("new", 0)) <= len(set(arrivals))


def test_who_holds_less_goes_first_and_who_rose_keeps_the_place() -> None:
    waiting = Waiting[tuple[str, int]]()
    for number in range(3):
        waiting.add("a", ("a", number))
    waiting.add("b", ("b", 0))
    assert waiting.first({"a": 1}) == ("b", ("b", 0))
    assert waiting.first({"a": 1, "b": 2}) == ("a", ("a", 0))
    waiting.put_back("a", ("a", 99))
    assert waiting.first({"b": 2}) == ("a", ("a", 99))
    waiting.drop(lambda one: one[0] == "a")
    assert serve_all(waiting) == [("b", 0)]
