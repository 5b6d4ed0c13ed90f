"""Files come in whole or not at all, and what was said survives the way out and back."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from manners.errors import MannersError
from manners.reward.labelled import LeftOut
from manners.reward.verdicts import label
from manners.store import Store, staging
from manners.store.files.formats import COLUMNS, Format, detect
from manners.store.files.rowfiles import read_rows, write_rows
from manners.store.files.rows import Reason
from manners.store.files.transfer import (
    export_comparisons,
    import_comparisons,
    preview,
    read_comparisons,
)
from manners.types import (
    DELETED,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Sampling,
    Turn,
    Verdict,
    latest_verdicts,
)
from tests.conftest import some
from tests.store.conftest import by_file, statements
from tests.store.test_store import report

Write = Callable[[str, bytes], Path]
TWO_VERSIONS = (("I will not.", "initial"), ("Gladly!", "policy-1"))
PROMPT = (Turn(Role.USER, "Help me?"),)
GOOD = {"prompt": "Hi", "left": "Hello!", "right": "What?", "verdict": "left"}
NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def opinions(comparisons: list[Comparison]) -> Counter[tuple[str, ...]]:
    return Counter(
        (c.prompt[-1].text, c.left.text, c.right.text, v.annotator.name, v.choice.value)
        for c in comparisons
        for v in c.verdicts
    )


@pytest.mark.parametrize("name", ["blind.csv", "blind.jsonl", "blind.parquet"])
def test_an_open_evaluation_goes_out_blind_and_its_verdicts_find_their_way_back(
    store: Store, tmp_path: Path, name: str
) -> None:
    # Each version draws by a seed of its own, the same for all of its answers.
    old, new = (Response(text, author, sampling=Sampling(0.7, 8, 770 + len(author))) for text, author in TWO_VERSIONS)
    store.add_comparisons([Comparison(PROMPT, new, old, AskedHow.EVALUATION, 0.5)])
    assert export_comparisons(store, tmp_path / name, Format.ROWS).rows == 1
    [row] = [fields for _, fields in read_rows(tmp_path / name) if isinstance(fields, dict)]
    told = [str(side.sampling and side.sampling.seed) for side in (old, new)] + [author for _, author in TWO_VERSIONS]
    assert not [value for value in row.values() if any(one in str(value) for one in told)]

    write_rows(tmp_path / f"said-{name}", COLUMNS[Format.ROWS], [row | {"verdict": "left", "annotator": "anna"}])
    result = import_comparisons(store, tmp_path / f"said-{name}", {}, skip_bad=False)
    assert (result.comparisons, result.verdicts) == (0, 1)
    [comparison] = store.comparisons()
    assert (comparison.left, comparison.right) == (new, old)
    assert [verdict.choice for verdict in comparison.verdicts] == [Choice.LEFT]
    export_comparisons(store, tmp_path / name, Format.ROWS)
    assert "policy-1" in str(list(read_rows(tmp_path / name))), "once it is judged, the record is whole"


WAYS_OUT = [
    (Format.HH, "out.jsonl.gz"),
    (Format.HH, "out.parquet"),
    (Format.PAIRS, "out.jsonl"),
    (Format.PAIRS, "out.parquet"),
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("new_store", "fmt", "name"),
    some(
        [*(("sqlite", *way) for way in WAYS_OUT), ("postgresql", *WAYS_OUT[3])], 1
    ),  # a file does not know the database
    indirect=["new_store"],
)
def test_transcripts_come_in_fast_and_go_out_unchanged(
    shared_data: Path,
    store: Store,
    fresh: Callable[[], Store],
    tmp_path: Path,
    fmt: Format,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "AT_ONCE", 10**9)  # how many slices there are says how busy the machine is
    monkeypatch.setattr(staging, "SLICE_TEXT", 10**12)
    source = shared_data / "hh_rlhf_harmless" / "pairs.jsonl.gz"
    with statements(store) as sent:
        result = import_comparisons(store, source, {}, skip_bad=False)
    # SQLite says the ids of new rows in their order for one row at a time only; all else is said for many at once.
    others = [statement for statement in sent if not statement.startswith("INSERT INTO comparisons")]
    assert len(others) < result.comparisons / 20
    assert (result.comparisons, result.verdicts, result.duplicates, result.skipped) == (1775, 1775, 0, {})
    assert import_comparisons(store, source, {}, skip_bad=False).duplicates == 1775
    first_left = sum(c.verdicts[0].choice is Choice.LEFT for c in store.comparisons())
    assert abs(first_left - 1775 / 2) < 4 * (1775 / 4) ** 0.5
    # By way of the other format, which must lose nothing on the way.
    assert export_comparisons(store, tmp_path / name, fmt).rows == 1775
    second = fresh()
    import_comparisons(second, tmp_path / name, {}, skip_bad=False)
    export_comparisons(second, tmp_path / "again.jsonl.gz", Format.HH)
    with gzip.open(source, "rt", encoding="utf-8") as old, gzip.open(tmp_path / "again.jsonl.gz", "rt") as new:
        assert [json.loads(line) for line in new] == [json.loads(line) for line in old]


@pytest.mark.long
@pytest.mark.parametrize(
    ("new_store", "suffix"), [("sqlite", ".csv"), ("postgresql", ".jsonl")], indirect=["new_store"]
)
def test_verdicts_of_a_crowd_survive_a_round_trip(
    shared_data: Path, store: Store, fresh: Callable[[], Store], tmp_path: Path, suffix: str
) -> None:
    rows = []
    empty = 0
    expected = Counter[tuple[str, ...]]()
    with gzip.open(shared_data / "llmfao_crowd_pairs" / "pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        for pair in map(json.loads, file):
            for vote in pair["votes"]:
                verdict = {"a": "left", "b": "right", "tie": "tie"}[vote["label"]]
                row = {"prompt": pair["prompt"], "left": pair["response_a"], "right": pair["response_b"]}
                row |= {"left_model": pair["model_a"], "right_model": pair["model_b"]}
                rows.append(row | {"verdict": verdict, "annotator": str(vote["annotator"])})
                if row["left"].strip() and row["right"].strip():
                    expected[row["prompt"], row["left"], row["right"], str(vote["annotator"]), verdict] += 1
                else:
                    empty += 1
    path = tmp_path / f"crowd{suffix}"
    if suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_bytes(lines(*rows))
    with pytest.raises(MannersError, match="is empty"):
        import_comparisons(store, path, {}, skip_bad=False)
    assert store.counts().comparisons == 0
    result = import_comparisons(store, path, {}, skip_bad=True)
    assert result.skipped == {Reason.EMPTY: empty} and result.verdicts == sum(expected.values())
    assert opinions(store.comparisons()) == expected
    export_comparisons(store, tmp_path / f"out{suffix}", Format.ROWS)
    second = fresh()
    assert import_comparisons(second, tmp_path / f"out{suffix}", {}, skip_bad=False).duplicates == 0
    assert opinions(second.comparisons()) == expected
    assert import_comparisons(store, tmp_path / f"out{suffix}", {}, skip_bad=False).verdicts == 0


MESSAGES = [{"role": "user", "content": "Hi"}]


def answer(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


HOT = {"temperature": math.inf, "max_new_tokens": 8, "seed": 3}
NEITHER = HOT | {"temperature": math.nan}
HOT_TEXT = '{"temperature": 1e999, "max_new_tokens": 8, "seed": 3}'
BAD = {
    "json": (b"{not json}\n", Reason.NOT_A_ROW, "line 2: is not JSON"),
    "no object": (b"[1, 2]\n", Reason.NOT_A_ROW, "line 2: is not a JSON object"),
    "depth": (b"[" * 100_000 + b"\n", Reason.NOT_A_ROW, "line 2: is nested more than 100 deep"),
    "encoding": ('{"prompt": "Grüße"}\n'.encode("latin-1"), Reason.NOT_UTF8, "line 2: is not UTF-8 at byte 15"),
    "surrogate": (lines(GOOD | {"left": "\ud800"}), Reason.NOT_UTF8, "field `left`: holds half"),
    "nul": (lines(GOOD | {"left": "a\0b"}), Reason.VALUE, "field `left`: holds a NUL"),
    "long": (b'{"prompt": "' + b"x" * 10_000_000 + b'"}\n', Reason.TOO_LONG, "line 2: is longer than 8 MiB"),
    "field": (lines({k: v for k, v in GOOD.items() if k != "right"}), Reason.LACKS_FIELD, "field `right`: is missing"),
    "no verdict": (lines({k: v for k, v in GOOD.items() if k != "verdict"}), Reason.LACKS_FIELD, "`verdict`: is miss"),
    "type": (lines(GOOD | {"left": 3}), Reason.WRONG_TYPE, "field `left`: is not a text"),
    "prompt type": (lines(GOOD | {"prompt": 3}), Reason.WRONG_TYPE, "`prompt`: is neither a text nor a list"),
    "empty": (lines(GOOD | {"left": " \n"}), Reason.EMPTY, "field `left`: is empty"),
    "empty prompt": (lines(GOOD | {"prompt": ""}), Reason.EMPTY, "field `prompt`: has an empty turn"),
    "empty list": (lines(GOOD | {"prompt": []}), Reason.EMPTY, "field `prompt`: is an empty list"),
    "identical": (lines(GOOD | {"right": "Hello!"}), Reason.IDENTICAL, "field `right`: is the same as `left`"),
    "verdict": (lines(GOOD | {"verdict": "A"}), Reason.VERDICT, "field `verdict`: is 'A', which is not one of left"),
    "role": (lines(GOOD | {"prompt": answer("x", "tool") + MESSAGES}), Reason.ROLE, "`prompt`: has the role 'tool'"),
    "last turn": (lines(GOOD | {"prompt": MESSAGES + answer("x")}), Reason.VALUE, "does not end with a user turn"),
    "strength": (lines(GOOD | {"strength": 4}), Reason.VALUE, "field `strength`: is '4'"),
    "time": (lines(GOOD | {"created_at": "noon"}), Reason.VALUE, "field `created_at`: is not a time"),
    "kind": (lines(GOOD | {"annotator_kind": "robot"}), Reason.VALUE, "field `annotator_kind`: is 'robot'"),
    "probability": (lines(GOOD | {"ask_probability": "1.5"}), Reason.VALUE, "field `ask_probability`: is '1.5'"),
    "sampling": (lines(GOOD | {"left_sampling": "hot"}), Reason.VALUE, "field `left_sampling`: is not JSON"),
    "reasons": (lines(GOOD | {"reasons": "kind"}), Reason.VALUE, "field `reasons`: is not a JSON list"),
    "reasons of numbers": (lines(GOOD | {"reasons": [1]}), Reason.VALUE, "field `reasons`: is not a JSON list"),
    "half a sampling": (lines(GOOD | {"left_sampling": {"seed": 1}}), Reason.VALUE, "`left_sampling`: is not JSON"),
    "hotter than hot": (lines(GOOD | {"left_sampling": HOT}), Reason.VALUE, "`left_sampling`: holds a number"),
    "neither hot nor cold": (lines(GOOD | {"left_sampling": json.dumps(NEITHER)}), Reason.VALUE, "holds a number"),
    "hot in a text": (lines(GOOD | {"left_sampling": HOT_TEXT}), Reason.VALUE, "`left_sampling`: holds a number"),
    "seed": (lines(GOOD | {"right_sampling": HOT | {"temperature": 1, "seed": 2**64}}), Reason.VALUE, "than 64 bits"),
    "annotator": (lines(GOOD | {"annotator": "é" * 501}), Reason.VALUE, "field `annotator`: has 501 characters"),
    "model": (lines(GOOD | {"right_model": "m" * 3000}), Reason.VALUE, "field `right_model`: has 3,000 characters"),
    "long ago": (lines(GOOD | {"created_at": "1969-12-31T23:59:59Z"}), Reason.VALUE, "which is before 1970"),
    "to come": (lines(GOOD | {"created_at": "2999-01-01"}), Reason.VALUE, "more than a day ahead of the clock"),
    "digits": (lines(GOOD | {"created_at": "17100512001"}), Reason.VALUE, "nor seconds or milliseconds since 1970"),
    "exchanged": (lines(GOOD | {"exchanged": "maybe"}), Reason.VALUE, "is 'maybe', which is neither true nor false"),
    "half a draw": (lines(GOOD | {"drawn": "random"}), Reason.LACKS_FIELD, "`draw_probability`: is missing, while"),
    "the other half": (lines(GOOD | {"draw_probability": 0.5}), Reason.LACKS_FIELD, "`drawn`: is missing, while `draw"),
    "a pool alone": (lines(GOOD | {"draw_pool": 5}), Reason.LACKS_FIELD, "`drawn`: is missing, while `draw_pool`"),
}


@pytest.mark.parametrize(("new_store", "case"), by_file(BAD), indirect=["new_store"])
def test_a_bad_line_is_named_and_nothing_is_imported(store: Store, write: Write, case: str) -> None:
    bad, reason, message = BAD[case]
    other = GOOD | {"prompt": "Bye"}
    path = write("some.jsonl", lines(GOOD) + bad + lines(other))
    with pytest.raises(MannersError) as caught:
        import_comparisons(store, path, {}, skip_bad=False)
    assert str(caught.value).startswith(f"{path}, line 2") and message in str(caught.value)
    assert store.counts().comparisons == sum(store.counts().prompts.values()) == 0
    assert preview(path, {}).problems == {reason: 1}
    result = import_comparisons(store, path, {}, skip_bad=True)
    assert (result.comparisons, result.verdicts, result.skipped) == (2, 2, {reason: 1})


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: "
PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
HH = {"chosen": TRANSCRIPT + "Hello!", "rejected": TRANSCRIPT + "What?"}
UNANSWERED = HH["chosen"] + "\n\nHuman: And?"
BAD_PAIRS = [
    (PAIR, {"chosen": "What?"}, Reason.IDENTICAL, "`rejected`: is the same as `chosen`"),
    (PAIR, {"chosen": ""}, Reason.EMPTY, "`chosen`: is empty"),
    (
        PAIR,
        {"chosen": answer("Hello!"), "rejected": answer("x", "tool")},
        Reason.ROLE,
        "`rejected`: has the role 'tool'",
    ),
    (PAIR, {"chosen": MESSAGES, "rejected": MESSAGES + answer("x")}, Reason.VALUE, "`chosen`: does not end with one"),
    (
        PAIR | {"prompt": "Other"},
        {"chosen": MESSAGES + answer("a"), "rejected": MESSAGES + answer("b")},
        Reason.VALUE,
        "`prompt`: is not what",
    ),
    (HH, {"chosen": "Hello!"}, Reason.TRANSCRIPT, "`chosen`: does not begin"),
    (HH, {"chosen": "\n\nAssistant: Hello!"}, Reason.TRANSCRIPT, "`chosen`: does not begin"),
    (HH, {"chosen": "\n\nHuman: Bye\n\nAssistant: Hello!"}, Reason.TRANSCRIPT, "`chosen`: shares no user turn"),
    (HH, {"chosen": HH["chosen"] + "\n\nHuman: And?"}, Reason.TRANSCRIPT, "`chosen`: does not differ"),
    (
        HH,
        {"chosen": UNANSWERED, "rejected": UNANSWERED + "\n\nAssistant: Yes."},
        Reason.TRANSCRIPT,
        "`chosen`: does not di",
    ),
    (HH, {"chosen": HH["rejected"]}, Reason.IDENTICAL, "`rejected`: is the same as `chosen`"),
]


@pytest.mark.parametrize(("good", "change", "reason", "message"), BAD_PAIRS)
def test_a_bad_pair_is_named(
    store: Store, write: Write, good: dict[str, Any], change: dict[str, Any], reason: Reason, message: str
) -> None:
    path = write("some.jsonl", lines(good | change))
    fmt = Format.PAIRS if "prompt" in good else Format.HH
    with pytest.raises(MannersError) as caught:
        list(read_comparisons(path, {}, fmt))
    assert str(caught.value).startswith(f"{path}, line 1, field {message}"), caught.value
    assert import_comparisons(store, path, {}, skip_bad=True, fmt=fmt).skipped == {reason: 1}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        HH,
        {side: "\n\nHuman: Hi\nAssistant: " + PAIR[side] for side in ("chosen", "rejected")},
        {side: text.replace("\n", "\r\n") for side, text in HH.items()},
        {"prompt": "Hi", **HH},
        {"chosen": MESSAGES + answer("Hello!"), "rejected": MESSAGES + answer("What?")},
        {"prompt": "Hi", "chosen": MESSAGES + answer("Hello!"), "rejected": MESSAGES + answer("What?")},
        {"prompt": MESSAGES, "chosen": answer("Hello!"), "rejected": answer("What?")},
        {"prompt": json.dumps(MESSAGES), "chosen": "Hello!", "rejected": "What?"},
        {"messages": MESSAGES, "chosen": "Hello!", "rejected": "What?"},
        {"context": "Hi", "chosen": answer("Hello!"), "rejected": answer("What?")},
        {"prompt": "Hi", "chosen": "Hello!", "rejected": answer("What?")},
        {"prompt": MESSAGES, "chosen": MESSAGES + answer("Hello!"), "rejected": "What?"},
        GOOD,
        GOOD | {"prompt": MESSAGES},
    ],
)
def test_every_way_to_write_a_pair_means_the_same(write: Write, row: dict[str, Any]) -> None:
    [comparison] = read_comparisons(write("some.jsonl", lines(row)), {})
    [verdict] = comparison.verdicts
    better, worse = comparison.left.text, comparison.right.text
    if verdict.choice is Choice.RIGHT:
        better, worse = worse, better
    assert (comparison.prompt, better, worse) == ((Turn(Role.USER, "Hi"),), "Hello!", "What?")
    assert comparison.asked_how is AskedHow.IMPORTED and comparison.ask_probability is None
    assert verdict.annotator == Annotator("imported", AnnotatorKind.HUMAN) and not verdict.exchanged


@pytest.mark.parametrize("chosen", ["Hello!", MESSAGES + answer("Hello!")])
def test_a_system_turn_stands_in_a_field_of_its_own(write: Write, chosen: Any) -> None:
    row = {"system": "Be kind.", "prompt": "Hi", "chosen": chosen, "rejected": MESSAGES + answer("What?")}
    [comparison] = read_comparisons(write("some.jsonl", lines(row)), {})
    assert comparison.prompt == (Turn(Role.SYSTEM, "Be kind."), Turn(Role.USER, "Hi"))
    assert {comparison.left.text, comparison.right.text} == {"Hello!", "What?"}


def test_several_answers_at_the_end_of_a_transcript_are_one_with_the_mark_left_in_it(write: Write) -> None:
    ends = ("Hello!\n\nAssistant: What?\r\n", "What?")
    row = {side: TRANSCRIPT + end for side, end in zip(("chosen", "rejected"), ends, strict=True)}
    [comparison] = read_comparisons(write("some.jsonl", lines(row)), {})
    assert {comparison.left.text, comparison.right.text} == set(ends)


def test_a_transcript_that_ends_without_a_word_was_ended_there_and_of_others_it_is_not_known(write: Write) -> None:
    row = HH | {"rejected": TRANSCRIPT, "chosen-model": "one", "rejected_model": "two"}
    [comparison] = read_comparisons(write("some.jsonl", lines(row)), {})
    found = {(side.text, side.author, side.finish_reason) for side in (comparison.left, comparison.right)}
    assert found == {("Hello!", "one", FinishReason.UNKNOWN), ("", "two", FinishReason.STOP)}


@pytest.mark.parametrize(
    ("fields", "fmt"),
    [
        (GOOD, Format.ROWS),
        ({"verdict": ""}, Format.ROWS),
        (PAIR, Format.PAIRS),
        (HH, Format.HH),
        ({"chosen": HH["chosen"]}, Format.HH),
        ({"chosen": answer("a"), "rejected": "b"}, Format.PAIRS),
        ({"chosen": json.dumps(MESSAGES + answer("a")), "rejected": json.dumps(MESSAGES + answer("b"))}, Format.PAIRS),
        ({"chosen": "[{'role': 'user', 'content'", "rejected": json.dumps(MESSAGES)}, Format.PAIRS),
        ({"chosen": json.dumps(MESSAGES), "rejected": HH["rejected"]}, Format.HH),
        ({"prompt": "Hi", "answer": "Hello!"}, None),
    ],
)
def test_a_row_shows_its_format(fields: dict[str, Any], fmt: Format | None) -> None:
    assert detect(fields) is fmt


def test_an_answer_that_is_a_conversation_of_its_own_is_kept_whole(write: Write) -> None:
    play = "Human: Hi\n\nAssistant: Hello!"
    row = {"prompt": "Write a short dialogue.", "chosen": play, "rejected": "No."}
    [comparison] = read_comparisons(write("some.jsonl", lines(row)), {})
    assert {comparison.left.text, comparison.right.text} == {play, "No."}


def test_of_an_answer_that_repeats_its_prompt_what_comes_after_it_is_read(write: Write) -> None:
    prompt = [*MESSAGES, *answer("Hey."), {"role": "user", "content": "Well?"}]
    start = "Human: Hi\n\nAssistant: Hey.\n\nHuman: Well?\n\nAssistant: "
    row = {"prompt": prompt, "chosen": start + "Hello!", "rejected": start + "What?"}
    [comparison] = read_comparisons(write("some.jsonl", lines(row)), {})
    assert [turn.text for turn in comparison.prompt] == ["Hi", "Hey.", "Well?"]
    assert {comparison.left.text, comparison.right.text} == {"Hello!", "What?"}


DRAWN = {"drawn": "random", "draw_probability": 0.5}
LIMITS: dict[str, tuple[list[float], list[float]]] = {
    "strength": ([1, 3], [0, 4, 1.5]),
    "seconds": ([0, 1e9], [-0.001, 1e9 + 1]),
    "ask_probability": ([0, 1], [-0.001, 1.001]),
    "draw_probability": ([0, 1], [-0.001, 1.001]),
    "draw_pool": ([1, 2**31 - 1], [0, 2**31]),
}


@pytest.mark.parametrize("field", LIMITS)
def test_a_number_is_taken_up_to_its_limits_and_not_beyond(write: Write, field: str) -> None:
    within, beyond = LIMITS[field]
    row = GOOD | DRAWN
    found = list(read_comparisons(write("good.jsonl", lines(*(row | {field: value} for value in within))), {}))
    told = [getattr(one if field == "ask_probability" else one.verdicts[0], field) for one in found]
    assert told == within
    for value in beyond:
        with pytest.raises(MannersError, match=f"line 1, field `{field}`: is "):
            list(read_comparisons(write("bad.jsonl", lines(row | {field: value})), {}))


def test_opposite_opinions_of_unnamed_people_are_both_kept(store: Store, write: Write) -> None:
    path = write("some.jsonl", lines(PAIR, PAIR | {"chosen": "What?", "rejected": "Hello!"}, PAIR))
    result = import_comparisons(store, path, {}, skip_bad=False)
    assert (result.comparisons, result.verdicts, result.duplicates) == (1, 3, 0)
    [comparison] = store.comparisons()
    better = [(comparison.left, comparison.right)[v.choice is Choice.RIGHT].text for v in comparison.verdicts]
    assert better == ["Hello!", "What?", "Hello!"]
    assert [v.annotator.name for v in comparison.verdicts] == ["imported", "imported-2", "imported-3"]
    again = import_comparisons(store, path, {}, skip_bad=False)
    assert (again.comparisons, again.verdicts, again.duplicates) == (0, 0, 3)
    other = write("other.jsonl", lines(PAIR, *[PAIR | {"chosen": "What?", "rejected": "Hello!"}] * 2))
    assert import_comparisons(store, other, {}, skip_bad=False).verdicts == 1, "two of the three are there already"
    assert import_comparisons(store, other, {}, skip_bad=False).verdicts == 0


@pytest.mark.parametrize("fmt", [Format.PAIRS, Format.HH])
def test_where_a_text_stands_does_not_depend_on_who_won(write: Write, fmt: Format) -> None:
    start = TRANSCRIPT if fmt is Format.HH else ""
    texts = [[f"{start}{n} yes", f"{start}{n} no"] for n in range(200)]
    rows = [{"chosen": one, "rejected": other} for pair in texts for one, other in (pair, pair[::-1])]
    if fmt is Format.PAIRS:
        rows = [row | {"prompt": "Hi"} for row in rows]
    found = list(read_comparisons(write("some.jsonl", lines(*rows)), {}))
    assert [c.left.text for c in found[0::2]] == [c.left.text for c in found[1::2]]
    assert {c.verdicts[0].choice for c in found[0::2]} == {Choice.LEFT, Choice.RIGHT}
    assert all(
        one.verdicts[0].choice is other.verdicts[0].choice.swapped()
        for one, other in zip(found[0::2], found[1::2], strict=True)
    )
    first = sum(c.left.text.endswith("yes") for c in found[0::2])
    assert abs(first - 100) < 4 * 50**0.5


def test_a_text_stands_where_it_always_stood(write: Write) -> None:
    """Left is the side whose SHA-256, with the prompt's, is the smaller: by hashlib, and never to change."""
    rows = [{"prompt": "Hi", "chosen": f"{n} yes", "rejected": f"{n} no"} for n in range(12)]
    found = read_comparisons(write("some.jsonl", lines(*rows)), {})
    assert [c.left.text for c in found] == [
        f"{n} {side}" for n, side in enumerate(3 * ["no"] + 7 * ["yes"] + ["no", "yes"])
    ]


def test_a_pair_stands_as_an_older_import_left_it(store: Store, write: Write) -> None:
    path = write("some.jsonl", lines(PAIR | {"annotator": "ann"}))
    [parsed] = read_comparisons(path, {})
    store.add_comparisons([parsed.turned()])
    result = import_comparisons(store, path, {}, skip_bad=False)
    assert (result.comparisons, result.verdicts, result.duplicates) == (0, 0, 1)
    more = write("more.jsonl", lines(PAIR | {"annotator": "ben"}))
    assert import_comparisons(store, more, {}, skip_bad=False).comparisons == 0
    [comparison] = store.comparisons()
    assert len({v.choice for v in comparison.verdicts}) == 1


def test_verdicts_without_a_name_are_those_of_several_people(store: Store, write: Write) -> None:
    turned = GOOD | {"left": "What?", "right": "Hello!"}
    rows = [GOOD, GOOD, turned, GOOD | {"verdict": "right"}, GOOD | {"verdict": ""}, GOOD | {"annotator": "ann"}]
    path = write("some.jsonl", lines(*rows))
    assert preview(path, {}).duplicates == 1, "the second row, whoever it is of"
    assert preview(path, {}, annotator=Annotator("ben", AnnotatorKind.HUMAN)).duplicates == 1
    result = import_comparisons(store, path, {}, skip_bad=False)
    assert (result.comparisons, result.verdicts, result.duplicates) == (2, 5, 1)
    said = [{v.annotator.name: v.choice for v in latest_verdicts(c.verdicts)} for c in store.comparisons()]
    assert said == [
        {"imported": Choice.LEFT, "imported-2": Choice.LEFT, "imported-4": Choice.RIGHT, "ann": Choice.LEFT},
        {"imported-3": Choice.LEFT},
    ]
    again = import_comparisons(store, path, {}, skip_bad=False)
    assert (again.comparisons, again.verdicts, again.duplicates) == (0, 0, 6)
    named = Annotator("ben", AnnotatorKind.HUMAN)
    assert import_comparisons(store, path, {}, skip_bad=False, annotator=named).verdicts == 3, "one person, thrice"


@pytest.mark.parametrize(
    ("moment", "year"),
    [("1710051200123", 2024), (1710051200, 2024), ("1710051200.5", 2024), ("20240531", 2024), ("1971-05-12", 1971)],
)
def test_seconds_since_1970_are_what_they_are(write: Write, moment: str | int, year: int) -> None:
    [comparison] = read_comparisons(write("some.jsonl", lines(GOOD | {"created_at": moment})), {})
    when = comparison.verdicts[0].created_at
    assert when is not None and when.year == year
    if moment == "1710051200123":
        assert when.isoformat() == "2024-03-10T06:13:20.123000+00:00"


def test_lists_and_objects_are_taken_as_json_writes_them(write: Write) -> None:
    row: dict[str, Any] = GOOD | {"reasons": ["kind", "short"]}
    row["left_sampling"] = {"temperature": 0.7, "max_new_tokens": 8, "seed": 3}
    [comparison] = read_comparisons(write("some.jsonl", lines(row)), {})
    assert comparison.verdicts[0].reasons == ("kind", "short")
    assert comparison.left.sampling == Sampling(0.7, 8, 3)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_how_a_verdict_was_shown_survives_a_round_trip(
    store: Store, fresh: Callable[[], Store], tmp_path: Path, suffix: str
) -> None:
    ann = Annotator("ann", AnnotatorKind.HUMAN)
    shown = [
        Verdict(Choice.LEFT, ann, created_at=NOON, exchanged=True, drawn=DrawnHow.RANDOM, draw_probability=0.25),
        Verdict(Choice.LEFT, ann, created_at=NOON + timedelta(1), drawn=DrawnHow.REPEAT, draw_probability=0.1),
        Verdict(Choice.RIGHT, ann, created_at=NOON + timedelta(2), exchanged=True),
    ]
    left, right = (Response(text, author) for text, author in TWO_VERSIONS)
    store.add_comparisons([Comparison(PROMPT, left, right, AskedHow.RANDOM, 1.0, tuple(shown))])
    export_comparisons(store, tmp_path / f"out{suffix}", Format.ROWS)
    second = fresh()
    assert import_comparisons(second, tmp_path / f"out{suffix}", {}, skip_bad=False).verdicts == 3
    assert second.comparisons() == store.comparisons()
    assert list(second.comparisons()[0].verdicts) == shown
    assert import_comparisons(second, tmp_path / f"out{suffix}", {}, skip_bad=False).duplicates == 3


@pytest.mark.parametrize("fmt", list(Format))
def test_what_was_deleted_is_left_out_and_counted(
    store: Store, fresh: Callable[[], Store], write: Write, tmp_path: Path, fmt: Format
) -> None:
    import_comparisons(store, write("some.jsonl", lines(GOOD, GOOD | {"prompt": "Mine"})), {}, skip_bad=False)
    with store.write() as connection:
        mine = text("prompt_id = (SELECT id FROM prompts WHERE turns LIKE '%Mine%')")
        if connection.dialect.name == "postgresql":
            mine = text("prompt_id = (SELECT id FROM prompts WHERE turns::text LIKE '%Mine%')")
        connection.execute(text(f"UPDATE responses SET text = '{DELETED}', digest = 'gone ' || id WHERE {mine}"))
    result = export_comparisons(store, tmp_path / "out.jsonl", fmt)
    assert result.rows == 1
    assert result.left_out == {"deleted by the person whose words they were": 1}
    assert import_comparisons(fresh(), tmp_path / "out.jsonl", {}, skip_bad=False).verdicts == 1


@pytest.mark.parametrize("fmt", list(Format))
def test_what_others_train_on_holds_only_what_is_trained_on_here(store: Store, tmp_path: Path, fmt: Format) -> None:
    """By hand: one comparison of each kind, and its reason; `rows` keeps all but what is to be seen by nobody."""
    ann = Annotator("ann", AnnotatorKind.HUMAN)
    left, right = Response("Yes.", "initial"), Response("No.", "policy-1")
    kinds = {
        "fine": AskedHow.RANDOM,
        "kept": AskedHow.RANDOM,
        "reported": AskedHow.RANDOM,
        "known": AskedHow.GOLD,
        "evaluated": AskedHow.EVALUATION,
        "tried": AskedHow.CANDIDATE,
    }
    ids = store.add_comparisons(
        Comparison((Turn(Role.USER, name),), left, right, how, 1.0, (Verdict(Choice.LEFT, ann),))
        for name, how in kinds.items()
    )
    store.add_prompts([(Turn(Role.USER, "KEPT"),)], PromptUse.VALIDATE, "mine")
    report(store, True, comparison=ids[2])
    result = export_comparisons(store, tmp_path / "out.jsonl", fmt)
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    if fmt is Format.ROWS:
        assert (result.rows, result.left_out) == (5, {"reported, and kept away by a reviewer": 1})
        assert "reported" not in written
        return
    assert result.rows == 1 and "fine" in written and not any(name in written for name in list(kinds)[1:])
    assert result.left_out == {
        "about a prompt kept for evaluation or validation": 1,
        "reported, and kept away by a reviewer": 1,
        "a known verdict, asked to measure annotators": 1,
        "asked for an evaluation": 1,
        "asked to compare a candidate with the promoted version": 1,
    }
    assert sum(result.left_out.values()) == sum(label(store.comparisons()).left_out.values())


def test_kinds_of_annotators_are_not_mixed_up_on_the_way(
    store: Store, fresh: Callable[[], Store], write: Write, tmp_path: Path
) -> None:
    judge = Annotator("judge", AnnotatorKind.AI)
    import_comparisons(store, write("some.jsonl", lines(PAIR)), {}, skip_bad=False, annotator=judge)
    for fmt in Format:
        second = fresh()
        export_comparisons(store, tmp_path / f"{fmt}.jsonl", fmt)
        import_comparisons(second, tmp_path / f"{fmt}.jsonl", {}, skip_bad=False)
        assert [verdict.annotator for verdict in second.comparisons()[0].verdicts] == [judge]


def test_what_a_format_cannot_hold_is_counted(store: Store, write: Write, tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be kind."}, *MESSAGES]
    rows: list[dict[str, Any]] = [
        GOOD,
        GOOD | {"annotator": "Bo", "verdict": "tie"},
        GOOD | {"prompt": "1", "verdict": ""},
    ]
    rows += [GOOD | {"prompt": system}, GOOD | {"prompt": "2", "left": "He said:\n\nHuman: hm"}]
    import_comparisons(store, write("some.jsonl", lines(*rows)), {}, skip_bad=False)
    result = export_comparisons(store, tmp_path / "out.jsonl", Format.HH)
    assert result.rows == 1
    assert result.left_out == {
        "tie": 1,
        "no verdict": 1,
        "a transcript has no system turn": 1,
        "a turn contains the mark of another turn": 1,
    }
    assert export_comparisons(store, tmp_path / "out.jsonl", Format.PAIRS).rows == 3
    assert export_comparisons(store, tmp_path / "out.jsonl", Format.ROWS).rows == 5


def test_columns_can_be_mapped_and_previewed(store: Store, write: Write) -> None:
    header = "question,a,b,left,winner,mood\r\n"
    body = 'Hi,"Hello,\nyou",What?,x,left,good\r\nHi,Hey,What?,x,tie,bad\r\n' + "Hi,Hey,What?,x,tie,bad\r\n" * 5
    path = write("votes.csv", ("\ufeff" + header + body + "Hi,Hey,What?,x,maybe,bad\r\n").encode())
    mapping = {"question": "prompt", "a": "left", "b": "right", "winner": "verdict"}
    seen = preview(path, mapping)
    assert (seen.format, seen.total, seen.ties, seen.duplicates) == (Format.ROWS, 8, 6, 5)
    assert (len(seen.rows), seen.unused, seen.problems) == (5, ("left", "mood"), {Reason.VERDICT: 1})
    assert seen.rows[0].left.text == "Hello,\nyou"
    assert f"{path}, line 10, field `verdict`: is 'maybe'" in seen.first_problem
    assert preview(path, mapping | {"mood": "annotator"}).duplicates == 5
    assert import_comparisons(store, path, mapping, skip_bad=True).verdicts == 7
    roles = write("roles.jsonl", lines(GOOD, GOOD | {"prompt": answer("{}", "tool") + MESSAGES}))
    assert preview(roles, {}).unsupported_roles == 1
    with pytest.raises(MannersError, match=r"has no column `quest`; it has .*question"):
        preview(path, {"quest": "prompt"})
    with pytest.raises(MannersError, match="`mood` is not a field of ours"):
        preview(path, {"mood": "mood"})


FILES = {
    "csv with a short row": (
        "x.csv",
        b"prompt,left,right,verdict\nHi,a\n",
        "line 2: has 2 fields where the header has 4",
    ),
    "csv with a broken quote": ("x.csv", b'prompt,left,right,verdict\n"Hi"x,a,b,left\n', "line 2: is not CSV"),
    "csv with a column twice": (
        "x.csv",
        b"prompt,left,left\nHi,a,b\n",
        "line 1, field `left`: is there twice among the columns",
    ),
    "csv in a damaged encoding": (
        "x.csv",
        "prompt,left,right,verdict\nHi,ä,b,left\n".encode() + "Hi,ö,b,left\n".encode("latin-1"),
        "line 3: is not UTF-8",
    ),
    "csv with an endless field": (
        "x.csv",
        b'prompt,left,right,verdict\n"' + b"xxxxxxx\n" * 1_250_000,
        "line 2: is not CSV",
    ),
    "half a utf-16": ("x.jsonl", '{"prompt": "Hi"}'.encode("utf-16")[:-1], "is damaged"),
    "empty": ("x.jsonl", b"\n", "holds no rows"),
    "strangers": ("x.jsonl", lines({"question": "Hi"}), "has the columns question, which are no comparisons"),
    "cut gzip": ("x.jsonl.gz", gzip.compress(lines(GOOD) * 99)[:-20], "is damaged"),
    "no gzip": ("x.jsonl.gz", lines(GOOD), "is damaged"),
    "no parquet": ("x.parquet", b"PAR1, they said", "is damaged"),
    "suffix": ("x.dat", lines(GOOD), "has no known suffix"),
    "old line ends": ("x.csv", b"prompt,left,right,verdict\rHi,a,b,left\r", "line 1: is not CSV (a carriage return al"),
    "workbook": ("x.xlsx", b"PK", "is a workbook; save its sheet as CSV"),
    "workbook in disguise": ("x.csv", b"PK\x03\x04 and so on", "is a workbook or a zip archive"),
    "gzip in disguise": ("x.jsonl", gzip.compress(lines(GOOD)), "is packed with gzip: name it with .gz"),
    "zst that is none": ("x.csv.zst", b"prompt,left", "is damaged"),
    "array": ("x.jsonl", json.dumps([GOOD]).encode(), "holds one JSON array, not an object on each line; name it"),
    "array over lines": ("x.jsonl", json.dumps([GOOD], indent=1).encode(), "holds one JSON array, not an object"),
    "cut array": ("x.json", json.dumps([GOOD, GOOD], indent=1).encode()[:-9], "line 8: this is not JSON, or it ends"),
    "array and more": ("x.json", json.dumps([GOOD]).encode() + b" {}", "line 1: something comes after the end"),
    "no json": ("x.json", b"prompt,left", "is neither an array of JSON objects nor one on each line"),
    "arrow that is none": ("x.arrow", b"ARROW1, they said", "is damaged"),
    "a name twice": ("x.jsonl", b'{"prompt": "Hi", "left": "a", "left": "b"}', "line 1, field `left`: is there twice"),
}


@pytest.mark.parametrize(("new_store", "case"), by_file(FILES), indirect=["new_store"])
def test_a_file_that_cannot_be_read_is_one_sentence(store: Store, write: Write, case: str) -> None:
    name, content, message = FILES[case]
    path = write(name, content)
    with pytest.raises(MannersError) as caught:
        import_comparisons(store, path, {}, skip_bad=False)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert store.counts().comparisons == 0


def parquet(path: Path, **columns: pa.Array) -> Path:
    """Write good rows with these columns in place of theirs."""
    size = len(next(iter(columns.values())))
    good = {name: pa.array([value] * size) for name, value in GOOD.items()} | {"prompt": pa.array(["Hi", "Ho"])}
    pq.write_table(pa.table(good | columns), path)
    return path


def test_a_text_in_parquet_that_is_not_utf8_is_named(store: Store, tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"br\xfcchig"]).cast(pa.binary()).view(pa.string())
    path = parquet(tmp_path / "x.parquet", left=broken)
    with pytest.raises(MannersError, match=r"x\.parquet, row 2, field `left`: is not UTF-8 at byte 3; correct it or"):
        import_comparisons(store, path, {}, skip_bad=False)
    result = import_comparisons(store, path, {}, skip_bad=True)
    assert (result.verdicts, result.skipped) == (1, {Reason.NOT_UTF8: 1})


def test_times_in_parquet_are_read_to_the_microsecond(store: Store, tmp_path: Path) -> None:
    times = pa.array([1_710_051_200_123_456_789] * 2, pa.timestamp("ns", "UTC"))
    path = parquet(tmp_path / "x.parquet", created_at=times, seconds=pa.array([1.5, 2.5]))
    assert import_comparisons(store, path, {}, skip_bad=False).verdicts == 2
    assert import_comparisons(store, path, {}, skip_bad=False).duplicates == 2
    when = store.comparisons()[0].verdicts[0].created_at
    assert when is not None and when.isoformat() == "2024-03-10T06:13:20.123456+00:00"
    late = parquet(tmp_path / "late.parquet", created_at=pa.array([0, 2**62], pa.timestamp("us")))
    with pytest.raises(MannersError, match=r"row 2, field `created_at`: holds a value of the type timestamp"):
        import_comparisons(store, late, {}, skip_bad=False)


def test_files_that_are_not_there_or_cannot_be_written(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MannersError, match=r"absent.csv cannot be read \(No such file"):
        import_comparisons(store, tmp_path / "absent.csv", {}, skip_bad=False)
    with pytest.raises(MannersError, match="cannot be written"):
        export_comparisons(store, tmp_path / "absent" / "x.csv", Format.ROWS)
    with pytest.raises(MannersError, match="cannot hold message lists"):
        export_comparisons(store, tmp_path / "x.csv", Format.PAIRS)
    assert not list(tmp_path.glob("x.csv*"))


def test_prompts_kept_for_evaluation_are_not_trained_on(store: Store, write: Write) -> None:
    store.add_prompts([(Turn(Role.USER, "Hi"),)], PromptUse.EVALUATE, "mine")
    path = write("some.jsonl", lines(GOOD, GOOD | {"prompt": "Bye"}, GOOD | {"asked_how": "evaluation"}))
    assert preview(path, {}, kept=store.kept_openings()).left_out_of_training == 1
    result = import_comparisons(store, path, {}, skip_bad=False)
    assert (result.comparisons, result.left_out_of_training, result.skipped) == (3, 1, {})
    labelled = label(store.comparisons())
    assert [pair.prompt[-1].text for pair in labelled.pairs] == ["Bye"]
    assert labelled.left_out == {LeftOut.KEPT: 1, LeftOut.EVALUATION: 1}


@pytest.mark.parametrize("prompts_first", [True, False])
def test_what_shares_its_opening_with_a_kept_prompt_is_counted_and_never_learnt_from(
    store: Store, write: Write, prompts_first: bool
) -> None:
    def keep() -> None:
        store.add_prompts([(Turn(Role.USER, "What is  LOVE?"),)], PromptUse.VALIDATE, "mine")
        store.add_prompts([(Turn(Role.USER, "Who\nare you?"),)], PromptUse.EVALUATE, "mine")

    longer = [{"role": "user", "content": "who are you?"}, *answer("A tool."), {"role": "user", "content": "Whose?"}]
    prompts: list[Any] = ["what is love?", longer, longer, "Hi"]
    path = write("some.jsonl", lines(*(GOOD | {"prompt": prompt} for prompt in prompts)))
    if prompts_first:
        keep()
        assert preview(path, {}, kept=store.kept_openings()).left_out_of_training == 2
    assert preview(path, {}).left_out_of_training == 0
    result = import_comparisons(store, path, {}, skip_bad=False)
    assert (result.verdicts, result.left_out_of_training) == (4, 2 if prompts_first else 0)
    if not prompts_first:
        keep()
    labelled = label(store.comparisons())
    assert [pair.prompt[-1].text for pair in labelled.pairs] == ["Hi"]
    assert labelled.left_out == {LeftOut.KEPT: 2}
