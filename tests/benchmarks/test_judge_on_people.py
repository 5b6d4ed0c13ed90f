"""What is published of a judge on real people: which pairs, by whom, how many, where, and every check."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import judge_on_people
from manners.facts import to_facts
from manners.feedback.admission import fair
from manners.results.audit import CANNOT_TELL, FAIL, Check
from manners.results.judge import JudgeResult
from manners.store import Store
from manners.types import Annotator, AnnotatorKind, Choice, Interval, Verdict

ROW = {
    "prompt": "Why?",
    "response_a": "Because.",
    "response_b": "So.",
    "model_a": "x",
    "model_b": "y",
    "votes": [{"annotator": n, "label": label} for n, label in enumerate(["a", "tie", "b"], 1)],
}


def test_which_two_annotators_count_is_drawn() -> None:
    rng = random.Random(0)
    first = [judge_on_people.comparison(ROW, rng) for _ in range(200)]
    assert {fair(one) for one in first} == {(1.0, 0.0), (0.0, 1.0)}
    assert {one.verdicts[0].annotator.name for one in first} == {"pandalm 1", "pandalm 2", "pandalm 3"}


def test_a_folder_of_other_pairs_is_refused(tmp_path: Path) -> None:
    store, rng = Store.open_or_create(tmp_path / "store.db"), random.Random(0)
    drawn = [judge_on_people.comparison(ROW | {"prompt": f"Why {n}?"}, rng) for n in range(5)]
    judge_on_people.fill(store, drawn)
    first = store.comparisons()[0]
    store.add_verdicts([(first.id or 0, Verdict(Choice.LEFT, Annotator("judge:x", AnnotatorKind.AI)))])
    judge_on_people.fill(store, drawn)  # one that was stopped, or has judged, goes on
    assert store.counts().comparisons == 5
    for other in (drawn[:4], [*drawn[:4], judge_on_people.comparison(ROW, rng)]):
        with pytest.raises(SystemExit, match="another seed"):
            judge_on_people.fill(store, other)


@pytest.mark.parametrize("known", [True, False])
def test_the_page_says_which_pairs_how_many_and_where(known: bool) -> None:
    figure = Interval(0.52, 0.45, 0.59) if known else None
    checks = (
        Check(name="agreement", value=-0.3, low=-0.4, high=-0.2, verdict=FAIL, n=120),
        Check(name="length_slope", verdict=CANNOT_TELL, n=3),
    )
    result = JudgeResult(
        judge="judge:m/initial#1",
        agreement=figure,
        human_agreement=figure,
        checks=checks,
        asked=210,
        verdicts=120,
        left_out={"an empty response, or identical responses": 9},
        without_verdict={"the two orders disagree": 90},
        source="probabilities",
        sentence="m/initial is not admitted as a judge.",
    )
    said = judge_on_people.published(to_facts(result) | {"seconds": 600.0}, 999, 240, 7, 36, "2 cores of X")
    for part in (
        "| `agreement` | -0.30 [-0.40, -0.20] | broken | 120 |",
        "| `length_slope` | - | cannot be told | 3 |",
        "240 of the 999 pairs of PandaLM's test set, drawn by seed 7",
        "210 pairs asked about, 120 verdicts",
        "9 (an empty response, or identical responses), 90 (the two orders disagree)",
        "m/initial is not admitted as a judge. 10 minutes on 2 cores of X.",
    ):
        assert part in said
    assert ("it agrees with a person on 52 % [45, 59]" in said) is known


def test_there_is_a_place_for_it() -> None:
    page = judge_on_people.PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- judge-on-people -->") == page.count("<!-- /judge-on-people -->") == 1
