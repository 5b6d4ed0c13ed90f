"""Judges of all kinds say the same sort of thing: how likely they prefer one response to another."""

from __future__ import annotations

import numpy as np
import pytest

from manners.feedback import crowd
from manners.feedback.judges import CrowdJudge, Judge, TasteJudge, VerdictJudge
from manners.settings import CrowdSettings
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
)

PROMPT = (Turn(Role.USER, "How long do I boil an egg?"),)
KIND = Response("Boil the egg for seven minutes, and enjoy it, my friend.", "a", FinishReason.STOP)
CURT = Response("Boil the egg for seven minutes and then take the egg out of", "b", FinishReason.LENGTH)
PEOPLE = crowd.recruit(CrowdSettings(), 0)


def said(left: Response, right: Response, *choices: Choice, kind: AnnotatorKind = AnnotatorKind.HUMAN) -> Comparison:
    verdicts = tuple(Verdict(choice, Annotator(f"{kind}-{n}", kind)) for n, choice in enumerate(choices))
    return Comparison(PROMPT, left, right, AskedHow.EVALUATION, verdicts=verdicts)


def test_the_taste_is_sure_and_the_crowd_is_not() -> None:
    sure = TasteJudge(PEOPLE)
    assert (sure.prefers(PROMPT, KIND, CURT), sure.prefers(PROMPT, CURT, KIND)) == (1.0, 0.0)
    assert sure.prefers(PROMPT, KIND, KIND) == 0.5
    likely = CrowdJudge(PEOPLE).prefers(PROMPT, KIND, CURT)
    assert 0.5 < likely < 1
    assert CrowdJudge(PEOPLE).prefers(PROMPT, CURT, KIND) == pytest.approx(1 - likely)
    assert CrowdJudge(PEOPLE).prefers(PROMPT, CURT, CURT) == pytest.approx(0.5)


def test_the_crowds_probability_is_how_often_its_verdicts_fall_that_way() -> None:
    """Against verdicts drawn one by one, each pair shown in both orders."""
    worth = {Choice.LEFT: 1.0, Choice.RIGHT: 0.0, Choice.TIE: 0.5, Choice.BOTH_BAD: 0.5}
    shown = [Comparison(PROMPT, KIND, CURT, AskedHow.RANDOM), Comparison(PROMPT, CURT, KIND, AskedHow.RANDOM)]
    drawn = []
    for turned, comparison in enumerate(shown):
        for index in range(len(PEOPLE.annotators)):
            for n in range(200):
                rng = np.random.default_rng([turned, index, n])
                share = worth[crowd.judge(PEOPLE, comparison, index, rng).choice]
                drawn.append(1 - share if turned else share)
    error = float(np.std(drawn)) / len(drawn) ** 0.5
    assert CrowdJudge(PEOPLE).prefers(PROMPT, KIND, CURT) == pytest.approx(np.mean(drawn), abs=4 * error)


def test_people_prefer_what_they_said_whichever_side_it_stood_on() -> None:
    judge = VerdictJudge(
        (
            said(KIND, CURT, Choice.LEFT, Choice.TIE),
            said(CURT, KIND, Choice.RIGHT, Choice.SKIP, Choice.LEFT),
            said(CURT, KIND, Choice.LEFT, kind=AnnotatorKind.AI),
        )
    )
    assert judge.prefers(PROMPT, KIND, CURT) == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert judge.prefers(PROMPT, CURT, KIND) == pytest.approx((0 + 0.5 + 0 + 1) / 4)
    assert judge.prefers(PROMPT, KIND, KIND) is None, "nobody was asked"
    assert VerdictJudge(judge.comparisons, AnnotatorKind.AI).prefers(PROMPT, CURT, KIND) == 1.0
    assert (judge.source, VerdictJudge(()).source) == ("human", "none")
    assert (judge.raters, VerdictJudge(judge.comparisons, AnnotatorKind.AI).raters, VerdictJudge(()).raters) == (
        3,
        1,
        0,
    )


def test_who_skips_has_rated_nothing() -> None:
    assert VerdictJudge((said(KIND, CURT, Choice.SKIP),)).raters == 0
    assert VerdictJudge((said(KIND, CURT, Choice.SKIP, Choice.BOTH_BAD), said(CURT, KIND, Choice.LEFT))).raters == 2


def test_the_taste_knows_the_same_crowd_with_its_noise() -> None:
    assert TasteJudge(PEOPLE).noisy == CrowdJudge(PEOPLE)
    assert (TasteJudge(PEOPLE).raters, CrowdJudge(PEOPLE).raters) == (1, len(PEOPLE.annotators))


@pytest.mark.parametrize("judge", [TasteJudge(PEOPLE), CrowdJudge(PEOPLE), VerdictJudge((said(KIND, CURT),))])
def test_every_judge_has_the_one_shape(judge: Judge) -> None:
    assert isinstance(judge.kind, AnnotatorKind) and judge.source and judge.may_promote in (True, False)
    assert judge.raters >= 0 and (judge.noisy is None or judge.noisy.noisy is None)
    found = judge.prefers(PROMPT, KIND, CURT)
    assert found is None if judge.on_record is not None else 0 <= (found or 0) <= 1
