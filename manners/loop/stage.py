"""A stage of the loop as one record, and what runs any of them: the commands, the demo and the report go by it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from manners.errors import MannersError
from manners.facts import Facts, from_facts, to_facts
from manners.loop import kept
from manners.settings_load import differing
from manners.unfinished import begun_with, unfinished
from manners.workspace import Workspace

if TYPE_CHECKING:  # what follows loads torch, and the commands that only read must not wait for it
    from manners.checkpoint import Run
    from manners.loop.plan import Plan
    from manners.loop.session import Session
    from manners.settings import Settings

ROUND = "the round"
"""What says in a stage's facts and checkpoints which round of the loop it is of."""
LAST_ROUND = "the last round"
"""What says in a stage's facts which round of the loop it was last done in, where somebody ran it by hand since."""
NEWEST = "the newest prompt and comparison"
"""What says there how far the record went when it was begun: what came since is for the next run."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a stage may be asked for beside `--plan` and `--resume`; a stage's own options extend it."""

    def check(self, *, plan: bool, resume: bool) -> None:
        """Raise UsageError where options do not go together."""

    def applied(self, settings: Settings) -> Settings:
        """Return the settings with what was asked for in their place, for the options that stand for a setting."""
        return settings

    @property
    def together(self) -> int:
        """How many processes of this machine do the work together."""
        return 1

    @property
    def cluster(self) -> str | None:
        """The address of the Ray cluster whose processes do the work; None for this machine."""
        return None

    @property
    def beside(self) -> bool:
        """Whether the stage that the command runs besides its own is asked for (`Stage.beside`)."""
        return False

    @property
    def plans(self) -> bool:
        """Whether the plan hangs on what is asked for, where the stage's command need not name anything."""
        return False

    def other(self, session: Session) -> Facts | None:
        """Do what is asked for instead of a run, and return what came of it; None where a run is asked for."""
        return None

    def begins(self, session: Session) -> None:
        """Do what cannot be taken back, now that nothing refuses the run any more."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run starts from; a stage's own inputs extend it."""

    decides: Facts = field(default_factory=dict)
    """What decides how the run ends, besides settings and model, by name: a run goes on only with the same."""


@dataclass(frozen=True)
class Standing:
    """Where a workspace stands: what the stages say by what comes next."""

    comparisons: int
    verdicts: int
    rewards: tuple[str, ...]
    """Reward models, oldest first."""
    policies: tuple[str, ...]
    """Policies, oldest first."""
    results: Mapping[str, Any]
    """The last result of each stage that has one, by its name."""
    to_judge: int = 0
    """Comparisons that were opened to judge the newest policy, and lack verdicts."""


class Work(Protocol):
    """The module that does a stage's work, imported when it is to be done."""

    def inputs(self, session: Session, options: Any, begun: Mapping[str, Any]) -> Any:
        """Gather the inputs; `begun` is what the run to go on with was begun with, empty where one begins."""

    def plan(self, session: Session, inputs: Any | None) -> Plan:
        """Say what it will take, with the inputs of a run or with what there is."""

    def run(self, session: Session, run: Run, inputs: Any) -> Any:
        """Do the work, keeping in `run.state` what it can go on from, and return the result."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything that the rest of the tool knows about a stage."""

    name: str
    """Of its facts (`runs/<name>.json`), its checkpoints (`runs/<name>/`) and its part of report.json."""
    command: str
    """`manners <command>`."""
    summary: str
    """What it does, in a sentence: the help of its command."""
    reads: tuple[str, ...] = ()
    """Settings that decide how it ends, beside those of the model."""
    loads: bool = True
    """Whether it works with the model of `model.name`; pre-training makes one, or reads another."""
    trains: bool = True
    """Whether it holds the run lock: one such run a workspace."""
    shared: bool = False
    """Whether several processes may do its work together (`loop.along`)."""
    teaches: bool = False
    """Whether it makes a policy, of which somebody else than who started it may have to approve (`gate.toml`)."""
    module: str
    """Where its `Work` is."""
    result: type
    """The frozen record that it comes to (`manners.results`)."""
    options: type[Options] = Options
    asked: str = ""
    """What its command has to name, with what a run was begun with in the braces; a plan needs it too."""
    beside: Stage | None = None
    """The stage that the same command runs where its options say so (`Options.beside`)."""
    section: str = ""
    """The heading under which the report lists its result; empty where the page has a place of its own for it."""
    next: Callable[[Standing], str | None] = lambda standing: None
    """What the user has to do before this stage has done its part; None where it has."""

    def line(self, begun: Mapping[str, Any]) -> str:
        """Return the command of a run, given what it was begun with; the name alone where that is not known."""
        try:
            return self.command + self.asked.format_map(begun)
        except KeyError:
            return self.command

    @property
    def work(self) -> Work:
        """The module that does the work."""
        return cast(Work, import_module(self.module))


@dataclass(frozen=True)
class Costs:
    """What a run took, and what it rests on."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    begun_with: Facts = field(default_factory=dict)
    processes: int = 1
    """How many trained as one; time and memory are the first one's."""


@dataclass(frozen=True)
class Finished:
    """A result with what it cost."""

    result: Any
    costs: Costs

    @property
    def facts(self) -> Facts:
        """All of it in JSON's types."""
        return to_facts(self.result) | to_facts(self.costs)


def planned(stage: Stage, session: Session, options: Options) -> Plan:
    """Say what a run will take; of several processes of this machine, all of them."""
    needed = stage.asked or options.plans
    plan = stage.work.plan(session, stage.work.inputs(session, options, {}) if needed else None)
    return plan.along(1 if options.cluster else options.together)


def execute(
    stage: Stage, session: Session, options: Options | None = None, *, resume: bool = False, locked: bool = False
) -> Finished:
    """Run a stage, or go on with its unfinished run; with `resume`, one that has finished already gives its result.

    With `resume`, a stage that is not begun is begun; `locked` says that the run lock is held already. Raises
    MannersError where a run is unfinished and was not asked for, was begun with something else, or is damaged; and
    where what it takes is not there (`loop.plan`).
    """
    from manners import ranks
    from manners.loop.along import along, follows, on_cluster
    from manners.loop.plan import announce
    from manners.loop.session import peak_memory

    options = options or stage.options()
    _ = session.store  # where there is none yet it is made now: beside a version it would be one that was lost
    lock = session.run_lock(stage.command) if stage.trains and not locked and not follows() else nullcontext()
    if options.cluster is not None:
        with lock:
            on_cluster(stage, session, options.together, options.cluster, resume)
        made = finished(stage, session.workspace)
        assert made is not None
        return made
    with lock, along(stage, session, options.together, resume):
        folder = session.workspace.runs / stage.name
        begun_as = begun_with(folder)
        if resume:
            refuse_another(stage, session.workspace, session.turn)
        # Who trains along reads what the first has read, whatever has come since.
        known = ranks.gathered(None)[0] if ranks.number() else begun_as if resume else {}
        inputs = stage.work.inputs(session, options, known)
        line = stage.line(begun_as or inputs.decides)
        decides = inputs.decides | ({} if session.turn is None else {ROUND: session.turn})
        run = session.run_of(stage.name, line, stage.reads, decides, loads=stage.loads)
        if not ranks.number():
            ranks.gathered(run.begun_with)
        if (done := _begun_or_done(stage, session, run, resume)) is not None:
            return done
        if stage.loads:
            session.lay_out(run, begun=bool(run.gone_on))
        if stage.teaches:
            session.begin_as(run)
        announce(stage.work.plan(session, inputs).along(ranks.place().beside, loaded=True))
        options.begins(session)
        processes = ranks.count()
        result = stage.work.run(session, run, inputs)
        done = Finished(result, Costs(run.seconds, peak_memory(), run.begun_with, processes))
        session.save_facts(stage.name, done.facts | _last_round(stage, session))
        run.end()
        return done


def _last_round(stage: Stage, session: Session) -> Facts:
    """Return what the facts of a run by hand have to say of the loop's, whose place they take.

    It is said of what may be run by hand while a round waits; what holds the run lock is done again in its round.
    """
    if stage.trains or session.turn is not None:
        return {}
    with suppress(MannersError, AttributeError):  # what is damaged says nothing
        before = session.read_facts(stage.name) or {}
        number = before.get("begun_with", {}).get(ROUND, before.get(LAST_ROUND))
        return {} if number is None else {LAST_ROUND: number}
    return {}


def _begun_or_done(stage: Stage, session: Session, run: Run, resume: bool) -> Finished | None:
    """Begin a run or go on with it, and say which; return what it came to where it has finished and is asked for again.

    Raises MannersError where it cannot, and where those who train along would not do the same.
    """
    from manners import ranks
    from manners.loop.along import versions

    if not resume:
        run.begin_anew()
    begun = resume and run.go_on()
    done = None if begun or not resume else finished(stage, session.workspace)
    recorded = {} if done is None else done.costs.begun_with
    unknown = {name for name in run.begun_with if name.startswith("serve.") and name not in recorded}  # of before
    if done is not None and {name for name, *_ in differing(recorded, run.begun_with)} - {NEWEST, *unknown}:
        done = None
    _same(ranks.gathered({**run.begun_with, **versions(), "the checkpoint": run.gone_on, "finished": bool(done)}))
    if begun:
        print(f"{run.command}: going on after {run.seconds:.0f} seconds of work", file=sys.stderr)
    elif done is not None:
        print(f"{run.command}: this run has finished; leave out --resume to begin another", file=sys.stderr)
    elif resume and session.turn is None:
        print(f"{run.command}: no run is unfinished, so one begins", file=sys.stderr)
    return done


def _same(begun: Sequence[Facts]) -> None:
    """Raise MannersError where those who train along have another run before them than the first."""
    for number, theirs in enumerate(begun, start=1):
        for name, ours, other in differing(begun[0], theirs):
            raise MannersError(
                f"process {number} of {len(begun)} has {name} = {other}, and the first {ours}: give all of them the"
                " same workspace, settings and program"
            )


def refuse_another(stage: Stage, workspace: Workspace, turn: int | None) -> None:
    """Raise MannersError where a stage's unfinished run is of another round, or where it is the loop's or no loop's."""
    folder = workspace.runs / stage.name
    begun_as = begun_with(folder)
    if not begun_as or begun_as.get(ROUND) == turn:
        return
    whose = f"round {begun_as[ROUND]} of the loop" if ROUND in begun_as else "no round of the loop"
    command = "manners loop" if ROUND in begun_as else f"manners {stage.line(begun_as)} --resume"
    raise MannersError(
        f"{folder} holds an unfinished run that is of {whose}: go on with `{command}`, or remove that folder to give it"
        " up"
    )


def finished(stage: Stage, workspace: Workspace) -> Finished | None:
    """Return what the last finished run of a stage came to, or None if there is none."""
    facts = kept.read_facts(workspace, stage.name)
    if facts is None:
        return None
    where = str(kept.facts_file(workspace, stage.name))
    result: Any = from_facts(stage.result, facts, where)
    return Finished(result, from_facts(Costs, facts, where))


def to_resume(stages: Sequence[Stage], workspace: Workspace) -> list[str]:
    """Return the commands that would go on with a run that was stopped."""
    stopped = [stage for stage in stages if unfinished(workspace.runs / stage.name)]
    return [f"manners {stage.line(begun_with(workspace.runs / stage.name))} --resume" for stage in stopped]
