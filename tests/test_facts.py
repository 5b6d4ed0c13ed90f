"""Results go out as JSON and come back as the same records; what is missing or damaged is said."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.errors import MannersError
from manners.facts import NULL, from_facts, scalars, to_facts
from manners.results import LevelAccuracy, PolicyResult, ReliabilityBin, RewardResult, Shortened
from manners.results.ceiling import Ceiling
from manners.results.evaluation import BestOfN, EvaluationResult, MatchedRate, PartChange
from manners.types import Interval

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
intervals = st.builds(Interval, finite, finite, finite)


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


def some(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return maybe(st.lists(strategy, max_size=2).map(tuple))


ends = {"low": finite, "high": finite}
levels = st.builds(LevelAccuracy, level=st.text(), n=st.integers(), estimate=finite, **ends)
bins = st.builds(ReliabilityBin, predicted=finite, observed=finite, n=finite, **ends)
curves = st.lists(st.none() | st.integers() | finite, max_size=4).map(tuple)
RESULTS: st.SearchStrategy[object] = st.one_of(
    st.builds(
        RewardResult,
        accuracy=maybe(finite),
        interval=maybe(st.tuples(finite, finite)),
        baselines=maybe(st.dictionaries(st.text(), intervals, max_size=3)),
        ceiling=maybe(
            st.builds(Ceiling, low=maybe(finite), high=maybe(finite), low_interval=maybe(st.tuples(finite, finite)))
        ),
        by_agreement=some(levels),
        reliability=some(bins),
        left_out=maybe(st.dictionaries(st.text(), st.integers(), max_size=3)),
    ),
    st.builds(
        PolicyResult,
        stopped=maybe(st.text()),
        curves=maybe(st.dictionaries(st.text(), curves, max_size=3)),
        warnings=some(st.text()),
    ),
    st.builds(
        EvaluationResult,
        promoted=maybe(st.booleans()),
        matched=maybe(st.builds(MatchedRate, estimate=finite, low=finite, high=finite, pairs=maybe(st.integers()))),
        best_of_n=maybe(st.builds(BestOfN, n=maybe(st.integers()), head_to_head=maybe(intervals))),
        taste_parts=maybe(st.dictionaries(st.text(), st.builds(PartChange, before=finite, after=finite), max_size=2)),
    ),
)


@given(RESULTS)
def test_a_result_comes_back_from_its_json_as_it_was(result: object) -> None:
    text = json.dumps(to_facts(result))
    again = from_facts(type(result), json.loads(text), "here")
    assert again == result
    assert json.dumps(to_facts(again)) == text, "an integer stays one, and so does a float"


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Example:
    count: int | None = None
    said: str | None = field(default=None, metadata=NULL)
    shares: dict[Colour, float] | None = None
    colour: Colour | None = None


def test_what_is_not_known_is_left_out_and_null_is_written_where_it_says_something() -> None:
    assert to_facts(Example()) == {"said": None}
    facts = to_facts(Example(count=0, shares={Colour.RED: 0.5}, colour=Colour.RED))
    assert facts == {"count": 0, "said": None, "shares": {"red": 0.5}, "colour": "red"}
    assert list(facts) == [entry.name for entry in dataclasses.fields(Example)]
    assert scalars(Example(count=3, colour=Colour.RED, shares={Colour.RED: 1.0})) == {"count": 3, "colour": "red"}


def test_a_ceiling_of_before_is_read_as_what_it_was_a_fit() -> None:
    before = from_facts(RewardResult, {"ceiling": {"estimate": 0.7, "low": 0.6, "high": 0.8}}, "runs/reward.json")
    assert before.ceiling == Ceiling(fit=0.7, fit_interval=(0.6, 0.8))


def test_a_count_alone_of_what_was_shortened_is_read() -> None:
    before = from_facts(RewardResult, {"shortened": 3}, "runs/reward.json")
    assert before.shortened == Shortened(count=3)
    assert to_facts(before)["shortened"] == {"count": 3}
    now = RewardResult(shortened=Shortened(count=3, share=0.5, tokens=70))
    assert from_facts(RewardResult, to_facts(now), "runs/reward.json") == now


def test_facts_of_another_version_are_read_as_far_as_they_go() -> None:
    assert from_facts(Example, {"count": 2, "a later fact": [1]}, "here") == Example(count=2)
    with pytest.raises(
        MannersError, match=r"^runs/x\.json is damaged \(count: .*\): remove it, and run that stage again\.$"
    ):
        from_facts(Example, {"count": "many"}, "runs/x.json")
