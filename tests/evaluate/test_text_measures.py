"""Text measures against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import numpy as np
import pytest

from manners.errors import MannersError
from manners.evaluate.text_measures import (
    changes,
    distinct_n,
    mean_length,
    most_common_answer_share,
    perplexity_change,
    self_similarity,
    share_finished,
)
from manners.types import Answer

Make = Callable[..., Answer]
T = 12.7062
"""The 97.5 % quantile of Student's t with one degree of freedom."""


def test_distinct_2_by_hand(answer: Make) -> None:
    # 1 2 1 2: bigrams 12 21 12; 1 2 3: 12 23; together 5, of which 12, 21 and 23 are different.
    answers = [answer("p", "", ids=(1, 2, 1, 2)), answer("q", "", ids=(1, 2, 3))]
    assert distinct_n(answers).estimate == 3 / 5
    assert distinct_n(answers, n=1).estimate == 3 / 7
    assert distinct_n(answers, n=4).estimate == 1.0


def test_the_interval_of_distinct_2_by_hand(answer: Make) -> None:
    # One prompt with 2 different bigrams of 4, three with 9 of 9: 29 of 31; without the first all, without another
    # 20 of 22. The jackknife's error is sqrt((4 - 1) var) = 3/44; Student's t with three degrees of freedom is 3.1824.
    repeats = answer("p", "", ids=(1, 2, 1, 2, 1))
    found = distinct_n([repeats, *(answer(f"q{i}", "", ids=tuple(range(100 * i, 100 * i + 10))) for i in (1, 2, 3))])
    assert found.estimate == pytest.approx(29 / 31)
    assert (found.low, found.high) == pytest.approx((29 / 31 - 3.1824 * 3 / 44, 1.0), abs=1e-4)


def test_distinct_2_leaves_out_the_end_token_and_does_not_cross_answers(answer: Make) -> None:
    ended = [answer("p", "", ids=(1, 2, 0), ended=True), answer("q", "", ids=(3, 4, 0), ended=True)]
    cut_off = [answer("p", "", ids=(1, 2)), answer("q", "", ids=(3, 4))]
    assert distinct_n(ended) == distinct_n(cut_off)
    assert distinct_n(ended, n=3).estimate == 0.0  # no trigram at all
    with pytest.raises(MannersError, match="at least 2 openings"):
        distinct_n(ended[:1])


def test_distinct_2_falls_when_answers_repeat(answer: Make) -> None:
    rng = np.random.default_rng(0)
    free = [answer(f"p{i}", "", ids=tuple(rng.integers(0, 50, 20).tolist())) for i in range(40)]
    stuck = [answer(f"p{i}", "", ids=(7, 8) * 10) for i in range(40)]
    assert distinct_n(stuck).high < 0.01 < distinct_n(free).low


def test_self_similarity_by_hand(answer: Make) -> None:
    # Bigrams 12 23 34, 12 23 35 and 78 89: pairs share 4 of 6, 0 of 5 and 0 of 5. The end-of-turn token counts nowhere.
    three = [answer("p", "", ids=ids) for ids in ((1, 2, 3, 4), (1, 2, 3, 5), (7, 8, 9))]
    # 11 11 against 11: the lesser count of each, 2 of 3.
    two = [answer("q", "", ids=(1, 1, 1)), answer("q", "", ids=(1, 1, 0), ended=True)]
    short = [answer("r", "", ids=(5, 0), ended=True), answer("r", "", ids=(5,))]
    unlike = [answer("s", "", ids=(5,)), answer("s", "", ids=(6,))]
    found = self_similarity([three, two, short, unlike, three[:1]])
    assert found[:4] == pytest.approx([4 / 18, 2 / 3, 1.0, 0.0])
    assert np.isnan(found[4]), "of one answer nothing can be said"


def test_self_similarity_of_the_same_and_of_strangers(answer: Make) -> None:
    rng = np.random.default_rng(0)
    free = [[answer("p", "", ids=tuple(rng.integers(0, 500, 20).tolist())) for _ in range(4)] for _ in range(5)]
    stuck = [[answer("p", "", ids=(7, 8, 9) * 5, ended=ended) for ended in (False, False)] for _ in range(5)]
    assert self_similarity(free).max() < 0.05
    assert self_similarity(stuck).min() == 1.0


def test_lengths_and_finished(answer: Make) -> None:
    answers = [answer("p", "abcd", ended=True), answer("p", "ab"), answer("q", "abc", ended=True), answer("q", "abc")]
    assert mean_length(answers, 200, 0).estimate == 3.0
    assert share_finished(answers, 200, 0).estimate == 0.5
    always = [answer(str(i), "ab", ended=True) for i in range(20)]
    finished = share_finished(always, 200, 0)
    assert finished.estimate == 1.0 > finished.low > 0.8


def test_collapse_shows(answer: Make) -> None:
    collapsed = [answer(str(i), " I am sorry. " if i % 4 else f"{i}") for i in range(40)]
    assert most_common_answer_share(collapsed, 200, 0).estimate == 0.75
    assert most_common_answer_share([answer(str(i), f"{i}") for i in range(40)], 200, 0).estimate == 1 / 40


def test_changes_by_hand(answer: Make) -> None:
    before = [[answer("p", "", ids=(1, 2, 1, 2))], [answer("q", "", ids=(1, 2, 3))]]
    after = [[answer("p", "", ids=(1, 2, 3, 4, 5), ended=True)], [answer("q", "", ids=(7, 8, 9))]]
    found = changes(before, after, 200, 0)
    assert found["length"].estimate == 0.5
    # Of two prompts, with differences 1 and 0, Student's t is 12.7 standard errors of 1/2.
    assert (found["length"].low, found["length"].high) == pytest.approx((0.5 - T / 2, 0.5 + T / 2), rel=0.1)
    assert found["finished"].estimate == 0.5
    # 5 of 5 token pairs are different after, 3 of 5 before; without p 2/2 and 2/2, without q 3/3 and 2/3:
    # differences 0 and 1/3, jackknife error sqrt((2 - 1) * var) = 1/6.
    assert found["distinct_2"].estimate == pytest.approx(2 / 5)
    assert found["distinct_2"].low == pytest.approx(max(-1.0, 2 / 5 - T / 6))
    assert found["distinct_2"].high == 1.0


def test_changes_are_paired(answer: Make) -> None:
    # Prompts differ a great deal in length, and every answer grows by one token.
    before = [[answer(str(i), "", ids=tuple(range(1, 3 + i)))] * 2 for i in range(40)]
    after = [[answer(str(i), "", ids=tuple(range(1, 4 + i)))] * 2 for i in range(40)]
    found = changes(before, after, 200, 0)
    assert (found["length"].low, found["length"].high) == (1.0, 1.0)
    unchanged = changes(before, before, 200, 0)
    assert all((i.estimate, i.low, i.high) == (0.0, 0.0, 0.0) for i in unchanged.values())


def test_perplexity_by_hand() -> None:
    # Perplexity 4 on 6 tokens, then half of the text costs log 2 more in all: exp(log 2 / 6) - 1.
    change = perplexity_change([2 * log(4), 4 * log(4)], [2 * log(4) + log(2), 4 * log(4)], [2, 4], 500, 0)
    assert change.before == pytest.approx(4.0)
    assert change.after == pytest.approx(exp(log(4) + log(2) / 6))
    assert change.change.estimate == pytest.approx(2 ** (1 / 6) - 1)
    assert change.paragraphs == 2
    # Resamples lie between 0 and exp(log 2 / 2) - 1; two paragraphs leave more open than that.
    assert change.change.low < 0.0 and change.change.high > 2 ** (1 / 2) - 1


def test_perplexity_is_paired() -> None:
    rng = np.random.default_rng(1)
    before = rng.gamma(2, 50, 60)
    tokens = np.full(60, 40)
    same = perplexity_change(before, before, tokens, 200, 0).change
    worse = perplexity_change(before, before + 40 * log(1.1), tokens, 200, 0).change
    assert (same.low, same.high) == (0.0, 0.0)
    assert (worse.low, worse.high) == pytest.approx((0.1, 0.1))
    with pytest.raises(ValueError, match="at least one"):
        perplexity_change([1.0, 1.0], [1.0, 1.0], [1, 0], 100, 0)
