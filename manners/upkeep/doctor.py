"""`manners doctor`: whether a workspace is sound, check by check; it only reads.

workspace -> settings -> permissions -> database -> versions -> model -> memory -> disk -> clock -> backup -> port

Each is a pure look at what is there (`upkeep.checks`); the model is loaded as any stage loads it, and what the stages
of a round would take is what they themselves plan.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import date
from functools import partial
from pathlib import Path

from manners.errors import MannersError
from manners.facts import Facts
from manners.loop.laid_out import in_hub_cache
from manners.loop.plan import Plan
from manners.loop.round import STAGES
from manners.loop.session import Session
from manners.models import described, pretrained, versions, whole
from manners.models.cost import own_bytes
from manners.models.pretrained import EMBEDDED, Pretrained
from manners.settings import ModelSettings, Settings
from manners.store import Store
from manners.store.sound import Soundness, soundness
from manners.types import VersionKind
from manners.unfinished import KEEP
from manners.upkeep import checks
from manners.upkeep.checks import FAIL, PASS, WARN, Check
from manners.workspace import INITIAL, Workspace

STATE = 4
"""What a checkpoint holds of each trained weight: itself, two moments of Adam, and the best so far."""
LITTLE = 10**9
"""Bytes of disk that are soon filled, whatever the next stage takes."""


def examine(root: Path, overrides: Sequence[str] = ()) -> list[Check]:
    """Look a workspace over, by the settings in its file and what `--set` changes of them.

    Each check has a guard of its own: what stops one is its finding, and the others go on. Raises MannersError where
    there is no workspace at all.
    """
    opened, workspace = checks.opened(root)
    first, chosen = checks.settings(workspace, overrides)
    store = _soundness(workspace)
    sound = store if isinstance(store, Soundness) else None
    kept = (chosen or Settings()).backup
    looks: list[tuple[tuple[str, ...], Callable[[], Iterable[Check]]]] = [
        (("permissions",), lambda: [checks.permissions(workspace, sound)]),
        (("database",), lambda: [checks.database(workspace, store)]),
        (("versions",), lambda: [checks.versions(workspace, sound)]),
        (("model", "memory", "disk"), lambda: _with_model(workspace, chosen, sound)),
        (("clock",), lambda: [checks.clock(sound)]),
        (("backup",), lambda: [checks.backups(workspace, kept)]),
        (("port",), lambda: [_untold("port") if chosen is None else checks.port(workspace, chosen)]),
    ]
    return [opened, first, *(check for names, look in looks for check in checks.guarded(names, look))]


def _untold(name: str) -> Check:
    return Check(name, WARN, "Cannot tell as long as the settings cannot be read.")


def facts(found: list[Check]) -> Facts:
    """Return the checks in JSON's types."""
    return {"checks": [vars(check) for check in found], "failed": checks.failed(found)}


def _soundness(workspace: Workspace) -> Soundness | MannersError:
    try:
        return soundness(workspace.database)
    except Exception as error:
        return MannersError(checks.said(error))


def _with_model(workspace: Workspace, chosen: Settings | None, store: Soundness | None) -> Iterator[Check]:
    """Yield what can be said of the model, and of what the stages of a round take on it."""
    if chosen is None:
        yield from map(_untold, ("model", "memory", "disk"))
        return
    if not _is_here(workspace, chosen.model.name):
        said = f"{chosen.model.name} is not on this machine yet: the first stage fetches it."
        yield Check("model", WARN, said)
        yield Check("memory", WARN, "Cannot tell before the model is here.")
        yield _room(workspace, 0)
        return
    try:
        model = _loaded(workspace, chosen.model)
    except MannersError as error:
        yield Check("model", FAIL, str(error))
        yield Check("memory", WARN, "Cannot tell as long as the model cannot be loaded.")
        yield _room(workspace, 0)
        return
    yield _model(workspace, model)
    plans = _plans(workspace, chosen, model) if store is not None and store.is_newest and not store.problem else []
    yield _memory(plans)
    yield _room(workspace, max([plan.disk.needed for plan in plans if plan.disk], default=0) + _kept(chosen, model))


def _is_here(workspace: Workspace, name: str) -> bool:
    """Return whether a model can be read without fetching it."""
    if name == EMBEDDED:
        return pretrained.embedded_place().joinpath("config.json").is_file()
    if whole.is_version(workspace, name) or Path(name).expanduser().exists() or name.count("/") != 1:
        return True  # what is none of these fails to load, and says why
    return in_hub_cache(name) is not None


def _loaded(workspace: Workspace, chosen: ModelSettings) -> Pretrained:
    """Load the model as a stage does, but that no date is written down for its template."""

    def day() -> date:
        return versions.day(workspace) if (workspace.models / "day").is_file() else date.today()

    return pretrained.load(chosen, day, partial(whole.find, workspace))


def _model(workspace: Workspace, model: Pretrained) -> Check:
    """Say how the model lays out dialogues and ends answers, and whether the promoted policy fits it."""
    try:
        for name in {workspace.start(), workspace.current_policy()} - {INITIAL}:
            if described.describe(workspace, name).kind is VersionKind.POLICY:
                versions.fitting(workspace, name, VersionKind.POLICY, model)
    except MannersError as error:
        return Check("model", FAIL, str(error))
    ends = model.tokenizer.convert_ids_to_tokens(sorted(model.renderer.end_ids))
    if not ends:
        said = f"{model.name} has no token that ends an answer: each goes on to sample.max_new_tokens."
        return Check("model", FAIL, said)
    size = f"{model.name} loads ({model.parameters / 1e6:,.0f} million parameters)"
    how = "dialogues have a plain layout, for it has no chat template" if model.renderer.plain else "with its template"
    verdict = WARN if model.renderer.plain else PASS
    return Check("model", verdict, f"{size}, {how}; answers end with {' or '.join(map(repr, ends))}.")


def _plans(workspace: Workspace, chosen: Settings, model: Pretrained) -> list[Plan]:
    """Return what the stages of a round plan to take; of one that lacks its prompts or verdicts, nothing."""
    session = Session(workspace, chosen)
    found = []
    with closing(Store.look_at(workspace.database)) as store:
        vars(session).update(store=store, pretrained=model)
        for stage in STAGES:
            with suppress(MannersError):
                found.append(stage.work.plan(session, None))
    return found


def _memory(plans: list[Plan]) -> Check:
    """Say whether the stage that takes most fits beside the model, which is loaded."""
    known = [plan for plan in plans if plan.free is not None]
    if not known:
        return Check("memory", WARN, "Cannot tell what a round will take before there are prompts.")
    most = max(known, key=lambda plan: plan.needed)
    free = min(plan.free for plan in known if plan.free is not None)
    said = f"{most.stage} takes {most.needed / 1e9:,.2f} GB beside the model, of {free / 1e9:,.2f} GB that are free"
    if most.needed > free:
        part = max(most.parts, key=lambda part: part.size)
        return Check("memory", FAIL, f"{said}: lower {part.lower}, or free some memory.")
    return Check("memory", PASS, f"{said}.")


def _kept(chosen: Settings, model: Pretrained) -> int:
    """Return the bytes that a round's versions and checkpoints take: one more checkpoint than are kept, at most."""
    branch, scalar = (own_bytes(model.trunk, head=head) for head in (True, False))
    reward = chosen.reward.branches * scalar
    return branch + reward + (KEEP + 1) * STATE * max(branch + scalar, reward)


def _room(workspace: Workspace, needed: int) -> Check:
    """Say whether the disk has room for what a round writes."""
    free = shutil.disk_usage(workspace.root).free
    said = f"A round writes up to {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free in {workspace.root}"
    if free < needed:
        return Check("disk", FAIL, f"{said}: make room, or lower model.trainable_layers or reward.members.")
    if free < needed + LITTLE:
        return Check("disk", WARN, f"{said}: make room before long.")
    return Check("disk", PASS, f"{said}.")
