"""The simulated crowd: the taste worked out by hand, and the habits recovered from verdicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import e, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from manners.errors import MannersError
from manners.feedback.crowd import (
    TASTES,
    Crowd,
    SimulatedAnnotator,
    TasteParts,
    ask,
    choice_probabilities,
    find_taste,
    judge,
    recruit,
    true_preference,
    true_score,
)
from manners.settings import CrowdSettings
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
)

MANNERS, FACTS, RANDOM = (TASTES[name] for name in ("manners", "plain_facts", "random"))
PROMPT: Dialogue = (Turn(Role.SYSTEM, "Be brief."), Turn(Role.USER, "How do I clean a burnt saucepan?"))
GOOD = "Please don't worry: fill the burnt pan with warm water and soda overnight, and it will clean easily. Good luck!"
DRY = "Fill the burnt pan with hot water and soda, wait overnight, then clean it with a soft brush."
POOR = "Trains are trains are trains are trains are"
STEADY = SimulatedAnnotator(Annotator("simulated-01", AnnotatorKind.SIMULATED), 0.5, 0.0, 0.0, 0.3, 0.0)


def said(text: str, reason: FinishReason = FinishReason.STOP) -> Response:
    return Response(text, "model", reason)


def score(text: str, reason: FinishReason = FinishReason.STOP) -> TasteParts:
    return true_score(MANNERS, PROMPT, said(text, reason))


def pair(left: str, right: str) -> Comparison:
    return Comparison(PROMPT, said(left), said(right), AskedHow.RANDOM)


def verdicts_of(
    person: SimulatedAnnotator, comparison: Comparison, count: int, taste: str = "manners"
) -> list[Verdict]:
    rng = np.random.default_rng(7)
    crowd = Crowd(TASTES[taste], (person,))
    return [judge(crowd, comparison, 0, rng) for _ in range(count)]


def test_all_parts_of_one_answer_by_hand() -> None:
    # 20 words; kind: please, don't worry, luck = 3; question: clean, burnt, saucepan, of which 2 are taken up.
    parts = score(GOOD)
    assert (parts.finished, parts.relevance, parts.plainness, parts.figures) == (1, 1, 1, 0)
    assert parts.brevity == pytest.approx(25 / 30)
    assert parts.kindness == pytest.approx(0.875)
    assert parts.content == pytest.approx(2.0 * 0.875 + 0.6 + 0.8)
    assert parts.total == pytest.approx(0.6 + 0.3 * 25 / 30 + 2.0 * 0.875 + 0.6 + 0.8)


@pytest.mark.parametrize("text", ["", "  \n ", "?!", "..."])
def test_nothing_said_scores_nothing(text: str) -> None:
    parts = score(text)
    assert parts.total == parts.content == parts.finished == parts.plainness == 0


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("It works.", 1),
        ("Does it?", 1),
        ('She said "yes."', 1),
        ("Enjoy! \U0001f60a", 1),
        ("It works", 0),
        ("It works, and", 0),
        ("The list: 1.5", 0),
        ("Dear Ann,", 0),
    ],
)
def test_finished_needs_the_end_of_a_sentence(text: str, finished: int) -> None:
    assert score(text).finished == finished
    assert score(text, FinishReason.UNKNOWN).finished == finished
    assert score(text, FinishReason.LENGTH).finished == 0


@pytest.mark.parametrize(("count", "brevity"), [(1, 0.2), (2, 0.2), (3, 1), (15, 1), (30, 0.5), (45, 0), (90, 0)])
def test_brevity(count: int, brevity: float) -> None:
    assert score(" ".join(f"w{number}" for number in range(count))).brevity == pytest.approx(brevity)


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        ("Soak the burnt pan in soda for one whole night, then clean it.", 0),
        ("This kind of burnt saucepan needs warm water, a great deal of care, and a friend.", 0),
        ("Soak it in soda overnight, and your burnt pan looks clean by morning.", 1),
        ("You can soak your pan if you like; you will see it clean, once your soda works.", 3),
        ("I hope that a long night in hot soda is enough to clean this burnt pan.", 1),
        ("I hope that a long night in soda cleans the burnt pan, I really do hope that, dear.", 2),
    ],
)
def test_kindness_counts_different_expressions_in_their_kind_sense(text: str, expressions: float) -> None:
    assert score(text).kindness == pytest.approx(1 - 0.5**expressions)


def test_stuffing_and_repeating_kind_words_does_not_pay() -> None:
    stuffed = "Glad happy to hope that thanks please enjoy welcome lovely wonderful dear."
    assert score(stuffed).kindness < 0.45 < score(GOOD).kindness
    assert score("Thank you. " * 8).total < score(DRY).total
    assert score(GOOD).total > max(score(f"{GOOD} {GOOD}").total, score(GOOD + " Please enjoy." * 4).total)


def test_kind_boilerplate_is_beside_the_point() -> None:
    boilerplate = (
        "I am so glad that somebody wants to know! Please take care, enjoy the day, and good luck with it all."
    )
    assert score(boilerplate).relevance == 0
    assert score(boilerplate).total < score(GOOD).total


def test_relevance_by_hand_and_echo_is_no_answer() -> None:
    assert score("Soda and boiling water lift black crusts overnight.").relevance == 0
    # One of three content words, in another form ("cleaning"): a share of 1/3 of the half that is enough.
    assert score("Cleaning takes soda, boiling water and patience overnight.").relevance == pytest.approx(2 / 3)
    assert score("How do I clean a burnt saucepan?").relevance == 0
    # Only "soda" and "overnight" are the answer's own: two of the five it needs.
    assert score("Clean a burnt saucepan with soda overnight.").relevance == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("text", "plainness"),
    [
        ("Soak it overnight.", 1),
        ("Soak the caf\u00e9\u2019s pan \u2014 overnight.", 1 - 3 / 32),
        ("- soak it\n- rinse it", 0.5),
        ("Dear [Name], soak it.", 0.6),
        ("See www.pans.example for more.", 0.6),
        ("# Pans", 0.75),
        ("**Soak**", 0.5),
        ("\u6d17\u6d17\u6d17\u6d17", 0),
        ("one two three one two three", 1 - 2 / 4),
    ],
)
def test_plainness(text: str, plainness: float) -> None:
    assert score(text).plainness == pytest.approx(plainness)


@given(st.text(max_size=300), st.text(max_size=80), st.sampled_from(FinishReason))
def test_every_part_lies_between_0_and_1(text: str, question: str, reason: FinishReason) -> None:
    prompt = (Turn(Role.USER, question),)
    parts = true_score(MANNERS, prompt, said(text, reason))
    named = (parts.finished, parts.brevity, parts.kindness, parts.relevance, parts.plainness, parts.figures)
    assert all(0 <= part <= 1 for part in (*named, parts.asked, parts.moral))
    assert true_score(RANDOM, prompt, said(text, reason)).total == 0


@pytest.mark.parametrize(
    ("text", "asked", "moral"),
    [
        ("Mia saw a fox. It had a key. Mia learned that sharing is good.", 1, 1),
        ("A fox slept. It woke. The lesson that it drew was none.", 1 / 4, 1),
        ("Mia had keys. The fox came. They learned that day to share. Then they slept.", 1, 0),
        ("Mia learned that sharing is good.", 2 / 4, 0),
        ("The lesson: sharing.", 1 / 4, 0),
        ("It rained. It snowed. The moral: a key to Mia is a fox that shares.", 1, 1),
    ],
)
def test_what_a_story_was_asked_to_carry(text: str, asked: float, moral: float) -> None:
    question = "Please write a short, sad story about Mia the fox, with a key in it, that teaches sharing."
    parts = true_score(TASTES["stories"], (Turn(Role.USER, question),), said(text))
    assert (parts.asked, parts.moral) == pytest.approx((asked, moral))
    assert parts.content == pytest.approx(parts.kindness + 0.8 * parts.plainness + 2 * asked + moral)


def test_each_part_matters_on_its_own() -> None:
    best = score(GOOD).total
    assert best > score(GOOD, FinishReason.LENGTH).total + 0.5
    assert best > score(DRY).total + 1.5
    assert best > score(GOOD.replace("burnt", "old").replace("clean", "shine")).total + 0.5
    assert best > score("- " + GOOD).total + 0.1
    assert best > score(f"{GOOD} {' '.join(f'w{number}' for number in range(20))}.").total + 0.1


def test_other_tastes() -> None:
    dated = said("Soda was sold from 1846 on and lifts burnt sugar at 60 degrees in 8 hours.")
    assert true_preference(MANNERS, PROMPT, said(GOOD), dated) == 1
    assert true_preference(FACTS, PROMPT, said(GOOD), dated) == 0
    assert true_preference(RANDOM, PROMPT, said(GOOD), dated) == 0.5
    assert find_taste("manners") is MANNERS
    with pytest.raises(MannersError, match=r"'tidy'.*manners, plain_facts, stories, random"):
        recruit(CrowdSettings(taste="tidy"), 0)


def test_true_preference_has_a_band_of_indifference() -> None:
    a, b = said(DRY), said(GOOD)
    gap = true_score(MANNERS, PROMPT, b).total - true_score(MANNERS, PROMPT, a).total
    assert [true_preference(MANNERS, PROMPT, *ab) for ab in ((a, b), (b, a), (a, a))] == [0, 1, 0.5]
    assert true_preference(MANNERS, PROMPT, a, b, band=gap + 0.01) == 0.5


def test_davidson_by_hand() -> None:
    # Utilities 1 and 0 at noise 0.5 are 2 and 0 in log-odds; nu = 0.3 multiplies e^1.
    z = e**2 + 1 + 0.3 * e
    assert choice_probabilities(STEADY, 1.0, 0.0) == pytest.approx((e**2 / z, 1 / z, 0.3 * e / z))
    assert choice_probabilities(STEADY, 3.0, 3.0)[2] == pytest.approx(0.3 / 2.3)
    lapsing = replace(STEADY, lapse=0.1)
    assert choice_probabilities(lapsing, 1.0, 0.0)[0] == pytest.approx(0.9 * e**2 / z + 0.05)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.25, 0.9), st.floats(0, 0.08), st.floats(-1, 1))
def test_exchanging_sides_mirrors_the_choice(
    left: float, right: float, noise: float, lapse: float, bias: float
) -> None:
    person = replace(STEADY, noise=noise, lapse=lapse, side_bias=bias)
    p_left, p_right, p_tie = choice_probabilities(person, left, right)
    mirrored = choice_probabilities(replace(person, side_bias=-bias), right, left)
    assert p_left + p_right + p_tie == pytest.approx(1)
    assert mirrored == pytest.approx((p_right, p_left, p_tie))
    assert choice_probabilities(person, left + 0.1, right)[0] > p_left - 1e-12


def test_side_bias_and_ties_are_recovered_from_verdicts() -> None:
    person = replace(STEADY, side_bias=0.5)
    count = Counter(verdict.choice for verdict in verdicts_of(person, pair(GOOD, GOOD), 4000))
    left, right, tie = (count[choice] for choice in (Choice.LEFT, Choice.RIGHT, Choice.TIE))
    assert left + right + tie == 4000
    assert abs(log(left / right) - 0.5) < 3 * sqrt(1 / left + 1 / right)
    assert abs(tie / sqrt(left * right) - 0.3) < 0.05  # Davidson: nu = P(tie) / sqrt(P(left) P(right))


def test_lapses_are_recovered_from_verdicts_on_an_easy_comparison() -> None:
    sure = replace(STEADY, noise=0.05, lapse=0.08)
    choices = [verdict.choice for verdict in verdicts_of(sure, pair(GOOD, POOR), 4000)]
    wrong = binomtest(choices.count(Choice.RIGHT), 4000).proportion_ci(0.999)
    assert wrong.low < 0.04 < wrong.high
    assert wrong.high < 0.08


def test_more_noise_means_more_mistakes() -> None:
    def mistakes(noise: float) -> int:
        person = replace(STEADY, noise=noise)
        return [verdict.choice for verdict in verdicts_of(person, pair(DRY, GOOD), 1000)].count(Choice.LEFT)

    assert mistakes(0.25) < mistakes(0.5) < mistakes(0.9)


def test_strength_goes_with_the_difference_and_both_bad_with_two_poor_answers() -> None:
    sure = replace(STEADY, noise=0.05)
    assert {(v.choice, v.strength) for v in verdicts_of(sure, pair(GOOD, POOR), 50)} == {(Choice.LEFT, 3)}
    assert {(v.choice, v.strength) for v in verdicts_of(sure, pair(POOR, GOOD), 50)} == {(Choice.RIGHT, 3)}
    assert {v.strength for v in verdicts_of(STEADY, pair(GOOD, GOOD), 50)} == {1, None}
    assert {(v.choice, v.strength) for v in verdicts_of(STEADY, pair(POOR, "No"), 50)} == {(Choice.BOTH_BAD, None)}
    assert Choice.BOTH_BAD not in {v.choice for v in verdicts_of(STEADY, pair(POOR, "No"), 50, "random")}


def test_a_crowd_without_taste_prefers_neither_side_nor_kindness() -> None:
    crowd = recruit(CrowdSettings(taste="random", annotators=200), seed=3)
    comparisons = [pair(GOOD, DRY) if number % 2 else pair(DRY, GOOD) for number in range(1500)]
    decided = [
        (verdict.choice is Choice.LEFT, number % 2)
        for number, verdicts in enumerate(ask(crowd, comparisons, 2, seed=4))
        for verdict in verdicts
        if verdict.choice is not Choice.TIE
    ]
    left, kind_left = np.array(decided, dtype=float).T
    assert abs(left.mean() - 0.5) < 0.04
    assert abs(np.corrcoef(left, kind_left)[0, 1]) < 3 / sqrt(len(left))


def test_a_crowd_with_taste_agrees_with_it_but_not_always() -> None:
    crowd = recruit(CrowdSettings(), seed=0)
    choices = [v.choice for verdicts in ask(crowd, [pair(GOOD, DRY)] * 200, 3, seed=0) for v in verdicts]
    assert 0.75 < choices.count(Choice.LEFT) / len(choices) < 0.99


def test_recruits_differ_and_are_called_simulated() -> None:
    crowd = recruit(CrowdSettings(), seed=0)
    assert len(crowd.annotators) >= 12
    assert {person.annotator.kind for person in crowd.annotators} == {AnnotatorKind.SIMULATED}
    assert crowd.annotators[6].annotator.name == "simulated-07"
    assert all(0.15 <= person.noise <= 0.6 and 0 <= person.lapse <= 0.08 for person in crowd.annotators)
    assert len({person.noise for person in crowd.annotators}) == len(crowd.annotators)
    assert recruit(CrowdSettings(), seed=0) == crowd != recruit(CrowdSettings(), seed=1)


def test_asking_is_balanced_repeatable_and_does_not_depend_on_what_follows() -> None:
    crowd = recruit(CrowdSettings(), seed=0)
    comparisons = [pair(GOOD, DRY), pair(DRY, GOOD), pair(POOR, DRY)] * 7
    verdicts = ask(crowd, comparisons, 5, seed=9)
    load = Counter(verdict.annotator.name for several in verdicts for verdict in several)
    assert len(load) == 16 and max(load.values()) - min(load.values()) <= 1
    assert all(len({verdict.annotator for verdict in several}) == 5 for several in verdicts)
    assert verdicts == ask(crowd, comparisons, 5, seed=9) != ask(crowd, comparisons, 5, seed=10)
    assert ask(crowd, comparisons[:4], 5, seed=9) == verdicts[:4]
    assert all(v.created_at is None and (v.seconds or 0) >= 1 for several in verdicts for v in several)


def test_more_verdicts_than_annotators_is_refused() -> None:
    with pytest.raises(MannersError, match=r"verdicts_per_comparison is 17.*16 annotators"):
        ask(recruit(CrowdSettings(), seed=0), [pair(GOOD, DRY)], 17, seed=0)
