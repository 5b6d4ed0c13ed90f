"""How often people err, as they contradict each other, and what training makes of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from manners.errors import MannersError
from manners.models.pretrained import Pretrained
from manners.reward.labelled import Counts, LabelledPair, Voice
from manners.reward.noise import LEAST, by_reliability, flip_rate, smoothed, softened, trust
from manners.reward.train import Trained, train
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
)
from tests.reward.planted import WORDS, turned
from tests.worlds import tiny_pretrained

SETTINGS = RewardSettings(members=1, epochs=3, batch=8, learning_rate=0.01, set_aside=0.35, curve=False)
SKILL = {"anna": 0.95, "ben": 0.95, "cara": 0.9, "dora": 0.5, "emil": 0.5, "fay": 0.5}
"""Chance that somebody chooses the polite side."""
PEOPLE = {name: Annotator(name, AnnotatorKind.HUMAN) for name in SKILL}


def comparisons(count: int, skill: dict[str, float], each: int, seed: int = 0) -> list[Comparison]:
    """Make comparisons of a polite answer with another one, each judged by so many of these people."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        plain, polite = (" ".join(rng.sample(WORDS, 4)) for _ in range(2))
        texts, polite_left = [f"{polite} thank you.", plain], rng.random() < 0.5
        left, right = (Response(t, "initial", FinishReason.STOP) for t in texts[:: 1 if polite_left else -1])
        liked, other = (Choice.LEFT, Choice.RIGHT)[:: 1 if polite_left else -1]
        who = rng.sample(sorted(skill), each)
        verdicts = tuple(Verdict(liked if rng.random() < skill[name] else other, PEOPLE[name]) for name in who)
        prompt = (Turn(Role.USER, f"question {number}"),)
        made.append(Comparison(prompt, left, right, AskedHow.RANDOM, 1.0, verdicts, id=number + 1))
    return made


def pairs_of(some: Sequence[Comparison]) -> tuple[LabelledPair, ...]:
    return label(some).pairs


def agreeing(one: Comparison) -> bool:
    return one.verdicts[0].choice is one.verdicts[1].choice


def counted(left: int, right: int, tie: int = 0) -> LabelledPair:
    """A pair with so many verdicts; those of one choice come after those of the one before."""
    counts = Counts(float(left), float(right), float(tie))
    choices = [Choice.LEFT] * left + [Choice.RIGHT] * right + [Choice.TIE] * tie
    voices = tuple(Voice(Annotator(f"p{n}", AnnotatorKind.HUMAN), choice, 1.0) for n, choice in enumerate(choices))
    prompt = (Turn(Role.USER, "?"),)
    return LabelledPair(1, prompt, Response("a", "x"), Response("b", "x"), counts, counts, 0, "?", voices=voices)


def test_the_rate_by_hand() -> None:
    # Three pairs of four agree: (1 - e)^2 + e^2 = 3/4. Ties and single verdicts say nothing.
    said = [counted(2, 0)] * 9 + [counted(0, 2, 1)] * 6 + [counted(1, 1)] * 5 + [counted(1, 0)] * 30
    assert flip_rate(said) == pytest.approx((1 - 0.5**0.5) / 2)
    assert flip_rate([counted(1, 1)] * 20) == 0.5 and flip_rate([counted(3, 0)] * 20) == 0
    # A third is often there just because the first two differ, so it says nothing; nor do ties that agree.
    assert flip_rate([counted(2, 1)] * 20) == 0 and flip_rate([counted(1, 2)] * 20) == 0.5
    assert flip_rate([counted(1, 1, 2)] * 20) == 0.5
    with pytest.raises(MannersError, match="but 19 of those"):
        flip_rate([counted(2, 0)] * 19 + [counted(1, 0)] * 30)


@pytest.mark.parametrize("skill", [0.95, 0.8])
def test_the_rate_is_that_of_a_crowd_that_errs(skill: float) -> None:
    crowd = dict.fromkeys(SKILL, skill)
    assert flip_rate(pairs_of(comparisons(2000, crowd, 3))) == pytest.approx(1 - skill, abs=0.02)


@pytest.mark.parametrize("skill", [0.9, 0.8])
def test_where_asking_stops_at_agreement_the_rate_is_still_that_of_the_crowd(skill: float) -> None:
    """The third is asked where the first two differ: `serve.overlap` = 3 and `serve.agree` = 2."""
    asked = comparisons(4000, dict.fromkeys(SKILL, skill), 3)
    stopped = [replace(one, verdicts=one.verdicts[: 2 if agreeing(one) else 3]) for one in asked]
    assert flip_rate(pairs_of(stopped)) == pytest.approx(1 - skill, abs=0.02)


def test_what_was_drawn_because_the_model_disagreed_tells_nothing_of_people() -> None:
    """Of the hard ones people know nothing; nor does asking again make a verdict on one of them fair."""
    easy = comparisons(1000, dict.fromkeys(SKILL, 0.9), 2)
    hard = [
        replace(one, verdicts=tuple(replace(v, drawn=DrawnHow.DISAGREEMENT) for v in one.verdicts))
        for one in comparisons(1000, dict.fromkeys(SKILL, 0.5), 2, seed=1)
    ]
    assert flip_rate(pairs_of([*easy, *hard])) == flip_rate(pairs_of(easy)) == pytest.approx(0.1, abs=0.03)
    again = [replace(one, verdicts=(*one.verdicts, replace(one.verdicts[0], drawn=DrawnHow.REPEAT))) for one in hard]
    with pytest.raises(MannersError, match=r"none of them drawn by disagreement.* but 0 of those"):
        flip_rate(pairs_of(again))


def test_a_share_counts_for_the_other_side() -> None:
    [found] = smoothed([replace(counted(3, 1), weights=Counts(3.0, 1.0, 2.0))], 0.1)
    assert tuple(found.weights) == pytest.approx((2.8, 1.2, 2.0)) and tuple(found.counts) == (3, 1, 0)


def test_who_clicks_at_random_weighs_little_and_all_together_as_before() -> None:
    pairs = pairs_of(comparisons(600, SKILL, 3))
    known = trust(pairs)
    for name, skill in SKILL.items():
        assert known[PEOPLE[name]] == pytest.approx(max(LEAST, 2 * skill - 1), abs=0.12), name
    found = by_reliability(pairs)
    total = sum(sum(pair.weights) for pair in pairs)
    assert sum(sum(pair.weights) for pair in found) == pytest.approx(total)
    assert [pair.counts for pair in found] == [pair.counts for pair in pairs]
    # A pair of a careful person against two careless ones goes to the one.
    against = [
        place
        for place, pair in enumerate(pairs)
        if {v.who.name for v in pair.voices if v.choice is Choice.LEFT} == {"anna"}
        and {v.who.name for v in pair.voices if v.choice is Choice.RIGHT} <= {"dora", "emil", "fay"}
    ]
    assert against and all(found[at].weights.left > found[at].weights.right for at in against)
    assert all(pairs[at].weights.left < pairs[at].weights.right for at in against)


def test_who_is_not_known_is_taken_for_as_reliable_as_the_rest() -> None:
    pairs = pairs_of(comparisons(200, {name: SKILL[name] for name in ("anna", "ben", "cara")}, 2))
    alone = pairs_of(comparisons(1, {"dora": 1.0}, 1))
    known = trust([*pairs, *alone])
    assert set(known) == {PEOPLE[name] for name in ("anna", "ben", "cara")}
    found = by_reliability([*pairs, *alone])[-1]
    usual = sum(known.values()) / len(known)
    mean = sum(v.weight * known[v.who] for pair in pairs for v in pair.voices) / sum(sum(p.weights) for p in pairs)
    assert sum(found.weights) == pytest.approx(usual / mean, rel=0.01)


def test_who_contradicts_all_others_keeps_a_twentieth_of_their_weight() -> None:
    known = trust(pairs_of(comparisons(20, {"anna": 1.0, "ben": 1.0, "cara": 0.0}, 3)))
    assert known[PEOPLE["cara"]] == 0.05 and known[PEOPLE["anna"]] > 0.5


def test_it_takes_ten_verdicts_of_a_person_that_others_have_judged_and_twenty_such_pairs() -> None:
    sure = {"anna": 1.0, "ben": 1.0}
    shared, alone = pairs_of(comparisons(10, sure, 2)), pairs_of(comparisons(5, {"dora": 1.0}, 1))
    of_dora = pairs_of(comparisons(10, {"anna": 1.0, "dora": 1.0}, 2))
    assert set(trust([*shared, *of_dora])) == {PEOPLE[name] for name in ("anna", "ben", "dora")}
    nine = [*pairs_of(comparisons(11, sure, 2)), *of_dora[:9], *alone]
    assert set(trust(nine)) == {PEOPLE["anna"], PEOPLE["ben"]}, "what nobody else has judged says nothing of her"
    of_each = comparisons(30, dict.fromkeys(SKILL, 1.0), 2)
    strangers = [
        replace(
            c,
            verdicts=tuple(
                replace(v, annotator=Annotator(f"{v.annotator.name} {c.id}", v.annotator.kind)) for v in c.verdicts
            ),
        )
        for c in of_each
    ]
    for too_few, count in ([*shared, *of_dora[:9]], 19), (pairs_of(strangers), 30):
        with pytest.raises(MannersError, match=f"but {count} of those"):
            trust(too_few)


@pytest.mark.parametrize("setting", ["smoothing", "reliability"])
def test_of_too_few_that_several_have_judged_nothing_is_said(setting: str) -> None:
    settings = replace(SETTINGS, smoothing=setting == "smoothing", reliability=setting == "reliability")
    alone = pairs_of(comparisons(200, SKILL, 1))
    with pytest.raises(MannersError, match=rf"reward\.{setting} goes by how far people agree.* but 0 of those"):
        softened(alone, settings)
    assert softened(alone, SETTINGS) == alone


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def test_what_is_set_aside_has_no_part_in_it(world: Pretrained) -> None:
    settings = replace(SETTINGS, epochs=1, reliability=True, smoothing=True)
    some = comparisons(40, SKILL, 3)
    found, plain = train(settings, 0, world, some), train(replace(SETTINGS, epochs=1), 0, world, some)
    assert found.split.held_out == plain.split.held_out and not np.array_equal(found.margins, plain.margins)
    held = {pair.comparison_id for pair in found.split.held_out}
    lying = [turned(c) if c.id in held and n % 2 else c for n, c in enumerate(some)]
    assert torch.equal(train(settings, 0, world, lying).margins, found.margins)


def knows(trained: Trained) -> float:
    """Return how often the polite side is above the other, on pairs set aside."""
    polite = np.array(["thank" in pair.left.text for pair in trained.split.held_out])
    return float(np.mean((np.asarray(trained.margins) > 0) == polite))


@pytest.mark.long
def test_a_noisy_crowd_is_not_overtrusted(world: Pretrained) -> None:
    # Two of three verdicts are a coin's. That trust makes the model better there is not claimed (docs/reward.md).
    crowd = {name: 0.95 if name == "anna" else 0.5 for name in ("anna", "dora", "emil")}
    some = comparisons(120, crowd, 3)
    plain, trusted = train(SETTINGS, 0, world, some), train(replace(SETTINGS, reliability=True), 0, world, some)
    assert min(knows(plain), knows(trusted)) > 0.8
    soft = train(replace(SETTINGS, smoothing=True), 0, world, some)
    assert float(soft.margins.abs().mean()) < 0.8 * float(plain.margins.abs().mean())
