"""Prompts come in from whatever file holds them, each on one side for good, and go out again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from manners.cli import main
from manners.errors import MannersError, UsageError
from manners.reward.labelled import LeftOut
from manners.reward.verdicts import label
from manners.store import Store, VersionRecord
from manners.store.files.prompts import STRICTER, export_prompts, import_prompts, parse_split, side
from manners.store.files.rows import Reason
from manners.store.files.transfer import import_comparisons
from manners.store.tables import PromptRow
from manners.types import AskedHow, Comparison, Dialogue, PromptUse, Response, Role, Turn, VersionKind, opening
from tests.store.test_transfer import MESSAGES, answer, lines

Write = Callable[[str, bytes], Path]
SPLIT = parse_split("train=0.6,validate=0.2,evaluate=0.2")
TRAIN, EVALUATE = {PromptUse.TRAIN: 1.0}, {PromptUse.EVALUATE: 1.0}


def pairs(count: int, about: str = "bread") -> list[dict[str, Any]]:
    return [{"prompt": f"{about} {n}?", "chosen": f"Yes, {n}.", "rejected": f"No, {n}."} for n in range(count)]


def said(text: str) -> Dialogue:
    return (Turn(Role.USER, text),)


def by_use(store: Store) -> dict[PromptUse, set[str]]:
    return {use: {opening(p.dialogue) for p in store.prompts(use)} for use in PromptUse}


def test_prompts_as_they_were_know_nothing_of_what_came_since(store: Store) -> None:
    """Neither prompts nor a candidate's comparison, by which a prompt is answered no more."""
    left, right = Response("a", "policy-1"), Response("b", "policy-2")
    store.add_prompts([said("bread?"), said("salt?")], PromptUse.TRAIN, "mine")
    then = store.newest()
    store.add_prompts([said("late?")], PromptUse.TRAIN, "mine")
    store.add_prompts([said("later?")], PromptUse.EVALUATE, "mine")
    store.add_comparisons([Comparison(said("bread?"), left, right, AskedHow.CANDIDATE)])
    for upto, answered, there in (
        (None, ["salt?", "late?"], ["bread?", "salt?", "late?", "later?"]),
        (then, ["bread?", "salt?"], ["bread?", "salt?"]),
    ):
        found = store.answerable(PromptUse.TRAIN, chats=False, upto=upto)
        assert [prompt[-1].text for prompt in found] == answered
        assert [prompt.dialogue[-1].text for prompt in store.prompts(upto=upto)] == there
    assert store.prompts(PromptUse.EVALUATE, upto=then) == [] and store.newest() != then


def test_what_programs_brought_is_theirs_also_in_an_older_store(store: Store) -> None:
    """There it had the source of what came with a file; what a file brought too is the owner's."""
    sides = Response("a", "one"), Response("b", "two")
    asked = {"theirs": [AskedHow.API], "both": [AskedHow.API, AskedHow.IMPORTED], "ours": [AskedHow.IMPORTED]}
    store.add_comparisons([Comparison(said(text), *sides, how) for text, hows in asked.items() for how in hows])
    with store.write() as connection:
        connection.execute(update(PromptRow).values(source="comparisons"))
    assert store.only_in_chats(programs=True) == {said("theirs")} and not store.only_in_chats()


@pytest.mark.parametrize("said_of_it", [{"verdict": "A wins"}, {"verdict": -2, "strength": 9}, {}, {"winner": "a"}])
def test_prompts_are_taken_out_of_comparisons_whatever_the_verdicts(
    store: Store, write: Write, said_of_it: dict[str, Any]
) -> None:
    good = {"prompt": "bread?", "left": "Yes.", "right": "No.", "verdict": "left"}
    odd = {"prompt": "salt?", "left": "Yes.", "right": "No.", **said_of_it}
    found = import_prompts(store, write("p.jsonl", lines(good, odd)), TRAIN)
    assert (found.new, found.taken_from, found.notes) == (2, "rows", ())
    assert by_use(store)[PromptUse.TRAIN] == {"bread?", "salt?"}


def test_prompts_come_in_and_go_out(store: Store, fresh: Callable[[], Store], write: Write, tmp_path: Path) -> None:
    plain = write("p.txt", "Tell me a joke.\r\n\nWarum „so“?\n[1]\nTell me a joke.\n".encode())
    result = import_prompts(store, plain, TRAIN)
    assert (result.new, result.known, result.duplicates, result.uses) == (3, 0, 1, {PromptUse.TRAIN: 3})
    dialogue = [*MESSAGES, *answer("Hello!"), {"role": "user", "content": "Two\nlines"}]
    longer = write("p.jsonl", lines({"prompt": dialogue, "topic": "x"}, {"prompt": "Tell me a joke."}))
    assert export_prompts(store, tmp_path / "out.txt").rows == 3
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "Tell me a joke.\nWarum „so“?\n[1]\n"
    result = import_prompts(store, longer, TRAIN)
    assert (result.new, result.known, result.unused, result.taken_from) == (1, 1, ("topic",), "prompts")
    with pytest.raises(MannersError, match="cannot hold prompts of several lines"):
        export_prompts(store, tmp_path / "out.txt")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert export_prompts(store, tmp_path / name, PromptUse.TRAIN).rows == 4
        second = fresh()
        assert import_prompts(second, tmp_path / name, {PromptUse.VALIDATE: 1.0}).new == 4
        assert [p.dialogue for p in second.prompts()] == [p.dialogue for p in store.prompts()]
    with pytest.raises(MannersError, match=r"for `train` and cannot be added for `evaluate`.*--skip-known"):
        import_prompts(store, longer, EVALUATE)
    with pytest.raises(MannersError, match="holds no prompts"):
        import_prompts(store, write("no.txt", b"\n\n"), TRAIN)


def test_known_prompts_stay_as_they_are_where_that_is_asked_for(store: Store, write: Write) -> None:
    import_prompts(store, write("some.txt", b"Hi\nBye\n"), TRAIN)
    more = write("more.txt", b"Hi\nNew\n")
    result = import_prompts(store, more, EVALUATE, skip_known=True)
    assert (result.new, result.known) == (1, 1)
    assert result.uses == {PromptUse.TRAIN: 1, PromptUse.EVALUATE: 1}
    assert by_use(store) == {PromptUse.TRAIN: {"hi", "bye"}, PromptUse.VALIDATE: set(), PromptUse.EVALUATE: {"new"}}


@pytest.mark.parametrize(
    ("name", "content", "mapping"),
    [
        ("a.csv", b"id,question\n1,Is tea hot?\n2,Is ice hot?\n", {"question": "prompt"}),
        (
            "c.jsonl",
            lines(
                {"messages": [{"role": "user", "content": "Is tea hot?"}, *answer("Yes.")], "source": "x"},
                {"messages": json.dumps([{"role": "user", "content": "Is ice hot?"}]), "source": "x"},
            ),
            {},
        ),
        (
            "d.jsonl",
            lines(
                *(
                    {"chat": [{"role": "user", "content": q}, *answer("A."), {"role": "user", "content": "B"}][:1]}
                    for q in ("Is tea hot?", "Is ice hot?")
                )
            ),
            {"chat": "messages"},
        ),
        (
            "e.jsonl",
            lines(*({"prompt": q, "chosen": "Yes.", "rejected": "No."} for q in ("Is tea hot?", "Is ice hot?"))),
            {},
        ),
        (
            "f.jsonl",
            lines(
                *(
                    {side: f"\n\nHuman: {q}\n\nAssistant: {side}" for side in ("chosen", "rejected")}
                    for q in ("Is tea hot?", "Is ice hot?")
                )
            ),
            {},
        ),
        (
            "g.csv",
            b"frage,a,b,wahl\nIs tea hot?,Yes.,No.,left\nIs ice hot?,Yes.,No.,\n",
            {"frage": "prompt", "a": "left", "b": "right", "wahl": "verdict"},
        ),
    ],
)
def test_prompts_are_taken_out_of_whatever_holds_them(
    store: Store, write: Write, name: str, content: bytes, mapping: dict[str, str]
) -> None:
    result = import_prompts(store, write(name, content), TRAIN, mapping)
    assert [p.dialogue for p in store.prompts()] == [said("Is tea hot?"), said("Is ice hot?")]
    kinds = {"c": "messages", "d": "messages", "e": "pairs", "f": "hh", "g": "rows"}
    assert (result.new, result.taken_from) == (2, kinds.get(name[0], "prompts"))
    assert store.comparisons() == [], "the answers are not taken, and named as what is not used"
    assert result.unused == {"a": ("id",), "c": ("source",), "e": ("chosen", "rejected")}.get(
        name[0], result.unused if name[0] == "g" else ()
    )


def test_a_split_is_by_the_opening_and_the_same_in_every_store(
    store: Store, fresh: Callable[[], Store], write: Write
) -> None:
    rows = pairs(200)
    # The same openings again, in other letters, with a second turn: nothing may be on two sides.
    rows += [
        {"prompt": [{"role": "user", "content": f" BREAD  {n}?"}, *answer("Yes."), {"role": "user", "content": "So?"}]}
        | {"chosen": "Fine.", "rejected": "No."}
        for n in range(200)
    ]
    path = write("pairs.jsonl", lines(*rows))
    result = import_prompts(store, path, SPLIT)
    sides = by_use(store)
    assert sum(result.uses.values()) == result.new == 400 and result.uses == {
        use: len(store.prompts(use)) for use in PromptUse
    }
    assert not any(sides[one] & sides[other] for one in PromptUse for other in PromptUse if one is not other)
    for use, share in SPLIT.items():
        assert abs(len(sides[use]) - share * 200) < 4 * (200 * share * (1 - share)) ** 0.5
    other = fresh()
    import_prompts(other, write("turned.jsonl", lines(*rows[::-1])), SPLIT)
    assert by_use(other) == sides
    again = import_prompts(store, path, SPLIT)
    assert (again.new, again.known, again.moved) == (0, 400, 0) and by_use(store) == sides
    imported = import_comparisons(store, path, {}, skip_bad=False)
    kept = sum(uses for use, uses in result.uses.items() if use is not PromptUse.TRAIN)
    assert (imported.comparisons, imported.left_out_of_training) == (400, kept)
    assert label(store.comparisons()).left_out == {LeftOut.KEPT: kept}


def test_a_split_takes_comparisons_that_are_there_out_of_training(store: Store, write: Write) -> None:
    path = write("pairs.jsonl", lines(*pairs(100)))
    import_comparisons(store, path, {}, skip_bad=False)
    assert len(store.prompts(PromptUse.TRAIN)) == 100, "what an import of comparisons does"
    result = import_prompts(store, path, SPLIT)
    kept = [n for n in range(100) if side(said(f"bread {n}?"), SPLIT) is not PromptUse.TRAIN]
    assert 20 < len(kept) == result.moved == result.left_out_of_training < 60
    assert (result.new, result.known) == (0, 100)
    labelled = label(store.comparisons())
    assert labelled.left_out == {LeftOut.KEPT: len(kept)}
    assert {p.prompt[0].text for p in labelled.pairs} == {f"bread {n}?" for n in range(100) if n not in kept}


def test_what_a_version_may_have_learned_from_is_moved_no_more(store: Store, write: Write) -> None:
    path = write("pairs.jsonl", lines(*pairs(50)))
    import_comparisons(store, path, {}, skip_bad=False)
    store.add_version(VersionRecord("reward-1", VersionKind.REWARD, "models/reward-1"))
    with pytest.raises(MannersError, match="is in the store for `train` and cannot be added for"):
        import_prompts(store, path, SPLIT)
    result = import_prompts(store, path, SPLIT, skip_known=True)
    assert (result.moved, result.left_out_of_training, result.uses[PromptUse.TRAIN]) == (0, 0, 50)
    # A new prompt with an opening that was trained on goes there too, whatever the split says of it.
    longer = [
        {"prompt": [{"role": "user", "content": f"bread {n}?"}, *answer("Yes."), {"role": "user", "content": "So?"}]}
        for n in range(50)
    ]
    result = import_prompts(store, write("longer.jsonl", lines(*longer)), SPLIT)
    elsewhere = sum(side(said(f"bread {n}?"), SPLIT) is not PromptUse.TRAIN for n in range(50))
    assert (result.new, result.followed, result.uses[PromptUse.TRAIN]) == (50, elsewhere, 50)


def test_what_is_kept_stays_kept(store: Store, write: Write) -> None:
    evaluated = [f"bread {n}?" for n in range(20)]
    import_prompts(store, write("kept.txt", "\n".join(evaluated).encode()), EVALUATE)
    path = write("pairs.jsonl", lines(*pairs(20)))
    with pytest.raises(MannersError, match=r"for `evaluate` and cannot be added for `(train|validate)`"):
        import_prompts(store, path, SPLIT)
    result = import_prompts(store, path, SPLIT, skip_known=True)
    assert result.known == 20 and by_use(store)[PromptUse.EVALUATE] == set(evaluated)


@pytest.mark.parametrize("use", [PromptUse.VALIDATE, PromptUse.EVALUATE])
def test_a_prompt_of_its_own_file_takes_comparisons_out_too(store: Store, write: Write, use: PromptUse) -> None:
    turns = [{"role": "user", "content": "bread 1?"}, *answer("Yes."), {"role": "user", "content": "So?"}]
    import_comparisons(store, write("p.jsonl", lines(*pairs(3), pairs(1)[0] | {"prompt": turns})), {}, skip_bad=False)
    result = import_prompts(store, write("kept.txt", b"Bread  1?\n"), {use: 1.0})
    assert (result.new, result.left_out_of_training) == (1, 2)


def test_what_begins_as_a_prompt_for_a_stricter_use_does_is_neither_answered_nor_exported(
    store: Store, write: Write, tmp_path: Path
) -> None:
    """By hand: evaluation comes before validation, and validation before training."""
    texts = {
        PromptUse.TRAIN: ["who  are you?", "what is LOVE?", "Hi"],
        PromptUse.VALIDATE: ["What is love?", "WHO are you?"],
        PromptUse.EVALUATE: ["Who are you?"],
    }
    for use, those in texts.items():
        store.add_prompts([said(text) for text in those], use, "mine")
    longer = [{"role": "user", "content": "Who ARE you?"}, *answer("A tool."), {"role": "user", "content": "Whose?"}]
    rows = [{"prompt": prompt, "chosen": "x", "rejected": "y"} for prompt in (longer, "Bye")]
    import_comparisons(store, write("pairs.jsonl", lines(*rows)), {}, skip_bad=False)
    assert len(store.prompts(PromptUse.TRAIN)) == 5, "where an import puts the prompts of comparisons"
    for use, left, gone in (
        (PromptUse.TRAIN, ["Hi", "Bye"], 3),
        (PromptUse.VALIDATE, ["What is love?"], 1),
        (PromptUse.EVALUATE, ["Who are you?"], 0),
    ):
        assert [one[0].text for one in store.answerable(use, chats=True)] == left
        exported = export_prompts(store, tmp_path / "out.jsonl", use)
        assert (exported.rows, exported.left_out) == (len(left), {STRICTER: gone} if gone else {})
    assert export_prompts(store, tmp_path / "out.jsonl").rows == 8


def test_a_bad_row_stops_it_or_is_counted(store: Store, write: Write) -> None:
    path = write("some.jsonl", lines({"prompt": "Hi"}, {"prompt": ""}, {"prompt": answer("Yes.")}))
    with pytest.raises(MannersError, match="line 2, field `prompt`: has an empty turn; correct it or leave such lines"):
        import_prompts(store, path, TRAIN)
    assert store.prompts() == []
    result = import_prompts(store, path, TRAIN, skip_bad=True)
    assert (result.new, result.skipped) == (1, {Reason.EMPTY: 1, Reason.VALUE: 1})
    with pytest.raises(MannersError, match=r"holds no prompts \(1 bad rows passed over\)"):
        import_prompts(store, write("bad.jsonl", lines({"prompt": ""})), TRAIN, skip_bad=True)
    for turns in ([], answer("Yes."), [{"role": "user"}], "no list"):
        with pytest.raises(MannersError, match="line 1, field `messages`: "):
            import_prompts(store, write("m.jsonl", lines({"messages": turns})), TRAIN)


def test_a_missing_prompt_suggests_the_columns_of_the_file(store: Store, write: Write) -> None:
    for columns, option in (
        (b"id,Question,Answer", "--map Question=prompt"),
        (b"text,label", "--map text=prompt"),
        (b"User Input,x", r'--map "User Input"=prompt'),
    ):
        with pytest.raises(MannersError, match=f"among the columns .*say so with {option};"):
            import_prompts(store, write("no.csv", columns + b"\n" + b"a,b,c"[: 2 * columns.count(b",") + 1]), TRAIN)
    with pytest.raises(MannersError, match=r"--map: .*no\.csv has no column `topic`; it has User Input, x"):
        import_prompts(store, write("no.csv", b"User Input,x\na,b\n"), TRAIN, {"topic": "prompt"})
    with pytest.raises(MannersError, match="--map: `question` is not a field of ours"):
        import_prompts(store, write("no.csv", b"question\na\n"), TRAIN, {"question": "question"})


@pytest.mark.parametrize(
    "text",
    ["train=0.8", "train=0.8,test=0.2", "train=1.2,validate=-0.2", "train=a", "", "train=0.5,train=0.5", "0.8,0.2"],
)
def test_a_split_that_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--split .*\.$"):
        parse_split(text)


def test_the_command_says_all_of_it(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["init", str(tmp_path / "ws")]) == 0
    monkeypatch.chdir(tmp_path / "ws")
    capsys.readouterr()
    path = str(write("pairs.jsonl", lines(*pairs(30))))
    assert main(["prompts", "import", path, "--split", "train=0.5, validate=0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["new"], sum(found["uses"].values()), found["taken_from"]) == (30, 30, "pairs")
    assert found["uses"].keys() == {"train", "validate"}
    assert main(["prompts", "import", path, "--use", "train", "--split", "train=1"]) == 2
    assert main(["prompts", "import", path, "--skip-known", "--skip-bad", "--map", "prompt=prompt"]) == 0
