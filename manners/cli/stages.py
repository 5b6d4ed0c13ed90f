"""The commands of the stages, one for each in the list of `manners.loop.round`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from tyro.conf import arg, subcommand

from manners.cli.common import Common, Result
from manners.loop.stage import Stage


@dataclass(frozen=True, kw_only=True)
class StageCommand(Common):
    """What every stage may be asked for."""

    stage: ClassVar[Stage]
    plan: bool = False
    """Say what it will need, in memory, and stop."""
    resume: Annotated[bool, arg(help="Go on with the run that was stopped; it ends as if it had never been.")] = False

    def run(self) -> Result:
        """Run the stage, or plan it, or do what its options ask for instead."""
        chosen = {entry.name: getattr(self, entry.name) for entry in fields(self.stage.options)}
        options = self.stage.options(**chosen)
        options.check(plan=self.plan, resume=self.resume)
        from manners.loop import stages

        return stages.perform(self.open(), self.settings(), self.stage, options, plan=self.plan, resume=self.resume)


def command(stage: Stage) -> Any:
    """Return the command of a stage, with its own options before those of every stage."""
    name = stage.command.title().replace("-", "")
    record: Any = dataclass(frozen=True, kw_only=True)(type(name, (StageCommand, stage.options), {"stage": stage}))
    return Annotated[record, subcommand(stage.command, description=stage.summary)]
