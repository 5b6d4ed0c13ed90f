"""What people said in the chat of candidates: read from the record, and kept with the version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from manners.audit import gate
from manners.evaluate.tried import outcomes
from manners.models import described
from manners.results.audit import Tried
from manners.store import Store
from manners.types import AskedHow, Comparison, VersionKind
from manners.workspace import INITIAL, Workspace


def read(store: Store, comparisons: Iterable[Comparison]) -> list[Tried]:
    """Return what is known of each two versions, those asked about last first."""
    return outcomes(comparisons, [INITIAL, *(one.name for one in store.versions(VersionKind.POLICY))])


def keep(workspace: Workspace, store: Store) -> list[Tried]:
    """Bring the cards of versions up to date that stood beside another one in the chat; one that is gone has none.

    Return all that is known, as `read` does.
    """
    known = described.names(workspace, VersionKind.POLICY)
    found = read(store, store.comparisons(AskedHow.CANDIDATE))
    by_version = defaultdict[str, list[Tried]](list)
    for one in found:
        by_version[one.version].append(one)
    for version in by_version.keys() & set(known):
        gate.keep_tried(workspace, version, tuple(by_version[version]))
    return found


def words(workspace: Workspace, store: Store, version: str) -> str:
    """Keep what people said of candidates, and say what they said of one, which decides no evaluation."""
    said = [one.sentence for one in keep(workspace, store) if one.version == version]
    return f" Beside that, and not counted in it: {' '.join(said)}" if said else ""
