"""What disagreement leaves possible, as `results.py` has it: bounds since November 2026, before that a fit alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import model_validator


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The accuracy that annotators' disagreement leaves possible, as far as verdicts can tell."""

    low: float | None = None
    """The best predictor is at least as accurate, whatever the distribution of disagreement over pairs."""
    high: float | None = None
    """Nobody can be more accurate, whatever that distribution."""
    fit: float | None = None
    """What it is if that distribution is a beta distribution, which nothing but convenience says."""
    low_interval: tuple[float, float] | None = None
    """Of `low`."""
    high_interval: tuple[float, float] | None = None
    """Of `high`."""
    fit_interval: tuple[float, float] | None = None
    """Of `fit`, given that family."""
    pairs: int | None = None
    """Pairs with several decided verdicts, on which it rests."""
    moments: int | None = None
    """How many moments of the disagreement the bounds use: 1 from two or three verdicts a pair."""

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, facts: Any) -> Any:
        """Read what was an interval of the fit, up to November 2026, as that."""
        if not isinstance(facts, Mapping) or "estimate" not in facts:
            return facts
        return {"fit": facts["estimate"], "fit_interval": (facts.get("low"), facts.get("high"))}
