"""A candidate beside the promoted policy: who may be one, and which turns of a chat ask about it.

A conversation teaches or measures, and never both: where the first question was about a candidate nothing else is asked
any more, and where it was about two answers of one policy no candidate comes. So no opening is on both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from manners.audit import gate, review
from manners.errors import MannersError
from manners.models import weight_files
from manners.models.described import Version, describe, grew_elsewhere
from manners.models.requests import Beside, EngineState, Phase
from manners.settings import Settings
from manners.types import AskedHow, VersionKind
from manners.web.engine import no_more
from manners.workspace import INITIAL, Workspace

SHARE = 0.1
"""Of turns, where none is named."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate, the promoted policy that it is put beside, and the share of turns that ask about the two."""

    version: str
    against: str
    share: float

    def beside(self, seats: int) -> Beside:
        """Return what the model's process is to hold: as large a part of the seats as of the turns."""
        return Beside(self.version, math.ceil(seats * self.share))

    def stands(self, state: EngineState) -> bool:
        """Return whether both versions answer, so that a turn may ask."""
        return (state.phase, state.version, state.candidate) == (Phase.READY, self.against, self.version)

    def asks(self, state: EngineState, workspace: Workspace) -> bool:
        """Return whether a turn may ask: both versions answer, and nobody has rejected the candidate."""
        return self.stands(state) and not _turned_down(workspace, self.version)

    def sentence(self, state: EngineState, workspace: Workspace) -> str:
        """Say how it stands, to whoever runs the server."""
        promoted = workspace.current_policy()
        if self.stands(state) and (why := _turned_down(workspace, self.version)):
            return f"{why}: nobody is asked about it"
        if self.stands(state):
            return f"{self.version} beside {self.against}, on {100 * self.share:g} % of turns in the chat"
        if promoted != self.against:
            return no_more(self.version, promoted)
        if state.phase is Phase.READY:
            return state.reason or f"{self.version} is no candidate any more: nobody is asked about it"
        return f"{self.version} waits for the model: nobody is asked about it meanwhile"


@dataclass(frozen=True, slots=True)
class Question:
    """Why a turn gets two answers."""

    asked_how: AskedHow
    probability: float
    """With which this turn was to ask so."""
    trial: Trial | None = None
    """The two versions that it is about; None for two answers of one."""


def trial_of(workspace: Workspace, settings: Settings, version: str, share: float | None, upstream: bool) -> Trial:
    """Return a trial; raises MannersError where this version cannot be a candidate here, or the share is none."""
    share = SHARE if share is None else share
    if upstream:
        raise MannersError(
            "--candidate needs a model of this workspace, and --upstream lets another server answer: leave one of them"
            " out"
        )
    if not 0 < share <= 1:
        raise MannersError(f"--share {share:g} is no share of the turns: name one above 0, and 1 at most")
    if settings.serve.seats < 2:
        raise MannersError("a candidate answers beside another policy, and serve.seats is 1: set it to 2 or more")
    against = workspace.current_policy()
    if version == against:
        raise MannersError(f"{version} is the promoted policy itself: name another one as the candidate")
    if why := _turned_down(workspace, version):
        raise MannersError(f"{why}: nobody is asked about it before that is put right, by an approval or a repair")
    if version != INITIAL:
        _check(workspace, settings, describe(workspace, version), against)
    return Trial(version, against, share)


def _turned_down(workspace: Workspace, version: str) -> str:
    """Return why a version is put before nobody: by a reviewer's word, or as what they said cannot be read."""
    try:
        rejected = review.is_rejected(gate.read(workspace, version).reviews)
    except MannersError as error:
        return str(error).rstrip(".")
    return f"{version} was rejected in its review" if rejected else ""


def _check(workspace: Workspace, settings: Settings, version: Version, against: str) -> None:
    """Raise MannersError where a version is no policy of the model at hand, or its weights are not there."""
    if version.kind is not VersionKind.POLICY:
        raise MannersError(f"{version.name} is no policy of the model at hand: only one can be a candidate")
    beside = None if against == INITIAL else describe(workspace, against)
    cuts = {(one.trunk_hash, one.cut) for one in (version, beside) if one is not None}
    if grew_elsewhere(workspace, version, settings.model.name) or len(cuts) > 1:
        raise MannersError(
            f"{version.name} grew on another model ({version.base}, cut {version.cut}) than {against}, which it would"
            " share its lower layers with: serve it by itself, in a copy of this workspace"
        )
    weight_files.check(workspace, version)


def question(lot: float, chat_ask: float, trial: Trial | None, before: AskedHow | None) -> Question | None:
    """Return what a turn asks, if anything, by a lot that is uniform in [0, 1).

    `before` is how the first comparison of the conversation was asked. The share is that of all turns of conversations
    which do not teach; of the rest of them `chat_ask` compare two answers of one policy.
    """
    share = trial.share if trial is not None and before in (None, AskedHow.CANDIDATE) else 0.0
    if lot < share:
        return Question(AskedHow.CANDIDATE, share, trial)
    chance = 0.0 if before is AskedHow.CANDIDATE else chat_ask * (1 - share)
    return Question(AskedHow.CHAT, chance) if lot < share + chance else None
