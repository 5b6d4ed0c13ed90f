"""What the loop waits for: verdicts to learn from, a time, or people's judgements of a round's policy.

Read from the record alone; nothing here loads torch: the pages and `manners status` come by.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from manners.audit import gate
from manners.errors import MannersError
from manners.evaluate import ask
from manners.facts import Facts, to_facts
from manners.feedback.queue import still_to_get
from manners.loop import kept
from manners.loop.history import (
    Begun,
    Reading,
    State,
    is_done,
    of_round,
    played,
    policy_at_work,
    read_begun,
    state,
    teaching,
    turn,
)
from manners.loop.when import Look, When, parse, ready
from manners.reward.groups import divided
from manners.reward.verdicts import label
from manners.settings import ServeSettings, Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.records import Round
from manners.types import (
    DELETED,
    LOCAL,
    AccountRole,
    AnnotatorKind,
    AskedHow,
    Comparison,
    Verdict,
    VersionKind,
    latest_verdicts,
)
from manners.workspace import Workspace

SKEW = timedelta(minutes=1)
"""What clocks of machines that share a record may differ by."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What the loop waits for."""

    what: str
    """`verdicts` to learn from, `time`, or `judgements` of the round's policy."""
    have: int
    need: int
    """As far as it is known: with `time`, one verdict."""
    at_most: int
    """How many there can be, as far as that is known; where it is less than `need`, the loop goes on with these."""
    sentence: str


def look(workspace: Workspace, seen: Reading, settings: Settings) -> Look:
    """Look at the store: what came since the newest reward model, and what can still come from those who are here."""
    models = seen.store.versions(VersionKind.REWARD)
    rewards = [one for one in models if (workspace.root / one.path).is_dir()]  # what one that was removed knew is new
    new = list(teaching(seen.comparisons, after=rewards[-1].watermark if rewards else 0))
    asked = [one for one in seen.comparisons if one.asked_how in (AskedHow.RANDOM, AskedHow.ADVERSARIAL)]
    wanted = _wanted(seen.store, asked, settings.serve)
    since, now = _since(workspace, seen, new), datetime.now(UTC)
    return Look(
        now=_on_the_wall(now),
        since=_on_the_wall(since),
        verdicts=len(new),
        wanting=len(wanted),
        can_come=sum(wanted),
        behind=since - now > SKEW,
    )


def _wanted(store: Store, comparisons: Iterable[Comparison], settings: ServeSettings) -> list[int]:
    """Return how many verdicts each can still get from those who label here, of those comparisons that can get any.

    They are the accounts or, without any, the owner of this machine.
    """
    accounts = [one for one in Accounts(store).all() if not one.disabled and one.role is not AccountRole.VIEWER]
    people: set[int | None] = {one.id for one in accounts} or {None}
    return [want for one in comparisons if (want := _wants(one, people, settings))]


def _wants(comparison: Comparison, people: Collection[int | None], settings: ServeSettings) -> int:
    """Return how many verdicts a comparison can still get from these people, who judge it once each."""
    if comparison.reported or DELETED in (comparison.left.text, comparison.right.text):
        return 0  # it is shown to nobody
    given = [v for v in latest_verdicts(comparison.verdicts) if not v.annotator.is_judge]
    have = {v.annotator.account for v in given if v.annotator.account is not None or v.annotator.name == LOCAL}
    return min(still_to_get([v.choice for v in given], settings), len(set(people) - have))


def _since(workspace: Workspace, seen: Reading, new: Iterable[Verdict]) -> datetime:
    """Return from when on a time counts: the round at work had begun, and something new had been given.

    It begins with the end of the last one, or with the loop.
    """
    begun = read_begun(workspace)
    moments = [datetime.fromisoformat(begun.created_at)] if begun and begun.created_at else []
    moments += [one.created_at.replace(tzinfo=UTC) for one in seen.rounds[-1:] if one.created_at]
    moments += [min(given)] if (given := [one.created_at for one in new if one.created_at]) else []
    return max(moments, default=datetime.now(UTC))


def _on_the_wall(moment: datetime) -> datetime:
    """Return what the clock on this machine's wall shows at a moment."""
    return moment.astimezone().replace(tzinfo=None)


def awaited(begun: Begun, settings: Settings) -> When:
    """Return what a round waits for before it learns."""
    return parse(begun.when) if begun.when else When(verdicts=settings.loop.verdicts)


def for_verdicts(workspace: Workspace, seen: Reading, settings: Settings, begun: Begun) -> Waiting | None:
    """Return what a round that has asked waits for; None where it can go on, or waiting would be in vain."""
    when, found = awaited(begun, settings), look(workspace, seen, settings)
    if begun.crowd or not (found.verdicts or found.wanting):
        return None
    still = f"{found.wanting} comparisons want some still, on the labelling page"
    if ready(when, found):
        return _for_more(found, why, still) if (why := lacks(seen.comparisons, settings)) else None
    have, most = found.verdicts, found.verdicts + found.can_come
    if when.verdicts is None:
        so_far = f"{have} new verdict{'s' if have != 1 else ''} so far"
        sentence = f"waiting for {when}; {so_far}, {still}{_behind(found)}"
        return Waiting(what="time", have=have, need=1, at_most=most, sentence=sentence)
    sentence = f"waiting for verdicts: {have} of {when.verdicts} new ones are there; {still}"
    if most < when.verdicts:
        sentence += (
            f", and can get {found.can_come} at most, so that the round goes on with {most}: for more, raise"
            " loop.prompts or serve.overlap, or invite others (`manners accounts invite`)"
        )
    return Waiting(what="verdicts", have=have, need=when.verdicts, at_most=most, sentence=sentence)


def lacks(comparisons: Sequence[Comparison], settings: Settings) -> str:
    """Return in a sentence why there is too little yet to learn from; empty where there is enough.

    Also where something else keeps a reward model from being trained, which more verdicts would not change.
    """
    with suppress(MannersError):
        pairs = label(comparisons, settings.reward.annotators).pairs
        try:
            divided(pairs, settings.reward, settings.seed)
        except MannersError as error:
            return str(error)
    return ""


def _for_more(found: Look, why: str, still: str) -> Waiting | None:
    """Return the wait for more verdicts than teach nothing yet; None where nobody who is here can give any."""
    if not found.can_come:
        return None
    have, most = found.verdicts, found.verdicts + found.can_come
    sentence = f"waiting for more verdicts: {have} new ones are there, and nothing can be learned yet ({why}); {still}"
    return Waiting(what="verdicts", have=have, need=have + 1, at_most=most, sentence=sentence)


def _behind(found: Look) -> str:
    """Say that the clock was set back, where it was: the time may be long in coming."""
    if not found.behind:
        return ""
    return (
        f"; this machine's clock is behind the record, which has {found.since:%Y-%m-%d %H:%M} already, and only a time"
        ' after that counts: set the clock right, or go on with --when "1 new verdict"'
    )


def asked_about(workspace: Workspace, comparisons: Iterable[Comparison], policy: str) -> list[Comparison]:
    """Return the comparisons opened for people to judge a policy by: with what it would replace now, or the start."""
    others = {gate.replaced_by(workspace, policy), workspace.start()}
    asked = (one for one in comparisons if one.asked_how is AskedHow.EVALUATION)
    return [one for one in asked if any({policy, other} == {one.left.author, one.right.author} for other in others)]


def for_judgements(workspace: Workspace, seen: Reading, settings: Settings, policy: str) -> Waiting | None:
    """Return how many comparisons of a round's policy lack people's verdicts; None where nobody here can give more.

    A comparison that has placed its bet lacks none, and one that everybody here has judged, or skipped, gets none.
    """
    opened = asked_about(workspace, seen.comparisons, policy)
    unplaced = [one for one in opened if all(bet.kind is not AnnotatorKind.HUMAN for bet in one.bets)]
    wanting = len(_wanted(seen.store, unplaced, settings.serve))
    if not wanting:
        return None
    need = len(opened)
    have = need - wanting
    sentence = f"waiting for people to judge {policy}: {have} of {need} comparisons have their verdicts"
    if fewer := max(0, ask.to_judge(opened, settings.serve) - wanting):
        sentence += f", {fewer} of them fewer than they might, as nobody who is here can give more"
    return Waiting(what="judgements", have=have, need=need, at_most=need, sentence=sentence)


def waits_for(workspace: Workspace, seen: Reading, settings: Settings) -> Waiting | None:
    """Return what the loop waits for; None where there is no loop, it has ended, or it is at work."""
    begun = read_begun(workspace)
    return None if begun is None or begun.stopped else at_work(workspace, seen, settings, begun)


def at_work(workspace: Workspace, seen: Reading, settings: Settings, begun: Begun) -> Waiting | None:
    """Return what the round at work waits for in a loop that goes on; None where it waits for nothing."""
    match before(workspace, seen.rounds):
        case "reward":
            return for_verdicts(workspace, seen, settings, begun)
        case "evaluation":
            policy = policy_at_work(workspace, turn(workspace, seen.rounds))
            there = (workspace.models / policy).is_dir()
            return for_judgements(workspace, seen, settings, policy) if there else None
    return None


def before(workspace: Workspace, rounds: Sequence[Round]) -> str | None:
    """Return the stage that the round at work has come to where something may be waited for before it; else None."""
    number = turn(workspace, rounds)
    if not is_done(workspace, "sample", number):
        return None
    if not is_done(workspace, "reward", number) and of_round(workspace, "reward") != number:
        return "reward"
    return "evaluation" if is_done(workspace, "ppo", number) and of_round(workspace, "evaluation") != number else None


def stands(workspace: Workspace, store: Store) -> State:
    """Return how the loop stands without reading what people said: it waits where it may have to (`before`)."""
    begun = read_begun(workspace)
    waits = begun is not None and not begun.crowd and before(workspace, store.rounds()) is not None
    return state(begun, kept.trained_by(workspace, store), waits)


def facts(workspace: Workspace, seen: Reading, settings: Settings) -> Facts:
    """Return where the loop stands: what `manners status` and the page say."""
    begun = read_begun(workspace)
    waiting = waits_for(workspace, seen, settings)
    rounds = played(workspace, seen)
    holder = kept.trained_by(workspace, seen.store)
    found = state(begun, holder, waiting is not None)
    return {
        "state": str(found),
        "process": holder.process if holder and found in (State.RUNNING, State.WAITING) else "",
        "current": workspace.current_policy(),
        "rounds": [to_facts(one) for one in rounds],
        "to_play": max(0, begun.rounds - len(rounds)) if begun and not begun.stopped else 0,
        "waiting_for": None if waiting is None else to_facts(waiting),
        "stopped": begun.stopped if begun else "",
        "failed": begun.failed if begun else "",
        "failed_at": begun.failed_at if begun else "",
    }
