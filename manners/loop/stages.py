"""The Python API: what the commands do, each as one function on a workspace of the user's own.

Stages return their results in JSON's types, without the long lists that the report shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from manners.facts import Facts
from manners.loop import asking, bulk, exporting, lineage, reporting
from manners.loop.audit import before_the_gate
from manners.loop.exporting import Form
from manners.loop.options import (
    AuditOptions,
    EvaluateOptions,
    PPOOptions,
    PretrainOptions,
    SampleOptions,
    TrainingOptions,
)
from manners.loop.round import AUDIT, DPO, EVALUATE, EVERY, PPO, PRETRAIN, REWARD, SAMPLE, SFT
from manners.loop.session import Session
from manners.loop.stage import Options, Stage, execute, planned
from manners.loop.standing import models_list as models_list
from manners.loop.standing import models_promote as models_promote
from manners.loop.standing import models_rollback as models_rollback
from manners.loop.standing import status as status
from manners.models.gguf_file import Kind
from manners.settings import Settings
from manners.store.files.formats import Format
from manners.types import Choice
from manners.workspace import Workspace

LONG = ("begun_with", "curves", "examples", "reliability", "samples", "worst")
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
    options.check(plan=plan, resume=resume)
    session = Session(workspace, options.applied(settings))
    if stage.beside and options.beside:
        stage = stage.beside
    if plan:
        return planned(stage, session, options).facts
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
    adversarial: int | None = None,
) -> Facts:
    """Answer the training prompts and open comparisons, or say what that takes; see `loop.sample`.

    With `adversarial`, comparisons of so many answers that a reward model likes too much: see `loop.adversarial`.
    """
    options = SampleOptions(crowd=crowd, again=again, limit=limit, adversarial=adversarial)
    return perform(workspace, settings, SAMPLE, options, plan=plan, resume=resume)


def pretrain(
    workspace: Workspace,
    settings: Settings,
    *,
    plan: bool,
    resume: bool = False,
    text: Path | None = None,
    depth: int | None = None,
    processes: int | None = None,
) -> Facts:
    """Pre-train a model on text, or say what that takes; see `loop.pretrain`."""
    options = PretrainOptions(text=text, depth=depth, processes=processes)
    return perform(workspace, settings, PRETRAIN, options, plan=plan, resume=resume)


def train_on_examples(
    workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False, processes: int | None = None
) -> Facts:
    """Learn from examples of answers, or say what that takes; see `loop.sft`."""
    return perform(workspace, settings, SFT, TrainingOptions(processes=processes), plan=plan, resume=resume)


def train_reward(
    workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False, processes: int | None = None
) -> Facts:
    """Train a reward model, or say what that takes; see `loop.reward`."""
    return perform(workspace, settings, REWARD, TrainingOptions(processes=processes), plan=plan, resume=resume)


def train_policy(
    workspace: Workspace,
    settings: Settings,
    *,
    plan: bool,
    resume: bool = False,
    workers: int | None = None,
    ray_address: str | None = None,
    processes: int | None = None,
) -> Facts:
    """Run PPO, in this process, with workers on Ray, or by several that train as one; see `loop.ppo`.

    With `plan`, say what that takes.
    """
    options = PPOOptions(workers=workers, ray_address=ray_address, processes=processes)
    return perform(workspace, settings, PPO, options, plan=plan, resume=resume)


def train_directly(
    workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False, processes: int | None = None
) -> Facts:
    """Run DPO, or say what that takes; see `loop.dpo`."""
    return perform(workspace, settings, DPO, TrainingOptions(processes=processes), plan=plan, resume=resume)


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


def audit_policy(
    workspace: Workspace,
    settings: Settings,
    version: str | None = None,
    *,
    against: str | None = None,
    plan: bool = False,
    resume: bool = False,
) -> Facts:
    """Find out how a policy behaves, the newest if none is named, beside the initial model or another version.

    Or say what that takes; see `loop.behaviour`.
    """
    options = AuditOptions(what="policy", version=version, against=against)
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
    fast: bool = False,
) -> Facts:
    """Score a file of any length; see `bulk.score`."""
    return bulk.score(Session(workspace, settings), version, bulk.Source(file, mapping, skip_bad), output, fast)


def report(workspace: Workspace, settings: Settings) -> Facts:
    """Write the report from what has run."""
    return reporting.report(Session(workspace, settings), EVERY)


def models_show(workspace: Workspace, version: str) -> Facts:
    """All that is known of how a version came to be; see `loop.lineage`."""
    return lineage.show(workspace, version)


def models_prune(workspace: Workspace, keep: int, yes: bool = False) -> Facts:
    """Say which versions nothing needs but the newest `keep` of each kind, or remove them; see `loop.lineage`."""
    return lineage.prune(workspace, keep, yes)


def models_export(
    workspace: Workspace,
    version: str,
    directory: Path | None = None,
    member: str | None = None,
    form: Form = "folder",
    kind: Kind | None = None,
    device: str | None = None,
) -> Facts:
    """Write a version for other programs: a folder for transformers, an adapter for peft, or a GGUF file.

    See `loop.exporting`.
    """
    return exporting.export(workspace, version, directory, form, kind, member, device)
