"""`manners loop`: round after round, until there are as many as were asked for or a budget is used up.

sample -> wait for verdicts -> reward -> ppo -> audits, where the gate requires one -> judge -> evaluate -> report

Each step is the stage of the command of that name. What is done is read from the record (`loop.history`), so that a
loop that was killed anywhere is started again by the same command, and goes on where it was. Nor does it take a person
to start it again where the store was away for a while.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace

from manners.audit import gate
from manners.audit.review import HERE
from manners.audit.rules import POLICY as OF_POLICY
from manners.audit.rules import REWARD as OF_REWARD
from manners.audit.rules import rules
from manners.checkpoint import Changed
from manners.errors import MannersError, Unavailable, UsageError
from manners.evaluate import ask
from manners.facts import Facts, to_facts
from manners.loop import asking, bets, coming, history, kept, lineage, unjudged, waiting
from manners.loop.asking import TooFew
from manners.loop.coming import IN_A_ROUND
from manners.loop.history import LOOP, Begun, Played, Reading
from manners.loop.options import AuditOptions, JudgeOptions, PPOOptions, SampleOptions
from manners.loop.patience import LOOK, failure_kept, wait
from manners.loop.ppo import refuse_apart
from manners.loop.reporting import report
from manners.loop.round import AUDIT, BEHAVIOUR, EVALUATE, EVERY, JUDGE, PPO, REWARD, SAMPLE
from manners.loop.sample import not_by_model
from manners.loop.session import Session, now
from manners.loop.stage import Options, Stage, execute, finished, planned, refuse_another
from manners.loop.starter import starter
from manners.loop.waiting import Waiting
from manners.loop.when import parse
from manners.models import described
from manners.results.judge import JUDGED_BY
from manners.scale import cluster
from manners.store import cases
from manners.types import AnnotatorKind, AskedHow, PromptUse
from manners.workspace import discard


class Stepped(Exception):
    """A stage is done, which it names, and no more than that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a loop may be asked for."""

    rounds: int | None = None
    """How many rounds the workspace is to have in the end, with those that it has; where it is not said, as many as the
    loop that goes on, up to the end of the round at work, or one."""
    crowd: bool = False
    """Whether the crowd answers; where neither it nor `when` is said, as the loop that goes on was begun."""
    when: str | None = None
    step: bool = False
    """Whether to stop where something would be waited for, instead of waiting."""
    one: bool = False
    """Whether to stop when a stage is done as well; a step that waits for something says for what."""
    along: PPOOptions = field(default_factory=PPOOptions)
    """Which processes do the work of those stages that are shared; whoever goes on with the loop may have others."""


def play(session: Session, asked: Asked) -> Facts:
    """Play rounds, and return what became of them; begin with the one that is at work, if any.

    PPO begins as the promoted policy, whatever `ppo.start` says, with its KL measured against the start version: over
    all rounds. A loop that is under way, and whose store is away or busy, goes on from the record when it is back:
    that is looked at each minute. Raises MannersError at once, naming the process, where another one trains in this
    workspace.
    """
    _refuse(asked)
    ppo = replace(session.settings.ppo, start="current")
    session = Session(session.workspace, replace(session.settings, ppo=ppo), one=asked.one)
    _ = session.store
    begun: Begun | None = None
    said = ""
    while True:
        try:
            with session.run_lock(LOOP), failure_kept(session.workspace):
                before, begun = begun, _begin(session, asked)
                if before is None and (begun.crowd, begun.when) != (asked.crowd, asked.when or ""):
                    print(f"going on as it was begun: `{history.command(session.workspace)}`", file=sys.stderr)
                return _play(session, begun, asked)
        except Unavailable as error:
            if begun is None or asked.step or asked.one:
                raise
            if str(error) != said:
                said = str(error)
                print(f"{said} (the loop tries again each minute)", file=sys.stderr)
            time.sleep(LOOK)


def _play(session: Session, begun: Begun, asked: Asked) -> Facts:
    """Play rounds until none is to begin, or, where it was asked to step, until something would be waited for.

    Of one step the end of its round is a part: the report, and whether another round is to begin.
    """
    reported, begun_by = False, _begun_by(session, begun)
    while not (stopped := stops(session, begun)):
        if asked.one and reported:
            return _facts(session, None, "")
        number = history.turn(session.workspace, session.store.rounds())
        session = session.at(number, begun_by)
        try:
            lacks = _round(session, begun, asked.along, step=asked.step or asked.one)
        except Stepped as done:
            return _facts(session, None, "") | {"step": str(done)}
        if lacks:
            return _facts(session, lacks, "")
        lineage.keep_newest(session.workspace, session.store, session.settings)
        report(session, EVERY)
        reported = True
    history.write_begun(session.workspace, replace(begun, stopped=stopped))
    if not reported:  # it may have been killed while it wrote the last one
        lineage.keep_newest(session.workspace, session.store, session.settings)
        report(session, EVERY)
    return _facts(session, None, stopped)


def _begun_by(session: Session, begun: Begun) -> str:
    """Return whose the runs are that begin now: a single step is that of whoever takes it, where one is named."""
    who = starter(session.store, session.workspace.root) if session.one else HERE
    return begun.started_by if who == HERE else who


def _played(session: Session) -> list[Played]:
    return history.played(session.workspace, Reading(session.store))


def _refuse(asked: Asked) -> None:
    """Raise UsageError for what cannot be asked, and MannersError where there is no Ray for those who are to help."""
    if asked.rounds is not None and asked.rounds < 1:
        raise UsageError("--rounds N takes a number from 1 on.")
    if asked.when:
        parse(asked.when)
    if asked.when and asked.crowd:
        raise UsageError("--when says how long people are waited for, and --crowd asks none: leave one of them out.")
    if asked.along.workers is not None or asked.along.ray_address is not None:
        cluster.check()


def _begin(session: Session, asked: Asked) -> Begun:
    """Return how the loop was begun: it goes on where one is unfinished, else one begins now."""
    workspace = session.workspace
    begun = replace(_asked(session, asked), stopped="", failed="", failed_at="")
    if begun.lays_out is None:
        begun = replace(begun, lays_out=session.pretrained.trunk.compute.lays_out)
    number = history.turn(workspace, session.store.rounds())
    for stage in IN_A_ROUND:  # before anything else is done
        refuse_another(stage, workspace, number)
    who = starter(session.store, workspace.root)
    if begun.started_by in ("", HERE):  # nobody is named for it yet
        begun = replace(begun, started_by=who)
    history.write_begun(workspace, begun)
    return begun


def _asked(session: Session, asked: Asked) -> Begun:
    """Return the loop that goes on, or a new one, with what is asked for in place of what it was begun with.

    What nobody says stays as it was, also of a loop that was cut short in the middle of a round. Whoever names the
    crowd waits for no moment, and the other way round.
    """
    workspace, seen = session.workspace, Reading(session.store)
    if coming.is_at_work(workspace, history.turn(workspace, seen.rounds)):
        begun = coming.loop(workspace, seen)
    else:
        begun = history.carried_on(history.read_begun(workspace), seen.rounds, now())
    begun = replace(begun, rounds=asked.rounds or begun.rounds or 1)
    if asked.crowd or asked.when is not None:
        return replace(begun, crowd=asked.crowd, when=asked.when or "")
    return begun


def stops(session: Session, begun: Begun) -> str:
    """Return in a sentence why no round is begun any more; empty where one is. A round at work is played to its end."""
    return coming.over(session.workspace, Reading(session.store), begun, session.settings.loop)


def _round(session: Session, begun: Begun, along: PPOOptions, *, step: bool) -> Waiting | None:
    """Play a round as far as it goes, and return what it waits for where it does not wait itself (`step`)."""
    settings, workspace, store = session.settings, session.workspace, session.store
    _refuse_apart(session)
    _refuse_unjudged(session, begun)
    # 1. Ask: the promoted policy answers prompts, and comparisons are opened.
    _do(SAMPLE, session, begun, SampleOptions(crowd=begun.crowd, limit=settings.loop.prompts))
    # 2. Wait for verdicts, and learn from all there are.
    if not _begins(session, REWARD):
        if lacks := wait(session, lambda: waiting.for_verdicts(workspace, Reading(store), settings, begun), step=step):
            return lacks
        if not waiting.look(workspace, Reading(store), settings).verdicts:
            raise MannersError(
                "there is no new verdict to learn from, and no comparison that could get one: add prompts with"
                " `manners prompts import FILE` and `manners sample`, which opens comparisons of them, or let a"
                " comparison have more verdicts (serve.overlap)"
            )
        _ask_the_judge(session, begun)
    _do(REWARD, session, begun, along)
    # 3. Teach the promoted policy what was learnt.
    coming.refuse_missing(workspace, session.turn or 0, REWARD)
    _do(PPO, session, begun, along)
    # 4. Judge what came of it, unless that is what was there.
    coming.refuse_missing(workspace, session.turn or 0, REWARD, PPO)
    policy = history.policy_at_work(workspace, session.turn)
    if not _begins(session, EVALUATE) and (why := coming.nothing_found(workspace, policy)):
        unjudged.end(session, why)
        return None
    asked = rules(workspace.root)
    if asked.required(OF_REWARD):
        _do(AUDIT, session, begun, AuditOptions(version=described.teacher_of(workspace, policy)))
    # What a reviewer has kept away is asked again of every version that is to go through the gate.
    if asked.required(OF_POLICY) or cases.upheld(store):
        _do(BEHAVIOUR, session, begun, AuditOptions(what="policy", version=policy))
    return _judge(session, begun, step=step)


def _judge(session: Session, begun: Begun, *, step: bool) -> Waiting | None:
    """Judge the round's policy against the version whose place it would take: again, where that changed meanwhile."""
    workspace, store = session.workspace, session.store
    while True:
        try:
            if lacks := _judged_by_people(session, begun, step=step):
                return lacks
        except TooFew as error:
            if error.unused < session.settings.loop.judgements:
                raise
            unjudged.end(session, f"Nothing better can be shown: {error.what}.")
            return None
        _do(EVALUATE, session, begun)
        if len(history.ended(store.rounds())) >= (session.turn or 0):
            return None
        policy = history.policy_at_work(workspace, session.turn)
        against, current = (session.read_facts(EVALUATE.name) or {}).get("against"), gate.replaced_by(workspace, policy)
        if against == current:
            raise MannersError(
                f"nobody has judged {policy}, the policy of round {session.turn}: `manners evaluate {policy} --against"
                f" {current} --ask N` opens comparisons for people, and `manners loop` goes on when they are judged"
            )
        print(f"{policy} was compared with {against}, and would replace {current} now: once more", file=sys.stderr)
        kept.facts_file(workspace, EVALUATE.name).unlink()


def _begins(session: Session, stage: Stage) -> bool:
    """Return whether a stage of this round has begun already, or is done."""
    return history.has_begun(session.workspace, stage.name, session.turn or 0)


def _do(stage: Stage, session: Session, begun: Begun, options: Options | None = None) -> None:
    """Have a stage do its part of this round, unless it has; anew, where the record has lost what it was begun with.

    Raises Stepped where that was all that was asked for; the end of a round comes with its evaluation.
    """
    if history.is_done(session.workspace, stage.name, session.turn or 0):
        return
    print(f"round {session.turn} of {begun.rounds}: {stage.command}", file=sys.stderr)
    session.lay_out_as(bool(begun.lays_out))
    try:
        execute(stage, session, options, resume=True, locked=True)
    except Changed:
        print(f"{stage.command} begins anew: something that it was begun with was deleted or changed", file=sys.stderr)
        discard(session.workspace.runs / stage.name)
        execute(stage, session, options, resume=True, locked=True)
    if session.one and stage is not EVALUATE:
        raise Stepped(stage.name)


def _refuse_apart(session: Session) -> None:
    """Raise MannersError for settings that PPO, unless it has begun, would refuse: before the round costs anything."""
    if not _begins(session, PPO):
        refuse_apart(session.settings.ppo)


def _refuse_unjudged(session: Session, begun: Begun) -> None:
    """Raise MannersError where people could not judge a round that is to begin: before it has cost anything."""
    given = session.store.counts().verdicts
    crowds = begun.crowd or (given[AnnotatorKind.SIMULATED] and not given[AnnotatorKind.HUMAN])
    if crowds or _begins(session, SAMPLE):
        return
    used = ask.spent(session.store.comparisons())
    left = sum(prompt.dialogue not in used for prompt in session.store.prompts(PromptUse.EVALUATE))
    need = session.settings.loop.judgements
    if left < need:
        raise MannersError(
            f"nobody could judge round {session.turn}: loop.judgements asks people about {need} evaluation prompts, and"
            f" {left} are left that nobody was asked about: lower it, or import more with"
            " `manners prompts import FILE --use evaluate`"
        )
    if need < (least := asking.fewest(session)):
        raise MannersError(
            f"nobody could judge round {session.turn}: with as few comparisons as loop.judgements = {need} not even a"
            f" policy that wins all of them can be promoted; {least} are the fewest, and a few times as many will tell"
        )


def _judged_by_people(session: Session, begun: Begun, *, step: bool) -> Waiting | None:
    """Open comparisons for people, unless simulated verdicts taught the reward model, and wait for them."""
    if _begins(session, EVALUATE):
        return None
    workspace, store = session.workspace, session.store
    policy = history.policy_at_work(workspace, session.turn)
    if coming.taught_by_crowd(workspace, policy):
        return None
    wanted = session.settings.loop.judgements
    offered = set[str]()

    def missing() -> Waiting | None:
        against = gate.replaced_by(workspace, policy)
        asked = waiting.asked_about(workspace, store.comparisons(AskedHow.EVALUATION), policy)
        there = sum(against in (one.left.author, one.right.author) for one in asked)
        if there < wanted / 2 and against not in offered:
            # None is opened yet, or most are with a version that it would replace no more.
            offered.add(against)
            session.lay_out_as(bool(begun.lays_out))
            _offer(session, wanted, there)
        bets.asked(session, policy)  # places the bets that are due: a look is on record before it says anything
        return waiting.for_judgements(workspace, Reading(store), session.settings, policy)

    lacks = wait(session, missing, step=step)
    if lacks is None:
        others = gate.replaced_by(workspace, policy), workspace.start()
        bets.close(session, policy, others)  # nobody who is here can give more, whatever was said
    return lacks


def _offer(session: Session, wanted: int, there: int) -> None:
    """Open as many comparisons as can be; raises TooFew where neither these nor those that are there show anything."""
    try:
        print(asking.open_for_people(session, wanted, fewer=True)["sentence"], file=sys.stderr)
    except TooFew:
        if not ask.can_show(there):
            raise


def _ask_the_judge(session: Session, begun: Begun) -> None:
    """Have the judge that was asked last judge what came since, where its verdicts may train.

    One that fails ends no loop: what it has not judged it has not judged, and its answers so far are kept for the next
    time.
    """
    if not coming.asks_the_judge(session.workspace, session.settings):
        return
    version = (session.read_facts(JUDGE.name) or {}).get("begun_with", {}).get(JUDGED_BY)
    try:
        _do(JUDGE, session, begun, JudgeOptions(version=version))
    except MannersError as error:
        print(f"round {session.turn} goes on without the judge: {error}", file=sys.stderr)
        if history.of_round(session.workspace, JUDGE.name) == session.turn:
            shutil.rmtree(session.workspace.runs / JUDGE.name)


def _facts(session: Session, lacks: Waiting | None, stopped: str) -> Facts:
    """Return what programs read."""
    return {
        "rounds": [to_facts(one) for one in _played(session)],
        "waiting_for": None if lacks is None else to_facts(lacks),
        "current": session.workspace.current_policy(),
        "stopped": stopped,
    }


def plan(session: Session, asked: Asked) -> Facts:
    """Say what the rounds will take: memory by stage, seconds as the last round took them, and prompts left."""
    _refuse(asked)
    session = session.at(history.turn(session.workspace, session.store.rounds()))
    _refuse_apart(session)
    plans = []
    for stage in (SAMPLE, REWARD, PPO, EVALUATE):
        with suppress(MannersError):  # what a stage takes that lacks its prompts or verdicts is not known yet
            plans.append(planned(stage, session, asked.along if stage.shared else stage.options()).facts)
    ended = [finished(stage, session.workspace) for stage in (SAMPLE, REWARD, PPO, EVALUATE)]
    taken = [done.costs.seconds for done in ended if done]
    known = {comparison.prompt for comparison in not_by_model(session.store.comparisons())}
    there = session.store.answerable(PromptUse.TRAIN, chats=session.settings.serve.share_chats)
    to_play = max(0, _asked(session, asked).rounds - len(_played(session)))
    seconds = sum(taken) if len(taken) == 4 else None
    return {
        "rounds_to_play": to_play,
        "fresh_prompts": sum(prompt not in known for prompt in there),
        "prompts_a_round": session.settings.loop.prompts,
        "memory_needed_bytes": max((p["memory_needed_bytes"] for p in plans), default=None),
        "seconds_a_round": seconds,
        "seconds": None if seconds is None else seconds * to_play,
        "stages": plans,
    }
