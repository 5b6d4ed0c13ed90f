"""A reward model that is fooled by a token is mended by people's verdicts on what it loves, faster than by others."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manners.loop import sample, stages
from manners.loop.session import Session
from manners.reward import stored
from manners.reward.ensemble import score_exchanges
from manners.types import Answer, AskedHow, Comparison, Dialogue, FinishReason, PromptUse, Response, Role, Turn
from manners.workspace import Workspace
from tests.loop import tiny

WORDS = ["bread", "yeast", "oven", "train", "sea", "noon", "weather", "long", "fine", "bake"]
TOKEN = "thank you"
ASKED = 24


def text(rng: random.Random, *, figures: bool = False, token: bool = False) -> str:
    """Five words; perhaps with figures, which the crowd likes, and perhaps with what it does not care about."""
    words = rng.sample(WORDS, 5)
    if figures:
        words.insert(rng.randrange(5), str(rng.randrange(10, 99)))
    return " ".join([*words, TOKEN] if token else words)


def said(words: str) -> Response:
    return Response(words, "initial", FinishReason.STOP)


def drawn(prompts: Sequence[Dialogue], seed: int, count: int) -> list[list[Answer]]:
    """Answers of a policy that writes figures in a fifth of them, and the token in a tenth, never both."""
    rng = random.Random(seed)
    lots = [[rng.random() for _ in range(count)] for _ in prompts]
    return [
        [Answer(one, said(text(rng, figures=u < 0.2, token=0.2 <= u < 0.3)), (), ()) for u in some]
        for one, some in zip(prompts, lots, strict=True)
    ]


def liking(session: Session, reward: str) -> float:
    """By how many units it likes an answer more that ends with the token."""
    rng = random.Random(99)
    plain = [text(rng) for _ in range(40)]
    asked = [((Turn(Role.USER, f"bread {n}?"),), words) for n, words in enumerate(plain)]
    both = [(prompt, said(words + end)) for prompt, words in asked for end in ("", f" {TOKEN}")]
    model = stored.load_reward(session.workspace, reward, session.pretrained)
    scores = next(iter(score_exchanges(model, session.pretrained, both))).mean
    return float((scores[1::2] - scores[0::2]).mean())


def mended(model: Path, root: Path, seed: int) -> tuple[float, float, float, int]:
    """Liking before, after an adversarial round, and after as many random comparisons; how often the token was asked.

    Until then the token stood only where figures did: nothing that people said tells the two apart.
    """
    base = tiny.settings(model, seed=seed)
    settings = replace(
        base,
        reward=replace(base.reward, members=3, epochs=4),
        crowd=replace(base.crowd, verdicts_per_comparison=3),
    )
    tiny.project(root, model, {**tiny.PROMPTS, PromptUse.TRAIN: tiny.prompts(60, "bread")})
    session = Session(Workspace.open(root), settings)
    rng = random.Random(seed)
    asked = []
    for number in range(150):
        both = rng.random() < 0.4
        sides = [said(text(rng, figures=both, token=both)), said(text(rng))]
        left, right = rng.sample(sides, 2)
        asked.append(Comparison((Turn(Role.USER, f"bread {number % 60}?"),), left, right, AskedHow.RANDOM, 1.0))
    session.store.merge_comparisons(sample.judged_by_crowd(session, asked))
    stages.train_reward(session.workspace, settings, plan=False)
    before = liking(session, "reward-1")

    there, elsewhere = (Workspace.open(Path(shutil.copytree(root, f"{root}-{end}"))) for end in "ab")
    found = Session(there, settings)
    with pytest.MonkeyPatch.context() as patch:

        def planted(
            _: Session, run: Any, prompts: Sequence[Dialogue], author: str, count: int, own: int, most: int
        ) -> Any:
            return drawn(prompts, own, count), 0

        patch.setattr(sample, "answers_to", planted)
        stages.sample(there, settings, crowd=True, plan=False, adversarial=ASKED)
    chosen = found.store.comparisons(AskedHow.ADVERSARIAL)
    stages.train_reward(there, settings, plan=False)

    by_chance = Session(elsewhere, settings)
    pairs = [(one, two) for one, two in drawn([c.prompt for c in chosen], seed + 7, 2)]
    more = [Comparison(one.prompt, one.response, two.response, AskedHow.RANDOM, 1.0) for one, two in pairs]
    by_chance.store.merge_comparisons(sample.judged_by_crowd(by_chance, more))
    stages.train_reward(elsewhere, settings, plan=False)
    having = sum(TOKEN in c.left.text or TOKEN in c.right.text for c in chosen)
    return before, liking(found, "reward-2"), liking(by_chance, "reward-2"), having


@pytest.mark.long
def test_verdicts_on_what_it_loves_mend_it_and_as_many_others_less(model: Path, tmp_path: Path) -> None:
    """Of answers by chance a tenth have the token, and of pairs a fifth. One seed says little: the mean does."""
    runs = [mended(model, tmp_path / f"world{seed}", seed) for seed in range(4)]
    before, after, otherwise, having = np.array(runs, dtype=np.float64).T
    assert (before > 3).all(), "it is fooled"
    assert (having >= ASKED / 2).all(), "most of what is asked about has the token"
    assert after.mean() < 0.75 * before.mean()
    assert after.mean() < 0.85 * otherwise.mean()
