"""The promoted policy at work, and a candidate beside it: two batches over one trunk, for requests that ask for both.

What a policy writes depends on nothing that the other one does. A step of the one is followed by a step of the other,
so that answers of both come at the same pace.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from manners.models.batch import Prepared, RunningBatch, Tell
from manners.models.requests import Failed, Said


class Pair:
    """A batch of the promoted policy, and one of a candidate until that is let go."""

    def __init__(self, promoted: RunningBatch, candidate: RunningBatch | None) -> None:
        """Take both; None for no candidate."""
        self._promoted = promoted
        self._candidate = candidate
        self._leaving = False
        """Whether the candidate is given nothing more, and goes with the last answer that it owes."""

    @property
    def version(self) -> str:
        """The promoted policy."""
        return self._promoted.version

    @property
    def candidate(self) -> str | None:
        """The policy that can be asked beside it; None for none, or none any more."""
        return None if self._candidate is None or self._leaving else self._candidate.version

    @property
    def begun(self) -> bool:
        """Whether an answer of the promoted policy is half written."""
        return self._promoted.begun

    @property
    def _batches(self) -> tuple[RunningBatch, ...]:
        return (self._promoted,) if self._candidate is None else (self._promoted, self._candidate)

    def idle(self, admit: bool) -> bool:
        """Whether there is nothing to do for `step`, for now; `admit` is of the promoted policy."""
        return self._promoted.idle(admit) and (self._candidate is None or self._candidate.idle())

    def admit(self, key: int, prepared: Prepared) -> None:
        """Let a request wait for its turn; without a candidate, the promoted policy writes what was asked of it too."""
        side = prepared.request.candidate
        if side is None or self._candidate is None or self._leaving:
            self._promoted.admit(key, prepared)
            return
        self._promoted.admit(key, prepared, [n for n in range(prepared.request.count) if n != side])
        self._candidate.admit(key, prepared, [side])

    def cancel(self, key: int) -> None:
        """Forget a request, wherever it is."""
        for batch in self._batches:
            batch.cancel(key)
        self._let_go()

    def rest(self, key: int) -> None:
        """Write no more for a request until it goes on."""
        for batch in self._batches:
            batch.rest(key)

    def go_on(self, key: int) -> None:
        """Write on for a request, where it was."""
        for batch in self._batches:
            batch.go_on(key)

    def end_resting(self, why: str) -> Said:
        """Fail what rests, where it is all that the promoted policy has half written, whatever the candidate does."""
        said = self._promoted.end_resting(why)
        self._drop(said)
        return said

    def step(self, admit: bool, tell: Tell | None = None) -> Said:
        """Draw a token for every row of both; what fails in one of them fails its request in the other too.

        What the first tokens of answers of the promoted policy write is handed to `tell` before all else.
        """

        def soon(first: Said) -> None:
            self._drop(first)
            if tell is not None:
                tell(first)

        said = self._promoted.step(admit, soon)
        self._drop(said)
        if self._candidate is not None:
            theirs = self._candidate.step()
            self._drop(theirs)
            said += theirs
            self._let_go()
        return said

    def read(self) -> Said:
        """Read what `step` drew; whose tokens cannot be read fails in both."""
        said: Said = ()
        for batch in self._batches:
            theirs = batch.read()
            self._drop(theirs)
            said += theirs
        return said

    def take_policy(self, model: PreTrainedModel, version: str) -> None:
        """Go on with another promoted policy, none of whose rows may have begun; the candidate was one beside the last.

        It ends what it writes, and is given nothing more.
        """
        self._promoted.take_policy(model, version)
        self._leaving = True
        self._let_go()

    def _let_go(self) -> None:
        """Give the candidate's memory back once it owes nobody anything."""
        if self._leaving and self._candidate is not None and self._candidate.empty:
            self._candidate = None

    def _drop(self, said: Said) -> None:
        for key, event in said:
            if isinstance(event, Failed):
                self.cancel(key)
