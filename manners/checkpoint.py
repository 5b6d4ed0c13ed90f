"""Checkpoints: what a run needs to go on after it was killed, and to end as if it had never been.

    runs/ppo/checkpoint-7/state.pt           tensors, counters, random states, answers so far
    runs/ppo/checkpoint-7/checkpoint.json    what the run was begun with and the version that it makes, the digest of
                                             state.pt, seconds of work so far

One folder a stage, in it the last KEEP checkpoints of its unfinished run. A checkpoint is whole or not there. It is
written at the first occasion that comes `every` seconds after the one before: when, and how often, changes nothing
about how the run ends.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from manners import ranks
from manners.errors import MannersError
from manners.settings_load import differing, withdrawn
from manners.types import Answer, FinishReason, Response, Role, Sampling, Turn
from manners.unfinished import KEEP as KEEP
from manners.unfinished import VERSION, number_of
from manners.unfinished import unfinished as unfinished
from manners.workspace import atomic_folder, discard

RECORDS = (Answer, FinishReason, Response, Role, Sampling, Turn)
"""What a state may hold besides tensors and Python's own types; nothing else is ever unpickled."""

PROMPTS, PAIRS, JUDGES, AUDITED = "the prompts", "the labelled pairs", "the admitted judges", "the pairs"
OF_THE_RECORD = frozenset({PROMPTS, PAIRS, JUDGES, AUDITED})
"""What a run was begun with that is read from the record as it was then: no setting says why it is another now."""
OTHER_PROMPTS = "some of them were deleted since, got another use, or may be answered now and might not then"
"""Why a run's prompts are others now, where no setting says why."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Changed(MannersError):
    """The record has lost something that an unfinished run was begun with, so that nobody can go on with it."""


class Damaged(Exception):
    """A checkpoint is not what was written; says what is wrong with it."""


@dataclass(frozen=True)
class Kept:
    """A checkpoint that is sound."""

    folder: Path
    begun_with: dict[str, Any]
    digest: str
    seconds: float
    """Of work up to then."""
    state: dict[str, Any]


class Run:
    """A stage's run: what it was begun with, and the state to go on from, which is empty at the beginning."""

    def __init__(
        self,
        folder: Path,
        command: str,
        begun_with: Mapping[str, Any],
        every: float,
        may_go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the folder of the stage's checkpoints, and what decides how the run will end (in JSON's types).

        `may_go_on` is asked before each checkpoint, and raises MannersError where another run has the workspace.
        """
        self.folder = folder
        self.command = command
        self.every = every
        self._may_go_on = may_go_on
        self.begun_with: dict[str, Any] = json.loads(json.dumps(begun_with))
        self.state: dict[str, Any] = {}
        self.gone_on = ""
        """The checkpoint that the work goes on from, by its name and what it holds."""
        self.afterwards: Callable[[], None] = lambda: None
        """Done when the run has ended: what it could go on from beside its checkpoints goes then."""
        self._worked = 0.0
        self._started = self._written = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of work, those of earlier processes up to the checkpoint included."""
        return self._worked + time.monotonic() - self._started

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._written >= self.every

    def begin_anew(self) -> None:
        """Make sure that nothing is lost by beginning; raises MannersError where a run is unfinished."""
        if unfinished(self.folder):
            raise MannersError(
                f"{self.folder} holds an unfinished run: go on with `{self.command} --resume`, or remove that folder to"
                " give it up"
            )

    def go_on(self) -> bool:
        """Load the newest checkpoint that is sound, and return whether there is one.

        From an older one the run ends the same. Raises MannersError naming what differs, where it was made with other
        settings or another model, and where none of them is sound; Changed where the record has lost what it was begun
        with.
        """
        there = unfinished(self.folder)
        if not there:
            return False
        kept = _newest_sound(there)
        differs = differing(kept.begun_with, self.begun_with)
        for name, was, now in differs:
            gone = withdrawn(name) or (OTHER_PROMPTS if name == PROMPTS else "")
            since = f"{gone}; " if gone else f"now it is {now}: set it as it was, or "
            refusal = MannersError(
                f"the unfinished run in {self.folder} was begun with {name} = {was}, and {since}remove that folder"
                " to begin anew"
            )
            raise Changed(str(refusal)) if {one for one, *_ in differs} <= OF_THE_RECORD else refusal
        self.state = kept.state
        self.gone_on = f"{kept.folder.name} {kept.digest}"
        self._worked = kept.seconds
        return True

    def save(self, more: Mapping[str, Any] = {}) -> None:
        """Write a checkpoint of `state` and `more` (what lives elsewhere, such as parameters); drop the oldest.

        Of several processes that train as one the first does.
        """
        if ranks.number():
            self._written = time.monotonic()
            return
        self._may_go_on()
        there = unfinished(self.folder)
        number = number_of(there[-1]) + 1 if there else 1
        with atomic_folder(self.folder / f"checkpoint-{number}") as draft:
            torch.save({**self.state, **more}, draft / "state.pt")
            described = {
                "begun_with": self.begun_with,
                VERSION: self.state.get(VERSION),
                "digest": _digest(draft / "state.pt"),
                "seconds": self.seconds,
            }
            (draft / "checkpoint.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        for old in unfinished(self.folder)[:-KEEP]:
            discard(old)
        self._written = time.monotonic()

    def done(self, name: str) -> int:
        """How many items the checkpoint holds under `name`."""
        return len(self.state.get(name, ()))

    def each(self, name: str, items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
        """Yield the result of `work` on each item, in order; what the checkpoint holds under `name` is not done again.

        Results are kept: tensors, RECORDS and Python's own types.
        """
        done: list[Result] = self.state.setdefault(name, [])
        for place, item in enumerate(items):
            if place == len(done):
                done.append(work(item))
                if self.due:
                    self.save()
            yield done[place]

    def end(self) -> None:
        """Drop the checkpoints, all at once: the run's results are where they belong."""
        if self.folder.exists():
            discard(self.folder)
        self.afterwards()


BROKEN = (EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError)
"""What reading other bytes as a checkpoint may raise."""


def _newest_sound(there: Sequence[Path]) -> Kept:
    """Return the newest checkpoint that is sound; those after it are said and removed.

    Left there, they would push the sound one out when the next is written. Raises MannersError where none is sound.
    """
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(there):
        try:
            kept = _read(checkpoint)
        except Damaged as error:
            damaged.append((checkpoint, str(error)))
            continue
        for one, why in damaged if not ranks.number() else ():
            print(f"{one} is damaged ({why}), and is removed; going on from {checkpoint.name}", file=sys.stderr)
            discard(one)
        return kept
    newest, why = damaged[0]
    raise MannersError(
        f"{newest} is damaged ({why}), and no checkpoint before it is sound: remove {newest.parent} to begin anew"
    )


def _read(checkpoint: Path) -> Kept:
    """Read a checkpoint as data, of which nothing is run. Raises Damaged."""
    try:
        described = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
        begun_with, seconds = dict(described["begun_with"]), float(described["seconds"])
        digest = _digest(checkpoint / "state.pt")
        sound = digest == described["digest"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Damaged(getattr(error, "strerror", None) or type(error).__name__) from error
    if not sound:
        raise Damaged("its state is not what was written")
    try:
        with torch.serialization.safe_globals(list(RECORDS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError("it holds no state")
    except (*BROKEN, pickle.UnpicklingError) as error:
        raise Damaged(f"its state is no checkpoint of ours: {type(error).__name__}") from error
    return Kept(checkpoint, begun_with, digest, seconds, state)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
