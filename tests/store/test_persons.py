"""Who somebody is, is an account: the same name on a file, in a program or on the machine is somebody else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.chats import Chats, NoSuchChat
from manners.store.files.formats import Format
from manners.store.files.transfer import export_comparisons, import_comparisons
from manners.store.programs import OtherContent, Programs, UnknownPair
from manners.store.views import Given, NoSuchView, answer, show, withdraw
from manners.types import (
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Draw,
    DrawnHow,
    Response,
    Role,
    Turn,
    Verdict,
    latest_verdicts,
)

LEASE = timedelta(minutes=15)


def pair(number: int = 0, *verdicts: Verdict) -> Comparison:
    left, right = Response(f"left {number}", "v1"), Response(f"right {number}", "v2")
    return Comparison((Turn(Role.USER, f"{number}?"),), left, right, AskedHow.RANDOM, 1.0, verdicts)


@pytest.fixture
def people(store: Store) -> list[Annotator]:
    """Five who are called anna: on the machine or in a file, an account, another's program's user, a model, a crowd."""
    accounts = Accounts(store)
    anna, ben = (accounts.add(name, AccountRole.ANNOTATOR) for name in ("anna", "ben"))
    return [
        Annotator("anna", AnnotatorKind.HUMAN),
        Annotator("anna", AnnotatorKind.HUMAN, anna.id),
        Annotator("anna", AnnotatorKind.HUMAN, ben.id),
        Annotator("anna", AnnotatorKind.AI),
        Annotator("anna", AnnotatorKind.SIMULATED),
    ]


def test_each_has_their_own_verdict_on_a_comparison(store: Store, people: list[Annotator]) -> None:
    [number] = store.add_comparisons([pair(0, *(Verdict(Choice.LEFT, who) for who in people))])
    store.add_verdicts([(number, Verdict(Choice.RIGHT, people[1]))])
    [found] = store.comparisons()
    latest = {verdict.annotator: verdict.choice for verdict in latest_verdicts(found.verdicts)}
    assert latest == dict.fromkeys(people, Choice.LEFT) | {people[1]: Choice.RIGHT}
    assert len({who.key for who in people if who.kind is AnnotatorKind.HUMAN}) == 3


def test_each_has_their_own_chats(store: Store, people: list[Annotator]) -> None:
    chats = Chats(store)
    keys = {who: chats.begin(who) for who in people}
    for who, key in keys.items():
        assert [one.key for one in chats.all(who)] == [key]
        for other in people:
            if other != who:
                with pytest.raises(NoSuchChat):
                    chats.read(other, key)
                with pytest.raises(NoSuchChat):
                    chats.delete(other, key)


def test_each_answers_and_takes_back_only_what_they_were_shown(store: Store, people: list[Annotator]) -> None:
    [number] = store.add_comparisons([pair()])
    human = [who for who in people if who.kind is AnnotatorKind.HUMAN]
    for who in human:
        with store.write() as connection:
            shown = show(who, Draw(number, DrawnHow.RANDOM, 1.0, False, 1), LEASE, connection)
            assert shown is not None
            for other in human:
                if other != who:
                    with pytest.raises(NoSuchView):
                        answer(other, Given(shown.view, Choice.LEFT), connection)
            answer(who, Given(shown.view, Choice.LEFT), connection)
    with store.write() as connection:
        assert withdraw(human[0], connection) is not None and withdraw(human[0], connection) is None
    assert [verdict.annotator for verdict in store.comparisons()[0].verdicts] == human[1:]


def test_a_file_speaks_for_no_account(store: Store, people: list[Annotator], tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    file.write_text('{"prompt": "Hi?", "left": "a", "right": "b", "verdict": "left", "annotator": "anna"}\n')
    import_comparisons(store, file, {}, skip_bad=False)
    assert [v.annotator for c in store.comparisons() for v in c.verdicts] == [people[0]]
    assert Chats(store).effect(people[1]).verdicts == 0


def test_what_was_exported_comes_back_as_what_it_is(
    store: Store, people: list[Annotator], fresh: Callable[[], Store], tmp_path: Path
) -> None:
    store.add_comparisons([pair(0, Verdict(Choice.LEFT, people[1])), pair(1, Verdict(Choice.RIGHT, people[0]))])
    before = store.comparisons()
    file = tmp_path / "all.jsonl"
    export_comparisons(store, file, Format.ROWS)
    import_comparisons(store, file, {}, skip_bad=False)
    assert store.comparisons() == before, "here it is known, whosever it is"
    elsewhere = fresh()
    Accounts(elsewhere).add("anna", AccountRole.ANNOTATOR)
    import_comparisons(elsewhere, file, {}, skip_bad=False)
    found = [verdict.annotator for comparison in elsewhere.comparisons() for verdict in comparison.verdicts]
    assert found == [people[0], people[0]], "there it is nobody's who is called so there"


def test_a_programs_names_are_its_accounts(store: Store, people: list[Annotator]) -> None:
    programs = Programs(store)
    name = programs.open("account 1", pair(0))
    for other in ("account 2", "local", "account 11"):
        with pytest.raises(UnknownPair):
            programs.judge(other, name, Verdict(Choice.LEFT, people[0]))
    first = programs.add("account 1", "key", "content", pair(1))
    assert programs.add("account 1", "key", "content", pair(1)) == (first[0], False)
    assert programs.add("account 2", "key", "other", pair(2))[1]
    with pytest.raises(OtherContent):
        programs.add("account 1", "key", "other", pair(2))


def test_no_file_speaks_for_a_judge_of_this_workspace(store: Store, tmp_path: Path) -> None:
    row = '{"prompt": "p?", "left": "a", "right": "b", "verdict": "left", "annotator": "judge:m#1", '
    (tmp_path / "rows.jsonl").write_text(row + '"annotator_kind": "ai"}\n', encoding="utf-8")
    assert import_comparisons(store, tmp_path / "rows.jsonl", {}, skip_bad=False).verdicts == 1
    (said,) = (v.annotator for c in store.comparisons() for v in c.verdicts)
    assert said == Annotator("file of judge:m#1", AnnotatorKind.AI) and not said.is_judge
