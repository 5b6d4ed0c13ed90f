"""Conversations: whose words are used for what, and what deletion leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import insert, select

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.loop import ppo, prompts, sample
from manners.loop.options import PPOOptions
from manners.loop.sample import SampleInputs
from manners.loop.session import Session
from manners.models import versions
from manners.reward import stored
from manners.settings import ModelSettings, SampleSettings, ServeSettings, Settings
from manners.store import Store, VersionRecord, gold
from manners.store import comparisons as reading
from manners.store.chats import Chats, Effect, MovedOn, NoSuchChat
from manners.store.flags import FlagReason, raise_flag
from manners.store.records import from_messages, token_of
from manners.store.tables import ComparisonRow, FlagRow, MessageRow, PromptRow, ResponseRow, VerdictRow, WithdrawalRow
from manners.types import (
    DELETED,
    Annotator,
    AnnotatorKind,
    Answer,
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
    VersionKind,
)
from manners.workspace import Workspace
from tests.worlds import save_tiny

ANNA, BEN = (Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben"))
SECRET = "my secret"
PROMPT: Dialogue = (Turn(Role.USER, SECRET),)


def drawn(text: str, seed: int = 0) -> Response:
    return Response(text, "initial", FinishReason.STOP, Sampling(0.7, 64, seed))


def converse(
    store: Store,
    who: Annotator,
    text: str = SECRET,
    answers: Sequence[str] = ("hm", "ah"),
    seed: int = 0,
    how: AskedHow = AskedHow.CHAT,
) -> str:
    """Begin a conversation with one turn, and return its key."""
    chats = Chats(store)
    key = chats.begin(who)
    chats.say(who, key, [], text, [drawn(answer, seed) for answer in answers], 1.0, how)
    return key


def asked_last(store: Store) -> str:
    """The token of the newest comparison."""
    query = select(ComparisonRow.id, ComparisonRow.created_at).order_by(ComparisonRow.id.desc()).limit(1)
    with store.read() as connection:
        return token_of(*connection.execute(query).one())


def asked(how: AskedHow, *texts: str) -> Comparison:
    left, right = (Response(text, "other") for text in texts or ("eins", "zwei"))
    return Comparison(PROMPT, left, right, how)


def answerable(store: Store, *, chats: bool = False) -> list[str]:
    return [dialogue[-1].text for dialogue in store.answerable(PromptUse.TRAIN, chats=chats)]


def texts(store: Store) -> str:
    """All texts of the store."""
    columns: list[Any] = [PromptRow.turns, ResponseRow.text, MessageRow.text, VerdictRow.comment, FlagRow.note]
    with store.read() as connection:
        return " ".join(str(connection.execute(select(column)).all()) for column in columns)


def test_what_only_a_chat_brought_in_is_answered_anew_where_chats_are_shared(store: Store) -> None:
    store.add_prompts([(Turn(Role.USER, "from a file"),)], PromptUse.TRAIN, "prompts.txt")
    for text in (SECRET, "from a file"):
        key = converse(store, ANNA, text)
    assert answerable(store) == ["from a file"]
    assert answerable(store, chats=True) == ["from a file", SECRET]
    Chats(store).delete(ANNA, key)
    assert answerable(store) == ["from a file"], "the owner's words stay"


@pytest.mark.parametrize("how", AskedHow)
def test_words_are_somebody_elses_too_once_they_come_from_outside(store: Store, how: AskedHow) -> None:
    converse(store, ANNA)
    store.merge_comparisons([asked(how)])
    assert answerable(store) == ([SECRET] if how in (AskedHow.IMPORTED, AskedHow.API) else [])


def test_a_file_of_prompts_makes_them_the_owners(store: Store) -> None:
    key = converse(store, ANNA)
    store.add_prompts([PROMPT], PromptUse.TRAIN, "prompts.txt")
    assert answerable(store) == [SECRET]
    Chats(store).delete(ANNA, key)
    assert answerable(store) == [SECRET] and "hm" not in texts(store), "the prompt is the owner's, the answers are not"


@pytest.mark.parametrize("chats", [False, True])
def test_deleted_words_are_never_answered(store: Store, chats: bool) -> None:
    Chats(store).delete(ANNA, converse(store, ANNA))
    assert answerable(store, chats=chats) == []


def sharing(folder: Path, chats: bool) -> Settings:
    """Settings for a tiny model."""
    model = ModelSettings(name=str(save_tiny(folder / "model")), trainable_layers=2, device="cpu", context=256)
    return Settings(model=model, serve=ServeSettings(share_chats=chats))


@pytest.mark.parametrize("chats", [False, True])
def test_sampling_and_ppo_leave_chats_alone_unless_they_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chats: bool
) -> None:
    session = Session(Workspace.create(tmp_path / "ws"), sharing(tmp_path, chats))
    converse(session.store, ANNA, answers=("hm",))
    Chats(session.store).delete(ANNA, converse(session.store, ANNA, "deleted"))
    seen: list[Dialogue] = []

    def kept(_: Session, dialogues: Sequence[Dialogue]) -> prompts.Fitting:
        seen.extend(dialogues)
        return prompts.Fitting({}, frozenset(), 0)

    monkeypatch.setattr(prompts, "short_enough", kept)
    monkeypatch.setattr(versions, "latest", lambda *_: "reward-1")
    monkeypatch.setattr(stored, "load_reward", lambda *_: None)
    with pytest.raises(MannersError, match=r"PPO needs prompts to train on \(0 there\)"):
        ppo.inputs(session, PPOOptions(), {})
    assert prompts.answerable(session, PromptUse.TRAIN) == seen == ([PROMPT] if chats else [])
    session.store.close()


def test_a_prompt_that_begins_as_one_with_a_candidate_is_not_answered_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(sharing(tmp_path, False), sample=SampleSettings(max_new_tokens=16))
    session = Session(Workspace.create(tmp_path / "ws"), settings)
    converse(session.store, ANNA, "Hi there", how=AskedHow.CANDIDATE)
    theirs: list[Dialogue] = [(Turn(Role.USER, text),) for text in ("hi  THERE", "the weather")]
    session.store.add_prompts(theirs, PromptUse.TRAIN, "prompts.txt")
    assert prompts.answerable(session, PromptUse.TRAIN) == theirs[1:]
    capsys.readouterr()
    prompts.prompt_lengths(session, PromptUse.TRAIN)
    assert "1 prompts for `train` begin as one does on which a candidate was compared" in capsys.readouterr().err
    session.store.close()


def test_what_is_deleted_while_it_is_answered_is_not_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(Workspace.create(tmp_path / "ws"), sharing(tmp_path, True))
    store = session.store
    store.add_prompts([(Turn(Role.USER, "from a file"),)], PromptUse.TRAIN, "prompts.txt")
    key = converse(store, ANNA, answers=("hm",))

    def answer(
        _: Session, run: Run, prompts: Sequence[Dialogue], author: str, *__: int
    ) -> tuple[list[list[Answer]], int]:
        assert len(prompts) == 2
        Chats(store).delete(ANNA, key)
        return [[Answer(p, Response(text, author), (), ()) for text in ("x", "y")] for p in prompts], 0

    monkeypatch.setattr(
        prompts, "short_enough", lambda _, found: prompts.Fitting(dict.fromkeys(found, ()), frozenset(), 0)
    )
    monkeypatch.setattr(sample, "answers_to", answer)
    run = cast(Run, SimpleNamespace(state={}, save=lambda: None))
    facts = sample.run(session, run, SampleInputs(crowd=False, again=False, limit=None))
    assert (facts.prompts, facts.left_out) == (1, {"prompt deleted meanwhile": 1})
    assert [c.prompt[-1].text for c in store.comparisons()] == ["from a file"] and SECRET not in texts(store)
    store.close()


@pytest.mark.parametrize("how", AskedHow)
def test_deletion_takes_the_words_whatever_was_opened_on_them_here(store: Store, how: AskedHow) -> None:
    key = converse(store, ANNA)
    comment = Verdict(Choice.LEFT, BEN, comment=f"about {SECRET}")
    if how is AskedHow.GOLD:
        number = gold.add(store, 1, Choice.LEFT, chats=True).comparison
        store.add_verdicts([(number, comment)])
    else:
        [number] = store.add_comparisons([replace(asked(how), verdicts=(comment,))])
    comparisons = Chats(store).delete(ANNA, key).comparisons
    if how in (AskedHow.IMPORTED, AskedHow.API):
        assert comparisons == [1], "what came from outside is not this person's"
        assert SECRET in texts(store) and "eins" in texts(store)
    else:
        assert comparisons == [1, number]
        assert SECRET not in texts(store) and "eins" not in texts(store)
    assert "hm" not in texts(store) and "ah" not in texts(store)


def test_another_conversation_keeps_its_own_words(store: Store) -> None:
    chats = Chats(store)
    anna, ben = converse(store, ANNA), converse(store, BEN, answers=("oh", "uh"), seed=1)
    assert chats.delete(ANNA, anna).comparisons == [1]
    assert SECRET in texts(store) and "hm" not in texts(store)
    assert [said.text for said in chats.read(BEN, ben)] == [SECRET, "oh"]
    assert chats.delete(BEN, ben).comparisons == [2]
    assert SECRET not in texts(store) and "oh" not in texts(store) and DELETED in texts(store)


def test_every_turn_goes_and_versions_that_saw_verdicts_are_named(store: Store) -> None:
    chats = Chats(store)
    key = converse(store, ANNA)
    chats.choose(ANNA, key, asked_last(store), Choice.SKIP, None)
    store.add_version(VersionRecord("reward-1", VersionKind.REWARD, "reward-1", watermark=store.watermark()))
    chats.say(ANNA, key, chats.read(ANNA, key), "again", [drawn("so"), drawn("no")], 1.0)
    chats.choose(ANNA, key, asked_last(store), Choice.RIGHT, 2.0)
    store.add_version(VersionRecord("reward-2", VersionKind.REWARD, "reward-2", watermark=store.watermark()))
    deleted = chats.delete(ANNA, key)
    assert (deleted.comparisons, deleted.versions) == ([1, 2], ["reward-2"])
    assert deleted.texts == {SECRET, "hm", "ah", "again", "so", "no"} and SECRET not in repr(deleted)
    assert not any(text in texts(store) for text in (SECRET, "again", "so", "no"))


def test_what_was_written_when_reporting_goes_too(store: Store) -> None:
    chats = Chats(store)
    key, other = converse(store, ANNA), converse(store, BEN, "hello", ("eins", "zwei"))
    reported = {key: (ANNA, "it says my secret"), other: (BEN, "rude")}
    with store.write() as connection:
        for number, (who, note) in enumerate(reported.values(), start=1):
            raise_flag(connection, who, FlagReason.OTHER, note, comparison=number)
            raise_flag(connection, who, FlagReason.OTHER, note, response=2 * number)
    chats.delete(ANNA, key)
    with store.read() as connection:
        notes = list(connection.execute(select(FlagRow.note).order_by(FlagRow.id)).scalars())
    assert notes == ["", "", "rude", "rude"]


def test_an_answer_to_what_was_said_before_is_refused(store: Store) -> None:
    chats = Chats(store)
    key = converse(store, ANNA)
    read = chats.read(ANNA, key)
    chats.choose(
        ANNA, key, asked_last(store), Choice.RIGHT, None
    )  # a late choice exchanges what the answer was written after
    with pytest.raises(MovedOn, match="the conversation has moved on: open it again and send your message once more"):
        chats.say(ANNA, key, read, "and?", [drawn("so")], 1.0)
    read = chats.read(ANNA, key)
    chats.say(ANNA, key, read, "and?", [drawn("so")], 1.0)
    with pytest.raises(MovedOn):
        chats.say(ANNA, key, read, "and?", [drawn("no")], 1.0)
    assert [said.text for said in chats.read(ANNA, key)] == [SECRET, "ah", "and?", "so"]


def test_whoever_reads_comparisons_reads_no_turn_that_nobody_compared(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn is a prompt with all that was said before it; the dashboard reads every comparison."""
    key = Chats(store).begin(ANNA)
    for turn in range(12):
        answers = [Response(f"{turn} {side}", "initial") for side in range(2 if turn == 5 else 1)]
        Chats(store).say(ANNA, key, Chats(store).read(ANNA, key), f"and {turn}?", answers, 1.0)
    kept = (Turn(Role.USER, "And 0?"),)
    store.add_prompts([kept], PromptUse.EVALUATE, "file")
    read = list[int]()
    plain = from_messages

    def counted(messages: Sequence[Any]) -> Dialogue:
        read.append(len(messages))
        return plain(messages)

    monkeypatch.setattr(reading, "from_messages", counted)
    [found] = store.comparisons()
    assert found.prompt[-1].text == "and 5?" and found.kept, "it begins as a prompt that is kept"
    assert sorted(read) == [1, 11]
    assert store.comparisons(AskedHow.RANDOM) == [] and len(read) == 3, "what is kept is looked at alone"


def test_only_the_last_turn_can_be_chosen_on(store: Store) -> None:
    chats = Chats(store)
    key = converse(store, ANNA)
    first = asked_last(store)
    chats.say(ANNA, key, chats.read(ANNA, key), "and?", [drawn("so")], 1.0)
    with pytest.raises(NoSuchChat, match="not the latest ones"):
        chats.choose(ANNA, key, first, Choice.RIGHT, None)
    assert store.watermark() == 0


@pytest.mark.parametrize("token", ["", "1", "1-", "1-0", "-1", "x", "1-zz", "9" * 30, "1-0-0", "\u0661-0"])
def test_what_names_no_answer_of_ones_own_is_one_sentence(store: Store, token: str) -> None:
    chats = Chats(store)
    key = converse(store, ANNA)
    with pytest.raises(NoSuchChat, match="in none of your conversations"):
        chats.thumb(ANNA, token, 1)
    with pytest.raises(NoSuchChat, match="in none of your conversations"):
        chats.flag(ANNA, token, FlagReason.WRONG, "")
    with pytest.raises(NoSuchChat, match="not the latest ones"):
        chats.choose(ANNA, key, token, Choice.LEFT, None)
    for said in chats.read(ANNA, key)[1:]:
        chats.thumb(ANNA, said.response or "", 1)
        with pytest.raises(NoSuchChat):
            chats.thumb(BEN, said.response or "", 1)
    assert [said.thumb for said in chats.read(ANNA, key)] == [0, 1]


def reward(store: Store, number: int, source: str | None) -> None:
    metrics = {} if source is None else {"source": source}
    name = f"reward-{number}"
    store.add_version(VersionRecord(name, VersionKind.REWARD, name, None, metrics, store.watermark()))


def test_the_receipt_counts_what_could_be_learned_from(store: Store) -> None:
    chats = Chats(store)
    hows = [AskedHow.RANDOM] * 4 + [AskedHow.EVALUATION, AskedHow.GOLD]
    numbers = store.add_comparisons(
        [replace(asked(how), prompt=(Turn(Role.USER, str(i)),)) for i, how in enumerate(hows)]
    )
    plain, corrected, skipped, withdrawn, *measures = numbers
    assert chats.effect(ANNA) == Effect(0, 0, None)
    left = Verdict(Choice.LEFT, ANNA)
    store.add_verdicts([(number, left) for number in (plain, corrected, withdrawn, *measures)])
    store.add_verdicts([(corrected, Verdict(Choice.TIE, ANNA)), (skipped, Verdict(Choice.SKIP, ANNA))])
    store.add_verdicts([(number, Verdict(Choice.LEFT, BEN)) for number in numbers])
    with store.write() as connection:
        taken = select(VerdictRow.id).where(VerdictRow.comparison_id == withdrawn).limit(1)
        row = {"verdict_id": connection.execute(taken).scalar_one(), "created_at": datetime.now(UTC)}
        connection.execute(insert(WithdrawalRow), row)
    key = converse(store, ANNA)
    chats.choose(ANNA, key, asked_last(store), Choice.LEFT, None)
    reward(store, 1, "human")
    reward(store, 2, "simulated")
    reward(store, 3, None)
    assert chats.effect(ANNA) == Effect(5, 3, "reward-1")
    chats.delete(ANNA, key)
    assert chats.effect(ANNA) == Effect(5, 2, "reward-1")
    store.add_verdicts([(skipped, left)])  # after that model
    assert chats.effect(ANNA) == Effect(6, 2, "reward-1")
    reward(store, 4, "human")
    assert chats.effect(ANNA) == Effect(6, 3, "reward-4")


def test_a_prompt_that_begins_as_one_for_a_stricter_use_is_not_answered_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(sharing(tmp_path, False), sample=SampleSettings(max_new_tokens=16))
    session = Session(Workspace.create(tmp_path / "ws"), settings)
    for use, texts in (
        (PromptUse.EVALUATE, ["Hi there"]),
        (PromptUse.VALIDATE, ["the weather", "hi THERE"]),
        (PromptUse.TRAIN, ["hi  there", "The weather", "bread"]),
    ):
        session.store.add_prompts([(Turn(Role.USER, text),) for text in texts], use, "prompts.txt")
    converse(session.store, ANNA, "hi there")  # which is not shared, and not answered for that
    capsys.readouterr()
    prompts.prompt_lengths(session, *PromptUse)
    said = capsys.readouterr().err
    assert "2 prompts for `train` begin as one does for `evaluate` or `validate`, and are left out" in said
    assert "1 prompts for `validate` begin as one does for `evaluate`, and are left out" in said
    assert said.count("are left out") == 2
    session.store.close()
