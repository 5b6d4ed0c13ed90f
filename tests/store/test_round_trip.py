"""Whatever people wrote, our own row format brings it back: as a property, over all three kinds of file."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.errors import MannersError
from manners.store.files.exchanges import parse_asked
from manners.store.files.fields import LONGEST_NAME, parse_prompt, prompt_text
from manners.store.files.formats import COLUMNS, IMPORTED, Format, render
from manners.store.files.rowfiles import write_rows
from manners.store.files.rows import BadRow
from manners.store.files.transfer import read_comparisons
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    FinishReason,
    Response,
    Role,
    Sampling,
    Turn,
    Verdict,
)
from tests.conftest import some

AWKWARD = st.sampled_from(
    ['"', "'", ",", "\n", "\r", "\r\n", "\u2028", "\x85", "\t", "[", "\\", "🙂", "é", "ﬁ", "A", " "]
)
texts = st.lists(AWKWARD | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), min_size=1)
words = texts.map("".join).filter(lambda text: bool(text.strip()))
names = words.filter(lambda name: len(name) <= LONGEST_NAME)
turns = st.tuples(st.sampled_from(Role), words).map(lambda pair: Turn(*pair))
prompts = st.tuples(st.lists(turns, max_size=2), words).map(lambda pair: (*pair[0], Turn(Role.USER, pair[1])))
samplings = st.builds(Sampling, st.floats(0.05, 5), st.integers(1, 1000), st.integers(0, 2**31))
responses = st.builds(Response, words, names, st.sampled_from(FinishReason), st.none() | samplings)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2026, 11, 1)).map(lambda moment: moment.replace(tzinfo=UTC))
verdicts = st.builds(
    Verdict,
    choice=st.sampled_from(Choice),
    annotator=st.builds(Annotator, names, st.sampled_from(AnnotatorKind)),
    strength=st.none() | st.integers(1, 3),
    created_at=st.none() | moments,
    seconds=st.none() | st.floats(0, 1e6),
    reasons=st.lists(words, max_size=2).map(tuple),
    comment=st.just("") | words,
    exchanged=st.booleans(),
)
pools = st.none() | st.integers(1, 10**9)
draws = st.just((None, None, None)) | st.tuples(st.sampled_from(DrawnHow), st.floats(0, 1), pools)
shown = st.builds(
    lambda verdict, draw: replace(verdict, drawn=draw[0], draw_probability=draw[1], draw_pool=draw[2]), verdicts, draws
)
comparisons = st.builds(
    Comparison,
    prompt=prompts,
    left=responses,
    right=responses,
    asked_how=st.sampled_from(AskedHow),
    ask_probability=st.none() | st.floats(0, 1),
    asked_by=st.none() | names,
    verdicts=st.just(()) | shown.map(lambda verdict: (verdict,)),
).filter(
    lambda comparison: (
        comparison.left.text != comparison.right.text
        and (comparison.asked_how is AskedHow.ADVERSARIAL)
        >= any(verdict.drawn is DrawnHow.ADVERSARIAL for verdict in comparison.verdicts)
    )
)
"""What only an adversarial comparison can be drawn as is drawn for no other."""


def through(suffix: str, fmt: Format, comparison: Comparison) -> Comparison:
    """Return what is read back of a comparison that was written to a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"some{suffix}"
        verdict = comparison.verdicts[0] if comparison.verdicts else None
        write_rows(path, COLUMNS[fmt], [render(comparison, verdict, fmt)])
        [back] = read_comparisons(path, {}, fmt)
    return back


@pytest.mark.parametrize("suffix", some([".csv", ".jsonl", ".parquet"], 1))
@settings(max_examples=60, deadline=None)
@given(comparison=comparisons)
def test_rows_bring_back_everything_but_who_wrote_an_open_evaluation(suffix: str, comparison: Comparison) -> None:
    expected = comparison
    if comparison.asked_how is AskedHow.EVALUATION and not comparison.verdicts:
        sides = (comparison.left, comparison.right)
        left, right = (replace(side, author=IMPORTED.name, sampling=None) for side in sides)
        expected = replace(comparison, left=left, right=right)
    assert through(suffix, Format.ROWS, comparison) == expected


QUIET, SAID = Turn(Role.SYSTEM, ""), Turn(Role.USER, "Hi")
ONE, OTHER = Response("Yes.", "policy-1"), Response("No.", "policy-1")


@pytest.mark.parametrize("suffix", some([".csv", ".jsonl", ".parquet"], 1))
@pytest.mark.parametrize(
    "asked",
    [
        Comparison((QUIET, SAID), ONE, OTHER, AskedHow.API),
        Comparison((SAID, Turn(Role.ASSISTANT, ""), SAID), ONE, OTHER, AskedHow.CHAT),
        Comparison((Turn(Role.USER, ""),), ONE, OTHER, AskedHow.API),
        Comparison((SAID,), ONE, ONE, AskedHow.API),
        Comparison((SAID,), replace(ONE, text="\n", finish_reason=FinishReason.LENGTH), OTHER, AskedHow.API),
    ],
    ids=["empty system turn", "empty answer before", "nothing asked", "the same twice", "cut off at once"],
)
def test_what_was_asked_here_comes_back_though_a_file_of_others_would_lack_something(
    suffix: str, asked: Comparison
) -> None:
    written = replace(asked, verdicts=(Verdict(Choice.TIE, IMPORTED),))
    assert through(suffix, Format.ROWS, written) == written


def test_what_was_asked_here_is_no_prompt_to_ask_again_where_it_lacks_something() -> None:
    """Only comparisons come back as they were; a prompt to be answered anew is held to what others' files are."""
    row = {"prompt": [{"role": "system", "content": " "}, {"role": "user", "content": "Hi"}], "asked_how": "api"}
    assert parse_asked(row) == (Turn(Role.USER, "Hi"),)
    with pytest.raises(BadRow, match="has an empty turn"):
        parse_asked(row | {"prompt": [{"role": "user", "content": ""}]})


def test_a_cell_that_was_lost_is_none_that_was_empty(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text("prompt,left,right,verdict,asked_how\n,Yes.,No.,left,random\n")
    with pytest.raises(MannersError, match="field `prompt`: has an empty turn"):
        list(read_comparisons(path, {}))


@pytest.mark.parametrize("text", ['[{"role": "user", and so on', '[{"role": "user", "content": "x"}]', "[]", "[1"])
def test_an_answer_that_looks_like_messages_or_begins_so_is_read_back_as_it_was(text: str) -> None:
    judged = Verdict(Choice.LEFT, IMPORTED)
    sides = (Response(text, "one"), Response("No.", "two"))
    written = Comparison((Turn(Role.USER, "Hi"),), *sides, AskedHow.RANDOM, verdicts=(judged,))
    assert through(".jsonl", Format.ROWS, written) == written


@pytest.mark.parametrize("suffix", some([".parquet", ".jsonl"], 1))
@settings(max_examples=60, deadline=None)
@given(comparison=comparisons.filter(lambda c: bool(c.verdicts)), swapped=st.booleans())
def test_pairs_bring_back_which_text_was_better(suffix: str, comparison: Comparison, swapped: bool) -> None:
    choice = Choice.RIGHT if swapped else Choice.LEFT
    verdict = Verdict(choice, comparison.verdicts[0].annotator)
    judged = Comparison(comparison.prompt, comparison.left, comparison.right, comparison.asked_how, verdicts=(verdict,))
    back = through(suffix, Format.PAIRS, judged)
    sides = (judged.left, judged.right) if not swapped else (judged.right, judged.left)
    expected = sides if back.verdicts[0].choice is Choice.LEFT else sides[::-1]
    assert (back.prompt, back.left, back.right) == (judged.prompt, *expected)
    assert back.verdicts[0].annotator == verdict.annotator != IMPORTED


@pytest.mark.parametrize("half", [{"drawn": DrawnHow.RANDOM, "draw_pool": 3}, {"draw_probability": 0.5}])
def test_half_of_how_a_comparison_was_drawn_does_not_go_out(half: dict[str, Any]) -> None:
    sides = (Response("Yes.", "one"), Response("No.", "two"))
    whole = Comparison((Turn(Role.USER, "Hi"),), *sides, AskedHow.RANDOM, verdicts=(Verdict(Choice.LEFT, IMPORTED),))
    written = replace(whole, verdicts=(replace(whole.verdicts[0], **half),))
    assert through(".jsonl", Format.ROWS, written) == whole


def test_what_people_wrote_can_be_read_in_the_file() -> None:
    """JSON could spell each of these letters in six."""
    judged = Verdict(Choice.LEFT, IMPORTED, reasons=("größer", "ясно"))
    sides = (Response('[{"role": "user", "content": "naïve 🥖"}]', "one"), Response("Nein", "two"))
    row = render(Comparison((Turn(Role.USER, "Hi"),), *sides, AskedHow.RANDOM, verdicts=(judged,)), judged, Format.ROWS)
    assert row["reasons"] == '["größer", "ясно"]' and "naïve 🥖" in row["left"]


@given(
    prompt=prompts
    | st.sampled_from(['[{"role": "user", "content": "x"}]', "[]", "[1", "{}"]).map(
        lambda text: (Turn(Role.USER, text),)
    )
)
def test_a_prompt_is_read_back_even_if_it_looks_like_our_notation(prompt: tuple[Turn, ...]) -> None:
    assert parse_prompt({"prompt": prompt_text(prompt)}) == prompt
