"""Where the loop stands, read from the record alone: its rounds, the one at work, and what it waits for.

A round is a policy with an outcome: the store numbers them, in the order in which they ended. Nothing here loads torch:
the pages and `manners status` come by.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from manners.audit import gate
from manners.audit.rules import EVALUATION, REWARD
from manners.errors import MannersError
from manners.evaluate import ask
from manners.facts import NULL, Facts, from_facts, to_facts
from manners.feedback.queue import still_to_get
from manners.loop.stage import ROUND
from manners.loop.when import Look, When, parse, ready
from manners.results.audit import Check, Gate
from manners.settings import LoopSettings, ServeSettings, Settings
from manners.store import Outcome, Store
from manners.store.accounts import Accounts
from manners.store.records import Round
from manners.types import LOCAL, MEASURES, AccountRole, AskedHow, Choice, Comparison, VersionKind, latest_verdicts
from manners.unfinished import unfinished
from manners.workspace import Workspace, atomic_write

RECORD = "loop.json"
SKEW = timedelta(minutes=1)
"""What clocks of machines that share a record may differ by."""


@dataclass(frozen=True)
class Reading:
    """One look at the store: what several questions are about is read once, when the first of them is asked."""

    store: Store

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """All of them."""
        return self.store.comparisons()

    @cached_property
    def rounds(self) -> list[Round]:
        """How policies ended, in the order in which they did."""
        return self.store.rounds()


@dataclass(frozen=True, kw_only=True)
class Begun:
    """How the loop was begun, which the store does not say (`runs/loop.json`)."""

    rounds: int = 0
    """How many the workspace is to have in the end."""
    crowd: bool = False
    when: str = ""
    """What a round waits for before it learns; empty for `loop.verdicts`."""
    created_at: str = ""
    """UTC: what `loop.hours` counts from."""
    lays_out: bool | None = None
    """Whether weights are laid out for decoding, as was measured then: rounding may hang on it."""
    stopped: str = ""
    """Why it has ended; empty while it goes on."""
    started_by: str = ""
    """Who began it, see `loop.starter`: whoever goes on with it starts no run of their own."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """A round that has ended."""

    round: int
    policy: str
    reward: str
    verdicts: int
    """That were there when the reward model was trained, of all rounds up to then."""
    win_rate: float | None = field(default=None, metadata=NULL)
    """Over the version whose place it would take."""
    interval: tuple[float, float] | None = field(default=None, metadata=NULL)
    """Of 95 %."""
    quality: tuple[float, float, float] | None = field(default=None, metadata=NULL)
    """Win rate over the start version with its interval: what the rounds have come to so far."""
    kl: float | None = field(default=None, metadata=NULL)
    """To the start version, over all rounds, in nats per response."""
    gate: Gate = field(default_factory=Gate)
    """What was measured of it, held against the rules of that time."""
    outcome: str
    created_at: str = ""


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


def read_begun(workspace: Workspace) -> Begun | None:
    """Return how the loop was begun; None where there was none. Raises MannersError where the file is damaged."""
    file = workspace.runs / RECORD
    if not file.exists():
        return None
    try:
        begun = from_facts(
            Begun, json.loads(file.read_text(encoding="utf-8")), str(file), "remove it, and run `manners loop` again"
        )
        if begun.created_at:
            datetime.fromisoformat(begun.created_at)
    except (OSError, ValueError) as error:
        raise MannersError(f"{file} is damaged ({error}): remove it, and run `manners loop` again.") from error
    return begun


def write_begun(workspace: Workspace, begun: Begun) -> None:
    """Keep how the loop was begun."""
    workspace.runs.mkdir(exist_ok=True)
    atomic_write(workspace.runs / RECORD, json.dumps(to_facts(begun), indent=1) + "\n")


def ended(rounds: Iterable[Round]) -> list[Round]:
    """Return the rounds, in the order in which their policies first had an outcome, each as it ended at last.

    A policy that people judge may be looked at again and again: that is one round.
    """
    return list({one.policy: one for one in rounds}.values())


def turn(workspace: Workspace, rounds: Sequence[Round]) -> int:
    """Return the number of the round at work: the next one, or the last whose evaluation was killed at its very end."""
    count = len(ended(rounds))
    return count if count and of_round(workspace, "evaluation") == count else count + 1


def of_round(workspace: Workspace, stage: str) -> int | None:
    """Return which round a stage's unfinished run is of; None where there is none, or it is none of the loop's."""
    for checkpoint in reversed(unfinished(workspace.runs / stage)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return _number(json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8")))
    return None


def is_done(workspace: Workspace, stage: str, turn: int) -> bool:
    """Return whether a stage has done its part of a round."""
    if unfinished(workspace.runs / stage):
        return False
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _number(json.loads((workspace.runs / f"{stage}.json").read_text(encoding="utf-8"))) == turn
    return False


def _number(facts: Facts) -> int | None:
    number = facts["begun_with"].get(ROUND)
    return number if isinstance(number, int) else None


def played(workspace: Workspace, seen: Reading) -> list[Played]:
    """Return the rounds that have ended, with what the record says of each."""
    rounds = ended(seen.rounds)
    if not rounds:
        return []
    marks = {version.name: version.watermark for version in seen.store.versions()}
    found = []
    for number, one in enumerate(rounds, 1):
        checks = _checks(workspace, one)
        over = next((c.interval for name in ("start", "win_rate") for c in checks if c.name == name), None)
        ends = one.metrics.get("interval")
        found.append(
            Played(
                round=number,
                policy=one.policy,
                reward=one.reward,
                verdicts=counted(seen.comparisons, upto=marks.get(one.reward)),
                win_rate=one.metrics.get("win_rate"),
                interval=tuple(ends) if ends else None,
                quality=(over.estimate, over.low, over.high) if over else None,
                kl=one.metrics.get("kl"),
                gate=gate.decide(checks),
                outcome=str(one.outcome),
                created_at=one.created_at.isoformat(timespec="seconds") if one.created_at else "",
            )
        )
    return found


def _checks(workspace: Workspace, one: Round) -> list[Check]:
    """Return what was measured of a round's policy and of its reward model; nothing of a version that is gone."""
    found = list[Check]()
    for version, part in ((one.policy, EVALUATION), (one.reward, REWARD)):
        with suppress(MannersError):
            kept = gate.read(workspace, version).measured.get(part)
            found += kept.checks if kept else ()
    return found


def counted(comparisons: Iterable[Comparison], *, after: int = 0, upto: int | None = None) -> int:
    """Count the verdicts that something can be learnt from, of those that arrived after one and up to another.

    A skip is none; nor is what a judge says, who may be admitted or not (`manners judge`).
    """
    arrived = (
        v.arrived or 0
        for c in comparisons
        if c.asked_how not in MEASURES
        for v in c.verdicts
        if v.choice is not Choice.SKIP and not v.annotator.is_judge
    )
    return sum(after < number and (upto is None or number <= upto) for number in arrived)


def look(workspace: Workspace, seen: Reading, settings: Settings) -> Look:
    """Look at the store: what came since the newest reward model, and what can still come from those who are here."""
    models = seen.store.versions(VersionKind.REWARD)
    rewards = [one for one in models if (workspace.root / one.path).is_dir()]  # what one that was removed knew is new
    new = counted(seen.comparisons, after=rewards[-1].watermark if rewards else 0)
    accounts = [one for one in Accounts(seen.store).all() if not one.disabled and one.role is not AccountRole.VIEWER]
    people: set[int | None] = {one.id for one in accounts} or {None}
    """Who labels here: the accounts or, without any, the owner of this machine."""
    wanted = [
        want
        for one in seen.comparisons
        if one.asked_how is AskedHow.RANDOM and (want := _wants(one, people, settings.serve))
    ]
    since, now = _since(workspace, seen), datetime.now(UTC)
    return Look(
        now=_on_the_wall(now),
        since=_on_the_wall(since),
        verdicts=new,
        wanting=len(wanted),
        can_come=sum(wanted),
        behind=since - now > SKEW,
    )


def _wants(comparison: Comparison, people: Collection[int | None], settings: ServeSettings) -> int:
    """Return how many verdicts a comparison can still get from these people, who judge it once each."""
    given = [v for v in latest_verdicts(comparison.verdicts) if not v.annotator.is_judge]
    have = {v.annotator.account for v in given if v.annotator.account is not None or v.annotator.name == LOCAL}
    return min(still_to_get([v.choice for v in given], settings), len(set(people) - have))


def _since(workspace: Workspace, seen: Reading) -> datetime:
    """Return when the round at work began: with the end of the last, or with the loop."""
    begun = read_begun(workspace)
    moments = [datetime.fromisoformat(begun.created_at)] if begun and begun.created_at else []
    moments += [one.created_at.replace(tzinfo=UTC) for one in seen.rounds[-1:] if one.created_at]
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
    if begun.crowd or ready(when, found) or not (found.verdicts or found.wanting):
        return None
    still = f"{found.wanting} comparisons want some still, on the labelling page"
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


def _behind(found: Look) -> str:
    """Say that the clock was set back, where it was: the time may be long in coming."""
    if not found.behind:
        return ""
    return (
        f"; this machine's clock is behind the record, in which the last round ended {found.since:%Y-%m-%d %H:%M}, and"
        ' only a time after that counts: set the clock right, or go on with --when "1 new verdict"'
    )


def asked_about(comparisons: Iterable[Comparison], policy: str) -> list[Comparison]:
    """Return the comparisons that were opened for people to judge a policy."""
    asked = (one for one in comparisons if one.asked_how is AskedHow.EVALUATION)
    return [one for one in asked if policy in (one.left.author, one.right.author)]


def for_judgements(seen: Reading, settings: Settings, policy: str) -> Waiting | None:
    """Return how many comparisons of a round's policy lack people's verdicts; None where none does."""
    opened = asked_about(seen.comparisons, policy)
    missing = ask.to_judge(opened, settings.serve)
    if not missing:
        return None
    have, need = len(opened) - missing, len(opened)
    sentence = f"waiting for people to judge {policy}: {have} of {need} comparisons have their verdicts"
    return Waiting(what="judgements", have=have, need=need, at_most=need, sentence=sentence)


def waits_for(workspace: Workspace, seen: Reading, settings: Settings) -> Waiting | None:
    """Return what the loop waits for; None where there is no loop, it has ended, or it is at work."""
    begun = read_begun(workspace)
    if begun is None or begun.stopped:
        return None
    number = turn(workspace, seen.rounds)
    if not is_done(workspace, "sample", number):
        return None
    if not is_done(workspace, "reward", number) and of_round(workspace, "reward") != number:
        return for_verdicts(workspace, seen, settings, begun)
    if is_done(workspace, "ppo", number) and of_round(workspace, "evaluation") != number:
        policies = seen.store.versions(VersionKind.POLICY)
        return for_judgements(seen, settings, policies[-1].name) if policies else None
    return None


def facts(workspace: Workspace, seen: Reading, settings: Settings) -> Facts:
    """Return where the loop stands: what `manners status` and the page say."""
    begun = read_begun(workspace)
    waiting = waits_for(workspace, seen, settings)
    rounds = played(workspace, seen)
    return {
        "current": workspace.current_policy(),
        "rounds": [to_facts(one) for one in rounds],
        "to_play": max(0, begun.rounds - len(rounds)) if begun and not begun.stopped else 0,
        "waiting_for": None if waiting is None else to_facts(waiting),
        "stopped": begun.stopped if begun else "",
    }


def command(workspace: Workspace) -> str | None:
    """Return the command that goes on with a loop that was stopped; None where none was."""
    begun = read_begun(workspace)
    if begun is None or begun.stopped:
        return None
    when = f' --when "{begun.when}"' if begun.when else ""
    return f"manners loop --rounds {begun.rounds}{' --crowd' if begun.crowd else ''}{when}"


def promoted_kl(rounds: Sequence[Played], current: str) -> float:
    """Return how far the promoted policy is from the start version, in nats per response; 0 for that itself."""
    return next((one.kl or 0.0 for one in reversed(rounds) if one.policy == current), 0.0)


def attempt(rounds: Sequence[Round], policy: str) -> int:
    """Return the how-manieth policy this is that asks for the place of the promoted one; that itself was the last.

    Policies that were tried since the last promotion, and before this one had its own first outcome, were before it.
    """
    count = 1
    for one in ended(rounds):
        if one.policy == policy:
            break
        count = 1 if one.outcome is Outcome.PROMOTED else count + 1
    return count


def over(
    rounds: Sequence[Played], begun: Begun, limits: LoopSettings, *, verdicts: int, current: str, moment: datetime
) -> str:
    """Return in a sentence why no round is to begin: all are played, or a budget is used up; empty where one is.

    `moment` has a time zone.
    """
    if len(rounds) >= begun.rounds:
        more = f"; more with a larger --rounds than {begun.rounds}"
        return f"{len(rounds)} round{'s are' if len(rounds) != 1 else ' is'} played{more}."
    if limits.most_verdicts is not None and verdicts >= limits.most_verdicts:
        there = f"{verdicts} verdicts of {limits.most_verdicts} are there"
        return f"loop.most_verdicts is used up: {there}; raise it to go on."
    end = datetime.fromisoformat(begun.created_at) + timedelta(hours=limits.hours or 0)
    if limits.hours is not None and moment >= end:
        since = f"the loop was begun {begun.created_at}, and {limits.hours:g} hours are over"
        return f"loop.hours is used up: {since}; raise it to go on."
    kl = promoted_kl(rounds, current)
    if limits.kl is not None and kl >= limits.kl:
        far = f"{current} is {kl:.3g} nats per response from the start version, of {limits.kl:g}"
        return f"loop.kl is used up: {far}; raise it to go on."
    return ""
