"""Camps of annotators, found in planted crowds of two tastes, and not in crowds of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from manners.reward.camps import CARE, Mixture, Said, find, fit

K = 6
APART = np.array([2.0, 0.0, 0.0, 0.0, 0.0, 0.0])


def crowd(
    rng: np.random.Generator, people: int, verdicts: int, apart: float = 1.0, share: float = 0.5
) -> tuple[Said, np.ndarray]:
    """People who agree about the margin, of whom a share wants more of what the first state is, the others less."""
    who = np.repeat(np.arange(people), verdicts)
    camp = np.where(np.arange(people) < share * people, 1.0, -1.0)
    states, margins = rng.normal(size=(len(who), K)), rng.normal(size=len(who))
    chance = expit(margins + apart * camp[who] * (states @ APART))
    left = (rng.random(len(who)) < chance).astype(float)
    return Said(margins, states, left, who, [f"group {n % 97}" for n in range(len(who))]), camp


def halves(said: Said) -> tuple[Said, Said]:
    aside = np.array([int(group.split()[1]) % 4 == 0 for group in said.groups])
    return said.of(~aside), said.of(aside)


def test_two_camps_are_two_and_everybody_is_in_theirs() -> None:
    said, camp = crowd(np.random.default_rng(0), 30, 40, share=0.7)
    learned, aside = halves(said)
    found = find(learned, aside, 30, 3, 0)
    assert found.mixture is not None and len(found.mixture.shares) == 2 and found.gain is not None
    assert found.mixture.shares[0] == pytest.approx(0.7, abs=0.06)
    assert (np.sign(0.5 - found.chances.argmax(axis=1)) == camp).all(), "the larger one comes first"
    for direction, sign in zip(found.mixture.directions, (1, -1), strict=True):
        assert direction[0] * sign > 1 and np.abs(direction[1:]).max() < 0.5
    right = {
        name: np.mean((chance > 0.5) == (aside.left == 1))
        for name, chance in (
            ("camps", found.mixture.prefers(aside, found.chances)),
            ("one", found.alone.prefers(aside, np.ones((30, 1)))),
        )
    }
    assert right["camps"] > right["one"] + 0.05


def test_ten_verdicts_place_somebody_new() -> None:
    rng = np.random.default_rng(1)
    said, _ = crowd(rng, 30, 40)
    mixture = replace(fit(said, 30, 2, 1.0, 0), scales=None)  # nobody of them is known
    assert mixture.chances(Said(np.zeros(0), np.zeros((0, K)), np.zeros(0), np.zeros(0, int), []), 1) == pytest.approx(
        mixture.shares[None]
    )
    new, camp = crowd(rng, 200, 10)
    placed = mixture.chances(new, 200).argmax(axis=1)
    first = np.sign(mixture.directions[0, 0])
    assert np.mean(np.where(placed == 0, first, -first) == camp) > 0.9


def test_with_one_camp_it_is_the_penalised_logistic_regression() -> None:
    said, _ = crowd(np.random.default_rng(2), 10, 30, apart=0.0)
    mixture = fit(said, 10, 1, 0.5, 0)
    assert mixture.scales is not None
    logits = mixture.scales[said.people] * said.margins + said.states @ mixture.directions[0]
    rest = said.left - expit(logits)
    assert said.states.T @ rest == pytest.approx(mixture.directions[0] / 0.5**2, abs=1e-2)
    assert np.bincount(said.people, said.margins * rest) == pytest.approx((mixture.scales - 1) / CARE**2, abs=1e-2)


def test_chances_are_bayes_rule() -> None:
    mixture = Mixture(np.array([[logit(0.8)], [logit(0.3)]]), 1.0, np.array([0.6, 0.4]))
    said = Said(np.zeros(2), np.ones((2, 1)), np.array([1.0, 0.0]), np.zeros(2, int), ["a", "b"])
    first, second = 0.6 * 0.8 * 0.2, 0.4 * 0.3 * 0.7
    assert mixture.chances(said, 1)[0] == pytest.approx([first / (first + second), second / (first + second)])
    one = said.of(np.array([True, False]))
    assert mixture.foretold(one, np.array([[0.6, 0.4]])) == pytest.approx([np.log(0.6 * 0.8 + 0.4 * 0.3)])
    assert mixture.prefers(one, np.array([[0.6, 0.4]])) == pytest.approx([0.6 * 0.8 + 0.4 * 0.3])


def test_of_few_people_nobody_is_told_apart() -> None:
    said, _ = crowd(np.random.default_rng(3), 5, 60)
    found = find(*halves(said), 5, 3, 0)
    assert found.mixture is None and found.gain is None and found.chances.shape == (5, 1)


@pytest.mark.long
def test_a_crowd_of_one_taste_is_one(times: int) -> None:
    rng, apart = np.random.default_rng(4), 0
    for _ in range(60 * times):
        said, _ = crowd(rng, 12, 25, apart=0.0)
        apart += find(*halves(said), 12, 2, 0).mixture is not None
    assert apart <= 4 * times


@pytest.mark.long
@pytest.mark.parametrize("how", ["half at random", "steepness apart", "a third at random"])
def test_who_is_careless_is_no_camp(how: str) -> None:
    """One taste, of which people are more or less sure: the margin with a slope of each, and nothing beside."""
    rng, apart = np.random.default_rng(5), 0
    for _ in range(20):
        people, verdicts = 12, 40
        slopes = {
            "half at random": np.where(np.arange(people) % 2 == 0, 2.0, 0.0),
            "steepness apart": np.exp(rng.normal(0, 0.8, people)),
            "a third at random": np.where(np.arange(people) % 3 == 0, 0.0, 1.0),
        }[how]
        who = np.repeat(np.arange(people), verdicts)
        states = rng.normal(size=(len(who), K))
        margins = 1.5 * states[:, 0] + 0.5 * rng.normal(size=len(who))  # the margin is itself a line in the states
        left = (rng.random(len(who)) < expit(slopes[who] * margins)).astype(float)
        said = Said(margins, states, left, who, [f"group {n % 97}" for n in range(len(who))])
        apart += find(*halves(said), people, 2, 0).mixture is not None
    assert apart <= 3, apart
