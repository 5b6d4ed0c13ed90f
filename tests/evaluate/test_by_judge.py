"""Win rates by a judge and what people checked: by hand, turned round, and whether the intervals hold the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from manners.evaluate.by_judge import win_rates
from manners.feedback.corrected import prediction_powered
from manners.types import (
    JUDGE,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    Response,
    Role,
    Turn,
    Verdict,
)

ASKED = Annotator(f"{JUDGE}m#1", AnnotatorKind.AI)
ANNA = Annotator("anna", AnnotatorKind.HUMAN)


def compared(
    number: int, left: float, human: Choice | None = None, drawn: DrawnHow | None = DrawnHow.RANDOM, prompt: str = ""
) -> Comparison:
    """A comparison of policy-1, on the left, with the initial model, of which a judge states P(left)."""
    said = [Verdict(Choice.LEFT if left > 0.5 else Choice.RIGHT, ASKED, comment=f"P(left) {left:.4f}")]
    if human is not None:
        said.append(Verdict(human, ANNA, drawn=drawn))
    turn = Turn(Role.USER, prompt or f"question {number}")
    answers = Response(f"a {number}", "policy-1"), Response(f"b {number}", "initial")
    return Comparison((turn,), *answers, AskedHow.EVALUATION, verdicts=tuple(said))


CHECKED = [(0.9, Choice.LEFT), (0.8, Choice.LEFT), (0.2, Choice.RIGHT), (0.3, Choice.TIE), (0.6, Choice.RIGHT)] * 4
SOME = [compared(n, p, c) for n, (p, c) in enumerate(CHECKED)] + [compared(30 + n, p) for n, p in enumerate((0.7, 0.4))]


def test_it_is_the_correction_of_the_stated_chances() -> None:
    (found,) = win_rates(SOME, "policy-1", ASKED)
    people = [1, 1, 0, 0.5, 0] * 4
    wanted = prediction_powered([0.7, 0.4], [p for p, _ in CHECKED], people)
    assert found.corrected is not None and found.human is not None
    assert found.corrected.estimate == wanted.corrected.estimate and found.raw == wanted.raw
    assert found.human.estimate == pytest.approx(0.5)
    wider = prediction_powered([0.7, 0.4], [*(p for p, _ in CHECKED), 0.56, 0.56], [*people, 0, 1]).corrected
    assert (found.corrected.low, found.corrected.high) == pytest.approx((wider.low, wider.high))
    assert found.raw == pytest.approx((4 * 2.8 + 1.1) / 22)
    assert (found.checked, found.judged, found.left_out, found.skipped) == (20, 2, 0, 0)
    assert found.sentence.startswith(f"By {ASKED.name}, the win rate of policy-1 over initial, at one look: ")


def test_all_of_one_mind_is_no_certainty() -> None:
    alike = [compared(n, 0.9, Choice.LEFT) for n in range(20)] + [compared(30 + n, 0.9) for n in range(20)]
    (found,) = win_rates(alike, "policy-1", ASKED)
    assert found.corrected is not None and found.human is not None
    for one in (found.corrected, found.human):
        assert one.estimate == 1 and one.high == 1 and 0.8 < one.low < 0.97


def test_who_skips_what_they_like_less_does_not_lift_the_rest() -> None:
    rng, truth, means = np.random.default_rng(3), 0.55, []
    for _ in range(40):
        some = study(rng, 300, 60, 0.0)
        some = [
            replace(
                one,
                verdicts=tuple(replace(v, choice=Choice.SKIP) if v.choice is Choice.RIGHT else v for v in one.verdicts),
            )
            if rng.random() < 0.3 and len(one.verdicts) > 1
            else one
            for one in some
        ]
        (found,) = win_rates(some, "policy-1", ASKED)
        assert found.corrected is not None and found.skipped > 0
        means.append(found.corrected.estimate)
    assert abs(sum(means) / len(means) - truth) < 0.5 * 0.45 * 0.3 + 0.03, "at most half of each is moved, and not all"


def test_it_does_not_matter_where_an_answer_stands() -> None:
    (found,) = win_rates(SOME, "policy-1", ASKED)
    (turned,) = win_rates([one.turned() if n % 2 else one for n, one in enumerate(SOME)], "policy-1", ASKED)
    assert turned.raw == pytest.approx(found.raw) and turned.human == found.human
    (other,) = win_rates(SOME, "initial", ASKED)
    assert other.raw is not None and found.raw is not None and found.corrected and other.corrected
    assert other.raw == pytest.approx(1 - found.raw)
    assert other.corrected.low == pytest.approx(1 - found.corrected.high)


def test_what_was_drawn_for_disagreement_is_left_out_and_counted() -> None:
    chosen = [compared(20 + n, 0.99, Choice.RIGHT, DrawnHow.DISAGREEMENT) for n in range(9)]
    (plain,), (found,) = (win_rates(some, "policy-1", ASKED) for some in (SOME, [*SOME, *chosen]))
    assert found.left_out == 9 and found.corrected == plain.corrected


def test_answers_to_one_prompt_are_one_value() -> None:
    several = [compared(60 + n, 0.9, Choice.LEFT, prompt="Question 0") for n in range(50)]
    (found,) = win_rates([*SOME, *several], "policy-1", ASKED)
    assert found.checked == 20


def test_too_few_checked_are_said_and_nothing_raw_is_printed() -> None:
    (found,) = win_rates(SOME[3:], "policy-1", ASKED)
    assert found.checked == 17 and found.corrected is None and found.raw is None and "is not known" in found.sentence
    assert not win_rates([], "policy-1", ASKED)
    other = Annotator(f"{JUDGE}n#1", AnnotatorKind.AI)
    assert not win_rates(SOME, "policy-1", other), "it was not asked"


def study(rng: np.random.Generator, n: int, checked: int, bias: float) -> list[Comparison]:
    """Comparisons that people decide by a chance of each, which a judge knows up to noise and a bias."""
    chances = rng.beta(2.2, 1.8, n)
    judged = 1 / (1 + np.exp(-(np.log(chances / (1 - chances)) + bias + rng.normal(0, 0.5, n))))
    people = rng.random(n) < chances
    who = set(rng.choice(n, checked, replace=False).tolist())
    choices = [Choice.LEFT if people[i] else Choice.RIGHT for i in range(n)]
    return [compared(i, float(judged[i]), choices[i] if i in who else None) for i in range(n)]


@pytest.mark.long
@pytest.mark.parametrize("bias", [0.0, 1.0], ids=["fair", "too fond of the policy"])
def test_the_interval_holds_the_truth_and_is_narrower_than_peoples_alone(bias: float) -> None:
    truth, rng = 2.2 / 4, np.random.default_rng(7)
    held, widths = 0, []
    for _ in range(1000):
        (found,) = win_rates(study(rng, 300, 60, bias), "policy-1", ASKED)
        assert found.corrected is not None and found.human is not None
        held += found.corrected.low <= truth <= found.corrected.high
        widths.append((found.corrected.high - found.corrected.low) / (found.human.high - found.human.low))
    assert 920 <= held <= 980, held
    assert math.fsum(widths) / len(widths) < 1
