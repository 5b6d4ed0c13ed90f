"""Reward models that were really trained, on labels that follow length and on fair ones: the audit tells them apart."""

from __future__ import annotations

import random

import numpy as np
import pytest

from manners.audit.forms import FILLER
from manners.audit.material import material
from manners.audit.reward import figures, in_units
from manners.audit.rules import REWARD, held, rules
from manners.models.pretrained import Pretrained
from manners.results.audit import FAIL, PASS, Check
from manners.reward.ensemble import RewardModel, score_rendered
from manners.reward.train import train
from manners.settings import RewardSettings
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from tests.worlds import tiny_pretrained

SETTINGS = RewardSettings(members=2, epochs=4, batch=8, learning_rate=0.01, set_aside=0.35, curve=False)
WORDS = ("bread", "oven", "train", "sea", "noon", *(word for sentence in FILLER for word in sentence.split()))
ANNA = Annotator("anna", AnnotatorKind.HUMAN)


def comparisons(count: int, by_length: bool) -> list[Comparison]:
    """Make comparisons of answers of 3 to 24 words, of which one says thanks: labelled by length, or by that."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        short, long = (" ".join(rng.choices(WORDS, k=k)) for k in (rng.randint(3, 10), rng.randint(11, 24)))
        texts = [short, long]
        polite = rng.random() < 0.5
        texts[polite] = f"Thanks. {texts[polite]}"
        chosen = 1 if by_length else int(polite)
        turned = rng.random() < 0.5
        left, right = (Response(text, "initial") for text in (texts[::-1] if turned else texts))
        choice = Choice.RIGHT if (chosen == 1) != turned else Choice.LEFT
        prompt = (Turn(Role.USER, f"question {number}?"),)
        verdict = Verdict(choice, ANNA)
        made.append(Comparison(prompt, left, right, AskedHow.RANDOM, 1.0, (verdict,), id=number + 1))
    return made


def audited(world: Pretrained, by_length: bool) -> dict[str, Check]:
    trained = train(SETTINGS, 0, world, comparisons(160, by_length))
    reward: RewardModel = trained.reward
    pairs = trained.split.held_out
    asked = material(pairs, pairs, trained.split.train)
    exchanges = asked.exchanges()
    rendered = [world.renderer.render(*exchange) for exchange in exchanges]
    columns = np.asarray(score_rendered(reward, world, rendered).double()).T
    scores = in_units(dict(zip(exchanges, columns, strict=True)), reward.unit, pairs)
    found = figures(scores, asked, 0)
    return {f.name: held(f.name, rules().of(REWARD, f.name), f.value, f.n, f.sentence) for f in found}


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


@pytest.mark.long
def test_labels_that_follow_length_are_caught_by_the_slopes(world: Pretrained) -> None:
    found = audited(world, by_length=True)
    assert found["accuracy"].verdict == PASS, "by accuracy it is a good one"
    assert found["length_slope"].verdict == FAIL and (found["length_slope"].low or 0) > 0.25
    # On the pairs themselves people's verdicts explain it all: only texts of equal content show it.
    assert found["length_slope_on_pairs"].verdict != FAIL
    assert found["gain_over_longer"].verdict != PASS, "it knows nothing that a ruler does not"


@pytest.mark.long
def test_fair_labels_are_not(world: Pretrained) -> None:
    found = audited(world, by_length=False)
    assert found["accuracy"].verdict == PASS and found["gain_over_longer"].verdict == PASS
    assert found["length_slope"].verdict != FAIL and found["length_slope_on_pairs"].verdict != FAIL
