"""Promotion over many rounds is no game of chance: the counting by hand, and loops in which nothing gets better."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom

from manners.evaluate import promotion
from manners.evaluate.promotion import LUCK, Evidence, level
from manners.feedback import bets
from manners.feedback.statistics import Decision, clustered_share
from manners.loop.history import attempt, ended
from manners.store import Outcome
from manners.store.records import Round
from manners.types import Interval

KEPT, LOST = Outcome.PROMOTED, Outcome.REJECTED
LOOPS, ROUNDS, PROMPTS = 200, 20, 40
FINE = Interval(0.0, 0.0, 0.0)
SOLE = Interval(1.0, 1.0, 1.0)


def rounds(*outcomes: tuple[str, Outcome]) -> list[Round]:
    return [Round(policy, "reward-1", outcome) for policy, outcome in outcomes]


FIRST, SECOND = "initial", "policy-2"
"""Versions that were current."""


@pytest.mark.parametrize(
    ("before", "policy", "against", "expected"),
    [
        ([], "policy-1", FIRST, 1),
        ([("policy-1", FIRST)], "policy-2", FIRST, 2),
        ([("policy-1", FIRST), ("policy-2", FIRST)], "policy-3", FIRST, 3),
        # The second became the current one, by whatever door: the round may say that it was rejected.
        ([("policy-1", FIRST), ("policy-2", FIRST)], "policy-3", SECOND, 1),
        ([("policy-1", FIRST), ("policy-2", FIRST), ("policy-3", SECOND)], "policy-4", SECOND, 2),
        # Then somebody went back to the first.
        ([("policy-1", FIRST), ("policy-2", FIRST), ("policy-3", SECOND)], "policy-4", FIRST, 3),
        ([("policy-1", FIRST), ("policy-2", FIRST), ("policy-3", SECOND)], "policy-3", FIRST, 3),
        # Looked at again, it is the same attempt, also once it is the current one, or was killed when it became so.
        ([("policy-1", FIRST), ("policy-2", FIRST)], "policy-2", FIRST, 2),
        ([("policy-1", FIRST), ("policy-1", FIRST), ("policy-1", FIRST)], "policy-2", FIRST, 2),
        # People's verdicts came in between: it is looked at once more after the next one was tried.
        ([("policy-1", FIRST), ("policy-2", FIRST), ("policy-1", FIRST)], "policy-1", FIRST, 1),
        ([("policy-1", FIRST), ("policy-2", FIRST), ("policy-1", FIRST)], "policy-3", FIRST, 3),
        # It is not known any more against what it was tried.
        ([("policy-1", None), ("policy-2", FIRST)], "policy-3", FIRST, 3),
    ],
)
def test_attempts_counted_by_hand(
    before: list[tuple[str, str | None]], policy: str, against: str, expected: int
) -> None:
    """How a round ended plays no part."""
    for outcome in Outcome:
        found = [Round(name, "reward-1", outcome, {"against": beside} if beside else {}) for name, beside in before]
        assert attempt(found, policy, against) == expected


def test_other_answers_of_one_policy_are_another_try() -> None:
    """The same seed draws the same answers, which are the same try, whatever was tried since."""
    a, b, c = ({"against": FIRST, "drawn": name} for name in "abc")
    tried = [("policy-1", a), ("policy-1", b), ("policy-1", a), ("policy-2", a), ("policy-3", {"against": FIRST})]
    found = [Round(policy, "reward-1", LOST, metrics) for policy, metrics in tried]
    again = [attempt(found, policy, FIRST, metrics.get("drawn")) for policy, metrics in tried]
    assert again == [1, 2, 1, 3, 4]
    assert (attempt(found, "policy-1", FIRST, c["drawn"]), attempt(found, "policy-4", FIRST)) == (5, 5)


def test_a_policy_that_is_looked_at_again_is_one_round() -> None:
    found = ended(rounds(("policy-1", LOST), ("policy-2", LOST), ("policy-1", KEPT)))
    assert [(one.policy, one.outcome) for one in found] == [("policy-1", KEPT), ("policy-2", LOST)]


def test_the_levels_by_hand_and_what_they_add_up_to() -> None:
    assert [round(level(n), 4) for n in (1, 2, 3)] == [0.95, 0.9833, 0.9917]
    assert all(a < b < 1 for a, b in pairwise(level(n) for n in range(1, 1000)))
    assert sum((1 - level(n)) / 2 for n in range(1, 100_000)) == pytest.approx(LUCK, rel=1e-4)
    with pytest.raises(ValueError, match="counted from 1"):
        level(0)


def test_a_wider_interval_is_that_of_the_normal_or_of_the_books() -> None:
    """Wilson's at another level, where clusters are single trials: against the quantile worked out apart."""
    wins = [1.0] * 700 + [0.0] * 300
    rate = clustered_share(wins, np.arange(1000), level=level(3))
    z = 2.638257273476751  # the normal quantile of 1 - 0.1/12/2
    half = z * math.sqrt(0.7 * 0.3 / 1000)
    assert rate.low == pytest.approx(0.7 - half, abs=0.002) and rate.high == pytest.approx(0.7 + half, abs=0.002)


def promotes(rate: Interval) -> bool:
    evidence = Evidence(
        win_rate=rate,
        start=None,
        replaces_start=True,
        matched=None,
        perplexity=FINE,
        alike=FINE,
        alike_before=0.0,
        variety=SOLE,
        may_promote=True,
    )
    return promotion.promoted(promotion.reasons(evidence))


def null_round(rng: np.random.Generator, number: int) -> bool:
    """One round of two policies that are equally good: of each prompt one answer or four, each won by coin."""
    pairs = 1 if number % 2 else 4
    shares = rng.binomial(pairs, 0.5, size=PROMPTS) / pairs
    return promotes(clustered_share(shares, np.arange(PROMPTS), level=level(number)))


@pytest.mark.long
def test_twenty_rounds_in_which_nothing_gets_better_promote_in_at_most_one_loop_of_twenty(times: int) -> None:
    """A crowd judges: the win rate over 40 prompts of two policies that are equally good, round after round."""
    rng = np.random.default_rng(20)
    lost = naive = 0
    for _ in range(LOOPS * times):
        lost += any(null_round(rng, number) for number in range(1, ROUNDS + 1))
        naive += any(
            promotes(clustered_share(rng.binomial(1, 0.5, size=PROMPTS), np.arange(PROMPTS))) for _ in range(ROUNDS)
        )
    assert lost <= 0.05 * LOOPS * times
    assert naive > 0.2 * LOOPS * times, "at 95 % every time, which the count is there to prevent"


@pytest.mark.long
def test_twenty_rounds_that_people_judge_are_no_game_either(times: int) -> None:
    """Sixty blind comparisons a round, looked at after each, by coin."""
    rng = np.random.default_rng(21)
    lost = 0
    for _ in range(LOOPS * times):
        lost += any(_people_promote(rng, number) for number in range(1, ROUNDS + 1))
    assert lost <= 0.05 * LOOPS * times


def _people_promote(rng: np.random.Generator, number: int) -> bool:
    won = 0
    for asked, win in enumerate(rng.integers(0, 2, size=60), 1):
        won += int(win)
        if asked % 10 == 0 and bets.decide({1.0: won, -1.0: asked - won}, level(number)) is Decision.BETTER:
            return True
    return False


def test_a_policy_that_is_better_is_still_promoted() -> None:
    """Winning 34 prompts of 40 shows it at the first try and at the tenth; 28 of 40 only at the first."""

    def rate(wins: int, number: int) -> Interval:
        values = [1.0] * wins + [0.0] * (PROMPTS - wins)
        return clustered_share(values, np.arange(PROMPTS), level=level(number))

    assert promotes(rate(34, 1)) and promotes(rate(34, 10))
    assert promotes(rate(28, 1)) and not promotes(rate(28, 10))
    assert binom.sf(27, PROMPTS, 0.5) < 0.025 < 1 - level(1)
