"""The Python API: what the commands do, each as one function on a workspace of the user's own.

Stages return their results in JSON's types, without the long lists that the report shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from manners.audit import gate
from manners.backup.take import last as last_backup
from manners.errors import MannersError
from manners.facts import Facts
from manners.loop import asking, bets, bulk, exporting, history, lineage, reporting
from manners.loop.audit import before_the_gate
from manners.loop.exporting import Form
from manners.loop.options import AuditOptions, EvaluateOptions, PretrainOptions, SampleOptions
from manners.loop.round import AUDIT, DPO, EVALUATE, EVERY, PPO, PRETRAIN, REWARD, SAMPLE, SFT
from manners.loop.session import Session
from manners.loop.stage import Options, Stage, Standing, execute, finished, to_resume
from manners.models import versions
from manners.models.gguf_file import Kind
from manners.settings import Settings
from manners.settings_load import load
from manners.store.files.formats import Format
from manners.types import Choice, VersionKind
from manners.workspace import Workspace

LONG = ("begun_with", "curves", "examples", "reliability", "samples")
"""Facts that only the report shows."""


def perform(
    workspace: Workspace,
    settings: Settings,
    stage: Stage,
    options: Options | None = None,
    *,
    plan: bool = False,
    resume: bool = False,
) -> Facts:
    """Run a stage, say what it takes (`plan`), go on with its run (`resume`), or do what its options ask for instead.

    Raises MannersError where the stage cannot run; see `loop.stage`.
    """
    options = options or stage.options()
    session = Session(workspace, options.applied(settings))
    if stage.beside and options.beside:
        stage = stage.beside
    if plan:
        return stage.work.plan(session, stage.work.inputs(session, options, {}) if stage.asked else None).facts
    if (instead := options.other(session)) is not None:
        return instead
    facts = execute(stage, session, options, resume=resume).facts
    return {name: value for name, value in facts.items() if name not in LONG}


def sample(
    workspace: Workspace,
    settings: Settings,
    *,
    crowd: bool,
    plan: bool,
    resume: bool = False,
    again: bool = False,
    limit: int | None = None,
) -> Facts:
    """Answer the training prompts and open comparisons, or say what that takes; see `loop.sample`."""
    options = SampleOptions(crowd=crowd, again=again, limit=limit)
    return perform(workspace, settings, SAMPLE, options, plan=plan, resume=resume)


def pretrain(
    workspace: Workspace,
    settings: Settings,
    *,
    plan: bool,
    resume: bool = False,
    text: Path | None = None,
    depth: int | None = None,
) -> Facts:
    """Pre-train a model on text, or say what that takes; see `loop.pretrain`."""
    return perform(workspace, settings, PRETRAIN, PretrainOptions(text=text, depth=depth), plan=plan, resume=resume)


def train_on_examples(workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False) -> Facts:
    """Learn from examples of answers, or say what that takes; see `loop.sft`."""
    return perform(workspace, settings, SFT, plan=plan, resume=resume)


def train_reward(workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False) -> Facts:
    """Train a reward model, or say what that takes; see `loop.reward`."""
    return perform(workspace, settings, REWARD, plan=plan, resume=resume)


def train_policy(workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False) -> Facts:
    """Run PPO, or say what that takes; see `loop.ppo`."""
    return perform(workspace, settings, PPO, plan=plan, resume=resume)


def train_directly(workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False) -> Facts:
    """Run DPO, or say what that takes; see `loop.dpo`."""
    return perform(workspace, settings, DPO, plan=plan, resume=resume)


def evaluate(
    workspace: Workspace,
    settings: Settings,
    *,
    ask: int | None,
    plan: bool,
    close: bool = False,
    resume: bool = False,
    against: str | None = None,
) -> Facts:
    """Judge the newest policy, say what that takes, or open comparisons for people to judge it; see `loop.evaluate`.

    With `close`, people's verdicts so far are all there will be.
    """
    options = EvaluateOptions(ask=ask, against=against, close=close)
    return perform(workspace, settings, EVALUATE, options, plan=plan, resume=resume)


def compare_phases(
    workspace: Workspace,
    settings: Settings,
    version: str,
    against: str,
    *,
    ask: int | None = None,
    plan: bool = False,
    close: bool = False,
    resume: bool = False,
) -> Facts:
    """Compare any two phases, each a whole model, say what that takes, or open comparisons for people to judge them.

    With `close`, people's verdicts so far are all there will be; see `loop.phases`.
    """
    options = EvaluateOptions(version=version, against=against, ask=ask, close=close)
    return perform(workspace, settings, EVALUATE, options, plan=plan, resume=resume)


def evaluate_reward(
    workspace: Workspace,
    settings: Settings,
    version: str,
    file: Path,
    *,
    mapping: Mapping[str, str] = MappingProxyType({}),
    fmt: Format | None = None,
    skip_bad: bool = False,
    words: Mapping[str, Choice] = MappingProxyType({}),
) -> Facts:
    """Measure a reward model on any outside file of comparisons; see `loop.asking`."""
    return asking.measure_on_file(Session(workspace, settings), version, file, mapping, fmt, skip_bad, words)


def audit_reward(
    workspace: Workspace,
    settings: Settings,
    version: str | None = None,
    *,
    comparisons: Path | None = None,
    plan: bool = False,
    resume: bool = False,
) -> Facts:
    """Find out what a reward model likes, the newest if none is named, or say what that takes; see `loop.audit`."""
    options = AuditOptions(version=version, comparisons=comparisons)
    return perform(workspace, settings, AUDIT, options, plan=plan, resume=resume)


def audit_gate(workspace: Workspace, version: str | None = None) -> Facts:
    """Return where a policy stands before the gate, the newest if none is named; raises Blocked where it fails."""
    return before_the_gate(workspace, version)


def score(
    workspace: Workspace,
    settings: Settings,
    version: str,
    file: Path,
    output: Path,
    *,
    mapping: Mapping[str, str] = MappingProxyType({}),
    skip_bad: bool = False,
) -> Facts:
    """Score a file of any length; see `bulk.score`."""
    return bulk.score(Session(workspace, settings), version, bulk.Source(file, mapping, skip_bad), output)


def report(workspace: Workspace, settings: Settings) -> Facts:
    """Write the report from what has run."""
    return reporting.report(Session(workspace, settings), EVERY)


def models_list(workspace: Workspace) -> Facts:
    """All versions with what each grew on, and which policy is the current one."""
    return lineage.every(workspace)


def models_show(workspace: Workspace, version: str) -> Facts:
    """All that is known of how a version came to be; see `loop.lineage`."""
    return lineage.show(workspace, version)


def models_prune(workspace: Workspace, keep: int, yes: bool = False) -> Facts:
    """Say which versions nothing needs but the newest `keep` of each kind, or remove them; see `loop.lineage`."""
    return lineage.prune(workspace, keep, yes)


def models_promote(workspace: Workspace, version: str, override: str | None = None) -> Facts:
    """Make a policy the current one, by hand: if the gate lets it through, or for a reason (`override`) that is kept.

    Raises Blocked where it does not; see `audit.gate`.
    """
    kind = versions.describe(workspace, version).kind
    if kind is VersionKind.REWARD:
        raise MannersError(f"{version} is a reward model; only a policy can be promoted")
    if kind is not VersionKind.POLICY:
        raise MannersError(
            f'{version} is no policy of the model at hand but one to begin with: set model.name = "{version}"'
        )
    found = gate.promote(workspace, version, override)
    return {"current": version} | ({"overridden": [*found.failed, *found.cannot_tell]} if found.blocks else {})


def models_rollback(workspace: Workspace) -> Facts:
    """Go back to the policy that was the current one before."""
    was = workspace.roll_back()
    return {"current": workspace.current_policy(), "was": was}


def models_export(
    workspace: Workspace,
    version: str,
    directory: Path | None = None,
    member: str | None = None,
    form: Form = "folder",
    kind: Kind | None = None,
) -> Facts:
    """Write a version for other programs: a folder for transformers, an adapter for peft, or a GGUF file.

    See `loop.exporting`.
    """
    return exporting.export(workspace, version, directory, form, kind, member)


def status(workspace: Workspace) -> Facts:
    """Where the workspace stands, and what comes next."""
    settings = load(workspace.toml).settings
    session = Session(workspace, settings)
    counts = session.store.counts()
    rewards, policies = (versions.names(workspace, kind) for kind in (VersionKind.REWARD, VersionKind.POLICY))
    here = _grown_here(workspace, settings.model.name)
    used = max([versions.describe(workspace, name).watermark or 0 for name in [*rewards, *policies]], default=0)
    results, damaged = _results(session)
    verdicts = sum(counts.verdicts.values())
    scoring, writing = (tuple(name for name in some if name in here) for some in (rewards, policies))
    waiting = bets.to_judge(session, policies[-1]) if policies else 0
    standing = Standing(counts.comparisons, verdicts, scoring, writing, results, waiting)
    facts: dict[str, Any] = {
        "workspace": str(workspace.root),
        "model": settings.model.name,
        "current": workspace.current_policy(),
        **asdict(counts),
        "verdicts_not_yet_learned_from": max(0, session.store.watermark() - used),
        "reward_models": rewards,
        "policies": policies,
    }
    facts["last_backup"] = last_backup(workspace)
    going = None
    try:
        facts["loop"] = history.facts(workspace, session.store, settings)
        going = history.command(workspace)
    except MannersError as error:
        damaged.append(str(error))
    if damaged:
        facts["damaged"] = damaged
    return facts | {"next": going or _next(workspace, standing)}


def _grown_here(workspace: Workspace, model: str) -> set[str]:
    """Return the versions that grew on the initial model, as far as names tell; a damaged one says so when it is used.

    What grew on another model is there, and of no use for the next step.
    """
    found = set[str]()
    for name in [name for kind in VersionKind for name in versions.names(workspace, kind)]:
        with suppress(MannersError):
            if versions.grew_elsewhere(workspace, versions.describe(workspace, name), model):
                continue
        found.add(name)
    return found


def _results(session: Session) -> tuple[dict[str, object], list[str]]:
    """Return the result of each stage that has one, and a sentence for each that cannot be read."""
    results: dict[str, object] = {}
    damaged = []
    for stage in EVERY:
        try:
            done = finished(stage, session)
        except MannersError as error:
            damaged.append(str(error))
            continue
        if done is not None:
            results[stage.name] = done.result
    return results, damaged


def _next(workspace: Workspace, standing: Standing) -> str:
    """The command that takes the workspace one step on."""
    if stopped := to_resume(EVERY, workspace):
        return stopped[0]
    missing = (stage.next(standing) for stage in EVERY)
    last = "manners report" if workspace.promoted() else "more comparisons, then manners reward"
    return next((command for command in missing if command), last)
