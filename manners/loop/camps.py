"""Telling annotators apart after a reward model was trained: camps, if what was set aside bears them out.

Nobody is named: what comes out are shares, directions, and how many people each camp has, `FEWEST_PEOPLE` at least.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit
from torch import Tensor

from manners.feedback.judges import PREFERS_LEFT
from manners.feedback.statistics import Floats, clustered_mean
from manners.loop.reference import Reference
from manners.loop.session import Session
from manners.results.camps import Camp, CampsResult, Parted
from manners.reward.camps import FEWEST_PEOPLE, FEWEST_VERDICTS, Found, Mixture, Said, find, log_odds
from manners.reward.ensemble import Camps, Exchange, RewardModel, final_states
from manners.reward.labelled import LabelledPair
from manners.reward.pairs import render_compared
from manners.reward.train import Trained
from manners.reward.verdicts import sort_out
from manners.types import VOLUNTEERED, Annotator, Choice, Comparison, Dialogue, Verdict

MOST_STATES, PAIRS_EACH = 32, 20
"""First components of the states that are looked at, at most; one for each so many pairs."""
LEAST_SCALE = 0.1
"""Of the shared margin: below it a camp's own direction, in units of the reward, would have no bound."""
EXAMPLES = 6


@dataclass(frozen=True)
class _Read:
    """Pairs as camps are looked for in them."""

    pairs: tuple[LabelledPair, ...]
    """Those that are learned from, and then those that are set aside."""
    margins: Floats
    """(P,) in nats."""
    states: Floats
    """(P, K) along `components`."""
    components: Floats
    """(D, K) from differences of states to what has variance 1."""


def tell_apart(
    session: Session, trained: Trained, reward: RewardModel, drawn: Reference, comparisons: Sequence[Comparison]
) -> tuple[RewardModel, CampsResult | None]:
    """Return the reward model with what camps of its annotators want, and what came of looking for them.

    As `reward.camps` allows; at 1 nothing is done. What is set aside for the reward model is set aside here too.
    """
    most = session.settings.reward.camps
    if most < 2:
        return reward, None
    # 1. Margins by all members and states by the first, of every pair; whose verdicts they have.
    kind = trained.labelled.kind
    given = {one.id: verdicts for one, verdicts in sort_out(comparisons, kind).usable}
    read = _read(session, trained, reward)
    people = {who: n for n, who in enumerate(sorted({v.annotator for some in given.values() for v in some}, key=repr))}
    first = len(trained.split.train)
    learned, aside = (_said(read, some, given, people) for some in (range(first), range(first, len(read.pairs))))
    # 2. Camps, and whether they are there.
    found = find(learned, aside, len(people), most, session.settings.seed)
    talkers = int((np.bincount(learned.people, minlength=len(people)) >= FEWEST_VERDICTS).sum())
    result = CampsResult(people=talkers, gain=found.gain, sentence=_sentence(found, talkers))
    if found.mixture is None:
        print(result.sentence, file=sys.stderr)
        return reward, result
    # 3. In the states of answers, in units, and 0 on the start version's.
    camps = _in_units(session, reward, read, found.mixture, drawn)
    result = _measured(result, found, learned, aside)
    examples = _parted(read, found.mixture, _private(session, comparisons))
    print(result.sentence, file=sys.stderr)
    return replace(reward, camps=camps), replace(result, examples=examples)


def _read(session: Session, trained: Trained, reward: RewardModel) -> _Read:
    pairs = (*trained.split.train, *trained.split.held_out)
    exchanges: list[Exchange] = [(pair.prompt, side) for pair in pairs for side in (pair.left, pair.right)]
    rendered = render_compared(session.pretrained.renderer, exchanges)
    order = {exchange: place for place, exchange in enumerate(rendered)}
    sides = torch.tensor([order[exchange] for exchange in exchanges]).view(-1, 2)
    read = [final_states(member, session.pretrained, list(rendered.values())) for member in reward.members]
    raw = torch.stack([scores for _, scores in read])[:, sides]
    apart = (read[0][0][sides[:, 0]] - read[0][0][sides[:, 1]]).double().numpy()
    learned = apart[: len(trained.split.train)]
    count = max(1, min(MOST_STATES, len(learned) // PAIRS_EACH, apart.shape[1]))
    values, vectors = np.linalg.eigh(learned.T @ learned / len(learned))
    components = vectors[:, ::-1][:, :count] / np.sqrt(np.maximum(values[::-1][:count], 1e-12))
    margins = reward.margins(raw.double()).mean(dim=0).numpy() * reward.unit
    return _Read(pairs, margins, apart @ components, components)


def _said(
    read: _Read,
    some: range,
    given: Mapping[int | None, Sequence[Verdict]],
    people: Mapping[Annotator, int],
) -> Said:
    rows = [
        (place, PREFERS_LEFT[verdict.choice], people[verdict.annotator], read.pairs[place].group)
        for place in some
        for verdict in given.get(read.pairs[place].comparison_id, ())
        if verdict.choice is not Choice.SKIP
    ]
    at = np.array([row[0] for row in rows], dtype=np.int64)
    return Said(
        margins=read.margins[at],
        states=read.states[at],
        left=np.array([row[1] for row in rows]),
        people=np.array([row[2] for row in rows], dtype=np.int64),
        groups=[row[3] for row in rows],
    )


def _in_units(session: Session, reward: RewardModel, read: _Read, mixture: Mixture, drawn: Reference) -> Camps:
    """Return camps as the reward model reads them: log-odds become units of the score, which they stand beside."""
    nats = mixture.directions @ read.components.T / max(mixture.scale, LEAST_SCALE)
    units = torch.tensor((nats - mixture.shares @ nats) / reward.unit, dtype=torch.float32)
    ends, _ = final_states(reward.members[0], session.pretrained, drawn.rendered)
    offsets: Float[Tensor, " G"] = (units @ ends.T).mean(dim=1)
    return Camps(units, offsets, torch.tensor(mixture.shares, dtype=torch.float32))


def _measured(result: CampsResult, found: Found, learned: Said, aside: Said) -> CampsResult:
    """Say how often the verdicts set aside are foretold, by one model for all and by camps; of each camp's people."""
    assert found.mixture is not None, "there are camps"
    decided = aside.of(aside.left != 0.5)
    shared = (decided.margins > 0) == (decided.left == 1)
    own = (found.mixture.prefers(decided, found.chances) > 0.5) == (decided.left == 1)
    place = found.chances.argmax(axis=1)
    talkers = np.unique(learned.people)
    camps = []
    for number, share in enumerate(found.mixture.shares.tolist()):
        theirs = place[decided.people] == number
        camps.append(
            Camp(
                share=share,
                people=int((place[talkers] == number).sum()),
                verdicts=int(theirs.sum()),
                accuracy_shared=float(shared[theirs].mean()) if theirs.any() else None,
                accuracy_own=float(own[theirs].mean()) if theirs.any() else None,
            )
        )
    more = own.astype(float) - shared
    several = len(set(decided.people.tolist())) > 1
    return replace(result, camps=tuple(camps), accuracy_gain=clustered_mean(more, decided.people) if several else None)


def _private(session: Session, comparisons: Sequence[Comparison]) -> frozenset[Dialogue]:
    """Return the prompts that are words of somebody's chat, which no report shows."""
    return session.store.only_in_chats() | {c.prompt for c in comparisons if c.asked_how in VOLUNTEERED}


def _parted(read: _Read, mixture: Mixture, private: frozenset[Dialogue]) -> tuple[Parted, ...]:
    """Return the pairs about which the camps differ most, one of a prompt."""
    left = expit(log_odds(mixture.scale, read.margins, read.states, mixture.directions))
    apart = left.max(axis=1) - left.min(axis=1)
    chosen: dict[Dialogue, Parted] = {}
    for place in np.argsort(-apart, kind="stable"):
        pair = read.pairs[place]
        if pair.prompt in private or pair.prompt in chosen:
            continue
        chances = tuple(round(float(chance), 3) for chance in left[place])
        chosen[pair.prompt] = Parted(
            prompt=pair.prompt[-1].text, left=pair.left.text, right=pair.right.text, chances=chances
        )
        if len(chosen) == EXAMPLES:
            break
    return tuple(chosen.values())


def _sentence(found: Found, people: int) -> str:
    if found.gain is None:
        return (
            f"Annotators are not told apart: {people} have given {FEWEST_VERDICTS} verdicts or more that are learned"
            f" from, and two camps take {2 * FEWEST_PEOPLE} such people and verdicts of several that were set aside."
        )
    ends = f"({found.gain.low:+.3f} to {found.gain.high:+.3f})"
    figure = f"{found.gain.estimate:+.3f} nats a verdict {ends} on what was set aside"
    if found.mixture is None:
        return f"Annotators are not told apart: camps would foretell their verdicts by {figure} better than one model."
    shares = " and ".join(f"{100 * share:.0f} %" for share in found.mixture.shares)
    return f"Annotators want different things: camps of {shares} foretell verdicts by {figure} better than one model."
