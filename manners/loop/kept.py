"""What a workspace keeps from stage to stage: its store, and the facts of the last run of each; without torch."""

from __future__ import annotations

import json
from pathlib import Path

from manners.errors import MannersError
from manners.facts import Facts
from manners.holder import Holder
from manners.store import Store
from manners.workspace import Workspace, atomic_write


def open_store(workspace: Workspace) -> Store:
    """Open the record of what people said; where there are versions there was one, and a lost one is not made anew."""
    had_one = any(workspace.models.glob("*-*/version.json"))
    return (Store.open if had_one else Store.open_or_create)(workspace.database)


def trained_by(workspace: Workspace, store: Store) -> Holder | None:
    """Return who holds the right to train, without taking it; None where nobody does. A team's store knows it."""
    return workspace.trained_by() if workspace.url is None else store.trained_by()


def save_facts(workspace: Workspace, name: str, facts: Facts) -> None:
    """Keep facts in the folder of runs."""
    workspace.runs.mkdir(exist_ok=True)
    atomic_write(facts_file(workspace, name), json.dumps(facts, indent=1) + "\n")


def read_facts(workspace: Workspace, name: str) -> Facts | None:
    """Return facts that were kept, or None where there are none; raises MannersError where they are damaged."""
    file = facts_file(workspace, name)
    if not file.exists():
        return None
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MannersError(f"{file} is damaged ({error}): remove it, and run that stage again.") from error
    if not isinstance(facts, dict):
        raise MannersError(f"{file} is damaged (it holds no facts): remove it, and run that stage again.")
    return facts


def facts_file(workspace: Workspace, name: str) -> Path:
    """Return where facts are kept."""
    return workspace.runs / f"{name}.json"
