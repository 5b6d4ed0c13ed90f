"""Versions as they are kept: the folder first, then its row in the store."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace

from manners.audit import gate
from manners.errors import MannersError
from manners.facts import scalars
from manners.feedback.admission import judge_verdicts, without_judges
from manners.feedback.statistics import pair_agreement
from manners.loop.session import Session, now
from manners.models import versions
from manners.models.branches import Branch
from manners.models.versions import Version
from manners.results.audit import People
from manners.reward.ensemble import RewardModel
from manners.reward.stored import CAMPS
from manners.reward.verdicts import pooled
from manners.store import VersionRecord
from manners.types import VERSUS, Choice, VersionKind, latest_verdicts

RESAMPLES = 2000
"""Behind the interval of the annotators' agreement."""


def keep(
    session: Session,
    name: str,
    model: RewardModel | Branch,
    result: object,
    watermark: int | None = None,
    parent: str | None = None,
    kind: VersionKind = VersionKind.POLICY,
) -> None:
    """Write the version's folder, then its row; `parent` is the version that a policy began as.

    `kind` says what a branch is; a reward model is one. Raises MannersError where another run has taken the name.
    """
    session.keep_lock()
    trunk = session.pretrained.trunk
    settings = replace(session.settings, model=session.pretrained.chosen or session.settings.model)
    reward = model if isinstance(model, RewardModel) else None
    witness = reward.witness if reward else None
    version = Version(
        name=name,
        kind=VersionKind.REWARD if reward else kind,
        base=session.settings.model.name,
        trunk_hash=trunk.hash,
        model_hash=trunk.initial_hash,
        cut=trunk.cut,
        template_hash=session.pretrained.renderer.template_hash,
        dtype=session.settings.model.dtype,
        created_at=now(),
        start=session.start,
        parent=parent,
        watermark=watermark,
        settings=asdict(settings),
        metrics=scalars(result),
        left_out=dict(getattr(result, "left_out", None) or {}),
        shifts=reward.shifts if reward else (),
        scale=reward.scales if reward else 1.0,
        witness=(witness.shifts[0], witness.scales[0]) if witness else None,
        template=session.pretrained.renderer.template.text,
    )
    branches = (*model.members, *(witness.members if witness else ())) if isinstance(model, RewardModel) else (model,)
    if name not in versions.names(session.workspace, version.kind):
        camps = {CAMPS: vars(reward.camps)} if reward and reward.camps else {}
        versions.save(session.workspace, version, branches, camps)
    elif not versions.holds(session.workspace, name, branches):  # as where a process was killed after it had written it
        raise MannersError(
            f"{session.workspace.models / name} is there already, and another run has made it: move that folder out of"
            " models/ and run this again with --resume, or give this run up by removing its checkpoints in runs/"
        )
    started_by = session.started_by if version.kind is VersionKind.POLICY else None
    gate.keep_people(session.workspace, name, people(session, watermark), started_by)
    ensure_rows(session)


def people(session: Session, watermark: int | None) -> People:
    """Return whose verdicts are in the record, up to a watermark, for the version's card."""
    everything = session.store.comparisons(as_of=watermark)
    known = without_judges(everything)
    comparisons = pooled(c for c in known if c.asked_how not in VERSUS and c.verdicts)
    given = [latest_verdicts(comparison.verdicts) for comparison in comparisons]
    kinds = sorted({verdict.annotator.kind for some in given for verdict in some})
    choices = [verdict.shown_choice for some in given for verdict in some]
    agreement = None
    if len(kinds) == 1:
        with suppress(MannersError):  # fewer than two comparisons have two verdicts that count
            fair = [c.verdicts for c in comparisons if not c.by_model]
            agreement = pair_agreement(fair, RESAMPLES, session.settings.seed)
    return People(
        kinds=tuple(str(kind) for kind in kinds),
        annotators=len({verdict.annotator for some in given for verdict in some}),
        comparisons=len(comparisons),
        verdicts={str(choice): choices.count(choice) for choice in Choice},
        agreement=agreement,
        judged=judge_verdicts(everything) or None,
    )


def ensure_rows(session: Session) -> None:
    """Record every version that has a folder but no row yet, as a process killed between the two leaves it."""
    recorded = {version.name for version in session.store.versions()}
    for kind in VersionKind:
        for name in versions.names(session.workspace, kind):
            if name in recorded:
                continue
            version = versions.describe(session.workspace, name)
            path = str((session.workspace.models / name).relative_to(session.workspace.root))
            row = VersionRecord(name, kind, path, None, version.metrics, version.watermark or 0)
            session.store.add_version(row)
