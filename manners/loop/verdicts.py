"""The verdicts that a run learns from: as they are now, or as they were when the run that goes on was begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from manners.checkpoint import JUDGES, PAIRS, Changed
from manners.facts import Facts
from manners.loop.admitted import admitted
from manners.loop.prompts import as_begun, until
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs
from manners.reward.labelled import LabelledPair
from manners.reward.verdicts import label
from manners.store import Newest
from manners.types import Annotator, Comparison

VERDICT, COMPARISON = "the newest verdict", "the newest comparison"
"""What says in a run's checkpoints how the record stood when it was begun."""

QUEUE = ("overlap", "agree", "retire_after", "share_chats")
"""Settings of the server that say what the queue may still give out, and with it what a verdict weighs in measurements;
the last one too, which prompts of chats are answered."""


@dataclass(frozen=True, kw_only=True)
class VerdictInputs(Inputs):
    """What a reward model learns from, or a policy without one."""

    watermark: int
    """The newest verdict."""
    comparisons: list[Comparison]
    upto: Newest | None = None
    """How far the record goes of whose prompts some are answered."""
    judges: frozenset[Annotator] = frozenset()
    """Those whose verdicts are learned from beside people's: admitted by the record as it is here."""


def verdict_inputs(session: Session, begun: Mapping[str, Any], stage: str) -> VerdictInputs:
    """Take the record as it is now, or as it was when the run that goes on was begun: what came since is for the next.

    `stage` names the folder of the run. Raises Changed where what it learned from was changed since.
    """
    upto = as_begun(session, begun)
    watermark, comparisons = _as_begun(session, begun, upto)
    pairs = _labelled(session, comparisons, begun)
    _refuse_changed(session, begun, pairs, stage)
    newest = comparisons[-1].id if comparisons else 0
    decides: Facts = {VERDICT: watermark, COMPARISON: newest, PAIRS: pairs, **until(upto)}
    judges = judges_of(session, comparisons)
    if session.settings.reward.annotators == "human+ai":
        decides[JUDGES] = ", ".join(sorted(judge.name for judge in judges)) or "none"
    return VerdictInputs(decides=decides, watermark=watermark, comparisons=comparisons, upto=upto, judges=judges)


def judges_of(session: Session, comparisons: Sequence[Comparison]) -> frozenset[Annotator]:
    """Return whose verdicts train beside people's: of an admitted judge, where `reward.annotators` asks for one."""
    return admitted(session, comparisons) if session.settings.reward.annotators == "human+ai" else frozenset()


def named(what: str, pairs: Sequence[LabelledPair], begun: object) -> str:
    """Say what there is with a digest of its pairs, by which a run knows whether they are those it was begun with.

    How verdicts were drawn is not in it: what they weigh in measurements hangs on what may still be asked. It was once,
    and a run that was `begun` then goes on.
    """
    now = f"{what} ({digest(tuple(pairs))})"
    if begun in (None, now):
        return now
    weighed = (pair if pair.drawn_left is None else replace(pair, shown_left=pair.drawn_left) for pair in pairs)
    before = f"{what} ({digest(tuple(weighed))})"
    return before if begun == before else now


def serving(session: Session, begun: Mapping[str, Any], *names: str) -> Facts:
    """Return those settings of the server that decide how a run ends; the others may change while it is stopped.

    Of a run of before they were kept nobody knows what they were, and it goes on with what they are now.
    """
    values = {f"serve.{name}": getattr(session.settings.serve, name) for name in names}
    return {name: value for name, value in values.items() if not begun or name in begun}


def _as_begun(session: Session, begun: Mapping[str, Any], upto: Newest | None) -> tuple[int, list[Comparison]]:
    """Return the newest verdict and the comparisons of a run: of now, or of when the one that goes on was begun."""
    watermark = int(begun.get(VERDICT, session.store.watermark()))
    bet = None if upto is None else upto.bet
    return watermark, session.store.comparisons(as_of=watermark, newest=begun.get(COMPARISON), newest_bet=bet)


def _labelled(session: Session, comparisons: Sequence[Comparison], begun: Mapping[str, Any]) -> str:
    """Say how many pairs and verdicts there are to learn from, with a digest of them."""
    settings = session.settings.reward
    pairs = label(comparisons, settings.annotators, settings.user_share, settings.account_share).pairs
    verdicts = round(sum(sum(pair.counts) for pair in pairs))
    return named(f"{verdicts} verdicts on {len(pairs)} comparisons", pairs, begun.get(PAIRS))


def _refuse_changed(session: Session, begun: Mapping[str, Any], pairs: str, stage: str) -> None:
    """Raise Changed where a run was begun with other pairs, and no setting says why."""
    settings = session.settings.reward
    folder = session.workspace.runs / stage
    chosen = {"reward.annotators": settings.annotators, "reward.user_share": settings.user_share}
    chosen["reward.account_share"] = settings.account_share
    if begun.get(PAIRS, pairs) != pairs and all(begun.get(name) == value for name, value in chosen.items()):
        raise Changed(
            f"the unfinished run in {folder} was begun with {begun[PAIRS]}, and of what was there then {pairs} are left"
            " as they were: verdicts were taken back since, comparisons deleted or reported, or prompts kept for"
            " evaluation; remove that folder to begin anew with what there is now"
        )
