"""The command that plays rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from manners.cli.common import Common, Result
from manners.loop.options import PPOOptions


@dataclass(frozen=True, kw_only=True)
class Loop(Common, PPOOptions):
    """Play rounds, unattended or waiting for people; what was stopped anywhere is gone on with by the same command."""

    rounds: Annotated[int | None, arg(metavar="N")] = None
    """Go on until the workspace has N rounds, those that it has among them; if left out, as many as the loop that was
    stopped was to have, or 1."""
    crowd: bool = False
    """Have the simulated crowd give its verdicts at once; they are recorded as simulated. With neither this nor
    --when, a loop that was stopped goes on as it was begun."""
    when: Annotated[str | None, arg(metavar="MOMENT")] = None
    """Learn at "200 new verdicts", at "monday 03:00" or at "03:00" every day, instead of at loop.verdicts new ones; ""
    takes that back."""
    step: bool = False
    """Where something would be waited for, stop and say what."""
    one_step: bool = False
    """Do one stage of a round, and stop; where something would be waited for, say what."""
    plan: bool = False
    """Say what the rounds will need, and stop."""
    resume: Annotated[bool, arg(help="Go on with what was stopped; it does so without, too.")] = False

    def run(self) -> Result:
        """Play them, or plan them."""
        self.check(plan=self.plan, resume=self.resume)
        from manners.loop import rounds
        from manners.loop.session import Session

        session = Session(self.open(), self.settings())
        along = PPOOptions(processes=self.processes, workers=self.workers, ray_address=self.ray_address)
        asked = rounds.Asked(
            rounds=self.rounds, crowd=self.crowd, when=self.when, step=self.step, one=self.one_step, along=along
        )
        return rounds.plan(session, asked) if self.plan else rounds.play(session, asked)
