"""Where a workspace stands: its versions, what comes next, how far the loop is.

Nothing here loads torch, so that a look takes no longer than the record does.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Any

from manners.audit import gate
from manners.backup import record
from manners.backup.take import last as last_backup
from manners.errors import MannersError
from manners.evaluate import ask
from manners.facts import Facts, to_facts
from manners.loop import history, kept, lineage, tried, waiting
from manners.loop.round import EVERY
from manners.loop.stage import Standing, finished, to_resume
from manners.models import described
from manners.settings import Settings
from manners.settings_load import load
from manners.store import Store
from manners.types import VersionKind
from manners.workspace import Workspace


def models_list(workspace: Workspace) -> Facts:
    """All versions with what each grew on, and which policy is the current one."""
    return lineage.every(workspace)


def models_promote(workspace: Workspace, version: str, override: str | None = None) -> Facts:
    """Make a policy the current one, by hand: if the gate lets it through, or for a reason (`override`) that is kept.

    Raises Blocked where it does not; see `audit.gate`.
    """
    kind = described.describe(workspace, version).kind
    if kind is VersionKind.REWARD:
        raise MannersError(f"{version} is a reward model; only a policy can be promoted")
    if kind is not VersionKind.POLICY:
        raise MannersError(
            f'{version} is no policy of the model at hand but one to begin with: set model.name = "{version}"'
        )
    found = gate.promote(workspace, version, override)
    return {"current": version} | ({"overridden": [*found.failed, *found.cannot_tell]} if found.blocks else {})


def models_rollback(workspace: Workspace) -> Facts:
    """Go back to the policy before the current one, past what a reviewer has rejected or whose weights are not there.

    `passed_by` names those that were promoted between the two, where there are any: the newest first.
    """
    promoted = workspace.promoted()
    was = gate.roll_back(workspace)
    passed = promoted[len(workspace.promoted()) : -1][::-1]
    return {"current": workspace.current_policy(), "was": was} | ({"passed_by": passed} if passed else {})


def status(workspace: Workspace) -> Facts:
    """Where the workspace stands, and what comes next."""
    settings = load(workspace.toml).settings
    with closing(kept.open_store(workspace)) as store:
        return _status(workspace, store, settings)


def _status(workspace: Workspace, store: Store, settings: Settings) -> Facts:
    seen, counts = history.Reading(store), store.counts()
    rewards, policies = (described.names(workspace, kind) for kind in (VersionKind.REWARD, VersionKind.POLICY))
    found, broken = described.legible(workspace)
    here = {name for name, one in found.items() if not described.grew_elsewhere(workspace, one, settings.model.name)}
    here |= broken.keys()  # what grew on another model is of no use next, and what is damaged says so when it is used
    used = max([one.watermark or 0 for one in store.versions() if one.name in (*rewards, *policies)], default=0)
    results, damaged = _results(workspace)
    damaged = [*broken.values(), *damaged]
    verdicts = sum(counts.verdicts.values())
    scoring, writing = (tuple(name for name in some if name in here) for some in (rewards, policies))
    judged = waiting.asked_about(workspace, seen.comparisons, policies[-1]) if {*policies[-1:]} & found.keys() else []
    to_judge = ask.to_judge(judged, settings.serve)
    standing = Standing(counts.comparisons, verdicts, scoring, writing, results, to_judge)
    facts: dict[str, Any] = {
        "workspace": str(workspace.root),
        "model": settings.model.name,
        "current": workspace.current_policy(),
        **asdict(counts),
        "verdicts_not_yet_learned_from": history.counted(seen.comparisons, after=used),
        "reward_models": rewards,
        "policies": policies,
    }
    facts["candidate"] = next((to_facts(one) for one in tried.read(store, seen.comparisons)), None)
    facts["last_backup"] = last_backup(workspace)
    facts["last_rehearsal"] = asdict(rehearsed) if (rehearsed := record.rehearsal(workspace)) else None
    if failed := record.failure(workspace):
        facts["backup_failed"] = asdict(failed)
    going = None
    try:
        facts["loop"] = waiting.facts(workspace, seen, settings)
        going = history.command(workspace)
    except MannersError as error:
        damaged.append(str(error))
    if damaged:
        facts["damaged"] = damaged
    return facts | {"next": going or _next(workspace, standing)}


def _results(workspace: Workspace) -> tuple[dict[str, object], list[str]]:
    """Return the result of each stage that has one, and a sentence for each that cannot be read."""
    results: dict[str, object] = {}
    damaged = []
    for stage in EVERY:
        try:
            done = finished(stage, workspace)
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
