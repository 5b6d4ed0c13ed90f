"""Does the spread of a reward model's members tell its errors? `python -m benchmarks.spread --workspace demo`.

The truth is the hidden taste of the demo's crowd, on prompts that nothing was trained on. Pairs are two answers of the
start version, as the reward model learnt from; the policy's beside the start version's; and two of the policy's, which
lie where the reward was climbed. An error is a pair that the members' mean puts the other way round than the taste.
Needs a workspace with a finished demo. The tables go to docs/reward.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.publish import ROOT, here, replace_between
from manners.feedback.crowd import find_taste, true_score
from manners.feedback.statistics import bootstrapped
from manners.loop.evaluate import evaluation_prompts
from manners.loop.session import Session
from manners.models import versions
from manners.models.answer import answer
from manners.reward import stored
from manners.reward.ensemble import RewardModel, score_rendered
from manners.settings_load import from_dict
from manners.types import Interval, VersionKind
from manners.workspace import Workspace

Floats = NDArray[np.float64]
PAGE = ROOT / "docs" / "reward.md"
ANSWERS = 4
SEED = 17
"""Of the answers, which are drawn anew: those of the evaluation chose nothing, but they are not kept."""
BAND = 0.02
"""Totals of the taste that are nearer to each other than this are no error either way round, as in evaluation."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Options:
    """What to look at."""

    workspace: Path
    page: Path | None = PAGE


@dataclass(frozen=True)
class Answers:
    """P prompts with A answers each."""

    members: Floats
    """(K, P, A) scores, in units."""
    witness: Floats | None
    """(P, A): those of the member kept out of the reward."""
    taste: Floats
    """(P, A)."""


@dataclass(frozen=True)
class Pairs:
    """N pairs of answers, each with the number of its prompt."""

    margins: Floats
    """(K, N), by member."""
    truth: Floats
    """(N,), of the taste."""
    prompts: NDArray[np.int64]

    @property
    def decided(self) -> Pairs:
        """Those that the taste puts one way round."""
        kept = np.abs(self.truth) > BAND
        return Pairs(self.margins[:, kept], self.truth[kept], self.prompts[kept])

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether the members' mean puts a pair the other way round."""
        return np.asarray(self.margins.mean(axis=0) * self.truth <= 0)


def drawn(session: Session, reward: RewardModel, policy: str) -> Answers:
    """Let a version answer all evaluation prompts, and score what it says."""
    prompts, settings = evaluation_prompts(session).prompts, session.settings
    branch = versions.load_policy(session.workspace, policy, session.pretrained)
    given = [
        (place, found)
        for batch in answer(branch, session.pretrained, prompts, ANSWERS, settings.sample, SEED, policy)
        for place, found in zip(batch.places, batch.answers, strict=True)
    ]
    given.sort(key=lambda one: one[0])
    rendered = [session.pretrained.renderer.render(found.prompt, found.response) for _, found in given]
    taste = find_taste(settings.crowd.taste)
    totals = np.array([true_score(taste, found.prompt, found.response).total for _, found in given])

    def scores(model: RewardModel) -> Floats:
        raw = score_rendered(model, session.pretrained, rendered).double()
        return np.asarray(raw.view(len(raw), len(prompts), ANSWERS))

    witness = None if reward.witness is None else scores(reward.witness)[0]
    return Answers(scores(reward), witness, totals.reshape(len(prompts), ANSWERS))


def within(one: Answers) -> Pairs:
    """Return pairs of answers of one version: the first with the second, the third with the fourth."""
    return between(
        Answers(one.members[..., 0::2], None, one.taste[:, 0::2]),
        Answers(one.members[..., 1::2], None, one.taste[:, 1::2]),
    )


def between(one: Answers, other: Answers) -> Pairs:
    """Return each answer of one version beside that of the other which has its place."""
    count = one.taste.shape[1]
    margins = (one.members - other.members).reshape(len(one.members), -1)
    return Pairs(margins, (one.taste - other.taste).ravel(), np.repeat(np.arange(len(one.taste)), count))


def told(sign: Floats, wrong: NDArray[np.bool_], prompts: NDArray[np.int64]) -> Interval:
    """Return how often a wrong pair has more of a sign than a right one (0.5: the sign tells nothing), by prompts."""

    def share(rows: NDArray[np.int64]) -> float:
        bad, good = sign[rows][wrong[rows]], sign[rows][~wrong[rows]]
        if not len(bad) or not len(good):
            return float("nan")
        return float(np.mean((bad[:, None] > good) + 0.5 * (bad[:, None] == good)))

    groups = [np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)]
    rng = np.random.default_rng(SEED)
    again = [
        share(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))]))
        for _ in range(RESAMPLES)
    ]
    return bootstrapped(share(np.arange(len(sign))), again, len(groups), 0.0, 1.0)


def row(name: str, pairs: Pairs) -> str:
    """Write the line of a kind of pairs."""
    some = pairs.decided
    alone = (some.margins * some.truth <= 0).mean(axis=1)
    signs = (some.margins.std(axis=0), -np.abs(some.margins.mean(axis=0)))
    found = [told(sign, some.wrong, some.prompts) for sign in signs]
    cells = (
        name,
        f"{len(some.truth):,}",
        f"{some.wrong.mean():.1%}",
        ", ".join(f"{share:.1%}" for share in alone),
        *(f"{value.estimate:.2f} [{value.low:.2f}, {value.high:.2f}]" for value in found),
    )
    return f"| {' | '.join(cells)} |"


def gains(start: Answers, policy: Answers) -> str:
    """Write by how much the policy's answers are better, in what the start version's to one prompt differ by."""
    spread = float(np.sqrt(start.taste.var(axis=1, ddof=1).mean()))
    cells = [f"{(policy.taste.mean() - start.taste.mean()) / spread:.2f}"]
    members = (policy.members - start.members).mean(axis=(1, 2))
    cells += [f"{members.mean():.2f}", ", ".join(f"{gain:.2f}" for gain in members)]
    if policy.witness is None or start.witness is None:
        cells += ["none"]
    else:
        cells += [f"{(policy.witness - start.witness).mean():.2f}"]
    return f"| {' | '.join(cells)} |"


def main(options: Options) -> None:
    """Measure, and publish the tables."""
    workspace = Workspace.open(options.workspace)
    name = versions.latest(workspace, VersionKind.POLICY)
    session = Session(workspace, from_dict(versions.describe(workspace, name).settings))
    taught_by = versions.reward_of(workspace, name) or versions.latest(workspace, VersionKind.REWARD)
    reward = stored.load_reward(workspace, taught_by, session.pretrained)
    with torch.no_grad():
        start, policy = (drawn(session, reward, version) for version in (session.start, name))
    lines = [
        "| pairs | decided | wrong | by member | spread tells | a small margin tells |",
        "|---|---|---|---|---|---|",
        row("two of the start version", within(start)),
        row("policy and start version", between(policy, start)),
        row("two of the policy", within(policy)),
        "",
        "| gain of the policy by the taste | by the reward | by its members | by the member kept out |",
        "|---|---|---|---|",
        gains(start, policy),
        "",
        here(),
    ]
    print("\n".join(lines))
    if options.page is not None:
        replace_between(options.page, "spread", "\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Options))
