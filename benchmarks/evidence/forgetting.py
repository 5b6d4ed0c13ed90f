"""Does the audit for forgetting leave SmolLM2-135M in peace where nothing was lost, and find what was?"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from benchmarks.evidence import Results
from benchmarks.evidence._audits import Bench, permuted
from manners.data import demo_prompts, plain_text, questions
from manners.evaluate.forgetting import FORGOTTEN, WORSE
from manners.facts import to_facts
from manners.metrics import RunLog
from manners.models.branches import Branch, ScalarBranch
from manners.models.pretrained import load
from manners.models.trunk import States, Trunk
from manners.ppo.course import Material
from manners.ppo.learner import Best, Learner, Validation
from manners.ppo.train import train
from manners.reward.ensemble import RewardModel
from manners.settings import ModelSettings, PPOSettings, SampleSettings
from manners.text import Batch, Packed
from manners.types import PromptUse

AUDITS = 200
RATE = 1e-4
"""What the default comes to on SmolLM2, in absolute numbers, which are what is taken times of."""
SETTINGS = PPOSettings(
    updates=6, batch=32, minibatch=16, validate_every=6, validation_prompts=4, forgetting_limit=1000.0
)
SAMPLE = SampleSettings(max_new_tokens=24, batch=64)
COMMON = 2000
"""Token ids below this are those of the most frequent words."""


class Plain(ScalarBranch):
    """A member that likes frequent words: something to be trained on that needs no verdicts."""

    def __init__(self, trunk: Trunk) -> None:
        """Own nothing that is trained."""
        super().__init__(trunk, None)

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        """Three times the share of frequent tokens in each response."""
        assert isinstance(batch, Batch)
        return 3 * ((batch.response_ids < COMMON) & batch.keep).sum(dim=1) / batch.keep.sum(dim=1)


@cache
def bench() -> Bench:
    """SmolLM2-135M with six trained layers, and what ships to evaluate on."""
    pretrained = load(ModelSettings(trainable_layers=6, context=256, device="cpu"))
    prompts = demo_prompts()[PromptUse.EVALUATE][:24]
    return Bench(pretrained, prompts, plain_text(PromptUse.EVALUATE), questions(), SAMPLE)


@cache
def trained(rate: float, prose_coefficient: float = 1.0, ptx_coefficient: float = 0.0) -> Branch:
    """The last policy of a short run of PPO."""
    there = bench()
    texts = demo_prompts()
    ids = {
        use: [there.pretrained.renderer.prompt_ids(p, SAMPLE.max_new_tokens)[0] for p in texts[use]] for use in texts
    }
    prose = {use: plain_text(use) for use in PromptUse}
    material = Material(
        ids[PromptUse.TRAIN], ids[PromptUse.VALIDATE], prose[PromptUse.TRAIN], prose[PromptUse.VALIDATE]
    )
    reward = RewardModel((Plain(there.pretrained.trunk),), (0.0,), (1.0,))
    with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder)) as log, patch.object(Learner, "offer", _last):
        settings = replace(
            SETTINGS, learning_rate=rate, prose_coefficient=prose_coefficient, ptx_coefficient=ptx_coefficient
        )
        return train(settings, SAMPLE, 0, there.pretrained, reward, material, log).policy


def _last(learner: Learner, update: int, found: Validation, _: float) -> None:
    """Stand for the choice among versions: the last one."""
    tensors = {name: t.clone() for name, t in learner.policy.own_tensors().items()}
    learner.best = Best(update, found, tensors, found)


def known() -> dict[str, Any]:
    """How often the right answer is the likeliest, by family."""
    there = bench()
    version = there.version(there.initial, 0)
    return {name: vars(share) for name, share in (there.audit(version, version).questions or {}).items()}


def power(rate: float) -> dict[str, Any]:
    """What an audit of a run at a rate says."""
    there = bench()
    policy = trained(rate)
    found = there.audit(there.version(there.initial, 0), there.version(policy, 1))
    return {
        "kl": there.kl(policy),
        "outcome": found.outcome,
        "worse": [check.check for check in found.checks or () if check.verdict == WORSE],
        "checks": to_facts(found)["checks"],
    }


def alarms(kind: str, audits: int) -> dict[str, Any]:
    """How many audits of no loss at all alarm, and by which checks."""
    there = bench()
    policy = trained(RATE)
    far = there.kl(policy)
    before, after = there.version(there.initial, 0), there.version(policy, 1)
    count, by = 0, Counter[str]()
    for number in range(audits):
        if kind == "seeds":
            pair = before, replace(before, said=there.said(there.initial, number + 2))
        elif kind == "moved":
            pair = before, there.version(there.moved(far, number), number + 2)
        else:
            pair = permuted(before, after, number)
        found = there.audit(*pair)
        count += found.outcome == FORGOTTEN
        by.update(check.check for check in found.checks or () if check.verdict == WORSE)
    return {"audits": audits, "alarms": count, "by": dict(by), "kl": far}


def main() -> None:
    """Questions, power, and false alarms of each kind."""
    results = Results("forgetting")
    print(results.part("questions", {}, known))
    for rate in (RATE, 30 * RATE):
        found = results.part(f"rate {rate:g}", {"rate": rate}, partial(power, rate))
        print(
            f"rate {rate:g}: {found['outcome']}, worse: {', '.join(found['worse']) or 'nothing'}, KL {found['kl']:.2f}"
        )
    for kind, audits in (("permuted", AUDITS), ("seeds", AUDITS // 4), ("moved", AUDITS // 10)):
        found = results.part(kind, {"audits": audits}, partial(alarms, kind, audits))
        print(f"{kind}: {found['alarms']} of {found['audits']} alarm")


if __name__ == "__main__":
    main()
