"""The stages one by one, each on a workspace of the user's own: what the command line calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from manners.errors import MannersError
from manners.loop import asking, bulk, judging, learning, reporting
from manners.loop.planning import plan_evaluate, plan_policy, plan_reward, plan_sample
from manners.loop.session import Facts, Session
from manners.models import versions
from manners.reward.data import label, opening, pooled
from manners.reward.ensemble import score_exchanges
from manners.reward.measure import measure
from manners.settings import Settings
from manners.settings_load import from_dict, load
from manners.store.formats import Format
from manners.store.rows import Reason
from manners.store.transfer import read_comparisons
from manners.types import VersionKind
from manners.workspace import Workspace


def sample(workspace: Workspace, settings: Settings, *, crowd: bool, plan: bool, resume: bool = False) -> Facts:
    """Answer the training prompts and open comparisons, or say what that takes; see `asking.sample`."""
    session = Session(workspace, settings)
    return plan_sample(session).facts if plan else _headline(asking.sample(session, crowd=crowd, resume=resume))


def train_reward(workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False) -> Facts:
    """Train a reward model, or say what that takes; see `learning.train_reward`."""
    session = Session(workspace, settings)
    return plan_reward(session).facts if plan else _headline(learning.train_reward(session, resume=resume))


def train_policy(workspace: Workspace, settings: Settings, *, plan: bool, resume: bool = False) -> Facts:
    """Run PPO, or say what that takes; see `learning.train_policy`."""
    session = Session(workspace, settings)
    return plan_policy(session).facts if plan else _headline(learning.train_policy(session, resume=resume))


def evaluate(workspace: Workspace, settings: Settings, *, ask: int | None, plan: bool, resume: bool = False) -> Facts:
    """Judge the newest policy, say what that takes, or open comparisons for people to judge it; see `judging`."""
    session = Session(workspace, settings)
    if plan:
        return plan_evaluate(session).facts
    return _headline(judging.evaluate(session, resume=resume)) if ask is None else judging.open_for_people(session, ask)


def evaluate_reward(
    workspace: Workspace,
    settings: Settings,
    version: str,
    file: Path,
    *,
    mapping: Mapping[str, str] = MappingProxyType({}),
    fmt: Format | None = None,
    skip_bad: bool = False,
) -> Facts:
    """Measure a reward model on any outside file of comparisons, beside the same baselines.

    The rows of one pair are one comparison with several verdicts. With `skip_bad` bad rows are left out and counted.
    """
    session = Session(workspace, settings)
    skipped = Counter[Reason]()
    comparisons = pooled(read_comparisons(file, mapping, fmt, skipped=skipped if skip_bad else None))
    if not any(comparison.verdicts for comparison in comparisons):
        raise MannersError(f"{file} holds no verdict to measure with; name a file of comparisons that were judged")
    labelled = label(comparisons, settings.reward.annotators)
    if not any(pair.counts.decided for pair in labelled.pairs):
        raise MannersError(f"no verdict in {file} chooses a side; name a file in which some prefer a response")
    reward = versions.load_reward(workspace, version, session.pretrained)
    exchanges = [(pair.prompt, side) for pair in labelled.pairs for side in (pair.left, pair.right)]
    scores = np.concatenate(
        [np.asarray(s.mean.double()) for s in score_exchanges(reward, session.pretrained, exchanges)]
    )
    margins = (scores[0::2] - scores[1::2]) * reward.scale
    seen = {opening(comparison.prompt) for comparison in session.store.comparisons() if comparison.verdicts}
    known = sum(opening(pair.prompt) in seen for pair in labelled.pairs)
    where = f"the verdicts of {file.name}"
    if known:
        where += f" ({known} of {len(labelled.pairs)} about prompts of this workspace, which it may have learned from)"
    facts = measure(margins, (), labelled.pairs, settings.seed, where)
    left_out = {str(reason): n for reason, n in labelled.left_out.items()}
    counts = {"pairs": len(labelled.pairs), "known_prompts": known, "left_out": left_out}
    counts["skipped"] = {str(reason): n for reason, n in skipped.items()}
    return {"version": version, "file": str(file), **counts, **facts}


def score(workspace: Workspace, settings: Settings, version: str, file: Path, output: Path) -> Facts:
    """Score a file of any length; see `bulk.score`."""
    return bulk.score(Session(workspace, settings), version, file, output)


def report(workspace: Workspace, settings: Settings) -> Facts:
    """Write the report from what has run."""
    return reporting.report(Session(workspace, settings))


def models_list(workspace: Workspace) -> Facts:
    """All versions, and which policy is the current one."""
    found = [versions.describe(workspace, name) for kind in VersionKind for name in versions.names(workspace, kind)]
    rows = [
        {"name": v.name, "kind": v.kind, "base": v.base, "parent": v.parent, "created_at": v.created_at} for v in found
    ]
    return {"current": workspace.current_policy(), "versions": rows}


def models_promote(workspace: Workspace, version: str) -> Facts:
    """Make a policy the current one, by hand."""
    if versions.describe(workspace, version).kind is not VersionKind.POLICY:
        raise MannersError(f"{version} is a reward model; only a policy can be promoted")
    workspace.promote(version)
    return {"current": version}


def models_rollback(workspace: Workspace) -> Facts:
    """Go back to the policy that was the current one before."""
    was = workspace.roll_back()
    return {"current": workspace.current_policy(), "was": was}


def models_export(workspace: Workspace, version: str, directory: Path, member: str | None = None) -> Facts:
    """Write a version as a folder that plain transformers loads; of a reward model one member, or their `average`."""
    described = versions.describe(workspace, version)
    session = Session(workspace, from_dict(described.settings))
    chosen = _member(described, member)
    if described.kind is VersionKind.POLICY:
        policy = versions.load_policy(workspace, version, session.pretrained)
        versions.export_policy(policy, session.pretrained, directory)
        return {"version": version, "directory": str(directory), "loads_with": "AutoModelForCausalLM"}
    reward = versions.load_reward(workspace, version, session.pretrained)
    reference = learning.initial_answers(session, described.watermark) if chosen == "average" else []
    shift = versions.export_reward(reward, chosen, session.pretrained, directory, reference)
    facts = {"version": version, "directory": str(directory), "member": chosen, "shift": shift}
    if chosen == "average":
        facts |= {"shift_measured_on": len(reference)}
    return facts | {"loads_with": "AutoModelForSequenceClassification", "score": "logit - shift"}


def _member(described: versions.Version, member: str | None) -> int | Literal["average"]:
    """Return which member of a reward model is asked for, the first if it is not said; raises MannersError for none."""
    if member is not None and described.kind is VersionKind.POLICY:
        raise MannersError(f"{described.name} is a policy, which has no members: leave out --member")
    if member == "average":
        return "average"
    count = len(described.shifts)
    if member is not None and not (member.isascii() and member.isdecimal() and int(member) < count):
        raise MannersError(
            f"{described.name} has no member {member}: name one of 0 to {count - 1}, or `average`, with --member"
        )
    return int(member or 0)


def status(workspace: Workspace) -> Facts:
    """Where the workspace stands, and what comes next."""
    settings = load(workspace.toml).settings
    session = Session(workspace, settings)
    counts = session.store.counts()
    rewards, policies = (versions.names(workspace, kind) for kind in (VersionKind.REWARD, VersionKind.POLICY))
    used = max([versions.describe(workspace, name).watermark or 0 for name in rewards], default=0)
    facts: dict[str, Any] = {
        "workspace": str(workspace.root),
        "model": settings.model.name,
        "current": workspace.current_policy(),
        **asdict(counts),
        "verdicts_not_yet_learned_from": max(0, session.store.watermark() - used),
        "reward_models": rewards,
        "policies": policies,
    }
    return facts | {"next": _next(counts.comparisons, sum(counts.verdicts.values()), rewards, policies, session)}


def _next(comparisons: int, verdicts: int, rewards: list[str], policies: list[str], session: Session) -> str:
    """The command that takes the workspace one step on."""
    if stopped := session.unfinished():
        return stopped[0]
    if not comparisons:
        return "manners sample, or manners comparisons import FILE"
    if not verdicts:
        return "manners serve, for people to compare; or manners comparisons export FILE, and import their verdicts"
    if not rewards:
        return "manners reward"
    if not policies:
        return "manners ppo"
    if (session.read_facts("evaluation") or {}).get("version") != policies[-1]:
        return "manners evaluate"
    promoted = session.workspace.promoted()
    return "manners report" if promoted else "more comparisons, then manners reward"


def _headline(facts: Facts) -> Facts:
    """A stage's result without the long lists, which the report shows."""
    kept = {k: v for k, v in facts.items() if k not in ("begun_with", "curves", "examples", "reliability")}
    return kept
