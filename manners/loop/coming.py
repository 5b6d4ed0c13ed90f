"""What the loop does next, and whether it does: read from the record alone, for whoever goes step by step.

Nothing here loads torch: the page comes by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from manners.audit import gate
from manners.audit.rules import POLICY as OF_POLICY
from manners.audit.rules import REWARD as OF_REWARD
from manners.audit.rules import rules
from manners.errors import MannersError
from manners.loop import history, kept, waiting
from manners.loop.history import Begun, Reading
from manners.loop.round import AUDIT, BEHAVIOUR, EVALUATE, JUDGE, PPO, REWARD, SAMPLE
from manners.loop.stage import Stage, refuse_another
from manners.loop.waiting import Waiting
from manners.models import described
from manners.results.judge import JUDGED_BY
from manners.settings import LoopSettings, Settings
from manners.store import cases
from manners.types import AnnotatorKind, VersionKind
from manners.workspace import Workspace

IN_A_ROUND = (SAMPLE, REWARD, PPO, AUDIT, BEHAVIOUR, EVALUATE)
ASKED, UNJUDGED = "asked", "unjudged"
"""Steps that are no stage: people are asked about a policy, and a round ends that has found nothing better."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is done next: one stage of a round."""

    round: int
    name: str
    """Of the stage, or ASKED or UNJUDGED."""
    sentence: str

    @property
    def mark(self) -> str:
        """What tells it from the step before and the one after."""
        return f"{self.round} {self.name}"


def is_at_work(workspace: Workspace, number: int) -> bool:
    """Return whether a round has begun."""
    return any(history.has_begun(workspace, stage.name, number) for stage in IN_A_ROUND)


def over(workspace: Workspace, seen: Reading, begun: Begun, limits: LoopSettings) -> str:
    """Return in a sentence why no round is begun any more; empty where one is. A round at work is played to its end."""
    rounds = history.played(workspace, seen)
    if history.turn(workspace, seen.rounds) <= len(rounds):
        return ""
    if is_at_work(workspace, len(rounds) + 1) and len(rounds) < begun.rounds:
        return ""
    return history.over(
        rounds,
        begun,
        limits,
        verdicts=history.counted(seen.comparisons),
        current=workspace.current_policy(),
        moment=datetime.now(UTC),
    )


def loop(workspace: Workspace, seen: Reading) -> Begun:
    """Return the loop that a step is one of: the one that was begun, with a round more where all are played."""
    found = history.read_begun(workspace)
    going = history.carried_on(found, seen.rounds, datetime.now(UTC).isoformat(timespec="seconds"))
    before = found or going
    most = max(before.rounds, history.turn(workspace, seen.rounds))
    return replace(going, rounds=most, crowd=before.crowd, when=before.when)


def nothing_found(workspace: Workspace, policy: str) -> str:
    """Say so where a round's policy is, to the bit, the version that it would replace; return nothing otherwise.

    PPO keeps what it began as where no update did better on the validation prompts. Whoever judged the two would be
    shown the same twice.
    """
    version = described.describe(workspace, policy)
    against = gate.replaced_by(workspace, version.name)
    if version.metrics.get("best_update") != 0 or version.parent != against:
        return ""
    return f"Nothing better was found: {version.name} is {against}, as it was before PPO, so that nobody judged it."


def asks_the_judge(workspace: Workspace, settings: Settings) -> bool:
    """Return whether the judge that was asked last is asked again: it may train, and the settings name it still."""
    before = kept.read_facts(workspace, JUDGE.name)
    if settings.reward.annotators != "human+ai" or before is None:
        return False
    return (before.get("begun_with", {}).get(JUDGED_BY) is None) is not (settings.judge.url is None)


def waits(workspace: Workspace, seen: Reading, settings: Settings, begun: Begun) -> Waiting | None:
    """Return what a step of a loop could but wait for; None where there is something to do.

    Before a policy's judgements are waited for it is audited, and comparisons with what is the current version by now
    are opened, whatever others still lack. Raises MannersError as `step` does.
    """
    at_end = waiting.before(workspace, seen.rounds) == EVALUATE.name
    if at_end and step(workspace, seen, settings, begun).name != EVALUATE.name:
        return None
    return waiting.at_work(workspace, seen, settings, begun)


def refuse_missing(workspace: Workspace, turn: int, *stages: Stage) -> None:
    """Raise MannersError where what stages made in a round was removed: the version before it is another round's."""
    for stage in stages:
        kind = VersionKind.REWARD if stage is REWARD else VersionKind.POLICY
        made = (kept.read_facts(workspace, stage.name) or {}).get("version")
        if made is not None and made not in described.names(workspace, kind):
            raise MannersError(
                f"{workspace.models / made} was removed in the middle of round {turn}: put it back"
                f" from a backup, or remove {kept.facts_file(workspace, stage.name)} to have it trained anew"
            )


def step(workspace: Workspace, seen: Reading, settings: Settings, begun: Begun) -> Step:
    """Return what a loop that waits for nothing does next, in the order of `rounds`.

    Raises MannersError where a version that it would work with is not there or damaged, and where a run by hand is
    unfinished that has to end before a loop goes on.
    """
    number = history.turn(workspace, seen.rounds)
    for one in IN_A_ROUND:
        refuse_another(one, workspace, number)
    stage, sentence = _stage(workspace, seen, settings, begun, number)
    if history.of_round(workspace, stage) == number:
        sentence = f"go on with what was stopped: {sentence}"
    return Step(round=number, name=stage, sentence=sentence)


def _stage(workspace: Workspace, seen: Reading, settings: Settings, begun: Begun, number: int) -> tuple[str, str]:
    """Return the name of the next stage of a round, and what it does."""

    def lacks(stage: Stage) -> bool:
        return not history.is_done(workspace, stage.name, number)

    current = workspace.current_policy()
    if lacks(SAMPLE):
        crowd = ", and the simulated crowd compares the answers" if begun.crowd else ""
        return SAMPLE.name, f"ask: {current} answers up to {settings.loop.prompts} prompts{crowd}"
    if lacks(REWARD):
        begins = not history.has_begun(workspace, REWARD.name, number)
        if begins and lacks(JUDGE) and asks_the_judge(workspace, settings):
            return JUDGE.name, "ask the judge about what is new; where it fails, learn without it"
        new = waiting.look(workspace, seen, settings).verdicts
        return REWARD.name, f"learn: a reward model is trained on all verdicts, {new} of them new"
    refuse_missing(workspace, number, REWARD)
    if lacks(PPO):
        return PPO.name, f"teach: PPO trains {current} on what the reward model says"
    refuse_missing(workspace, number, PPO)
    policy = history.policy_at_work(workspace, number)
    evaluating = history.has_begun(workspace, EVALUATE.name, number)
    if not evaluating and nothing_found(workspace, policy):
        return UNJUDGED, f"end the round: PPO has found nothing better than {gate.replaced_by(workspace, policy)}"
    asked = rules(workspace.root)
    if asked.required(OF_REWARD) and lacks(AUDIT):
        return AUDIT.name, f"audit: {described.teacher_of(workspace, policy)} is held against gate.toml"
    if (asked.required(OF_POLICY) or cases.upheld(seen.store)) and lacks(BEHAVIOUR):
        return BEHAVIOUR.name, f"audit: how {policy} behaves"
    if not evaluating and _is_for_people(workspace, seen, policy):
        return ASKED, f"judge: up to {settings.loop.judgements} comparisons of {policy} are opened for people"
    return EVALUATE.name, f"judge: {policy} is evaluated, and promoted or rejected"


def taught_by_crowd(workspace: Workspace, policy: str) -> bool:
    """Return whether simulated verdicts taught a policy's reward model, so that no people are asked about it."""
    return described.describe(workspace, described.teacher_of(workspace, policy)).source is AnnotatorKind.SIMULATED


def _is_for_people(workspace: Workspace, seen: Reading, policy: str) -> bool:
    """Return whether people are to judge a policy, and nothing was opened for that yet."""
    if taught_by_crowd(workspace, policy):
        return False
    against = gate.replaced_by(workspace, policy)
    opened = waiting.asked_about(workspace, seen.comparisons, policy)
    return not any(against in (one.left.author, one.right.author) for one in opened)
