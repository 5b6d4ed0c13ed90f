"""A round that ends without anybody's judgement: PPO found nothing better than what was there."""

from __future__ import annotations

import sys

from manners.audit import gate
from manners.audit.rules import EVALUATION, held, rules
from manners.facts import scalars, to_facts
from manners.loop.round import EVALUATE
from manners.loop.session import Session
from manners.models import versions
from manners.results.evaluation import EvaluationResult
from manners.store import Outcome, Round
from manners.types import VersionKind


def nothing_found(session: Session) -> str:
    """Say so where the newest policy is, to the bit, the version that it would replace; return nothing otherwise.

    PPO keeps what it began as where no update did better on the validation prompts. Whoever judged the two would be
    shown the same twice.
    """
    version = versions.describe(session.workspace, versions.latest(session.workspace, VersionKind.POLICY))
    against = gate.replaced_by(session.workspace, version.name)
    if version.metrics.get("best_update") != 0 or version.parent != against:
        return ""
    return f"Nothing better was found: {version.name} is {against}, as it was before PPO, so that nobody judged it."


def end(session: Session, why: str) -> None:
    """Put on record that the round's policy is rejected, and that nobody judged it: it was no try (`history.attempt`).

    The round comes last: until it is there, a process that is started again comes by here again.
    """
    workspace, store = session.workspace, session.store
    version = versions.describe(workspace, versions.latest(workspace, VersionKind.POLICY))
    against = gate.replaced_by(workspace, version.name)
    check = held("win_rate", rules(workspace.root).of(EVALUATION, "win_rate"), None, None, why)
    gate.keep(workspace, version.name, EVALUATION, [check], against)
    result = EvaluationResult(
        kl=version.metrics.get("kl"),
        version=version.name,
        against=against,
        start=version.start,
        source="none",
        verdict=why,
        promoted=False,
    )
    session.save_facts(EVALUATE.name, to_facts(result))
    store.add_round(Round(version.name, version.reward or version.name, Outcome.REJECTED, scalars(result)))
    print(why, file=sys.stderr)
