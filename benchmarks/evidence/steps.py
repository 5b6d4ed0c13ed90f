"""Does a reward model's step lose anything to a sweep of steps? Paired, on people's verdicts, in nats a verdict.

One member learns from 504 pairs of `hh_rlhf_harmless` with a quarter to four times the step of `reward.steps`, three
seeds, each with a split of its own; and once more with SmolLM2's matrices written in other numbers, which leave its
function as it is. The trunk reads the pairs once a model. The table goes to docs/reward.md.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.special import log_expit
from transformers import PreTrainedModel

from benchmarks.evidence import Results
from benchmarks.processes import pairs_file
from benchmarks.publish import ROOT, replace_between
from manners.feedback.statistics import cluster_bootstrap
from manners.models.found import Found
from manners.models.pretrained import Pretrained, find, load
from manners.models.surgery import layer_list
from manners.reward import train as module
from manners.reward.groups import set_aside
from manners.reward.pairs import ReadPairs, read
from manners.reward.passes import Job
from manners.reward.steps import STEP
from manners.reward.train import Member
from manners.reward.verdicts import label
from manners.settings import ModelSettings, RewardSettings
from manners.store.files.transfer import read_comparisons
from manners.types import Comparison, Dialogue, Interval, Response

PAGE = ROOT / "docs" / "reward.md"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the step: of every tensor's peak."""
SEEDS = (0, 1, 2)
PAIRS = 504
TOKENS = 256
"""Of an exchange at most: pairs with a longer one are left out, which keeps the sweep short."""
SETTINGS = RewardSettings(members=1, epochs=2, curve=False)
"""Two passes for every step: what differs is the step alone."""
REWRITTEN = 8.0
"""By what matrices are multiplied, and those that read them divided."""
ALLOWED = 0.01
"""Nats that the rule may lie behind the sweep's best."""
RESAMPLES = 2000


def rewritten(model: PreTrainedModel, by: float) -> PreTrainedModel:
    """Return a Llama of the same function in other numbers: values, up-projections and queries times `by`."""
    with torch.no_grad():
        for layer in layer_list(model):
            attention: Any = layer.self_attn
            mlp: Any = layer.mlp
            for written, reader in (
                (attention.v_proj, attention.o_proj),
                (mlp.up_proj, mlp.down_proj),
                (attention.q_proj, attention.k_proj),
            ):
                written.weight.mul_(by)
                reader.weight.div_(by)
    return model


@dataclass(frozen=True)
class World:
    """Pairs that a model has read, for all runs."""

    pretrained: Pretrained
    data: ReadPairs

    @classmethod
    def of(cls, pretrained: Pretrained, comparisons: Iterable[Comparison], file: Path) -> World:
        """Read comparisons, once, into a file."""
        labelled, rendered = read(pretrained.renderer, label(comparisons))
        return cls(pretrained, ReadPairs(pretrained, labelled.pairs, rendered, file, "reading pairs"))


def smollm2(by: float, folder: Path) -> World:
    """Have SmolLM2, in other numbers, read random pairs of people's."""
    source = pairs_file()
    assert source is not None

    def other(name: str, dtype: torch.dtype) -> Found:
        found = find(name, dtype)
        return replace(found, model=rewritten(found.model, by))

    pretrained = load(ModelSettings(device="cpu", context=TOKENS), read=other)
    said = list(read_comparisons(Path(source), {}))
    random.Random(0).shuffle(said)
    short = (c for c in said if all(_fits(pretrained, c.prompt, side) for side in (c.left, c.right)))
    return World.of(pretrained, islice(short, PAIRS), folder / f"{by:g}")


def _fits(pretrained: Pretrained, prompt: Dialogue, side: Response) -> bool:
    return bool(side.text.strip()) and not pretrained.renderer.render(prompt, side).shortened


def once(world: World, factor: float, seed: int, settings: RewardSettings = SETTINGS) -> dict[str, Any]:
    """Train a member with so many times the step; return the nats of each pair set aside, and its group by number."""
    data = world.data
    place = {(pair.prompt, pair.left, pair.right): i for i, pair in enumerate(data.pairs)}
    split = set_aside(data.pairs, settings.set_aside, seed)
    learn, held = ([place[p.prompt, p.left, p.right] for p in some] for some in (split.train, split.held_out))
    with patch.object(module, "STEP", factor * STEP):
        member = Member(settings, Job(seed * 1000, learn, settings.epochs or 1), world.pretrained, data)
    while member.step < len(member.batches):
        module._step(member, data)
    margins = torch.zeros(len(data.pairs))
    with torch.no_grad():
        for some in data.micro_batches(held):
            scores = data.scores(member.branch, some)
            margins[some] = (scores[:, 0] - scores[:, 1]).cpu()
    counts = np.array([data.pairs[i].counts for i in held])
    m = np.asarray(margins[held].double())
    nats = -(counts[:, 0] * log_expit(m) + counts[:, 1] * log_expit(-m)) / counts[:, :2].sum(axis=1)
    number = {group: n for n, group in enumerate(dict.fromkeys(pair.group for pair in data.pairs))}
    return {"nats": nats.round(6).tolist(), "groups": [number[data.pairs[i].group] for i in held]}


def paired(after: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> tuple[Interval, list[float]]:
    """Return by how many nats a verdict one way is behind another, on the same pairs; and the same by seed."""
    by_seed = [np.subtract(a["nats"], b["nats"]) for a, b in zip(after, before, strict=True)]
    groups = [group for one in before for group in one["groups"]]
    everything = cluster_bootstrap(np.concatenate(by_seed), groups, RESAMPLES, 0)
    return everything, [float(difference.mean()) for difference in by_seed]


def table(sweep: Mapping[float, Sequence[Mapping[str, Any]]], again: Sequence[Mapping[str, Any]]) -> str:
    """Return the sweep by factor, in Markdown, and what the rule loses to its best, and in other numbers."""
    means = {factor: float(np.mean([np.mean(run["nats"]) for run in runs])) for factor, runs in sweep.items()}
    best = min(means, key=means.__getitem__)
    lines = [
        "| step, times the rule's | nats a verdict | behind the sweep's best, paired | by seed |",
        "|---|---|---|---|",
    ]
    rows = [(f"{factor:g}", runs) for factor, runs in sweep.items()]
    rows.append((f"1, matrices times {REWRITTEN:g} and {1 / REWRITTEN:g}", again))
    for name, runs in rows:
        behind, by_seed = paired(runs, sweep[best])
        nats = float(np.mean([np.mean(run["nats"]) for run in runs]))
        spread = ", ".join(f"{one:+.4f}" for one in by_seed)
        lines.append(
            f"| {name} | {nats:.4f} | {behind.estimate:+.4f} [{behind.low:+.4f}, {behind.high:+.4f}] | {spread} |"
        )
    lost = [paired(runs, sweep[best])[0] for runs in (sweep[1.0], again)]
    if max(one.high for one in lost) <= ALLOWED:
        kept = "The rule is"
    elif max(one.low for one in lost) > ALLOWED:
        kept = "The rule is *not*"
    else:
        kept = "It cannot be told whether the rule is"
    lines += ["", f"{kept} within {ALLOWED:g} nats of the best of the sweep, which is {best:g} times its step."]
    return "\n".join(lines)


def main() -> None:
    """Sweep with the model as it is, try the rule with the other one, and publish the table."""
    if pairs_file() is None:
        print("steps: hh_rlhf_harmless is not there; set MANNERS_DATA")
        return
    results = Results("steps")
    with tempfile.TemporaryDirectory() as folder:
        world = cache(partial(smollm2, folder=Path(folder)))

        def trained(factor: float, by: float, seed: int) -> dict[str, Any]:
            return once(world(by), factor, seed)

        def runs(factor: float, by: float) -> list[dict[str, Any]]:
            settings = {"pairs": PAIRS, "tokens": TOKENS, "passes": SETTINGS.epochs, "step": factor * STEP, "by": by}
            return [
                results.part(
                    f"{factor:g} x, matrices x {by:g}, seed {seed}", settings, partial(trained, factor, by, seed)
                )
                for seed in SEEDS
            ]

        sweep = {factor: runs(factor, 1.0) for factor in FACTORS}
        again = runs(1.0, REWRITTEN)
    found = table(sweep, again)
    print(found)
    replace_between(PAGE, "steps", found)


if __name__ == "__main__":
    main()
