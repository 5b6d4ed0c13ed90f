"""Annotators of two tastes, from verdicts to a policy: told apart where they are, and nobody is named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manners.errors import MannersError
from manners.loop import stages
from manners.loop.round import PPO, REWARD
from manners.loop.session import Session
from manners.reward.ensemble import score_exchanges
from manners.reward.stored import load_reward
from manners.settings import RewardSettings
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
)
from tests.loop import tiny
from tests.worlds import save_tiny

WORDS = ("bread", "yeast", "oven", "train", "sea", "noon", "weather", "long", "fine", "bake")
SETTINGS = RewardSettings(members=1, epochs=2, batch=16, learning_rate=0.003, set_aside=0.3, curve=False, camps=2)


def compared(number: int, people: list[Annotator], camps: int) -> Comparison:
    """An answer that says `thank you` and one that does not: of two camps one likes it, the other does not."""
    rng = random.Random(number)
    plain, polite = (" ".join(rng.sample(WORDS, 4)) for _ in range(2))
    texts = [f"{polite} thank you.", f"{plain} never mind."]
    first = rng.random() < 0.5
    left, right = (Response(text, "initial", FinishReason.STOP) for text in texts[:: 1 if first else -1])
    verdicts = []
    for person in rng.sample(people, 4):
        likes = camps == 1 or int(person.name.split()[1]) % 3 > 0
        chosen = likes == (rng.random() < 0.95)
        verdicts.append(Verdict(Choice.LEFT if chosen == first else Choice.RIGHT, person))
    prompt = (Turn(Role.USER, f"question {number} about the {rng.choice(WORDS)}"),)
    return Comparison(prompt, left, right, AskedHow.RANDOM, 1.0, tuple(verdicts))


@pytest.fixture
def told(tmp_path: Path) -> Callable[[int], tuple[Session, dict[str, Any]]]:
    def make(camps: int) -> tuple[Session, dict[str, Any]]:
        session = tiny.project(tmp_path / "project", save_tiny(tmp_path / "model"))
        people = [Annotator(f"person {n}", AnnotatorKind.HUMAN) for n in range(12)]
        session.store.add_comparisons([compared(n, people, camps) for n in range(150)])
        chosen = replace(session.settings, reward=SETTINGS)
        facts = stages.perform(session.workspace, chosen, REWARD)
        return Session(session.workspace, chosen), facts

    return make


@pytest.mark.long
def test_two_camps_are_told_apart_and_the_policy_may_serve_either(
    told: Callable[[int], tuple[Session, dict[str, Any]]],
) -> None:
    session, facts = told(2)
    found = facts["camps"]
    assert found["people"] == 12 and found["gain"]["low"] > 0 and "camps of" in found["sentence"]
    large, small = found["camps"]
    assert large["share"] == pytest.approx(2 / 3, abs=0.1) and (large["people"], small["people"]) == (8, 4)
    assert small["accuracy_own"] > 0.8 and small["accuracy_shared"] < 0.5 and found["accuracy_gain"]["low"] > 0
    assert not any(f"person {n}" in json.dumps(facts) for n in range(12)), "nobody is named"
    assert all(max(one["chances"]) - min(one["chances"]) > 0.5 for one in found["examples"])
    # It is kept with the version, and says of an answer what each camp likes.
    reward = load_reward(session.workspace, "reward-1", session.pretrained)
    assert reward.camps is not None
    prompt = (Turn(Role.USER, "question 7 about the sea"),)
    texts = ("oven noon fine sea thank you.", "oven noon fine sea never mind.")
    exchanges = [(prompt, Response(text, "x", FinishReason.STOP)) for text in texts]
    (scored,) = score_exchanges(reward, session.pretrained, exchanges)
    assert scored.camps is not None
    apart = (scored.mean + scored.camps)[:, 0] - (scored.mean + scored.camps)[:, 1]
    assert apart[0] > 0 > apart[1]
    assert float((reward.camps.shares @ scored.camps).abs().max()) == pytest.approx(0, abs=0.02)
    served = replace(session.settings, ppo=replace(session.settings.ppo, worst_camp=1.0))
    facts = stages.perform(session.workspace, served, PPO)
    assert [one["share"] for one in facts["served"]] == pytest.approx(reward.camps.shares.tolist())
    stages.report(session.workspace, served)
    page = (session.workspace.root / "report.html").read_text(encoding="utf-8")
    assert found["sentence"] in page and "Whom it serves" in page and "pairs about which they differ most" in page


@pytest.mark.long
def test_one_taste_is_one_camp_and_there_is_no_worst(told: Callable[[int], tuple[Session, dict[str, Any]]]) -> None:
    session, facts = told(1)
    assert "camps" not in facts["camps"] and "not told apart" in facts["camps"]["sentence"]
    served = replace(session.settings, ppo=replace(session.settings.ppo, worst_camp=0.5))
    with pytest.raises(MannersError, match="reward-1 tells no camps of annotators apart: set it to 0"):
        stages.perform(session.workspace, served, PPO)
