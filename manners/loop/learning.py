"""What reward training and DPO share in a workspace: the pairs of a run, the work on them, and what both report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from manners.audit.forms import FORMS
from manners.audit.probes import probes
from manners.direct.train import Trained as DirectTrained
from manners.facts import Facts
from manners.loop.laid_out import counts, refusals, tell
from manners.loop.plan import Disk
from manners.loop.session import Session
from manners.loop.verdicts import VerdictInputs, judges_of
from manners.models.cost import states_bytes, trunk_work
from manners.models.states import kept_bytes
from manners.reward.assisted import assisted
from manners.reward.augment import Texts, made_of
from manners.reward.groups import Split, divided, slice_off
from manners.reward.labelled import Labelled, LabelledPair, LeftOut
from manners.reward.pairs import laid_out
from manners.reward.passes import SLICE, candidates
from manners.reward.train import Trained as RewardTrained
from manners.reward.verdicts import label
from manners.types import Comparison

LONGEST = 32
"""Exchanges, those of most characters, that are turned into tokens to find the longest."""
TEXTS = Texts(probes, FORMS)
"""What pairs are made of that nobody has judged (`reward.augment`)."""


@dataclass(frozen=True)
class ToLearn:
    """What a run has before it."""

    split: Split
    work: Facts
    prompt: int
    response: int
    """Tokens of the longest exchange."""
    disk: Disk


def labelled_of(session: Session, comparisons: Sequence[Comparison]) -> Labelled:
    """Return comparisons with their verdicts counted."""
    return label(comparisons, session.settings.reward.annotators)


def split_of(session: Session, labelled: Labelled) -> Split:
    """Return the pairs to train on and those set aside, without those that the template refuses."""
    pairs = laid_out(session.pretrained.renderer, labelled).pairs
    return divided(pairs, session.settings.reward, session.settings.seed)


def to_learn(
    session: Session,
    inputs: VerdictInputs | None,
    batch: int,
    passes: int | None,
    branches: int = 1,
    augment: float = 0.0,
) -> ToLearn:
    """Return what so many branches learn from, in batches of comparisons; None leaves the passes to a scout.

    What an admitted judge adds is among it; `augment` is the share of it that is made of answers (`reward.augment`).
    Says on stderr what the chat template refuses. Raises MannersError when there is nothing to learn from.
    """
    comparisons = inputs.comparisons if inputs else session.store.comparisons()
    judges = inputs.judges if inputs else judges_of(session, comparisons)
    labelled = labelled_of(session, comparisons)
    refused = refusals(
        session.pretrained.renderer.template, ((pair.comparison_id or 0, pair.prompt) for pair in labelled.pairs)
    )
    tell(refused, "comparisons")
    split = split_of(session, labelled)
    beside = judges, session.settings.reward.human_share
    judged = assisted(session.pretrained.renderer, comparisons, labelled, split, *beside).pairs
    given = (*split.train, *judged)
    train = (*given, *made_of(given, augment, session.settings.seed, TEXTS))
    pairs = (*train, *split.held_out)
    learned = len(train)
    # All candidates, and the most passes: what it takes at most.
    tried = candidates(replace(session.settings.reward, epochs=passes), learned)
    most = passes or tried[-1]
    scouting = len(slice_off(train, SLICE, session.settings.seed)[0])
    prompt, response = longest_exchange(session, pairs)
    work: Facts = {
        "comparisons": len(split.train) + len(split.held_out),
        "trained_on": len(split.train),
        **({"judged": len(judged)} if judged else {}),
        **({"made": learned - len(given)} if augment else {}),
        "optimizer_steps": sum(tried) * -(-scouting // batch) + most * branches * -(-learned // batch),
        "pair_passes": sum(tried) * scouting + most * branches * learned,
        "work_with_trunk": trunk_work(session.pretrained.trunk),
        **({"refused": counts(refused)} if refused else {}),
    }
    return ToLearn(split, work, prompt, response, states_on_disk(session, pairs, prompt + response))


def longest_exchange(session: Session, pairs: Sequence[LabelledPair]) -> tuple[int, int]:
    """Return the tokens of prompt and response of the longest exchange, found among those of most characters."""
    exchanges = {(pair.prompt, side) for pair in pairs for side in (pair.left, pair.right)}
    characters = {e: sum(len(turn.text) for turn in e[0]) + len(e[1].text) for e in exchanges}
    chosen = sorted(exchanges, key=lambda e: -characters[e])[:LONGEST]
    rendered = [session.pretrained.renderer.render(*exchange) for exchange in chosen]
    longest = max(rendered, key=lambda r: r.length)
    return len(longest.prompt_ids), len(longest.response_ids)


def states_on_disk(session: Session, pairs: Sequence[LabelledPair], longest: int) -> Disk:
    """Return what trunk states take on the workspace's disk: as if all were as long as the longest, if that fits.

    Only where it does not is every exchange turned into tokens, and counted.
    """
    runs = session.workspace.runs
    trunk = session.pretrained.trunk
    folder = runs if runs.is_dir() else session.workspace.root
    free = shutil.disk_usage(folder).free
    if not trunk.cut or not trunk.keeps_states:
        return Disk(folder, 0, free)
    most = states_bytes(trunk, 2 * len(pairs) * longest)
    if most > free:
        exchanges = dict.fromkeys((pair.prompt, side) for pair in pairs for side in (pair.left, pair.right))
        most = kept_bytes([session.pretrained.renderer.render(*exchange) for exchange in exchanges], trunk)
    return Disk(folder, most, free)


def learnt(trained: RewardTrained | DirectTrained, version: str) -> dict[str, Any]:
    """Return what a run learned from and how, by the names of `results.Learnt`."""
    beside, idle = trained.assisted, len(trained.split.idle)
    left_out = beside.left_out(trained.labelled) | ({LeftOut.ASIDE: idle} if idle else {})
    return {
        "version": version,
        "trained_on": len(trained.split.train),
        "adversarial": sum(not pair.measures for pair in trained.split.train) or None,
        **({"judged": len(beside.pairs), "judge_weight": beside.weight} if beside.pairs else {}),
        "set_aside": len(trained.split.held_out),
        "divided": trained.split.divided,
        "source": str(trained.labelled.kind),
        "left_out": {str(reason): n for reason, n in left_out.items()},
        "users_limited": trained.labelled.limited,
        "users_outlying": trained.labelled.outlying,
        "shortened": trained.shortened,
        "passes": trained.passes,
        "tried": {str(passes): loss for passes, loss in trained.tried},
        "optimizer_steps": trained.optimizer_steps,
        "pairs_per_second": trained.pairs_per_second,
    }
