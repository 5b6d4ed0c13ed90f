"""Which reports are cases, and the file that lists them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from manners.store import Store, cases, flags
from manners.store.chats import Chats
from manners.store.flags import FlagReason, raise_flag
from manners.types import Annotator, AnnotatorKind, AskedHow, Comparison, FinishReason, Response, Role, Turn

ANNA, BEN = (Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben"))


@pytest.fixture
def store(new_store: Callable[[], str]) -> Iterator[Store]:
    """An empty store."""
    with closing(Store.open(new_store())) as store:
        yield store


def report_in_chat(store: Store, words: str, *, upheld: bool | None) -> str:
    """Report the answer to something said in a conversation of its own; return the conversation's key."""
    chats = Chats(store)
    key = chats.begin(ANNA)
    chats.say(ANNA, key, [], words, [Response(f"answer to {words}", "policy-1")], 1.0)
    chats.flag(ANNA, chats.read(ANNA, key)[1].response or "", FlagReason.WRONG, "a note")
    if upheld is not None:
        flags.decide(store, flags.undecided(store)[-1].id, upheld)
    return key


def test_what_a_reviewer_kept_away_is_a_case_and_nothing_else(store: Store) -> None:
    report_in_chat(store, "first", upheld=True)
    report_in_chat(store, "dismissed", upheld=False)
    report_in_chat(store, "undecided", upheld=None)
    prompt = (Turn(Role.USER, "a pair"),)
    left, right = Response("l", "a", FinishReason.LENGTH), Response("r", "b")
    [number] = store.add_comparisons([Comparison(prompt, left, right, AskedHow.RANDOM)])
    for who in (ANNA, BEN):  # by two people: one case each answer
        with store.write() as connection:
            raise_flag(connection, who, FlagReason.ILLEGAL, "", comparison=number)
    for flag in flags.undecided(store)[-2:]:
        flags.decide(store, flag.id, upheld=True)
    found = cases.upheld(store)
    assert [(one.prompt[-1].text, one.answer, one.author, one.reason, one.finish) for one in found] == [
        ("first", "answer to first", "policy-1", FlagReason.WRONG, FinishReason.UNKNOWN),
        ("a pair", "l", "a", FlagReason.ILLEGAL, FinishReason.LENGTH),
        ("a pair", "r", "b", FlagReason.ILLEGAL, FinishReason.UNKNOWN),
    ]


def test_the_file_is_a_line_a_case_and_follows_the_store(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "audit" / "cases.jsonl"
    assert cases.write(tmp_path, store) == [] and not file.exists(), "nothing to list"
    kept = report_in_chat(store, 'with "quotes"\nand Zoë', upheld=True)
    gone = report_in_chat(store, "to be deleted", upheld=True)
    for _ in range(2):
        assert len(cases.write(tmp_path, store)) == 2
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert lines[0] == {
            "prompt": [{"role": "user", "content": 'with "quotes"\nand Zoë'}],
            "answer": 'answer to with "quotes"\nand Zoë',
            "author": "policy-1",
            "reason": "wrong",
        }
    Chats(store).delete(ANNA, gone)
    assert len(cases.write(tmp_path, store)) == 1 and "to be deleted" not in file.read_text(encoding="utf-8")
    Chats(store).delete(ANNA, kept)
    assert cases.write(tmp_path, store) == [] and file.read_text(encoding="utf-8") == ""
