"""What is kept of a version's checks, in its folder: read, and changed together with the cards that show it.

Nothing here loads torch: the pages come by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from manners.audit import card
from manners.audit.rules import REWARD, Rules, rules
from manners.errors import MannersError
from manners.facts import from_facts, to_facts
from manners.models.described import names
from manners.results.audit import CheckRecord
from manners.types import VersionKind
from manners.workspace import Workspace, atomic_write

RECORD = "checks.json"
RETIRED = frozenset(f"overconfidence_{level}" for level in ("unanimous", "most", "split", "single"))
"""Checks in older records that no model can be held to: they chose pairs by what people said. They block nothing."""


def read(workspace: Workspace, version: str) -> CheckRecord:
    """Return what is kept of a version's checks; nothing where there is none. Raises MannersError where damaged."""
    file = workspace.models / version / RECORD
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return CheckRecord()
    except (OSError, ValueError) as error:
        raise MannersError(f"{file} is damaged ({error}): remove it, and measure {version} again.") from error
    if not isinstance(facts, dict):
        raise MannersError(f"{file} is damaged (it holds no record): remove it, and measure {version} again.")
    record = from_facts(CheckRecord, facts, str(file), f"remove it, and measure {version} again")
    measured = {
        part: replace(kept, checks=tuple(check for check in kept.checks if check.name not in RETIRED))
        for part, kept in record.measured.items()
    }
    return replace(record, measured=measured)


def change(workspace: Workspace, version: str, changed: Callable[[CheckRecord], CheckRecord]) -> CheckRecord:
    """Change a version's record, and the cards that show it: there is no way to change one without the other.

    Under a lock: a reviewer decides while an audit keeps what it has measured, and neither is lost.
    """
    said, asked = described(workspace, version), rules(workspace.root)  # before anything is written
    with _lock(workspace):
        record = changed(read(workspace, version))
        _write(workspace, version, record)
        _write_card(workspace, said | {"name": version}, record, asked)
        taught = names(workspace, VersionKind.POLICY) if said.get("kind") == VersionKind.REWARD else []
        for name in taught:
            with suppress(MannersError):  # a policy that is damaged is somebody else's trouble
                if teacher(told := described(workspace, name)) == version:
                    _write_card(workspace, told | {"name": name}, read(workspace, name), asked)
    return record


def redact(workspace: Workspace, version: str, changed: Callable[[CheckRecord], CheckRecord]) -> bool:
    """Change a record from which words go, and its card; return whether it is another now.

    The card goes first, and is written anew where that can be done: whoever is killed in between, or has a `gate.toml`
    that cannot be read, leaves no word on it that nobody looks for any more. Raises MannersError for a damaged record.
    """
    shown = [workspace.models / version / name for name in (card.JSON, card.HTML)]
    with _lock(workspace):
        try:
            before = read(workspace, version)
        except MannersError:
            _remove(shown)  # nobody can tell what stands there either
            raise
        if (record := changed(before)) == before:
            return False
        _remove(shown)
        _write(workspace, version, record)
    with suppress(MannersError):
        change(workspace, version, lambda record: record)
    return True


def _lock(workspace: Workspace) -> FileLock:
    return FileLock(workspace.root / "checks.lock")


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _write(workspace: Workspace, version: str, record: CheckRecord) -> None:
    text = json.dumps(to_facts(record), indent=1, ensure_ascii=False) + "\n"
    atomic_write(workspace.models / version / RECORD, text)


def _write_card(workspace: Workspace, said: dict[str, Any], record: CheckRecord, asked: Rules) -> None:
    """Write a version's card, of a policy with what was measured of the reward model that taught it."""
    measured = dict(record.measured)
    if taught_by := teacher(said):
        with suppress(MannersError):  # of a record that is damaged nothing is known; the gate says so
            found = read(workspace, taught_by).measured
            measured |= {REWARD: found[REWARD]} if REWARD in found else {}
    card.write(workspace, said, replace(record, measured=measured), asked)


def teacher(said: dict[str, Any]) -> str | None:
    """Return the reward model that taught a version, by its description; None of one that had none."""
    found = said["metrics"].get("reward")
    return str(found) if found else None


def described(workspace: Workspace, version: str) -> dict[str, Any]:
    """Return what a version's description says; models.versions, which checks it, loads torch."""
    file = workspace.models / version / "version.json"
    if "/" in version or version.startswith(".") or not file.is_file():
        raise MannersError(f"there is no version {version} in {workspace.root}: `manners models list` names them.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["metrics"] = dict(found.get("metrics") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MannersError(f"{file} is damaged ({error}): use another version.") from error
    return dict(found)
