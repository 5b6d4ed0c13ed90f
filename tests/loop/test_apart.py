"""Versions that are compared draw independently, also where they are one and the same model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from manners.checkpoint import Run
from manners.evaluate.compare import head_to_head, win_rate
from manners.loop import asking, evaluate, phases
from manners.loop.session import Session
from manners.models.branches import Branch
from manners.types import Answer, Dialogue, PromptUse, Response
from tests.loop import tiny

PROMPTS = tiny.prompts(400, "sea")
"""More than are answered in one part."""


@pytest.fixture(scope="module")
def session(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    there = tiny.project(tmp_path_factory.mktemp("apart") / "project", model, {PromptUse.EVALUATE: PROMPTS})
    sample, more = replace(tiny.SETTINGS.sample, batch=400), replace(tiny.SETTINGS.evaluate, samples=4)
    return Session(there.workspace, tiny.settings(model, sample=sample, evaluate=more))


@pytest.fixture(scope="module")
def alike(session: Session) -> tuple[list[list[Answer]], list[list[Answer]]]:
    """What the initial model answers, and what it answers as a policy that has learnt nothing."""
    start = Branch(session.pretrained.trunk, trainable=False)
    run = Run(session.workspace.runs / "apart", "manners evaluate", {}, math.inf)
    first, second = (
        evaluate._answered(session, run, start, start, None, PROMPTS, name).answers for name in ("initial", "policy-1")
    )
    return first, second


def worth(response: Response) -> float:
    """What a text is worth to all who judge, the reward model among them."""
    return int(hashlib.sha256(response.text.encode()).hexdigest()[:12], 16) / 16**12


def better(_: Dialogue, first: Response, second: Response) -> float:
    a, b = worth(first), worth(second)
    return 0.5 if a == b else float(a > b)


def test_a_policy_that_learnt_nothing_wins_a_fifth_of_comparisons_with_the_best_of_four(
    alike: tuple[list[list[Answer]], list[list[Answer]]],
) -> None:
    """Of five answers drawn alike each is the best as often.

    The same random numbers for both would make it an eighth: one of the policy's four answers is the pick itself, a
    tie, and three are those that the pick was preferred to.
    """
    first, second = alike
    scores = [[worth(one.response) for one in some] for some in first]
    rate = head_to_head(first, scores, second, better)
    assert rate.low > 1 / 8 and rate.low <= 1 / 5 <= rate.high
    assert not win_rate(first, second, better).excludes(0.5)
    assert head_to_head(first, scores, first, better).estimate == pytest.approx(1 / 8, abs=0.01)


def said(answers: Sequence[Sequence[Answer]]) -> list[str]:
    return [one.response.text for some in answers for one in some]


def test_a_version_answers_the_same_whatever_it_is_compared_with_and_otherwise_than_others(
    session: Session, alike: tuple[list[list[Answer]], list[list[Answer]]]
) -> None:
    """In an evaluation, where people are asked, and between phases."""
    start = Branch(session.pretrained.trunk, trainable=False)
    some = PROMPTS[:40]
    run = Run(session.workspace.runs / "again", "manners evaluate", {}, math.inf)
    again = evaluate._answered(session, run, start, start, None, PROMPTS, "initial").answers
    assert said(again) == said(alike[0])
    asked = [
        said([asking.answers(session, start, session.pretrained, name, some)]) for name in ("initial", "policy-1") * 2
    ]
    drawn = [said(phases._answers(session, None, name, session.pretrained, some)) for name in ("initial", "sft-1") * 2]
    assert asked[:2] == asked[2:] and drawn[:2] == drawn[2:]
    for one, other in ([said(version) for version in alike], asked[:2], drawn[:2]):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 0.1 * len(one)
