"""What a store wrote down adds nothing to it, and takes along elsewhere whose words they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from manners.reward.labelled import LeftOut
from manners.reward.verdicts import label
from manners.store import Store, staging
from manners.store.chats import Chats
from manners.store.files.formats import Format
from manners.store.files.prompts import PRIVATE, UNREADABLE, export_prompts, import_prompts
from manners.store.files.transfer import ImportResult, export_comparisons, import_comparisons
from manners.store.never import Never
from manners.store.programs import Programs
from manners.types import (
    LOCAL,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Sampling,
    Turn,
    Verdict,
)
from tests.store.test_store import report

ANN = Annotator("ann", AnnotatorKind.HUMAN)
JUDGE = Annotator("judge:qwen#1a2b3c", AnnotatorKind.AI)
TRAIN = {PromptUse.TRAIN: 1.0}


def said(text: str) -> Dialogue:
    return (Turn(Role.USER, text),)


def asked(text: str, how: AskedHow, *verdicts: Verdict) -> Comparison:
    return Comparison(said(text), Response("Yes.", "initial"), Response("No.", "initial"), how, 1.0, verdicts)


@pytest.fixture
def out(store: Store, tmp_path: Path) -> Callable[[], Path]:
    """A function that writes all comparisons of the store to a file."""

    def write() -> Path:
        export_comparisons(store, tmp_path / "out.jsonl", Format.ROWS)
        return tmp_path / "out.jsonl"

    return write


def read(store: Store, path: Path) -> ImportResult:
    return import_comparisons(store, path, {}, skip_bad=False)


def added(found: ImportResult) -> tuple[int, int, int]:
    return found.comparisons, found.verdicts, found.duplicates


def test_what_its_judges_said_is_known_to_a_store_and_is_somebody_elses_in_another(
    store: Store, fresh: Callable[[], Store], out: Callable[[], Path]
) -> None:
    given = [Verdict(Choice.LEFT, JUDGE), Verdict(Choice.RIGHT, ANN), Verdict(Choice.TIE, JUDGE)]
    store.add_comparisons([asked("Hi?", AskedHow.RANDOM, *given)])
    before, other = store.comparisons(), fresh()
    for there in ((1, 3, 0), (0, 0, 3)):
        assert added(read(store, out())) == (0, 0, 3)
        assert added(read(other, out())) == there
    assert store.comparisons() == before
    names = [verdict.annotator.name for verdict in other.comparisons()[0].verdicts]
    assert names == [f"file of {JUDGE.name}", "ann", f"file of {JUDGE.name}"]


def test_what_is_reported_of_two_answers_again_and_again_is_known(
    store: Store, fresh: Callable[[], Store], out: Callable[[], Path]
) -> None:
    """A program that puts one pair before many: each report is a comparison of its own."""
    for user, choice in (("u1", Choice.LEFT), ("u2", Choice.RIGHT), ("u1", Choice.LEFT)):
        who = Annotator(f"{LOCAL}:{user}", AnnotatorKind.HUMAN)
        Programs(store).add("local", None, "", asked("Hi?", AskedHow.API, Verdict(choice, who)))
    before, other = store.comparisons(), fresh()
    assert len(before) == 3
    for there in ((1, 3, 0), (0, 0, 3)):
        assert added(read(store, out())) == (0, 0, 3)
        assert added(read(other, out())) == there
    assert store.comparisons() == before


def test_texts_of_a_store_that_differ_only_in_how_their_lines_end_are_each_known(
    store: Store, out: Callable[[], Path]
) -> None:
    for end in ("\r\n", "\n", "\r"):
        sides = Response(f"Yes.{end}Do.", "initial"), Response(f"No.{end}Don't.", "initial")
        one = Comparison(said(f"Shall{end}I?"), *sides, AskedHow.RANDOM, verdicts=(Verdict(Choice.LEFT, ANN),))
        store.add_comparisons([one])
    before = store.comparisons()
    assert added(read(store, out())) == (0, 0, 3)
    assert store.comparisons() == before


def test_what_is_kept_away_here_is_not_trained_on_elsewhere(
    store: Store, fresh: Callable[[], Store], out: Callable[[], Path], tmp_path: Path
) -> None:
    """What prompts are kept for goes along as docs/store.md says: in files of their own, before the comparisons."""
    texts = ("fine", "reported", "to validate", "to evaluate")
    ids = store.add_comparisons(asked(text, AskedHow.RANDOM, Verdict(Choice.LEFT, ANN)) for text in texts)
    report(store, True, comparison=ids[1])
    other = fresh()
    for use in (PromptUse.VALIDATE, PromptUse.EVALUATE):
        store.add_prompts([said(f"To {use}")], use, "mine.txt")  # begins as that one does
        export_prompts(store, tmp_path / f"{use}.jsonl", use)
        import_prompts(other, tmp_path / f"{use}.jsonl", {use: 1.0})
    assert read(other, out()).left_out_of_training == 2
    found = label(other.comparisons())
    assert [pair.prompt for pair in found.pairs] == [said("fine")] and found.left_out == {LeftOut.KEPT: 2}


BROUGHT = {
    "said": [AskedHow.CHAT],
    "tried": [AskedHow.CANDIDATE],
    "said, and asked again": [AskedHow.CHAT, AskedHow.RANDOM, AskedHow.GOLD],
    "sent": [AskedHow.API],
    "said and sent": [AskedHow.CHAT, AskedHow.API],
    "filed": [AskedHow.IMPORTED],
    "said and filed": [AskedHow.CHAT, AskedHow.IMPORTED],
    "filed and sent": [AskedHow.IMPORTED, AskedHow.API],
    "ours": [AskedHow.RANDOM],
}
"""How somebody was asked about each prompt, in this order."""
CHATS = {said(text) for text in ("said", "tried", "said, and asked again")}
PROGRAMS = {said(text) for text in ("sent", "said and sent")}


@pytest.mark.parametrize("at_once", [1, 10_000])
def test_what_people_said_is_theirs_in_another_store_too(
    store: Store,
    fresh: Callable[[], Store],
    out: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
) -> None:
    """Whatever is written first, and whether its prompts are brought in alone before."""
    store.add_comparisons(asked(text, how) for text, hows in BROUGHT.items() for how in hows)
    monkeypatch.setattr(staging, "AT_ONCE", at_once)
    monkeypatch.setattr(staging, "FIRST_SLICE", at_once)
    monkeypatch.setattr(staging, "MOST_IN_SLICE", at_once)
    for prompts_first in (False, True):
        other = fresh()
        if prompts_first:
            assert import_prompts(other, out(), TRAIN).new == len(BROUGHT)
            assert other.only_in_chats() == CHATS
        assert read(other, out()).left_out == {}
        assert other.only_in_chats() == CHATS
        assert other.only_in_chats(programs=True) == CHATS | PROGRAMS
        open_to_all = {said(text) for text in BROUGHT} - CHATS
        assert set(other.answerable(PromptUse.TRAIN, chats=False)) == open_to_all


def test_a_file_of_the_prompts_of_a_chat_is_the_owners(
    store: Store, fresh: Callable[[], Store], tmp_path: Path
) -> None:
    """It does not say where they come from, and nobody else can have written it."""
    store.add_comparisons([asked("said", AskedHow.CHAT)])
    (tmp_path / "mine.txt").write_text("said\n")
    for one in (store, fresh()):
        import_prompts(one, tmp_path / "mine.txt", TRAIN)
        assert one.only_in_chats() == frozenset()


def test_prompts_that_are_not_the_owners_and_those_that_no_import_takes_are_in_no_file(
    store: Store, fresh: Callable[[], Store], tmp_path: Path
) -> None:
    owner = Annotator(LOCAL, AnnotatorKind.HUMAN)
    chats, drawn = Chats(store), [Response("Well.", "initial", FinishReason.STOP, Sampling(0.7, 9, 0))]
    for text in ("mine too", "said", "deleted"):
        key = chats.begin(owner)
        chats.say(owner, key, [], text, drawn, 1.0)
    chats.delete(owner, key)
    store.add_prompts([said("mine"), said("mine too")], PromptUse.TRAIN, "mine.txt")
    blank = (Turn(Role.SYSTEM, " "), *said("Hi?"))
    store.add_comparisons([asked("sent", AskedHow.API), Comparison(blank, *_sides(), AskedHow.RANDOM)])
    for use in (None, PromptUse.TRAIN):
        found = export_prompts(store, tmp_path / "out.jsonl", use)
        assert (found.rows, found.left_out) == (2, {PRIVATE: 2, Never.DELETED: 1, UNREADABLE: 1})
    other = fresh()
    import_prompts(other, tmp_path / "out.jsonl", TRAIN)
    assert {prompt.dialogue for prompt in other.prompts()} == {said("mine"), said("mine too")}


def _sides() -> tuple[Response, Response]:
    return Response("Yes.", "initial"), Response("No.", "initial")
