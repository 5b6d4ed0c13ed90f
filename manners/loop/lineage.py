"""Where versions come from, and which of them nothing needs any more; to look loads no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

from manners.errors import MannersError
from manners.facts import Facts
from manners.loop import kept
from manners.loop.round import EVERY, JUDGE
from manners.loop.stage import to_resume
from manners.models import described
from manners.models.described import Version
from manners.results.judge import JUDGED_BY
from manners.settings import Settings
from manners.settings_load import load
from manners.store import Store, audit
from manners.types import VersionKind
from manners.workspace import INITIAL, Workspace, discard


def every(workspace: Workspace) -> Facts:
    """Return all versions, each with what it grew on and what it takes, and which policy is the current one.

    Those that are damaged stand apart in `damaged`, each with what is wrong with it, and hide no other; each is said.
    """
    found, damaged = _legible(workspace)
    _say(damaged)
    rows: list[Facts] = [
        {
            "name": version.name,
            "kind": version.kind,
            "base": version.base,
            "start": version.start,
            "parent": version.parent,
            "reward": version.reward,
            "watermark": version.watermark,
            "promoted": version.name in workspace.promoted(),
            "bytes": _size(workspace.models / version.name),
            "created_at": version.created_at,
        }
        for version in found.values()
    ]
    facts: Facts = {"current": workspace.current_policy(), "versions": rows}
    return facts | ({"damaged": damaged} if damaged else {})


def show(workspace: Workspace, name: str) -> Facts:
    """Return all that a version says of how it came to be.

    `grew_on` is what it cannot be loaded without, began as or was trained against, nearest first, `watermark` the
    highest id of a verdict that it learned from, `left_out` what was not learned from, by reason, and `settings` all of
    them, as they were.
    Versions that are damaged are not among those that it grew on or that grew from it; each is said.
    Raises MannersError for a version that is not there, or is damaged itself.
    """
    version = described.describe(workspace, name)
    found, damaged = _legible(workspace)
    _say(damaged)
    grown = [other.name for other in found.values() if name in _roots(other)]
    return {
        "version": version.name,
        "kind": version.kind,
        "base": version.base,
        "start": version.start,
        "parent": version.parent,
        "reward": version.reward,
        "grew_on": _ancestors(found, [name])[1:],
        "grew_from_it": grown,
        "promoted": name in workspace.promoted(),
        "current": name == workspace.current_policy(),
        "watermark": version.watermark,
        "source": version.source,
        "left_out": version.left_out,
        "metrics": version.metrics,
        "settings": version.settings,
        "bytes": _size(workspace.models / name),
        "created_at": version.created_at,
    }


def prune(workspace: Workspace, keep: int, yes: bool) -> Facts:
    """Say which versions nothing needs (`unneeded`), and with `yes` remove them.

    What a version was, whose answers are in the record, stays in the record.
    Raises MannersError while something trains or is to be resumed, which may need any of them, and for fewer than one.
    """
    if keep < 1:
        raise MannersError(f"--keep is {keep}, but the newest version of each kind always stays: take 1 or more")
    settings = load(workspace.toml).settings
    with closing(kept.open_store(workspace)) as store:
        lock = workspace if workspace.url is None else store
        with lock.run_lock("prune") if yes else nullcontext():
            if begun := to_resume(EVERY, workspace):
                raise MannersError(
                    f"a run was stopped and may need any version: finish it with `{begun[0]}`, then prune"
                )
            with workspace.promoting() if yes else nullcontext():  # what is promoted meanwhile would be removed
                gone = unneeded(workspace, store, settings.model.name, keep)
                found = _found(workspace)
                rows: list[Facts] = [
                    {"name": name, "kind": found[name].kind, "bytes": _size(workspace.models / name)} for name in gone
                ]
                if yes:
                    remove(workspace, store, gone)
    total = sum(row["bytes"] for row in rows)
    facts: Facts = {"versions": rows, "kept": [name for name in found if name not in gone], "removed": yes}
    facts["bytes_freed" if yes else "bytes_to_free"] = total
    return facts if yes or not rows else facts | {"next": f"manners models prune --keep {keep} --yes"}


def keep_newest(workspace: Workspace, store: Store, settings: Settings) -> None:
    """Remove what nothing needs where `loop.keep` says so, and say it: between two rounds of the loop, which trains.

    Not beside a run that was stopped, which may need any version.
    """
    keep = settings.loop.keep
    if keep is None or to_resume(EVERY, workspace):
        return
    with workspace.promoting():
        gone = unneeded(workspace, store, settings.model.name, keep)
        remove(workspace, store, gone)
    if gone:
        print(f"loop.keep is {keep}, and nothing needs {', '.join(gone)}: removed", file=sys.stderr)


def unneeded(workspace: Workspace, store: Store, model: str, keep: int) -> list[str]:
    """Return the versions that nothing needs.

    The newest `keep` of each kind stay, every policy that is promoted or can be rolled back to, the version that
    learning starts from, the one that `model` names, the candidate of the last server, the one that judged last, and
    all that any of these grew on.
    """
    found = _found(workspace)
    newest = [name for kind in VersionKind for name in described.names(workspace, kind)[-keep:]]
    judged = (kept.read_facts(workspace, JUDGE.name) or {}).get("begun_with", {}).get(JUDGED_BY)
    used = [workspace.start(), *workspace.promoted(), described.named_by(workspace, model)]
    used += [name for name in (audit.candidate(store), judged) if name]
    needed = set(_ancestors(found, [*newest, *used]))
    return [name for name in found if name not in needed]


def remove(workspace: Workspace, store: Store, versions: Sequence[str]) -> None:
    """Remove versions, what grew on others first, and put that on record."""
    for name in reversed(versions):
        discard(workspace.models / name)
        audit.record(store, audit.Deed(audit.Event.PRUNED, about=f"version {name}"))


def _found(workspace: Workspace) -> dict[str, Version]:
    """Return all versions, by name; raises MannersError for one that is damaged, and may need any of the others."""
    found, damaged = _legible(workspace)
    if damaged:
        raise MannersError(next(iter(damaged.values())))
    return found


def _legible(workspace: Workspace) -> tuple[dict[str, Version], dict[str, str]]:
    """Return `described.legible`, where a base that was named by its path is the version that it leads to."""
    found, damaged = described.legible(workspace)
    based = {name: replace(one, base=described.named_by(workspace, one.base)) for name, one in found.items()}
    return based, damaged


def _say(damaged: Mapping[str, str]) -> None:
    """Say on stderr what is wrong with each version that cannot be read."""
    for name, sentence in damaged.items():
        print(f"{name} cannot be read: {sentence}", file=sys.stderr)


def _roots(version: Version) -> list[str]:
    """Return what a version grew on: its parent, the model under it, where learning started, and its reward model."""
    roots = (version.parent, version.base, version.start, version.reward)
    return list(dict.fromkeys(root for root in roots if root and root not in (INITIAL, version.name)))


def _ancestors(found: dict[str, Version], names: Iterable[str]) -> list[str]:
    """Return these versions and all that they grew on, nearest first; what is no version of the workspace is not."""
    line = [name for name in dict.fromkeys(names) if name in found]
    for name in line:  # which grows on the way
        line += [root for root in _roots(found[name]) if root in found and root not in line]
    return line


def _size(folder: Path) -> int:
    """Return the bytes of a version's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
