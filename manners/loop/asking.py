"""Evaluation in another way than by a run: comparisons opened for people, and a reward model on a file."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from manners.errors import MannersError
from manners.evaluate import ask
from manners.evaluate.promotion import called, level
from manners.facts import Facts, to_facts
from manners.loop import bets
from manners.loop.evaluate import rival
from manners.loop.history import attempt, policy_at_work
from manners.loop.prompts import evaluation_prompts, own_seed
from manners.loop.session import Session
from manners.models import versions
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.progress import steps
from manners.results import FileResult
from manners.reward import stored
from manners.reward.ensemble import Scored, score_rendered
from manners.reward.measure import measure
from manners.reward.pairs import read, shortened
from manners.reward.verdicts import label, to_measure_on
from manners.store.files.formats import Format
from manners.store.files.reading import survey
from manners.store.files.rows import Reason
from manners.store.files.transfer import OURS, comparisons_of
from manners.types import Answer, Choice, Comparison, Dialogue, VersionKind, opening
from manners.workspace import INITIAL

START_SHARE = 0.25
"""Of the comparisons opened for people, with the start version, where the policy would replace another."""
NEXT = ""
"""A policy that is not there yet, and has no name."""


class TooFew(MannersError):
    """Two versions answer so few prompts differently that comparisons of these can show nothing."""

    def __init__(self, what: str, unused: int) -> None:
        """Take what was found, and how many prompts there were that nobody was asked about."""
        super().__init__(f"{what}: import more with `manners prompts import FILE --use evaluate`")
        self.what = what
        self.unused = unused


def open_for_people(session: Session, count: int, against: str | None = None, *, fewer: bool = False) -> Facts:
    """Open blind comparisons of the newest policy, or a round's, with the version that it would replace.

    Where that is not the version that both started from, a quarter of them are with the start version. With `fewer` it
    is as many as there can be, where the two say the same to some prompts. What they can show is said; raises
    MannersError where so few can show nothing, TooFew where it shows when both have answered.
    """
    name = policy_at_work(session.workspace, session.turn)
    start = versions.describe(session.workspace, name).start
    other = rival(session, name, against)
    with_start = _with_start(count, other, start)
    wanted, at = count - with_start, level(attempt(session.store.rounds(), name, other))
    if not ask.can_show(wanted, at):
        some = f"of {count} comparisons {with_start} are with the start version, and " if with_start else ""
        least = _least(other, start, at)
        raise MannersError(
            f"{some}{wanted} comparisons cannot show any difference at level {at:g}: ask for at least {least}"
        )
    plan = ask.plan(wanted, at)
    prompts = evaluation_prompts(session).prompts
    policy = _of_policy(session, name, prompts)
    known, seed = session.store.comparisons(), session.settings.seed
    opened = ask.open_comparisons(_of_policy(session, other, prompts), policy, known, wanted, seed, fewer=fewer)
    sentence = plan.sentence
    if len(opened) < wanted:
        if not ask.can_show(len(opened), at):
            raise _too_few(len(opened), name, other, prompts, ask.spent(known))
        plan = ask.plan(len(opened), at)
        sentence = f"{plan.sentence} No other prompt has two different answers, so that they are fewer than {wanted}."
    beside = list[Comparison]()
    if with_start:
        before = _of_policy(session, start, prompts)
        asked = [*known, *opened]
        beside = ask.open_comparisons(before, policy, asked, with_start, seed + 1, fewer=fewer)
        sentence += f" They are with {other}; {len(beside)} more are with {called(start, start)}."
    session.store.merge_comparisons([*opened, *beside])  # on prompts that nobody was asked about: all are new
    facts = {"opened": len(opened) + len(beside), "version": name, "against": other, "with_start": len(beside)}
    return facts | asdict(plan) | {"sentence": sentence}


def fewest(session: Session) -> int:
    """Return how few comparisons of the next policy can show that it is better, where it wins all of them.

    Those with the start version are among them. It takes more from try to try for the same place.
    """
    current = session.workspace.current_policy()
    at = level(attempt(session.store.rounds(), NEXT, current))
    return _least(current, session.start, at)


def _least(other: str, start: str, level: float) -> int:
    """Return how few comparisons can show anything, those with the start version among them."""
    return next(n for n in itertools.count(1) if ask.can_show(n - _with_start(n, other, start), level))


def _with_start(count: int, other: str, start: str) -> int:
    """Return how many of the comparisons with a version that would be replaced are with the start version instead."""
    return 0 if other == start else round(count * START_SHARE)


def _too_few(different: int, name: str, other: str, prompts: Sequence[Dialogue], used: set[Dialogue]) -> TooFew:
    unused = sum(prompt not in used for prompt in prompts)
    return TooFew(
        f"{name} and {other} answer {different} of {unused} prompts differently that nobody was asked about, too few to"
        " show anything",
        unused,
    )


def _of_policy(session: Session, version: str, prompts: Sequence[Dialogue]) -> list[Answer]:
    """Draw a policy's answer to each prompt."""
    policy = versions.load_policy(session.workspace, version, session.pretrained)
    return answers(session, policy, session.pretrained, version, prompts)


def answers(
    session: Session, policy: Branch, model: Pretrained, author: str, prompts: Sequence[Dialogue]
) -> list[Answer]:
    """Draw an answer to each prompt."""
    found: dict[int, Answer] = {}
    seed = own_seed(session.settings.seed, author)
    drawn = answer(policy, model, prompts, 1, session.settings.sample, seed, author)
    with steps(f"answers of {author}", len(prompts)) as advance:
        for batch in drawn:
            found |= dict(zip(batch.places, batch.answers, strict=True))
            advance(len(batch.answers))
    return [found[i] for i in range(len(prompts))]


def close(session: Session, version: str | None = None, against: str | None = None) -> None:
    """Take the verdicts on what is compared as all there will be, and place the bets that waited; on nothing else.

    That is a phase with another, or, where none is named, the newest policy with its rival and with the start version.
    """
    if version is not None:
        bets.close(session, version, [against or INITIAL])
        return
    policy = versions.latest(session.workspace, VersionKind.POLICY)
    start = versions.describe(session.workspace, policy).start
    bets.close(session, policy, [rival(session, policy, against), start])


def measure_on_file(
    session: Session,
    version: str,
    file: Path,
    mapping: Mapping[str, str],
    fmt: Format | None,
    skip_bad: bool,
    words: Mapping[str, Choice] = OURS,
) -> Facts:
    """Measure a reward model on any outside file of comparisons, beside the same baselines.

    The rows of one pair are one comparison with several verdicts. With `skip_bad` bad rows are left out and counted.
    """
    settings = session.settings
    skipped = Counter[Reason]()
    reading = survey(file, mapping, fmt, words)
    rows = comparisons_of(reading, skipped=skipped if skip_bad else None)
    comparisons, chosen = to_measure_on(rows)
    if not any(comparison.verdicts for comparison in comparisons):
        raise MannersError(f"{file} holds no verdict to measure with; name a file of comparisons that were judged")
    labelled, rendered = read(session.pretrained.renderer, label(comparisons, settings.reward.annotators))
    if not any(pair.counts.decided for pair in labelled.pairs):
        raise MannersError(f"no verdict in {file} chooses a side; name a file in which some prefer a response")
    reward = stored.load_reward(session.workspace, version, session.pretrained)
    sides = [rendered[pair.prompt, side] for pair in labelled.pairs for side in (pair.left, pair.right)]
    scores = np.asarray(Scored(score_rendered(reward, session.pretrained, sides)).mean.double())
    margins = (scores[0::2] - scores[1::2]) * reward.unit
    seen = {opening(comparison.prompt) for comparison in session.store.comparisons() if comparison.verdicts}
    known = sum(opening(pair.prompt) in seen for pair in labelled.pairs)
    where = f"the verdicts of {file.name}"
    if known:
        where += f" ({known} of {len(labelled.pairs)} about prompts of this workspace, which it may have learned from)"
    measured = measure(margins, (), labelled.pairs, settings.seed, where)
    result = FileResult(
        **vars(measured),
        version=version,
        file=str(file),
        pairs=len(labelled.pairs),
        known_prompts=known,
        shortened=shortened(dict.fromkeys(sides)),
        left_out={str(reason): n for reason, n in (labelled.left_out | chosen).items()},
        skipped={str(reason): n for reason, n in skipped.items()},
        unused=reading.unused,
        notes=reading.notes,
    )
    facts = to_facts(result)
    first = [entry.name for entry in fields(FileResult) if entry.name in FileResult.__annotations__]
    return {name: facts[name] for name in first} | facts
