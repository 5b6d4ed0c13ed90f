"""Win rates in worlds where the better version, and the reason, are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from manners.errors import MannersError
from manners.evaluate.compare import (
    Matched,
    best_of_n_win_rate,
    head_to_head,
    matched_win_rate,
    pick_best,
    verdict_sentence,
    win_rate,
)
from manners.evaluate.length import win_rate_at_equal_length
from manners.evaluate.text_measures import changes
from manners.types import Answer, Dialogue, Interval, Response

Make = Callable[..., Answer]
Preference = Callable[[Dialogue, Response, Response], float]


def prefers(score: Callable[[Response], float]) -> Preference:
    """Return the preference of one who sees only `score`."""

    def preference(prompt: Dialogue, first: Response, second: Response) -> float:
        gap = score(first) - score(second)
        return 0.5 if gap == 0 else float(gap > 0)

    return preference


by_author = prefers(lambda response: response.author == "new")
by_length = prefers(lambda response: len(response.text))
by_letter = prefers(lambda response: response.text.count("!"))


def versions(answer: Make, old: Sequence[Sequence[str]], new: Sequence[Sequence[str]]) -> list[list[list[Answer]]]:
    """Return both versions' answers to prompts numbered from 0."""
    return [
        [[answer(str(i), text, author) for text in texts] for i, texts in enumerate(given)]
        for author, given in (("old", old), ("new", new))
    ]


def texts_of_length(rng: np.random.Generator, low: int, high: int, prompts: int, k: int = 4) -> list[list[str]]:
    return [["x" * int(n) for n in row] for row in rng.integers(low, high, (prompts, k))]


def test_a_version_that_always_wins_and_one_that_always_loses(answer: Make) -> None:
    before, after = versions(answer, [["a", "b"]] * 50, [["c"]] * 50)
    rate = win_rate(before, after, by_author)
    assert rate.estimate == 1.0 == rate.high
    assert 0.9 < rate.low < 1.0  # fifty prompts are no proof of never losing
    assert rate.low == pytest.approx(stats.binomtest(50, 50).proportion_ci(0.95, "wilson").low)
    assert win_rate(after, before, by_author).estimate == 0.0


def test_equal_versions_cannot_be_told_apart(answer: Make) -> None:
    rng = np.random.default_rng(0)
    before, after = versions(answer, texts_of_length(rng, 5, 50, 80), texts_of_length(rng, 5, 50, 80))
    assert not win_rate(before, after, by_length).excludes(0.5)
    same = win_rate(before, before, by_length)
    assert same.estimate == 0.5
    assert not same.excludes(0.5)


def test_each_prompt_counts_once_and_ties_count_half(answer: Make) -> None:
    # On the first prompt a win and a tie, on the second eight wins: (3/4 + 1) / 2, not 9.5 / 10.
    before, after = versions(answer, [["!", ""], ["", "", "", ""]], [["!"], ["!", "!!"]])
    assert win_rate(before, after, by_letter).estimate == 0.875


def test_prompts_of_one_opening_are_not_independent(answer: Make) -> None:
    """Ten prompts of one opening suit the new version, ten of another neither: of two openings nothing can be told."""
    alike = [first + " " * spaces for first in ("First", "Second") for spaces in range(10)]
    for prompts, told in ((alike, False), ([str(n) for n in range(20)], True)):
        before = [[answer(prompt, "a", "old")] for prompt in prompts]
        after, longer = (
            [[answer(prompt, text if n < 10 else "a", "new")] for n, prompt in enumerate(prompts)]
            for text in ("!", "aa")
        )
        rate = win_rate(before, after, by_letter)
        assert rate.estimate == 0.75 and rate.excludes(0.5) is told
        length = changes(before, longer, 200, 0)["length"]
        assert length.estimate == 0.5 and length.excludes(0.0) is told
        found = win_rate_at_equal_length(before, after, by_letter).interval
        assert (found.high - found.low > 0.9) is not told
        assert matched_win_rate(before, after, by_author, 0.1).effective_prompts == (20 if told else 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.5))
def test_exchanging_the_versions_gives_one_minus(answer: Make, seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    before, after = versions(answer, texts_of_length(rng, 5, 30, 20, 3), texts_of_length(rng, 8, 40, 20, 2))
    here, there = win_rate(before, after, by_length), win_rate(after, before, by_length)
    assert (here.estimate, here.low, here.high) == pytest.approx((1 - there.estimate, 1 - there.high, 1 - there.low))
    one = matched_win_rate(before, after, by_length, tolerance)
    other = matched_win_rate(after, before, by_length, tolerance)
    assert one.interval.estimate == pytest.approx(1 - other.interval.estimate)
    assert one.length_difference == pytest.approx(-other.length_difference)
    assert (one.pairs, one.prompts) == (other.pairs, other.prompts)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.5))
def test_only_pairs_of_like_length_are_asked_about(answer: Make, seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    before, after = versions(answer, texts_of_length(rng, 1, 40, 12), texts_of_length(rng, 1, 40, 12))
    seen = []

    def spy(prompt: Dialogue, first: Response, second: Response) -> float:
        seen.append((len(first.text), len(second.text)))
        return 0.5

    matched = matched_win_rate(before, after, spy, tolerance)
    assert all(abs(a - b) <= 1 or abs(a - b) <= tolerance * max(a, b) for a, b in seen)
    every = [(a.length, b.length) for old, new in zip(before, after, strict=True) for a in new for b in old]
    assert matched.pairs == len(seen) == sum(abs(a - b) <= max(1, tolerance * max(a, b)) for a, b in every)


def test_a_taste_for_length_alone_vanishes_at_matched_length(answer: Make) -> None:
    rng = np.random.default_rng(1)
    before, after = versions(answer, texts_of_length(rng, 20, 60, 150), texts_of_length(rng, 35, 90, 150))
    assert win_rate(before, after, by_length).low > 0.75
    matched = matched_win_rate(before, after, by_length, 0.1)
    assert matched.can_tell
    assert matched.interval.estimate == pytest.approx(0.5)
    assert abs(matched.length_difference) < 0.5


def test_a_real_gain_survives_matching(answer: Make) -> None:
    rng = np.random.default_rng(2)
    new = [[text[:-1] + "!" for text in row] for row in texts_of_length(rng, 30, 80, 100)]
    before, after = versions(answer, texts_of_length(rng, 20, 60, 100), new)
    assert matched_win_rate(before, after, by_letter, 0.1).interval.low > 0.9


def test_matched_win_rate_by_hand(answer: Make) -> None:
    # Ten prompts with three wins each and ten with one loss: each prompt counts once, so 0.5 and not 0.75.
    before, after = versions(answer, [["xx"]] * 10 + [["!!"]] * 10, [["x!"] * 3] * 10 + [["xx"]] * 10)
    even = matched_win_rate(before, after, by_letter, 0.1)
    assert (even.interval.estimate, even.pairs, even.prompts, even.effective_prompts) == (0.5, 40, 20, 20.0)
    # New answers two tokens longer and one shorter, in equal shares: (2 - 1) / 2 is left over.
    before, after = versions(answer, [["x" * 20]] * 12, [["x" * 22, "x" * 19, "x" * 23]] * 12)
    uneven = matched_win_rate(before, after, by_length, 0.1)
    assert (uneven.interval.estimate, uneven.pairs, uneven.length_difference) == pytest.approx((0.5, 24, 0.5))


def test_versions_never_of_like_length_or_always_on_one_side_cannot_be_told(answer: Make) -> None:
    before, after = versions(answer, [["x" * 10]] * 50, [["x" * 50]] * 50)
    none = matched_win_rate(before, after, by_length, 0.1)
    assert none == Matched(Interval(0.5, 0.0, 1.0), 0, 0, 0.0, 0.0)
    before, after = versions(answer, [["x" * 100]] * 50, [["x" * 105]] * 50)
    one_sided = matched_win_rate(before, after, by_length, 0.1)
    assert (one_sided.pairs, one_sided.can_tell, one_sided.interval) == (50, False, Interval(0.5, 0.0, 1.0))
    before, after = versions(answer, [["xx"]] * 9, [["x!"]] * 9)
    few = matched_win_rate(before, after, by_letter, 0.1)
    assert (few.prompts, few.can_tell, few.interval) == (9, False, Interval(1.0, 0.0, 1.0))


def test_ten_prompts_of_like_length_are_enough(answer: Make) -> None:
    # One of two answers wins on each of ten prompts; the weights of all answers are alike, so nothing is rounded.
    before, after = versions(answer, [["!x"]] * 10, [["!!", "xx"]] * 10)
    ten = matched_win_rate(before, after, by_letter, 0.1)
    assert (ten.effective_prompts, ten.can_tell) == (10.0, True)
    assert ten.interval.estimate == 0.5 and 0 < ten.interval.low < ten.interval.high < 1


def test_answers_to_different_prompts_are_not_compared(answer: Make) -> None:
    with pytest.raises(ValueError, match="same prompt"):
        win_rate([[answer("p", "a")]], [[answer("q", "a")]], by_author)


def test_pick_best_by_hand() -> None:
    assert pick_best([[0.1, 0.3, 0.2], [2.0, -1.0, 2.0]]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="finite"):
        pick_best([[0.1, float("nan")]])


def test_best_of_n_is_compared_with_an_independent_answer(answer: Make) -> None:
    rng = np.random.default_rng(3)
    quality = rng.normal(size=(400, 4))
    value = {f"{p} {k}": quality[p, k] for p in range(400) for k in range(4)}
    before = [[answer(str(p), f"{p} {k}", "old") for k in range(4)] for p in range(400)]
    taste = prefers(lambda response: value[response.text])
    # A perfect scorer's best of 3 draws beats a fourth with chance 3/4; against those it passed over it always wins.
    perfect = best_of_n_win_rate(before, quality, taste)
    assert perfect.estimate == pytest.approx(0.75)
    blind = best_of_n_win_rate(before, rng.normal(size=(400, 4)), taste)
    assert not blind.excludes(0.5)
    assert best_of_n_win_rate(before, -quality, taste).estimate == pytest.approx(0.25)
    with pytest.raises(MannersError, match=r"evaluate\.samples"):
        best_of_n_win_rate([[row[0]] for row in before], quality[:, :1], taste)


def test_head_to_head_takes_the_best_and_the_side_of_the_new_version(answer: Make) -> None:
    before, after = versions(answer, [["", "!!"]] * 30, [["!"]] * 30)
    assert head_to_head(before, [[0.0, 1.0]] * 30, after, by_letter).estimate == 0.0
    assert head_to_head(before, [[1.0, 0.0]] * 30, after, by_letter).estimate == 1.0
    with pytest.raises(ValueError, match="longer"):
        head_to_head(before, [[1.0, 0.0]] * 31, after, by_letter)


BETTER, WORSE, UNSURE = Interval(0.7, 0.6, 0.8), Interval(0.3, 0.2, 0.4), Interval(0.5, 0.4, 0.6)


def at_length(interval: Interval, worth: float = 50.0) -> Matched:
    return Matched(interval, 200, 60, worth, 0.1)


@pytest.mark.parametrize(
    ("rate", "says"),
    [(BETTER, "is better than"), (WORSE, "is worse than"), (Interval(0.6, 0.5, 0.7), "cannot be told apart from")],
)
def test_the_sentence_says_all_of_it(rate: Interval, says: str) -> None:
    said = verdict_sentence("simulated annotators", rate, 100, at_length(UNSURE), WORSE, 4, "policy-1")
    assert said.startswith(f"Judged by simulated annotators on 100 unused prompts, the new version {says} policy-1: it")
    assert f"{100 * rate.estimate:.1f} % (95 % interval {100 * rate.low:.1f} to {100 * rate.high:.1f})" in said
    assert "At matched length it wins 50.0 %" in said and "does not beat best-of-4 with the same reward model" in said
    few = verdict_sentence("people", rate, 20, at_length(UNSURE, 3), BETTER, 4, "the initial model")
    assert "At matched length it cannot be told:" in few and "PPO beats best-of-4" in few
