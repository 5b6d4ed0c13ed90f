"""That a workspace has accounts is remembered in its folder: a database that was lost makes nobody the owner."""

from __future__ import annotations

import json
from typing import Any

from manners.workspace import Workspace, atomic_write


def has_accounts(workspace: Workspace) -> bool:
    """Return whether there ever were accounts here, whatever became of the database since."""
    try:
        return bool(_record(workspace).get("accounts"))
    except (OSError, ValueError):
        return True  # of what cannot be read nobody knows, and nobody is to be owner by mistake


def remember_accounts(workspace: Workspace) -> None:
    """Write down that there are accounts."""
    if not has_accounts(workspace):
        atomic_write(workspace.root / "workspace.json", json.dumps(_record(workspace) | {"accounts": True}) + "\n")


def _record(workspace: Workspace) -> dict[str, Any]:
    return dict(json.loads((workspace.root / "workspace.json").read_text(encoding="utf-8")))
