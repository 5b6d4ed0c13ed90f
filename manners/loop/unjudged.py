"""A round that ends without anybody's judgement: PPO found nothing better than what was there."""

from __future__ import annotations

import sys

from manners.audit import gate
from manners.audit.rules import EVALUATION, held, rules
from manners.facts import scalars, to_facts
from manners.loop import history
from manners.loop.round import EVALUATE
from manners.loop.session import Session
from manners.models import versions
from manners.results.evaluation import EvaluationResult
from manners.store import Outcome, Round


def end(session: Session, why: str) -> None:
    """Put on record that the round's policy is rejected, and that nobody judged it: it was no try (`history.attempt`).

    The round comes last: until it is there, a process that is started again comes by here again.
    """
    workspace, store = session.workspace, session.store
    version = versions.describe(workspace, history.policy_at_work(workspace, session.turn))
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
