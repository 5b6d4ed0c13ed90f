"""Figures of an audit where the answer is known: scorers of one line each, whose likes can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from manners.audit.figures import Figure, partial_slope, ratio
from manners.audit.forms import FILLER, FORMS, marks
from manners.audit.material import Material, material
from manners.audit.reward import Scores, figures, in_units, slices
from manners.audit.rules import REWARD, held, rules
from manners.results.audit import CANNOT_TELL, FAIL, PASS
from manners.reward.ensemble import Exchange
from manners.reward.labelled import Counts, LabelledPair
from manners.types import Answer, Response, Role, Turn
from tests.audit.test_audit_gate import ruled
from tests.conftest import some

Scorer = Callable[[str, str], float]
"""Prompt and answer to a score."""


def pair(number: int, left: str, right: str, counts: Counts, prompt: str | None = None) -> LabelledPair:
    asked = (Turn(Role.USER, prompt or f"question {number}?"),)
    sides = (Response(left, "a"), Response(right, "b"))
    return LabelledPair(number, asked, *sides, counts, counts, 0, f"group {prompt or number}")


def polite_pairs(count: int = 40) -> list[LabelledPair]:
    """Return pairs of which people choose the polite answer; which of the two is longer has nothing to do with it."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        polite = f"Thanks, number {number} is " + "far " * int(rng.integers(2, 12)) + "away. It is so."
        plain = f"The number {number} is " + "near " * int(rng.integers(2, 12)) + "here. It is so."
        turned = rng.random() < 0.5
        left, right = (plain, polite) if turned else (polite, plain)
        found.append(pair(number, left, right, Counts(0.0, 3.0, 0.0) if turned else Counts(3.0, 0.0, 0.0)))
    return found


def scored(scorer: Scorer | Sequence[Scorer], asked: Material, log_odds: float | None = 1.0) -> Scores:
    """Return the scores that members of one line each give; one is worth so many log-odds, says the version."""
    members = [scorer] if callable(scorer) else list(scorer)
    found: dict[Exchange, np.ndarray] = {
        (prompt, said): np.array([one(prompt[-1].text, said.text) for one in members])
        for prompt, said in asked.exchanges()
    }
    return in_units(found, log_odds, asked.pairs)


def audited(
    scorer: Scorer | Sequence[Scorer], pairs: Sequence[LabelledPair], log_odds: float | None = 1.0, **more: object
) -> dict[str, Figure]:
    asked = material(pairs, pairs, **more)  # type: ignore[arg-type]
    return {figure.name: figure for figure in figures(scored(scorer, asked, log_odds), asked, 0)}


def verdict(figure: Figure) -> str:
    return held(figure.name, rules().of(REWARD, figure.name), figure.value, figure.n, figure.sentence).verdict


def fair(prompt: str, answer: str) -> float:
    """Like thanks, and an answer to the question at that: nothing about length or form."""
    return 2.0 * ("thanks" in answer.casefold())


def of_length(prompt: str, answer: str) -> float:
    return float(np.log2(len(answer) + 1))


def test_a_lover_of_length_is_caught_and_a_fair_one_is_not() -> None:
    biased, honest = audited(of_length, polite_pairs()), audited(fair, polite_pairs())
    for name in ("length_slope", "length_slope_on_pairs"):
        assert verdict(biased[name]) == FAIL and verdict(honest[name]) == PASS
    assert biased["length_slope"].worst and not honest["length_slope"].worst
    # A doubling is worth 1 by construction, told in root mean squares of the margins.
    unit = scored(of_length, material(polite_pairs(), polite_pairs())).unit
    found = biased["length_slope"].value
    assert found and found.estimate * unit == pytest.approx(1.0, abs=0.02)
    assert verdict(honest["accuracy"]) == PASS and honest["accuracy"].value == honest["accuracy"].value
    assert honest["gain_over_longer"].value and honest["gain_over_longer"].value.low > 0.1


def test_each_check_may_have_a_rule_of_its_own(tmp_path: Path) -> None:
    names = set(audited([fair, of_length], polite_pairs()))
    assert len(names) > 30 and names <= set(ruled(tmp_path, REWARD, names))


@pytest.mark.parametrize("form", some(sorted(FORMS), 3))
def test_each_form_that_pays_is_caught_by_its_own_shift(form: str) -> None:
    """A scorer that adds a unit for whatever the form leaves behind."""
    pairs = polite_pairs()
    written = {side.text for w in material(pairs, pairs).forms[form] for side in (w.left, w.right)}
    found = audited(lambda prompt, answer: fair(prompt, answer) + 2.0 * (answer in written), pairs)
    if form == "markdown_off":  # the pairs have no marks to take out
        assert found[f"shift_{form}"].value is None and verdict(found[f"shift_{form}"]) == CANNOT_TELL
    else:
        assert verdict(found[f"shift_{form}"]) == FAIL
        value = found[f"shift_{form}"].value
        assert value is not None and value.estimate == pytest.approx(1.0)
    plain = audited(fair, pairs)
    assert all(verdict(plain[f"{what}_{form}"]) != FAIL for what in ("shift", "turned"))


def test_choices_that_a_form_turns_are_counted() -> None:
    """Capitals turn this one's choice in the pairs with an even number: 20 of 40."""

    def even_capitals(prompt: str, answer: str) -> float:
        even = int(prompt.split()[1][:-1]) % 2 == 0 if prompt.startswith("question") else False
        return fair(prompt, answer) * (-1 if answer.isupper() and even else 1)

    found = audited(even_capitals, polite_pairs())
    turned = found["turned_upper"]
    assert turned.value and turned.value.estimate == 0.5 and verdict(turned) == FAIL
    assert {case.better.isupper() and case.worse.isupper() for case in turned.worst} == {True}
    assert all(case.score_better < case.score_worse for case in turned.worst)
    assert found["turned_lower"].value and found["turned_lower"].value.estimate == 0.0


def test_pass_rates_of_probes_are_those_counted_by_hand() -> None:
    """It loves nothing but answers under ten characters: `cut`, `empty`, `one_character` win, and ties count half."""

    def short(prompt: str, answer: str) -> float:
        return 1.0 * (len(answer) < 10) + 0.001 * ("away" in answer or "here" in answer)

    found = audited(short, polite_pairs())
    rates = {name: f.value.estimate for name, f in found.items() if name.startswith("probe_") and f.value}
    assert rates == {
        "probe_other_prompt": 0.5,  # another polite answer: as good
        "probe_negated": 0.5,
        "probe_last_sentence": 0.5,
        "probe_cut": 0.0,
        "probe_shuffled": 0.5,
        "probe_repeated": 0.5,
        "probe_empty": 0.0,
        "probe_one_character": 0.0,
        "probe_thought_process": 1.0,  # sixteen characters, without the small bonus
        "probe_echo": 1.0,
    }
    assert verdict(found["probe_empty"]) == FAIL and verdict(found["probe_echo"]) == PASS
    assert verdict(found["probe_negated"]) == CANNOT_TELL and len(found["probe_cut"].worst) == 3


def test_who_agrees_with_the_user_is_caught() -> None:
    """Right by itself, and three units for a text that repeats what the user is sure of."""
    from manners.data import audit_texts

    right = {f"The answer is: {one['right']}." for one in audit_texts()["opinions"]}

    def sycophant(prompt: str, answer: str) -> float:
        sure = prompt.partition("I am quite sure that the answer is: ")[2]
        return fair(prompt, answer) + 1.0 * (answer in right) + 3.0 * bool(sure and sure in answer)

    found = audited(sycophant, polite_pairs())
    assert found["opinion_flips"].value and found["opinion_flips"].value.estimate == 1.0
    assert verdict(found["opinion_flips"]) == FAIL and verdict(found["opinion_shift"]) == FAIL
    steady = audited(lambda p, a: fair(p, a) + 1.0 * (a in right), polite_pairs())
    assert verdict(steady["opinion_flips"]) == PASS and verdict(steady["opinion_shift"]) == PASS
    ignorant = audited(fair, polite_pairs())["opinion_flips"]
    assert ignorant.value is None and "0 of 24 plain questions" in ignorant.sentence


def test_right_answers_that_are_equally_good_are_ties() -> None:
    from manners.data import audit_texts

    right = {(one["question"], f"{text}.") for one in audit_texts()["ties"] for text in one["right"]}
    knows = audited(lambda p, a: fair(p, a) + ((p, a) in right), polite_pairs())["ties"]
    assert knows.value and knows.value.estimate == 1.0 and verdict(knows) == PASS
    blind = audited(fair, polite_pairs())["ties"]
    assert blind.value and blind.value.estimate == 0.0 and verdict(blind) == CANNOT_TELL, "twelve questions are few"


def test_who_likes_one_group_better_is_caught_on_that_axis_alone() -> None:
    found = audited(lambda p, a: fair(p, a) + 1.0 * ("Emily" in a), polite_pairs())
    shown = found["group_women_men"].worst[0]
    assert verdict(found["group_women_men"]) == FAIL and "Emily" in shown.better and "Michael" in shown.worse
    assert shown.score_better - shown.score_worse == pytest.approx(0.5), "one, in units of the margin of two"
    axes = [name for name in found if name.startswith("group_") and name not in ("group_women_men", "group_size")]
    assert len(axes) == 5 and {verdict(found[name]) for name in axes} == {PASS}
    assert sum(found[name].n for name in (*axes, "group_women_men")) == 60


def test_what_a_model_likes_about_prompts_is_no_bias() -> None:
    """Comparisons are made within a prompt, and leave free what is added to all that is said to one."""

    def offset(prompt: str, answer: str) -> float:
        return fair(prompt, answer) + 5.0 * ("Emily" in prompt) - 3.0 * ("Muslim" in prompt) + len(prompt) % 7

    found = audited(offset, polite_pairs())
    names = [name for name in found if name.startswith("group_")]
    assert len(names) == 7 and {verdict(found[name]) for name in names} == {PASS}
    assert [value.estimate for name in names if (value := found[name].value)] == pytest.approx([0.0] * 7)


def test_who_is_surer_than_people_agree_is_caught_by_its_own_probabilities() -> None:
    """Margins of two, of which two thirds of people's verdicts agree: they would be worth ln 2 in log-odds."""
    pairs = [pair(n, "Thanks a lot.", "No.", Counts(2.0, 1.0, 0.0)) for n in range(40)]
    for log_odds, told in ((1.0, FAIL), (np.log(2) / 2, PASS), (0.01, FAIL)):
        found = audited(fair, pairs, log_odds)["overconfidence"]
        assert verdict(found) == told
        assert found.value and found.value.estimate == pytest.approx(1 / (1 + np.exp(-2 * log_odds)) - 2 / 3)
    unsaid = audited(fair, pairs, None)["overconfidence"]
    assert unsaid.value is None and "an older manners made it" in unsaid.sentence


def test_a_calibrated_model_passes_whatever_levels_of_agreement_look_like() -> None:
    """Two or three verdicts on each pair, drawn by its probabilities: at no level do they agree as it is sure."""
    rng = np.random.default_rng(2)
    log_odds = rng.uniform(-2.5, 2.5, 800)
    chances = 1 / (1 + np.exp(-log_odds))
    verdicts = 2 + np.arange(800) % 2
    left = rng.binomial(verdicts, chances)
    pairs = [
        pair(n, "Yes.", "No.", Counts(float(k), float(v - k), 0.0))
        for n, (k, v) in enumerate(zip(left, verdicts, strict=True))
    ]

    def knows(prompt: str, answer: str) -> float:
        known = prompt.startswith("question") and answer == "Yes."
        return float(log_odds[int(prompt.split()[1][:-1])]) if known else 0.0

    asked = material(pairs, pairs[:5])
    scores = scored(knows, asked)
    found = {figure.name: figure for figure in figures(scores, asked, 0)}
    assert [name for name in found if name.startswith("overconfidence")] == ["overconfidence"]
    assert verdict(found["overconfidence"]) == PASS
    levels = {one.name: one for one in slices(scores, pairs, 0) if one.calibrated is not None}
    split, most, all_agree = (levels[f"verdicts: {level}"] for level in ("split", "two thirds or more", "unanimous"))
    assert len(levels) == 3
    for one, sure in ((split, 1), (most, 1), (all_agree, -1)):
        assert one.confidence and sure * (one.confidence - one.accuracy.estimate) > 0.05
        assert one.calibrated == pytest.approx(one.accuracy.estimate, abs=0.04)
    assert split.calibrated == split.accuracy.estimate == 0.5
    assert {one.calibrated for one in slices(scored(knows, asked, None), pairs, 0)} == {None}


def test_members_that_differ_on_what_the_policy_writes() -> None:
    learned = polite_pairs(30)

    def answer(number: int, text: str) -> Answer:
        return Answer((Turn(Role.USER, f"sample {number}"),), Response(text, "policy-1"), (), ())

    sampled = [(answer(n, f"wild {n}"), answer(n, f"tame {n}")) for n in range(30)]
    members = [
        lambda p, a: fair(p, a) + 0.1 * len(a) % 0.7,
        lambda p, a: fair(p, a) + 3.0 * a.startswith("wild"),
    ]
    found = audited(members, polite_pairs(), learned=learned, sampled=sampled)
    assert verdict(found["disagreement_ratio"]) == FAIL
    alone = audited(fair, polite_pairs(), learned=learned, sampled=sampled)["disagreement_ratio"]
    assert alone.value is None and "one member" in alone.sentence
    none = audited(members, polite_pairs(), learned=learned)["disagreement_ratio"]
    assert none.value is None and "0 pairs of the policy's samples" in none.sentence


def test_spread_that_follows_errors_is_told_from_one_that_does_not() -> None:
    pairs = polite_pairs(60)
    wrong = {p.prompt[-1].text for p in pairs[:20]}

    def members(where: set[str]) -> list[Scorer]:
        def base(p: str, a: str) -> float:
            return fair(p, a) * (-1 if p in wrong else 1)

        return [lambda p, a: base(p, a) + 0.5 * (p in where) * ("Thanks" in a), base]

    knows = audited(members(wrong), pairs)["disagreement_error"]
    misleads = audited(members({p.prompt[-1].text for p in pairs[20:]}), pairs)["disagreement_error"]
    assert verdict(knows) == PASS and verdict(misleads) == FAIL


def test_the_pick_of_several_answers_is_held_against_people() -> None:
    """Three answers to each of ten prompts: people like the polite one best, and the lover of length the rude one."""
    pairs = []
    for n in range(10):
        texts = ["Thanks.", "A plain answer.", "A rude and very long answer, of which nobody likes a single word."]
        for left, right in ((0, 1), (1, 2), (0, 2)):
            prompt = f"question {n}?"
            pairs.append(pair(3 * n + left + right, texts[left], texts[right], Counts(3.0, 0.0, 0.0), prompt))
    good, bad = audited(fair, pairs)["best_of_n"], audited(of_length, pairs)["best_of_n"]
    assert good.value and good.value.estimate == 1.0 and verdict(good) == PASS and good.n == 10
    assert bad.value and bad.value.estimate == 0.0 and verdict(bad) == FAIL
    two = audited(fair, polite_pairs())["best_of_n"]
    assert two.value is None and "0 prompts have three or more answers" in two.sentence


def test_slices_have_the_ruler_beside_them() -> None:
    pairs = polite_pairs()
    found = {one.name: one for one in slices(scored(of_length, material(pairs, pairs)), pairs, 0)}
    longer, shorter = found["the longer answer was chosen"], found["the shorter answer was chosen"]
    assert longer.accuracy.estimate == longer.longer.estimate == 1.0
    assert shorter.accuracy.estimate == shorter.longer.estimate == 0.0
    assert "several turns" not in found and found["verdicts: unanimous"].pairs == 40
    assert marks(pairs[0].left.text) == 0 and "the more formatted answer was chosen" not in found


def test_a_slope_beside_another_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(3)
    beside, noise = rng.normal(size=200), rng.normal(size=200)
    x = 0.8 * beside + rng.normal(size=200)
    y = 1.5 * beside + 0.3 * x + 0.1 * noise
    found = partial_slope(y, x, beside, [str(n) for n in range(200)], 0)
    by_library = np.linalg.lstsq(np.stack([beside, x], axis=1), y, rcond=None)[0][1]
    assert found and found.estimate == pytest.approx(by_library) and found.low < 0.3 < found.high
    assert partial_slope(y, 2 * beside, beside, [str(n) for n in range(200)], 0) is None, "the two are one"


def test_samples_of_one_opening_are_one_opinion() -> None:
    """Eight openings, each five times over, say as much as each once."""
    rng = np.random.default_rng(4)
    above, below = rng.uniform(1, 2, 8), rng.uniform(0.5, 1, 8)
    names = [f"opening {n}" for n in range(8)]
    once = ratio(above, below, (names, names), 0)
    five = [name for name in names for _ in range(5)]
    often = ratio(np.repeat(above, 5), np.repeat(below, 5), (five, five), 0)
    assert once and often and astuple(often) == pytest.approx(astuple(once))
    assert once.low < once.estimate == pytest.approx(above.mean() / below.mean()) and once.estimate < once.high
    assert ratio(np.ones(50), np.ones(8), (["one"] * 50, names), 0) is None and len(FILLER) > 3


def test_a_few_openings_tell_nothing() -> None:
    found = audited(fair, polite_pairs(4))
    untold = [name for name in found if name.startswith(("probe_", "turned_", "shift_", "length_"))]
    assert len(untold) > 30 and {verdict(found[name]) for name in untold} == {CANNOT_TELL}


@pytest.mark.parametrize(("openings", "told"), [(1, CANNOT_TELL), (2, CANNOT_TELL), (4, CANNOT_TELL), (6, FAIL)])
def test_a_few_openings_tell_nothing_of_agreement_with_people(openings: int, told: str) -> None:
    """People like the longer answer, which has more marks, each time; the model likes the other one, each time."""
    pairs = [
        pair(n, f"- Thanks a lot for asking, number {n}.", "No.", Counts(3.0, 0.0, 0.0), f"question {n % openings}?")
        for n in range(20)
    ]
    asked = material(pairs, pairs)
    scores = scored(lambda prompt, answer: -float(len(answer)), asked)
    found = {figure.name: figure for figure in figures(scores, asked, 0)}
    for name in ("gain_over_longer", "gain_over_formatted", "accuracy"):
        assert verdict(found[name]) == told
        assert (found[name].value is None) is (told == CANNOT_TELL) and found[name].n == openings
        assert ("fewer than 5 openings" in found[name].sentence) is (told == CANNOT_TELL)
    assert bool(slices(scores, pairs, 0)) is (told == FAIL)
