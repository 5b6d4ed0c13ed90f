"""What holds a policy in its place: the divergence on plain text, the likelihood of it (PPO-ptx), both or nothing."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from benchmarks.evidence import Results
from benchmarks.evidence import forgetting as smollm2
from benchmarks.evidence._audits import Bench
from benchmarks.publish import ROOT, replace_between
from manners.models.branches import Branch
from manners.ppo.learner import Learner
from manners.settings import PPOSettings
from tests.evaluate.knowing import STEPS, bench, paragraphs
from tests.ppo.scripted import SETTINGS, keep, liked_share, likes, run

PAGE = ROOT / "docs" / "forgetting.md"
WAYS = {"nothing": (0.0, 0.0), "divergence": (1.0, 0.0), "likelihood": (0.0, 1.0), "both": (1.0, 1.0)}
"""`ppo.prose_coefficient` and `ppo.ptx_coefficient`."""
MODELS = {"knows its text": STEPS, "half taught": 60}
"""Steps of pre-training."""
RATE = 0.01
"""At which a run that nothing holds forgets."""
SEEDS = (0, 1, 2)


@cache
def taught(model: str) -> Bench:
    """A tiny model that has been taught for so long."""
    return bench(MODELS[model])


def tiny(model: str, way: str, seed: int) -> dict[str, Any]:
    """Train a tiny model for what it is liked for, held to other text than it is read on."""
    there = taught(model)
    settings = with_way(replace(SETTINGS, learning_rate=RATE, validate_every=SETTINGS.updates or 1), way)
    with tempfile.TemporaryDirectory() as folder, patch.object(Learner, "offer", keep):
        policy = run(settings, there.pretrained, likes(there.pretrained), Path(folder), seed, paragraphs(12, 3)).policy
    return {"liked": liked_share(policy, there.pretrained)} | measured(there, policy)


def of_smollm2(way: str) -> dict[str, Any]:
    """Train SmolLM2-135M at ten times the usual rate to use frequent words."""
    there = smollm2.bench()
    policy = smollm2.trained(10 * smollm2.RATE, *WAYS[way])
    said = [one for answers in there.said(policy, 1) for one in answers]
    liked = mean(mean(i < smollm2.COMMON for i in one.response_ids) for one in said)
    return {"liked": liked} | measured(there, policy)


def with_way(settings: PPOSettings, way: str) -> PPOSettings:
    """Return settings with the two coefficients of a way."""
    prose, ptx = WAYS[way]
    return replace(settings, prose_coefficient=prose, ptx_coefficient=ptx)


def measured(there: Bench, policy: Branch) -> dict[str, Any]:
    """What was paid for it."""
    found = there.audit(there.version(there.initial, 0), there.version(policy, 1))
    checks = {check.check: check for check in found.checks or ()}
    text, questions = checks["perplexity"], checks["questions"]
    assert text.before and text.after and questions.before is not None and questions.after is not None
    return {
        "kl": there.kl(policy),
        "perplexity": math.log(text.after / text.before),
        "questions": questions.after - questions.before,
        "outcome": found.outcome,
    }


def table(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Return the means over the seeds, by model and way."""
    lines = [
        "| model | held by | liked | KL, nats a response | perplexity | right answers | forgotten |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, way), runs in found.items():
        liked, kl, nats, right = (mean(r[key] for r in runs) for key in ("liked", "kl", "perplexity", "questions"))
        lost = sum(r["outcome"] == "forgotten" for r in runs)
        cells = f"{liked:.2f} | {kl:.1f} | {100 * math.expm1(nats):+.1f} % | {right:+.2f} | {lost} of {len(runs)}"
        lines.append(f"| {model} | {way} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Tiny models first, three seeds each; then SmolLM2, one."""
    results = Results("ptx")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for model in MODELS:
        for way in WAYS:
            for seed in SEEDS:
                name, settings = f"{model}, {way}, seed {seed}", {"model": MODELS[model], "way": way, "rate": RATE}
                found.setdefault((model, way), []).append(results.part(name, settings, partial(tiny, model, way, seed)))
    replace_between(PAGE, "ptx", table(found))
    for way in WAYS:
        found["SmolLM2-135M", way] = [results.part(f"smollm2, {way}", {"way": way}, partial(of_smollm2, way))]
    replace_between(PAGE, "ptx", table(found))


if __name__ == "__main__":
    main()
