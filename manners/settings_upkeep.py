"""Settings of what keeps a workspace sound while it is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from manners.settings_values import Range, check


@dataclass(frozen=True)
class BackupSettings:
    """Backups that `manners serve` takes by itself, and puts back into a scratch folder to see that they can be."""

    into: str | None = None
    """The folder for backups, this workspace's alone, best on another disk; None takes none by itself."""
    every: Annotated[float, Range(0.1, 8_760.0)] = 24.0
    """Hours from one backup to the next."""
    keep: Annotated[int, Range(1, 10_000)] = 14
    """Backups that stay, the newest; what only older ones hold is removed after each."""
    rehearse: Annotated[float, Range(0.0, 366.0)] = 7.0
    """Days from one rehearsal of a restore to the next; 0 rehearses none."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)
