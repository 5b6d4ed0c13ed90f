"""Forgetting from figures: by hand, by symmetry, and by simulation at the very margin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from manners.data import Question
from manners.evaluate.forgetting import (
    ALIKE,
    CANNOT_TELL,
    FORGOTTEN,
    NOT_SHOWN,
    PERPLEXITY,
    QUESTIONS,
    WITHIN,
    WORSE,
    Reading,
    forgetting,
)
from manners.results.evaluation import Forgetting, ForgettingCheck
from manners.types import Answer, Role, Turn
from tests.conftest import some

Make = Callable[..., Answer]
FAMILIES = ("agreement", "facts")
ASKED = [Question(family, f"{family} {i}", ("yes", "no")) for family in FAMILIES for i in range(20)]


def log_odds(right: float) -> tuple[float, float]:
    """Scores of two answers of which the first has a probability."""
    return math.log(right), math.log(1 - right)


def reading(nll: float = 20.0, right: float = 0.9, paragraphs: int = 30, spread: float = 0.2, seed: int = 0) -> Reading:
    """A version's reading: so many nats a paragraph of ten tokens, so sure of the right answers."""
    rng = np.random.default_rng(seed)
    text = nll + spread * rng.standard_normal(paragraphs)
    sure = 1 / (1 + np.exp(-(math.log(right / (1 - right)) + spread * rng.standard_normal(len(ASKED)))))
    return Reading(text.tolist(), [10] * paragraphs, [log_odds(p) for p in sure])


def named(found: Forgetting) -> dict[str, ForgettingCheck]:
    return {check.check: check for check in found.checks or ()}


BEFORE = reading()


def said(answer: Make, words: int, seed: int, prompts: int = 20) -> list[list[Answer]]:
    """Two answers of ten words to each prompt, from so many words."""
    rng = np.random.default_rng(seed)
    return [
        [answer(f"p{i}", "", ids=tuple(rng.integers(0, words, 10).tolist())) for _ in range(2)] for i in range(prompts)
    ]


def test_perplexity_by_hand() -> None:
    # Paragraphs of 10 and 30 tokens, 2 nats a token before; after it 2.1 and 2.2: (1 + 6) / 40 = 0.175 more a token.
    before = Reading([20.0, 60.0] * 3, [10, 30] * 3, [])
    after = Reading([21.0, 66.0] * 3, [10, 30] * 3, [])
    check = named(forgetting(before, after, []))["perplexity"]
    assert (check.before, check.after) == pytest.approx((math.exp(2), math.exp(2.175)))
    assert check.change is not None and check.change.estimate == pytest.approx(math.exp(0.175) - 1)
    assert check.margin == pytest.approx(math.log(1.05))


def test_questions_by_hand() -> None:
    asked = [Question("facts", str(i), ("a", "b", "c")) for i in range(6)] + ASKED[:6]
    before = Reading([1.0, 1.1], [1, 1], [(0.0, 0.0, 0.0)] * 6 + [log_odds(0.8)] * 6)
    after = Reading([1.0, 1.1], [1, 1], [(math.log(2), 0.0, 0.0)] * 6 + [log_odds(0.3)] * 3 + [log_odds(0.8)] * 3)
    found = forgetting(before, after, asked)
    checks = named(found)
    assert (checks["questions_facts"].before, checks["questions_facts"].after) == pytest.approx((1 / 3, 1 / 2))
    assert (checks["questions_agreement"].before, checks["questions_agreement"].after) == pytest.approx((0.8, 0.55))
    assert checks["questions"].before == pytest.approx((1 / 3 + 0.8) / 2), "families weigh the same"
    assert checks["questions"].change is not None
    assert checks["questions"].change.estimate == pytest.approx((1 / 6 - 0.25) / 2)
    assert found.questions is not None
    facts, agreement = found.questions["facts"], found.questions["agreement"]
    assert (facts.before, facts.after, facts.chance, facts.questions) == pytest.approx((0, 1, 1 / 3, 6)), (
        "alike is not right"
    )
    assert (agreement.before, agreement.after, agreement.chance) == pytest.approx((1, 0.5, 0.5))


def test_a_p_value_is_that_of_scipys_t_test_times_the_number_of_checks() -> None:
    rng = np.random.default_rng(1)
    after = Reading([20.0 + x for x in rng.normal(1.0, 1.0, 30)], [10] * 30, BEFORE.answers)
    checks = named(forgetting(BEFORE, after, ASKED))
    losses = (np.array(after.nll) - np.array(BEFORE.nll)) / 10
    alone = stats.ttest_1samp(losses, math.log(1 + PERPLEXITY), alternative="greater").pvalue
    assert len(checks) == 4 and 1e-6 < alone < 0.2
    assert checks["perplexity"].p == pytest.approx(4 * alone)


def test_the_same_version_has_forgotten_nothing(answer: Make) -> None:
    same = said(answer, 40, 0)
    found = forgetting(BEFORE, BEFORE, ASKED, same, same)
    assert found.outcome == NOT_SHOWN
    assert {check.verdict for check in found.checks or ()} == {WITHIN}
    assert list(named(found)) == [
        *("perplexity", "questions", "questions_agreement", "questions_facts", "distinct_2", "self_similarity")
    ]
    assert found.sentence == "No forgetting is shown: all 6 checks lie within their margins."


@pytest.mark.parametrize(
    ("after", "check"),
    [
        (reading(nll=22.0), "perplexity"),
        (reading(right=0.6), "questions"),
        (reading(right=0.6), "questions_facts"),
        (reading(right=0.5), "questions_agreement"),
    ],
)
def test_each_loss_is_found_and_named(after: Reading, check: str) -> None:
    found = forgetting(BEFORE, after, ASKED)
    assert found.outcome == FORGOTTEN
    assert named(found)[check].verdict == WORSE
    assert found.sentence is not None and "got worse by more than the margin" in found.sentence


def test_a_family_alone_is_found() -> None:
    """Facts go, agreement stays."""
    lost = reading(right=0.4).answers[20:]
    found = forgetting(BEFORE, replace(BEFORE, answers=[*BEFORE.answers[:20], *lost]), ASKED)
    assert (named(found)["questions_facts"].verdict, named(found)["questions_agreement"].verdict) == (WORSE, WITHIN)
    assert found.sentence is not None and "questions on facts" in found.sentence


@pytest.mark.parametrize("after", [reading(nll=15.0), reading(right=0.99), reading(nll=20.1), reading(right=0.89)])
def test_what_got_better_or_hardly_worse_is_no_loss(after: Reading) -> None:
    assert forgetting(BEFORE, after, ASKED).outcome == NOT_SHOWN


def test_collapse_is_found_by_what_is_said(answer: Make) -> None:
    before = said(answer, 200, 0)
    stuck = [[answer(f"p{i}", "", ids=(7, 8) * 5) for _ in range(2)] for i in range(20)]
    checks = named(forgetting(BEFORE, BEFORE, ASKED, before, stuck))
    assert checks["distinct_2"].verdict == checks["self_similarity"].verdict == WORSE
    assert checks["self_similarity"].after == 1.0
    by_prompt = [[answer(f"p{i}", "", ids=tuple(range(100 * i, 100 * i + 10)))] * 2 for i in range(20)]
    checks = named(forgetting(BEFORE, BEFORE, ASKED, before, by_prompt))
    assert checks["self_similarity"].verdict == WORSE, "always the same to one prompt, and another to each"
    assert forgetting(BEFORE, BEFORE, ASKED, stuck, before).outcome == NOT_SHOWN, "variety that grew is no loss"


def test_one_answer_to_a_prompt_leaves_likeness_out(answer: Make) -> None:
    one = [answers[:1] for answers in said(answer, 200, 0)]
    assert "self_similarity" not in named(forgetting(BEFORE, BEFORE, ASKED, one, one))
    assert "distinct_2" in named(forgetting(BEFORE, BEFORE, ASKED, one, one))


def test_variety_in_two_conversations_is_too_little_to_tell(answer: Make) -> None:
    """Six turns of each begin alike: an interval over two openings, however many prompts."""

    def turn(one: Answer, number: int) -> Answer:
        return replace(one, prompt=(Turn(Role.USER, f"opening {number % 2}"), *one.prompt))

    before, stuck = (
        [[turn(one, number) for one in answers] for number, answers in enumerate(said(answer, words, 0, 12))]
        for words in (200, 3)
    )
    assert named(forgetting(BEFORE, BEFORE, ASKED, before, stuck))["distinct_2"].verdict == CANNOT_TELL
    apart = [said(answer, words, 0, 12) for words in (200, 3)]
    assert named(forgetting(BEFORE, BEFORE, ASKED, *apart))["distinct_2"].verdict == WORSE


def test_too_little_to_tell_is_said() -> None:
    few = Reading([20.0, 21.0, 19.0], [10] * 3, [None] * 38 + [log_odds(0.9)] * 2)
    worse = Reading([30.0, 32.0, 29.0], [10] * 3, few.answers)
    found = forgetting(few, worse, ASKED)
    assert found.outcome == CANNOT_TELL and found.questions_left_out == 38
    assert found.sentence is not None and "cannot be told" in found.sentence and "perplexity" in found.sentence
    noisy = [20.0 + x for x in np.random.default_rng(0).normal(0, 6, 12)]
    assert forgetting(Reading([20.0] * 12, [10] * 12, []), Reading(noisy, [10] * 12, []), []).outcome == CANNOT_TELL


@pytest.mark.parametrize("paragraphs", some([12, 5, 40], 1))
def test_at_the_very_margin_a_false_alarm_is_rarer_than_one_in_twenty(paragraphs: int) -> None:
    """The hardest null: everything is worse by exactly its margin, and items vary. 400 audits, 5 % + 3 errors."""
    rng = np.random.default_rng(paragraphs)
    asked = [Question(family, str(i), ("a", "b")) for family in ("w", "x", "y", "z") for i in range(30)]
    alarms = 0
    for _ in range(400):
        before = Reading(rng.normal(20, 3, paragraphs).tolist(), [10] * paragraphs, [log_odds(0.8)] * 120)
        lost = np.clip(rng.normal(QUESTIONS, 0.06, 120), -0.19, 0.79)
        more = 10 * (math.log(1 + PERPLEXITY) + rng.normal(0, 0.05, paragraphs))
        after = Reading((np.array(before.nll) + more).tolist(), before.tokens, [log_odds(0.8 - x) for x in lost])
        alarms += forgetting(before, after, asked).outcome == FORGOTTEN
    assert alarms / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert alarms > 0, "and is not impossible"


def test_margins_are_what_the_page_says() -> None:
    assert (PERPLEXITY, QUESTIONS, ALIKE) == (0.05, 0.05, 0.25)
