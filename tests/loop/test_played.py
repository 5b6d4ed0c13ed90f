"""What the record says of the rounds that have ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.loop.history import Reading, played
from manners.store import Outcome, Store
from manners.store.records import Round, VersionRecord
from manners.types import (
    MEASURES,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)
from manners.workspace import Workspace

WHO = Annotator("anna", AnnotatorKind.HUMAN), Annotator("judge:m#1", AnnotatorKind.AI)
ASKED = Comparison((Turn(Role.USER, "Why?"),), Response("a", "x"), Response("b", "x"), AskedHow.RANDOM)


class Walked(list[Comparison]):
    """Comparisons that know how often they were gone through."""

    times = 0

    def __iter__(self) -> Iterator[Comparison]:
        self.times += 1
        return super().__iter__()


@dataclass
class Record:
    """As much of a store as rounds are told from: round `n` ended with `reward-n`, of a watermark if it is there."""

    marks: list[int | None]
    said: Walked = field(default_factory=Walked)

    def comparisons(self) -> list[Comparison]:
        return self.said

    def rounds(self) -> list[Round]:
        return [Round(f"policy-{n}", f"reward-{n}", Outcome.PROMOTED) for n, _ in enumerate(self.marks, 1)]

    def versions(self) -> list[VersionRecord]:
        named = [(f"reward-{n}", mark) for n, mark in enumerate(self.marks, 1)]
        return [VersionRecord(name, VersionKind.REWARD, name, watermark=m) for name, m in named if m is not None]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.create(tmp_path_factory.mktemp("played") / "work")


def reading(record: Record) -> Reading:
    return Reading(cast(Store, record))


def spoken(numbers: list[tuple[int | None, Choice, Annotator]], how: AskedHow) -> Comparison:
    verdicts = tuple(Verdict(choice, who, arrived=arrived) for arrived, choice, who in numbers)
    return replace(ASKED, asked_how=how, verdicts=verdicts)


SAID = st.tuples(st.none() | st.integers(1, 9), st.sampled_from(Choice), st.sampled_from(WHO))


@given(
    st.lists(st.none() | st.integers(0, 10), max_size=5),
    st.lists(st.builds(spoken, st.lists(SAID, max_size=4), st.sampled_from(AskedHow)), max_size=6),
)
def test_each_round_counts_the_verdicts_that_its_reward_model_knew(
    workspace: Workspace, marks: list[int | None], said: list[Comparison]
) -> None:
    taught = [
        verdict.arrived
        for one in said
        for verdict in one.verdicts
        if one.asked_how not in MEASURES
        and verdict.choice is not Choice.SKIP
        and verdict.annotator.kind is AnnotatorKind.HUMAN
        and verdict.arrived is not None
    ]
    expected = [sum(mark is None or arrived <= mark for arrived in taught) for mark in marks]
    found = played(workspace, reading(Record(marks, Walked(said))))
    assert [one.verdicts for one in found] == expected


def test_more_rounds_go_through_no_verdict_once_more(workspace: Workspace) -> None:
    times = list[Any]()
    for count in (1, 50):
        record = Record(list(range(1, count + 1)), Walked([spoken([(3, Choice.LEFT, WHO[0])], AskedHow.RANDOM)]))
        assert len(played(workspace, reading(record))) == count
        times.append(record.said.times)
    assert times == [1, 1]
