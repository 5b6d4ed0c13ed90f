"""How it stands with backups, kept in the workspace: the last rehearsal of a restore, and the last that failed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manners.workspace import Workspace, atomic_write

FILE = "upkeep.json"


@dataclass(frozen=True)
class Failure:
    """A backup that could not be taken; the next that can be takes it off the record."""

    at: str
    """UTC."""
    problem: str
    into: str = ""
    """The folder, which another schedule does not wait for; a record of before does not say."""


@dataclass(frozen=True)
class Rehearsal:
    """A backup that was put back into a scratch folder, to see that it can be."""

    at: str
    """UTC."""
    backup: str
    verdicts: int
    versions: int
    verified: bool
    """Whether all that the backup says it holds came back."""
    problem: str
    """Why not; empty where it did."""
    seconds: float

    @property
    def sentence(self) -> str:
        """What is said of it."""
        if not self.verified:
            return f"rehearsal: {self.backup} cannot be put back whole: {self.problem}"
        held = f"{self.verdicts} verdicts and {self.versions} versions"
        return f"rehearsal: {self.backup} can be put back, with {held}, in {self.seconds:.1f} s"


def rehearsal(workspace: Workspace) -> Rehearsal | None:
    """Return the last rehearsal; None where there was none, or nobody can say."""
    try:
        return Rehearsal(**_read(workspace)["rehearsal"])
    except (KeyError, TypeError):
        return None


def failure(workspace: Workspace) -> Failure | None:
    """Return the backup that failed last; None where the one after it did not."""
    try:
        return Failure(**_read(workspace)["failure"])
    except (KeyError, TypeError):
        return None


def keep(workspace: Workspace, **said: Rehearsal | Failure | None) -> None:
    """Put `rehearsal` or `failure` in place of what was; None takes it away."""
    before = _read(workspace)
    changed = {name: None if one is None else asdict(one) for name, one in said.items()}
    kept = {name: one for name, one in (before | changed).items() if one is not None}
    if kept != before:
        atomic_write(_file(workspace), json.dumps(kept, indent=1) + "\n")


def _read(workspace: Workspace) -> dict[str, Any]:
    try:
        return dict(json.loads(_file(workspace).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _file(workspace: Workspace) -> Path:
    return workspace.root / FILE
